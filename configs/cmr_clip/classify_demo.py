"""The supervised baseline of the demo's CMR-CLIP: its frame tower, trained with labels and no impressions.

Shards:    as `medclip demo --system cmr_clip` prepares them
Command:   medclip train --config configs/cmr_clip/classify_demo.py --workdir W --config.data.shards=SHARDS
           Fine-tuned: --config.initial_weights.workdir=DEMO/cmr_clip
Hardware:  2 CPU cores.
Time:      2.6 minutes for 400 steps, 127 s of processor time (measured, with compilers beside it).
Expected:  243 unseen phantoms, from scratch, one seed (measured): mean AUROC of thirteen findings and
           diagnoses 0.90; scar and regional motion 0.76, the aortic root 0.44. CMR-CLIP's prompts reach 0.84
           after 800 steps.
"""

from medclip_jax.objectives import supervised_frames
from medclip_jax.training.config import base_config

from . import demo


def get_config():
    config = demo.get_config()
    tower, config.objective = config.objective.vision, supervised_frames.default_config()
    config.objective.vision = tower
    config.data.text = base_config().data.text
    config.steps = 400
    config.initial_weights.include = (r"^vision/",)
    config.evaluation.every_steps = 100
    config.evaluation.evaluators = {"prediction": {"draws": 0}}
    config.evaluation.best.metric = "prediction/auroc_mean"  # on the validation split
    return config
