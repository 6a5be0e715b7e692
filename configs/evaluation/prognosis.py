"""What becomes of the patients: a Cox head on frozen features, beside discrete hazards.

Command:   medclip evaluate --workdir W --config configs/evaluation/prognosis.py --page prognosis.html
Needs:     measurements survival_months and event (1 event, 0 end of observation) in train, validation and
           test; others: --set cox.time=NAME --set cox.event=NAME, and likewise of hazards.
Settings:  docs/reference/metrics.md
"""

from medclip_jax.evaluation.config import evaluation_config


def get_config():
    config = evaluation_config()
    config.evaluators = {
        "cox": {"kind": "prognosis", "head": "cox", "horizons": (1.0, 6.0, 12.0)},
        "hazards": {"kind": "prognosis", "head": "discrete", "horizons": (1.0, 6.0, 12.0)},
    }
    return config
