"""Cardiac-CLIP stage 1: masked autoencoding of heart-centered CT, the paper's values.

Command:   medclip train --config configs/cardiac_clip/mae.py --workdir runs/cardiac_mae \
               --config.data.shards=SHARDS
Shards:    medclip prepare --corpus folder --table studies.csv --root DIR --out SHARDS \
               --shape 128 144 144 (with a crop around the heart: --crop heart)
Hardware:  the paper used one 48 GB GPU; ViT-B at 5184 tokens, 1296 of them visible.
Time:      not published.
Expected:  no score of its own; the reconstruction error falls and stage 2 gains
           (from the paper, CCTA, mean AUROC of the ablation's rows: see contrastive.py).
"""

from medclip_jax.objectives import mae
from medclip_jax.training.config import base_config


def get_config():
    config = base_config()
    config.data.prepare.update(shape=(128, 144, 144), crop="heart")
    config.objective = mae.default_config()
    config.batch_size = 64
    config.epochs = 50.0
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.01
    config.optimizer.warmup_steps = 1000  # the paper warms up but does not say for how long
    config.log.peak_tflops = 0.0
    return config
