"""What `medclip evaluate --suite phantom` asks of every system.

Command:   medclip evaluate --suite phantom --out medclip-suite
           or, of one model: medclip evaluate --workdir W --config configs/evaluation/suite.py
Needs:     splits train, validation and test. What a model cannot do is skipped with the reason.
Settings:  docs/reference/metrics.md
"""

from medclip_jax.evaluation.config import evaluation_config


def get_config():
    config = evaluation_config()
    config.batch_size = 32
    config.evaluators = {
        "zero_shot": {"draws": 200},
        "prediction": {"draws": 200},
        "retrieval": {"text": "impression", "ks": (1, 10), "subset": 0},
        "probe": {"shares": (0.01, 0.1, 1.0), "seeds": 2, "draws": 200, "penalties": (100.0, 1.0, 0.01)},
        "knn": {"ks": (20,), "draws": 0},
        "few_shot": {"shots": (1, 16), "features": "pooled", "repeats": 10},
        "prognosis": {"draws": 200, "penalties": (100.0, 1.0, 0.01)},
        "subgroups": {"of": ("probe/100%",), "groups": ("contrast", "scanner", "sex"), "draws": 100},
        "vocabulary": {"epochs": 10, "batch": 64, "retrieval_epochs": 0, "draws": 200},
        "pointing": {"margin": 10.0, "samples": 10, "pictures": 0, "draws": 200},
        "spectrum": {"pictures": 0},
    }
    return config
