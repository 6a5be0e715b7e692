"""Do heat maps point at lesions? The pointing game, in the lesion and within 10 mm of it.

Command:   medclip evaluate --workdir W --config configs/evaluation/pointing.py --page pointing.html
Needs:     a text tower; label maps with classes that are called as findings (--label-maps corpus).
Settings:  docs/reference/metrics.md
"""

from medclip_jax.evaluation.config import evaluation_config


def get_config():
    config = evaluation_config()
    config.evaluators = {
        "inside": {"kind": "pointing", "margin": 0.0, "samples": 50, "pictures": 4},
        "near": {"kind": "pointing", "margin": 10.0, "samples": 50, "pictures": 0},
    }
    return config
