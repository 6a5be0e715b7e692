"""What a frozen tower holds: its tokens' spectrum, and a linear probe beside that of random weights.

Command:   medclip evaluate --workdir W --config configs/evaluation/representation.py \
               --page representation.html
Needs:     splits train, validation and test with labels, and a vision transformer for the spectrum.
Settings:  docs/reference/metrics.md
"""

from medclip_jax.evaluation.config import evaluation_config


def get_config():
    config = evaluation_config()
    config.evaluators = {
        "spectrum": {},
        "probe": {"baseline": "random", "seeds": 5},
    }
    return config
