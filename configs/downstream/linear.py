"""Linear probe on the training loop: the tower stays as it was pretrained, a linear head learns findings.

`medclip evaluate --evaluators probe` fits logistic regressions on the same features in seconds; this is for
what it lacks: augmentation, ASAP's recipe of steps and rates, and a model that predicts by itself.

Command:   medclip train --config configs/downstream/linear.py --workdir runs/linear \
               --config.data.shards=SHARDS --config.initial_weights.workdir=runs/clip
Hardware:  one GPU, or a laptop at the size of configs/own.
Time:      not measured on an archive; `medclip check` estimates it.
Expected:  not measured: it depends on the scans. `medclip evaluate --split test` says it.
"""

from . import classify


def get_config():
    config = classify.get_config()
    config.objective.head.layers = "linear"
    config.objective.features = "asap"
    config.optimizer.frozen = (r"^vision/",)
    config.optimizer.multipliers = ()
    # ASAP tries 1.5e-3, 3e-3 and 5e-3; choose on the validation split.
    config.optimizer.learning_rate = 3e-3
    config.optimizer.weight_decay = 0.0
    return config
