"""Findings and diagnoses by labels: CMR-CLIP's frame tower with a head, fine-tuned or from scratch.

Command:   medclip train --config configs/cmr_clip/classify.py --workdir runs/cmr_classify \
               --config.data.shards=SHARDS --config.initial_weights.workdir=runs/cmr_clip
           then: medclip evaluate --workdir runs/cmr_classify --evaluators prediction --page prediction.html
           From scratch, as a supervised baseline: --config.initial_weights.workdir=
           SHARDS is a set of `medclip prepare --corpus cmr` with labels. A head on a frozen tower:
           --config.optimizer.frozen="('^vision/',)"
Hardware:  `medclip check --config configs/cmr_clip/classify.py --findings 13 --chip h100` says what fits.
Time:      not measured on an archive; configs/cmr_clip/classify_demo.py has a small run.
Expected:  not measured: it depends on the studies. `medclip evaluate --split test` says it.
"""

from medclip_jax.objectives import supervised_frames

from ..downstream.classify import training
from . import pretrain


def get_config():
    config = pretrain.get_config()
    tower, config.objective = config.objective.vision, supervised_frames.default_config()
    config.objective.vision = tower
    config.objective.head.layers = "mlp"
    training(config)
    # As Cardiac-CLIP: 5e-5 for the head, a fifth of it for the encoder.
    config.optimizer.learning_rate = 5e-5
    config.optimizer.multipliers = ((r"^vision/", 0.2),)
    return config
