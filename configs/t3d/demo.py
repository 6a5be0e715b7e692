"""T3D on phantoms: a small ResNet that pools what is unusual, and views of 24 voxels.

Shards:    as `medclip demo` makes them: medclip-demo/shards
Command:   medclip train --config configs/t3d/demo.py --workdir runs/t3d_demo --config.data.shards=SHARDS
           medclip evaluate --workdir runs/t3d_demo --split test
Hardware:  one CPU core.
Time:      131 s of processor time, of which 64 s to compile (measured, beside other work).
Expected:  zero-shot AUROC of eleven findings on 231 unseen phantoms 0.57, contrast alone
           (--config.objective.weights.views=0) 0.58, three seeds; 0.75 for nodules and 0.82 for
           consolidations by a probe of pooled features, one seed (measured, docs/results.md). In so few steps
           zero-shot does not find them.
"""

from medclip_jax.objectives import t3d
from medclip_jax.training.config import base_config

from ..demo.data import expect
from ..demo.mae import CELL, PROJECTIONS, STANDARDIZE, WINDOWS


def get_config():
    config = base_config()
    expect(config)
    config.objective = t3d.default_config()
    vision = config.objective.vision
    vision.update(cell=CELL, windows=WINDOWS, projections=PROJECTIONS, standardize=STANDARDIZE)
    vision.update(depth=10, width=16, stem_size=(3, 3, 3), pooling="extremes", dtype="float32")
    vision.augment.shift_voxels = (0, 1, 1)
    config.objective.text.update(width=128, depth=1, heads=2, dtype="float32", pooling="mean")
    config.objective.embedding_width = 128
    config.objective.centered = True
    config.objective.views.update(count=3, shape=(24, 24, 24), heads=4, mlp_ratio=2.0)
    # What names what is there teaches faster than what also says what is not, see configs/demo.
    config.data.text.update(report=0.0, some_statements=0.4, impression=0.6)
    config.data.most_statements = 2
    config.data.text_length = 48
    config.batch_size = 32
    config.steps = 100
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 15
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    config.log.every_steps = 20
    config.log.tensorboard = False
    return config
