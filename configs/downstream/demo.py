"""The supervised baseline of the demo: the tower of its Cardiac-CLIP, trained with labels and no reports.

Shards:    as `medclip demo` prepares them
Command:   medclip train --config configs/downstream/demo.py --workdir runs/supervised_demo \
               --config.data.shards=SHARDS --config.initial_weights.workdir=STAGE1
           (SHARDS and STAGE1: medclip-demo/shards and medclip-demo/mae after `medclip demo`)
Hardware:  2 CPU cores.
Time:      not measured by itself; docs/downstream.md has the suite's.
Expected:  not measured by itself; docs/downstream.md has the suite's.
"""

from medclip_jax.corpora.phantom import FINDINGS
from medclip_jax.objectives import supervised
from medclip_jax.training.config import base_config

from ..demo import contrastive


def get_config():
    config = contrastive.get_config()
    tower, config.objective = config.objective.vision, supervised.default_config()
    config.objective.vision = tower
    config.objective.calibrate = True  # the first stage pooled otherwise
    config.objective.target.findings = FINDINGS
    config.data.text = base_config().data.text
    config.steps = 300
    config.evaluation.every_steps = 50
    config.evaluation.evaluators = {"prediction": {"draws": 0}}
    config.evaluation.best.metric = "prediction/auroc_mean"
    return config
