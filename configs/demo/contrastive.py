"""Demo, stage 2: Cardiac-CLIP on phantoms.

Command:   medclip demo (or: medclip train --config configs/demo/contrastive.py --workdir W \
               --config.data.shards=SHARDS --config.initial_weights.workdir=STAGE1)
Hardware:  2 CPU cores.
"""

import runpy
from pathlib import Path

from medclip_jax.corpora.phantom import FINDINGS
from medclip_jax.objectives import cardiac_clip
from medclip_jax.training.config import base_config

vision = runpy.run_path(str(Path(__file__).with_name("mae.py")))["vision"]


def get_config():
    config = base_config()
    config.objective = cardiac_clip.default_config()
    vision(config.objective.vision)
    config.objective.text.update(
        width=96, depth=2, heads=4, max_positions=512, dtype="float32", pooling="mean"
    )
    config.objective.embedding_width = 64
    config.objective.findings = FINDINGS
    config.objective.target_temperature = 0.25
    config.data.text = {"report": 0.3, "statements": 0.7, "findings_text": 0.0, "impression": 0.0}
    config.data.text_length = 192
    config.batch_size = 32
    config.steps = 300
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 20
    config.initial_weights.include = (r"^vision/",)
    config.log.every_steps = 5
    config.log.tensorboard = False
    return config
