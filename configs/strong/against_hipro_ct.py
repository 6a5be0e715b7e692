"""HiPro-CT's losses with towers, texts, steps and start of configs/strong/demo.py, to compare the recipes.

Its volumes are pooled by the mean, as its organs are: "grid" pooling, which the others have, does not fit.

Shards:    as for configs/hipro_ct/demo.py
Command:   medclip train --config configs/strong/against_hipro_ct.py --workdir runs/against_hipro_ct \
               --config.data.shards=SHARDS --config.initial_weights.workdir=STAGE1 --config.steps=300
           (STAGE1: medclip-demo/mae after `medclip demo`)
Hardware:  2 CPU cores.
Time:      10 minutes for 300 steps beside other work (measured).
Expected:  mean zero-shot AUROC of eleven findings on 230 unseen phantoms after 300 steps, three
           seeds: 0.636 (0.629 to 0.646); configs/strong/demo.py 0.861 (measured, docs/reference/strong.md).
"""

from ..demo import contrastive
from ..hipro_ct import demo


def get_config():
    config, shared = demo.get_config(), contrastive.get_config()
    config.objective.vision = shared.objective.vision
    config.objective.vision.pooling = "mean"  # its organs are means over their patches: nothing else fits
    config.objective.text = shared.objective.text
    config.data.text.update(**shared.data.text)
    config.data.most_statements = shared.data.most_statements
    config.data.text_length = shared.data.text_length
    config.steps = shared.steps
    config.initial_weights.include = shared.initial_weights.include
    return config
