"""Segmentation by UNETR: a vision transformer learns the label maps of an archive, from pretrained weights.

Shards:    medclip prepare --corpus nnunet --root Dataset003_Liver --out SHARDS \
               --shape 128 224 224 --spacing 3 1.5 1.5 --label-maps corpus
Command:   medclip train --config configs/downstream/unetr.py --workdir runs/unetr \
               --config.data.shards=SHARDS --config.initial_weights.workdir=runs/mae
           From nothing: --config.initial_weights.workdir=
           The tower is that of configs/cardiac_clip; of another run, give its fields too:
           --config.objective.vision.patch="(8,16,16)" and so on.
Hardware:  `medclip check --config configs/downstream/unetr.py --chip h100` says what fits yours.
Time:      not measured at this size; docs/reference/segmentation.md has small runs.
Expected:  not measured on a public archive.
"""

from medclip_jax.objectives import segment
from medclip_jax.training.config import base_config


def get_config():
    config = base_config()
    config.objective = segment.default_config()
    config.data.prepare.label_classes = ("liver", "tumor")  # for `medclip check` without shards
    config.objective.vision.augment.update(noise_hu=20.0, gain=0.1, offset_hu=50.0)
    config.objective.crops.update(shape=(48, 96, 96), count=4, foreground=0.5)
    # The tower of an earlier stage; the decoder is drawn anew.
    config.initial_weights.include = (r"^vision/",)
    config.batch_size = 4  # volumes, of which each gives its crops
    config.steps = 20_000
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 500
    config.optimizer.weight_decay = 1e-5
    config.optimizer.clip_norm = 1.0
    config.checkpoint.every_steps = 1000
    config.evaluation.every_steps = 2000
    config.evaluation.evaluators = {"segmentation": {"overlap": 0.5, "draws": 0, "pictures": 0}}
    config.evaluation.best.metric = "segmentation/dice_mean"  # on the validation split
    return config
