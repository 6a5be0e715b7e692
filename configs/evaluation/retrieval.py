"""Search: reports by a volume and volumes by a report, and volumes by a volume.

Command:   medclip evaluate --workdir W --config configs/evaluation/retrieval.py --json retrieval.json
Needs:     a split test; labels for what volumes find. Models without text skip retrieval.
Settings:  docs/reference/metrics.md
"""

from medclip_jax.evaluation.config import evaluation_config


def get_config():
    config = evaluation_config()
    config.evaluators = {
        "retrieval": {"text": "impression"},
        "reports": {"kind": "retrieval", "text": "report"},
        "library": {"pictures": 0},
    }
    return config
