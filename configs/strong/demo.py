"""The recipe of configs/strong/pretrain.py on phantoms, at the size of the demo's Cardiac-CLIP.

Studies, towers, texts, steps and start are those of configs/demo/contrastive.py. The losses differ: sigmoid
pairs instead of soft targets, and findings asked by prompts.

Shards:    as `medclip demo` prepares them
Command:   medclip train --config configs/strong/demo.py --workdir runs/strong_demo \
               --config.data.shards=SHARDS --config.initial_weights.workdir=STAGE1
           (SHARDS and STAGE1: medclip-demo/shards and medclip-demo/mae after `medclip demo`)
Hardware:  2 CPU cores.
Time:      2 minutes for 300 steps (measured).
Expected:  mean zero-shot AUROC of eleven findings on 230 unseen phantoms after 300 steps
           (--config.steps=300), three seeds: 0.861 (0.859 to 0.863), the demo's Cardiac-CLIP 0.829
           (0.817 to 0.846); measured, docs/reference/strong.md. 610 steps: not measured.
"""

from medclip_jax.corpora.phantom import FINDINGS
from medclip_jax.objectives import clip

from ..demo import contrastive


def get_config():
    config = contrastive.get_config()
    shared, config.objective = config.objective, clip.default_config()
    for name in ("vision", "text", "embedding_width", "centered"):
        config.objective[name] = shared[name]
    config.objective.loss = "sigmoid"
    config.objective.logit_scale = 10.0
    # A pair belongs together in one of 48 cases; at -10 a batch this small never says that one does.
    config.objective.logit_bias = -4.0
    config.objective.prompts.weight = 1.0
    config.objective.prompts.findings = FINDINGS
    return config
