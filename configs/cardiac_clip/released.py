"""Cardiac-CLIP from its published weights: more contrastive training on scans and reports of your own.

Command:   medclip import --format cardiac_clip --checkpoint cardiac_clip.ckpt --text-encoder PUBMEDBERT \
               --out CARDIAC_CLIP
           medclip train --config configs/cardiac_clip/released.py --workdir runs/cardiac_clip_tuned \
               --config.data.shards=SHARDS --config.data.tokenizer=CARDIAC_CLIP \
               --config.initial_weights.workdir=CARDIAC_CLIP
           (PUBMEDBERT: a local Hugging Face folder with config.json and tokenizer files;
           docs/how-to/weights.md)
Shards:    medclip prepare --table studies.csv --root DIR --out SHARDS --crop heart \
               --shape 128 144 144 --spacing 1 1.25 1.25
Hardware:  the paper used one 48 GB GPU, batch 16.
Time:      not published; set config.epochs by the size of your data.
Expected:  before any step, from the paper: mean zero-shot AUROC of seven findings 0.808 on CCTA and 0.834 on
           CACCT (its internal cohort). What such tuning adds is not published; with a classifier on top,
           the paper goes from 0.742 (zero-shot) to 0.802 AUROC for acute coronary syndrome.
"""

from medclip_jax.objectives import cardiac_clip
from medclip_jax.training.config import base_config


def get_config():
    config = base_config()
    config.data.prepare.update(shape=(128, 144, 144), spacing=(1.0, 1.25, 1.25), crop="heart")
    config.objective = cardiac_clip.default_config()
    # The architecture of the published code, with the window that an import assumes.
    config.objective.vision.update(
        position="learned",
        pre_norm=True,
        activation="quick_gelu",
        layer_norm_epsilon=1e-5,
        windows=((-1024.0, 1500.0),),
    )
    config.objective.text.update(pooling="highest_id", vocabulary=30522)
    config.objective.projection_bias = True
    config.data.text = {"report": 0.5, "statements": 0.5, "findings_text": 0.0, "impression": 0.0}
    config.data.text_length = 160
    config.batch_size = 16
    config.epochs = 3.0
    config.optimizer.learning_rate = 1e-5
    config.optimizer.weight_decay = 0.01
    config.optimizer.warmup_steps = 100
    config.optimizer.multipliers = ((r"_projection/", 5.0),)
    config.evaluation.split = "validation"
    config.evaluation.evaluators = {"zero_shot": {}, "retrieval": {}}
    return config
