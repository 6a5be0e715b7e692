"""ASAP's vocabulary protocol: two projections learn findings on frozen encoders, two more learn retrieval.

Command:   medclip evaluate --workdir W --config configs/evaluation/vocabulary.py --json vocabulary.json
Needs:     a text tower; splits train and test with labels and reports.
Settings:  docs/reference/metrics.md
"""

from medclip_jax.evaluation.config import evaluation_config


def get_config():
    config = evaluation_config()
    config.evaluators = {"vocabulary": {"features": "pooled", "epochs": 20, "retrieval_epochs": 40}}
    return config
