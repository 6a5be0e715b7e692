"""Findings: by prompts, and by classifiers on frozen features with 1, 10 and 100 % of the labels.

Command:   medclip evaluate --workdir W --config configs/evaluation/classification.py \
               --json classification.json
Needs:     splits train, validation and test with labels. Models without text skip zero_shot.
Settings:  docs/reference/metrics.md
"""

from medclip_jax.evaluation.config import evaluation_config


def get_config():
    config = evaluation_config()
    config.evaluators = {
        "zero_shot": {"threshold": "validation"},
        "probe": {"shares": (0.01, 0.1, 1.0), "seeds": 5},
        "mlp_probe": {"epochs": 100},
        "few_shot": {"shots": (1, 4, 16), "features": "pooled"},
    }
    return config
