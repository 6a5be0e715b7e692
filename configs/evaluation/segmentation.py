"""How well a segmentation model tells the class of each voxel.

Command:   medclip evaluate --workdir W --config configs/evaluation/segmentation.py --page segmentation.html
Needs:     a run of configs/downstream/unetr.py or unet.py, and shards with label maps.
Settings:  docs/reference/segmentation.md
"""

from medclip_jax.evaluation.config import evaluation_config


def get_config():
    config = evaluation_config()
    config.batch_size = 4
    config.evaluators = {"segmentation": {"overlap": 0.5}}
    return config
