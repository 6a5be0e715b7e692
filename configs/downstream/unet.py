"""Segmentation by a U-Net: a ResNet and a decoder on its stages learn the label maps of an archive.

Shards:    as for configs/downstream/unetr.py
Command:   medclip train --config configs/downstream/unet.py --workdir runs/unet \
               --config.data.shards=SHARDS --config.initial_weights.workdir=runs/t3d
           From nothing: --config.initial_weights.workdir=
Hardware:  `medclip check --config configs/downstream/unet.py --chip h100` says what fits yours.
Time:      not measured at this size; docs/reference/segmentation.md has small runs.
Expected:  not measured on a public archive.
"""

from medclip_jax.objectives.towers import vision_defaults

from . import unetr


def get_config():
    config = unetr.get_config()
    config.objective.vision = vision_defaults("resnet")
    # Few volumes a step: statistics of a batch would be those of a single one.
    config.objective.vision.update(norm="group", standardize=((-1.0, 2.0),))
    config.objective.vision.augment.update(noise_hu=20.0, gain=0.1, offset_hu=50.0)
    return config
