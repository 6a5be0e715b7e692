"""Beyond the five systems: what the best published recipes share, as one config of the objective `clip`.

Sigmoid pairs over a global batch of 4096, findings asked by prompts beside them, three windows, low-rank
adapters in a frozen text encoder, one volume a report. docs/reference/strong.md says what each part does and
costs. Without adapters, and with text vectors that are computed once: frozen.py.

Shards:    medclip prepare --table studies.csv --out SHARDS --shape 112 224 224 --spacing 3 1.5 1.5 \
               --findings ct_rate --tokenizer TEXT --one-per-report
Command:   medclip train --config configs/strong/pretrain.py --workdir runs/strong \
               --config.data.shards=SHARDS --config.objective.text.folder=TEXT --config.data.tokenizer=TEXT
           (TEXT: a BERT-type encoder such as microsoft/BiomedVLP-CXR-BERT-specialized, a hub id or a folder)
           From a masked autoencoder: --config.initial_weights.workdir=runs/mae
Hardware:  8 H100, in 16 microbatches; 128 chips of a v5p-256 in one (--config.microbatches=1):
           `medclip check --config configs/strong/pretrain.py --chip h100 --devices 8`.
Time:      computed by `medclip check`, not measured: docs/reference/strong.md.
Expected:  not measured. Published recipes of this kind reach a mean zero-shot AUROC of 0.838 (RadFinder) and
           0.842 (COLIPRI) on CT-RATE.
"""

from medclip_jax.objectives import clip
from medclip_jax.reports.findings import CT_RATE_FINDINGS
from medclip_jax.training.config import base_config


def get_config():
    config = base_config()
    config.data.prepare.update(shape=(112, 224, 224), spacing=(3.0, 1.5, 1.5), findings=CT_RATE_FINDINGS)
    config.objective = clip.default_config()
    vision = config.objective.vision
    vision.patch = (8, 16, 16)  # 14 x 14 x 14 = 2744 tokens
    vision.pooling = "mean"
    vision.windows = (
        (-1350.0, 150.0),  # lung
        (-160.0, 240.0),  # mediastinum
        (-450.0, 1050.0),  # bone, calcium, contrast
    )
    vision.augment.update(shift_voxels=(2, 4, 4), noise_hu=20.0, offset_hu=10.0, gain=0.05)
    # Published encoders know more words than these reports will teach: the adapters alone learn.
    config.objective.text.adapters.update(rank=16, alpha=32.0)
    config.optimizer.frozen = (r"^text/encoder/(?!.*_adapter/)",)
    config.objective.loss = "sigmoid"
    config.objective.logit_scale, config.objective.logit_bias = 10.0, -10.0
    config.objective.same_study = "positive"
    config.objective.prompts.weight = 1.0
    # Long texts for the pairs; short ones, so that prompts are nothing new.
    config.data.text.update(report=0.25, findings_text=0.25, impression=0.25, some_statements=0.25)
    config.data.most_statements = 2
    config.data.text_length = 256
    config.batch_size = 4096
    config.microbatches = 16
    config.epochs = 100.0
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_fraction = 0.1
    config.optimizer.betas = (0.9, 0.95)
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    config.ema.decay = 0.999
    config.checkpoint.every_steps = 100
    config.evaluation.split = "validation"
    config.evaluation.evaluators = {"zero_shot": {}, "retrieval": {}}
    return config
