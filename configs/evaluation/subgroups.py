"""The same scores by scanner, sex, age or other group, and what each group differs by from the rest.

Command:   medclip evaluate --workdir W --config configs/evaluation/subgroups.py --page subgroups.html
           of a measurement, in bands: --set "subgroups.bands={'age': (0, 50, 65, 120)}"
Needs:     groups, or a measurement; labels in train, validation and test. Models without text skip zero_shot.
Settings:  docs/reference/metrics.md
"""

from medclip_jax.evaluation.config import evaluation_config


def get_config():
    config = evaluation_config()
    config.evaluators = {
        "zero_shot": {},
        "probe": {"shares": (1.0,), "seeds": 1},
        "subgroups": {"groups": (), "metric": "auroc"},
    }
    return config
