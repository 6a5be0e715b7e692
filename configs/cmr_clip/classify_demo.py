"""The supervised baseline of the demo's CMR-CLIP: its frame tower, trained with labels and no impressions.

Shards:    as `medclip demo --system cmr_clip` prepares them
Command:   medclip train --config configs/cmr_clip/classify_demo.py --workdir W --config.data.shards=SHARDS
           Fine-tuned: --config.initial_weights.workdir=DEMO/cmr_clip
Hardware:  2 CPU cores.
Time:      not measured.
Expected:  not measured.
"""

from medclip_jax.objectives import supervised_frames
from medclip_jax.training.config import base_config

from . import demo


def get_config():
    config = demo.get_config()
    tower, config.objective = config.objective.vision, supervised_frames.default_config()
    config.objective.vision = tower
    config.data.text = base_config().data.text
    config.initial_weights.include = (r"^vision/",)
    config.evaluation.every_steps = 100
    config.evaluation.evaluators = {"prediction": {"draws": 0}}
    config.evaluation.best.metric = "prediction/auroc_mean"  # on the validation split
    return config
