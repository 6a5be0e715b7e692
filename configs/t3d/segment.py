"""Segmentation as T3D measures it: the pretrained ResNet-50 with a U-Net's decoder, full volumes at 1 mm.

Shards:    medclip prepare --corpus decathlon --root Task06_Lung --out SHARDS \
               --shape 320 320 320 --spacing 1 1 1 --label-maps corpus
           (or AMOS, --corpus nnunet)
Command:   medclip train --config configs/t3d/segment.py --workdir runs/t3d_segment \
               --config.data.shards=SHARDS --config.initial_weights.workdir=runs/t3d
           From nothing: --config.initial_weights.workdir=
Hardware:  `medclip check --config configs/t3d/segment.py --chip h100` says what fits yours.
Time:      the paper does not say.
Expected:  from the paper, Dice 0.898 on AMOS, 0.701 on MSD-Lung. Not reproduced here.
           From the paper: 1 mm, HU -1000 to 1000 as 0 to 1, full volumes, mirroring with probability .5,
           rotation .3 (here: quarter turns), intensities scaled and shifted (here: every volume a little).
           It does not say the grid, the batch, the rate or the steps.
"""

from medclip_jax.objectives import t3d

from ..downstream import unet


def get_config():
    config = unet.get_config()
    config.objective.vision = t3d.default_config().vision  # batch norm, as it was pretrained
    config.data.prepare.update(shape=(320, 320, 320), spacing=(1.0, 1.0, 1.0))
    config.objective.vision.remat = "stage"
    config.objective.crops.update(shape=(), count=1, foreground=0.0, mirror=0.5, turn=0.3)
    config.objective.vision.augment.update(noise_hu=0.0, gain=0.1, offset_hu=100.0)
    config.batch_size = 8
    return config
