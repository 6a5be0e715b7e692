"""T3D on phantoms: a small ResNet, and views of 32 voxels.

Shards:    as `medclip demo` makes them: medclip-demo/shards
Command:   medclip train --config configs/t3d/demo.py --workdir runs/t3d_demo --config.data.shards=SHARDS
           medclip evaluate --workdir runs/t3d_demo --split test
Hardware:  2 CPU cores.
Time:      not measured.
Expected:  not measured.
"""

from medclip_jax.objectives import t3d
from medclip_jax.training.config import base_config

from ..demo.data import expect


def get_config():
    config = base_config()
    expect(config)
    config.objective = t3d.default_config()
    vision = config.objective.vision
    vision.update(depth=18, width=8, stem_size=(3, 3, 3), dtype="float32")
    vision.windows = ((-1000.0, 0.0), (-200.0, 300.0), (100.0, 1200.0))  # lung, soft tissue, calcium
    vision.standardize = ((-1.0, 2.0),) * 3  # to [0, 1]
    vision.augment.shift_voxels = (0, 1, 1)
    config.objective.text.update(width=128, depth=1, heads=2, dtype="float32", pooling="mean")
    config.objective.embedding_width = 128
    config.objective.centered = True
    config.objective.views.update(count=2, shape=(32, 32, 32), heads=4, mlp_ratio=2.0)
    # What names what is there teaches faster than what also says what is not, see configs/demo.
    config.data.text.update(report=0.0, some_statements=0.4, impression=0.6)
    config.data.most_statements = 2
    config.data.text_length = 48
    config.batch_size = 24
    config.steps = 400
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 30
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    config.log.every_steps = 20
    config.log.tensorboard = False
    return config
