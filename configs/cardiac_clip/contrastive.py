"""Cardiac-CLIP stage 2: soft-label contrast with reports and statements.

The paper's values, but for a sharper target; paper.py lists where paper and release differ from this.

Command:   medclip train --config configs/cardiac_clip/contrastive.py --workdir runs/cardiac_clip \
               --config.data.shards=SHARDS --config.initial_weights.workdir=runs/cardiac_mae \
               --config.objective.text.folder=PUBMEDBERT --config.data.tokenizer=PUBMEDBERT
           (PUBMEDBERT: a local Hugging Face folder with config.json, model.safetensors, tokenizer files)
Hardware:  the paper used one 48 GB GPU, batch 16.
Time:      not published; 10 epochs.
Expected:  mean zero-shot AUROC of seven findings, from the paper: 0.808 on CCTA, 0.834 on CACCT
           (internal cohort, all three components); the rows of its ablation reach 0.609 / 0.582,
           0.771 / 0.783 and 0.807 / 0.827.
"""

from medclip_jax.objectives import cardiac_clip
from medclip_jax.training.config import base_config


def get_config():
    config = base_config()
    config.data.prepare.update(shape=(128, 144, 144), crop="heart")
    config.objective = cardiac_clip.default_config()
    # A third of a row's target on its own pair, in batches of 16 CT-RATE reports; at 1, a tenth.
    config.objective.target_temperature = 0.1
    config.data.text = {"report": 0.5, "statements": 0.5, "findings_text": 0.0, "impression": 0.0}
    config.data.text_length = 512
    config.batch_size = 16
    config.epochs = 10.0
    config.optimizer.learning_rate = 1e-5
    config.optimizer.weight_decay = 0.01
    config.optimizer.warmup_steps = 1000  # the paper warms up but does not say for how long
    config.optimizer.multipliers = ((r"_projection/", 5.0),)  # 5e-5 on the projections
    config.initial_weights.include = (r"^vision/",)
    config.evaluation.split = "validation"
    config.evaluation.evaluators = {"zero_shot": {}, "retrieval": {}}
    return config
