"""Your own scans, stage 2: Cardiac-CLIP's contrast with your reports, for a laptop or one GPU.

Command:   medclip train --config configs/own/contrastive.py --workdir runs/clip \
               --config.data.shards=SHARDS --config.initial_weights.workdir=runs/mae
Shards:    medclip prepare --table studies.csv --out SHARDS --shape 112 224 224 --spacing 3 1.5 1.5
           (as for stage 1; the findings are all that were prepared)
Hardware:  a laptop, or one GPU from 16 GB; on a GPU, bfloat16 is about twice as fast:
           --config.objective.vision.dtype=bfloat16 --config.objective.text.dtype=bfloat16
Time:      not measured on an archive; `medclip check` estimates it.
Expected:  not measured: it depends on your scans. `medclip evaluate --split test` says it.
"""

from medclip_jax.objectives import cardiac_clip
from medclip_jax.training.config import base_config

from .mae import training, vision


def get_config():
    config = base_config()
    config.objective = cardiac_clip.default_config()
    vision(config.objective.vision)
    config.objective.text.update(width=256, depth=2, heads=4, dtype="float32", pooling="mean", scan=True)
    config.objective.embedding_width = 256
    config.objective.centered = True
    config.objective.findings = ()  # all that the shards have
    # Short texts, too: the prompts of zero-shot are short.
    config.data.text.update(report=0.4, some_statements=0.3, impression=0.3)
    config.data.text_length = 256
    training(config)
    config.epochs = 15.0
    config.initial_weights.include = (r"^vision/",)
    return config
