"""Demo, stage 2: Cardiac-CLIP on phantoms.

Command:   medclip demo
           or: medclip train --config configs/demo/contrastive.py --workdir W \
               --config.data.shards=SHARDS --config.initial_weights.workdir=STAGE1
Hardware:  2 CPU cores.
Time:      4.7 minutes for 610 steps (measured).
Expected:  mean zero-shot AUROC of eleven findings on 230 unseen phantoms 0.89, one seed; ten intensity
           statistics 0.57 (measured, docs/results.md).
"""

from medclip_jax.corpora.phantom import FINDINGS
from medclip_jax.objectives import cardiac_clip
from medclip_jax.training.config import base_config

from .data import expect
from .mae import vision


def get_config():
    config = base_config()
    expect(config)
    config.objective = cardiac_clip.default_config()
    vision(config.objective.vision)
    config.objective.vision.pooling = "grid"  # volumes are centered on the heart: places mean something
    config.objective.vision.grid_features = 24
    config.objective.vision.augment.shift_voxels = (0, 1, 1)  # more: slower, see the study
    config.objective.text.update(width=128, depth=1, heads=2, dtype="float32", pooling="mean")
    config.objective.embedding_width = 128
    config.objective.centered = True
    config.objective.findings = FINDINGS
    config.objective.target_temperature = 0.08
    config.objective.logit_scale = 20.0
    # Impressions name what is there: a bag of words says it, and gives the volume tower its first footing.
    # With statements alone nothing moved. One or two of them, as short as a prompt, teach the text tower in
    # fewer steps than long ones what "no" belongs to.
    config.data.text.update(report=0.0, some_statements=0.4, impression=0.6)
    config.data.most_statements = 2
    config.data.text_length = 48  # of 1500 impressions, 99 % fit
    config.batch_size = 48
    config.steps = 610
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 30
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    config.initial_weights.include = (r"^vision/",)
    config.log.every_steps = 20
    config.log.tensorboard = False
    return config
