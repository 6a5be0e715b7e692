"""Cardiac-CLIP stage 2 as the paper and its released code train it; `contrastive.py` has our defaults.

Command:   medclip train --config configs/cardiac_clip/paper.py --workdir runs/cardiac_clip_paper \
               --config.data.shards=SHARDS --config.initial_weights.workdir=runs/cardiac_mae \
               --config.objective.text.folder=PUBMEDBERT --config.data.tokenizer=PUBMEDBERT
           (PUBMEDBERT: a local Hugging Face folder with config.json, model.safetensors, tokenizer files)
Hardware:  the paper used one 48 GB GPU, batch 16.
Time:      not published; 25 970 steps.
Expected:  mean zero-shot AUROC of seven findings, from the paper: 0.808 on CCTA, 0.834 on CACCT (internal
           cohort). Not reproduced here.

Differences from contrastive.py, one a line:
  objective.target_temperature  1.0           the release; in batches of 16 it leaves about 12 % of a row's
                                              target on its own pair (9 % over 800 reports of CT-RATE)
  objective.text_targets        "transposed"  the release: rows of Q^T, which do not sum to 1
  optimizer.schedule            "linear"      the release decays linearly; the paper says cosine
  optimizer.warmup_fraction     0.05          the release; the paper warms up but does not say for how long
  optimizer.betas               (0.9, 0.98)   the release; the paper does not say
  steps                         25 970        the release's 10 epochs, each of which visits every pair of a
                                              volume and one of its texts
In half precision the release computes in float16, both configs here in bfloat16. The layers of the released
network (learned positions, a norm before the blocks, QuickGELU) are in released.py.
"""

from . import contrastive


def get_config():
    config = contrastive.get_config()
    config.objective.target_temperature = 1.0
    config.objective.text_targets = "transposed"
    config.epochs = 0.0
    config.steps = 25_970
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 0
    config.optimizer.warmup_fraction = 0.05
    config.optimizer.betas = (0.9, 0.98)
    return config
