"""ASAP on phantoms: masked volumes and reports, organs, sentences and the organs that they name.

Shards:    medclip prepare --table PHANTOMS/studies.csv --out SHARDS --crop heart --shape 64 60 72 \
               --spacing 4.2 3.3 3.7 --findings phantom --vocabulary-size 1024 --organ-cell 2 --organs \
               heart,aorta,coronary_arteries,pulmonary_artery,lung_upper_lobe_left,lung_lower_lobe_left,\
lung_upper_lobe_right,lung_middle_lobe_right,lung_lower_lobe_right,esophagus,trachea,vertebrae
           (PHANTOMS: medclip-demo/phantoms after `medclip demo`, which writes 1450)
Command:   medclip train --config configs/asap/demo.py --workdir runs/asap_demo --config.data.shards=SHARDS
Hardware:  2 CPU cores.
Time:      1.0 s for a step of 16 volumes, 7 minutes in all (measured).
Expected:  loss 22.5 after 20 steps, 11.0 after 400. 231 unseen phantoms, one seed (measured): sentences
           select patches of the organ that they name 37 times as often as chance (at most 43), without
           objective.weights.places as often as chance; linear probe with 10 % and 100 % of the labels 0.673
           and 0.763 (random weights 0.627 and 0.731), lung nodules 0.751 and 0.810.
           docs/reference/asap.md says why.
"""

from medclip_jax.objectives import asap
from medclip_jax.training.config import base_config

from ..demo.data import expect
from ..hipro_ct.demo import ORGANS

WINDOWS = (
    # (low, high) HU, what a cell of voxels shows of it, mean and standard deviation over 100 phantoms
    ((-1000.0, 0.0), "mean", (0.069, 0.852)),  # lung, and its consolidation or effusion
    ((-200.0, 300.0), "mean", (-0.605, 0.515)),  # soft tissue
    ((100.0, 500.0), "max", (-0.858, 0.390)),  # calcium, contrast
    ((400.0, 1200.0), "max", (-0.997, 0.025)),  # calcium beside contrast
    ((-600.0, 100.0), "max", (0.046, 0.894)),  # nodules and vessels in the lung
    ((-1024.0, -850.0), "min", (0.333, 0.880)),  # emphysema
    ((-200.0, 600.0), "blob", (-0.698, 0.209)),  # what stands out on all sides: nodules
)


def get_config():
    config = base_config()
    expect(config)
    config.data.prepare.organ_cell = 2
    config.data.prepare.organs = ORGANS
    config.objective = asap.default_config()
    vision = config.objective.vision
    vision.cell = (4, 2, 2)
    vision.patch = (2, 3, 3)  # 8 x 6 x 6 voxels, 34 x 20 x 22 mm: 960 patches, 240 visible
    vision.windows, vision.projections, vision.standardize = zip(*WINDOWS, strict=True)
    vision.update(width=128, depth=2, heads=4, dtype="float32")
    vision.extremes, vision.pooling = True, "cls_mean"  # probes read what is unusual anywhere: nodules
    vision.augment.shift_voxels = (1, 2, 2)
    config.objective.text.update(width=128, depth=1, heads=4, dtype="float32")
    config.objective.decoder.update(width=64, depth=2, heads=4)
    config.objective.anatomy.block = 1
    config.objective.weights.places = 1.0
    config.objective.selection.candidates = (2, 8, 32)
    config.objective.most_sentences = 24
    config.objective.text_decoder.update(depth=1, heads=4)
    config.data.text.update(report=0.0, findings_text=1.0)
    config.data.text_length = 192
    config.batch_size = 16
    config.steps = 400
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 30
    config.optimizer.weight_decay = 0.05
    config.optimizer.betas = (0.9, 0.95)
    config.optimizer.clip_norm = 1.0
    config.log.every_steps = 20
    config.log.tensorboard = False
    return config
