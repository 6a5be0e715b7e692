"""Fine-tune a pretrained tower to tell findings: multi-label, encoder and head at rates of their own.

Command:   medclip train --config configs/downstream/classify.py --workdir runs/classify \
               --config.data.shards=SHARDS --config.initial_weights.workdir=runs/clip
           then: medclip evaluate --workdir runs/classify --evaluators prediction --page prediction.html
           SHARDS is a set of `medclip prepare` with labels, prepared as the pretraining's was; the vision
           settings must be those of the pretraining (see `tower`).
Hardware:  one GPU, or a laptop at the size of configs/own.
Time:      not measured on an archive; `medclip check` estimates it.
Expected:  not measured: it depends on the scans. `medclip evaluate --split test` says it.
"""

from medclip_jax.objectives import supervised
from medclip_jax.training.config import base_config

from ..own.mae import vision


def tower(config):
    """The volume tower: that of configs/own. Change it here for weights of another pretraining."""
    vision(config.objective.vision)


def training(config):
    """What the downstream configs share."""
    config.initial_weights.include = (r"^vision/",)
    config.batch_size = 0  # 8 to 32, by the number of training volumes
    config.microbatches = 0  # by the memory
    config.epochs = 20.0
    config.optimizer.warmup_fraction = 0.05
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.checkpoint.every_steps = 200
    config.evaluation.every_steps = 100
    config.evaluation.evaluators = {"prediction": {"draws": 0}}
    config.evaluation.best.update(metric="prediction/auroc_mean", patience=5)


def get_config():
    config = base_config()
    config.objective = supervised.default_config()
    tower(config)
    config.objective.head.layers = "mlp"
    training(config)
    # As Cardiac-CLIP: 5e-5 for the head, a fifth of it for the encoder.
    config.optimizer.learning_rate = 5e-5
    config.optimizer.multipliers = ((r"^vision/", 0.2),)
    return config
