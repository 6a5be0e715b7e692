"""HiPro-CT: volumes and reports, organs and their sentences as Gaussians: the paper's values, sound losses.

Where the paper's losses are not sound as they stand, ours differ; paper.py lists each difference.

Shards:    medclip prepare --table STUDIES --sentences REGION_SENTENCES --out SHARDS --tokenizer CXR_BERT \
               --shape 96 336 336 --spacing 3 1 1 --findings ct_rate --organ-cell 8 --organs \
               lung,trachea_and_bronchie,pleura,mediastinum,heart,esophagus,bone,thyroid,breast,abdomen
           (RadGenome-ChestCT: docs/how-to/data.md says how its masks and sentences are laid out)
Command:   medclip train --config configs/hipro_ct/pretrain.py --workdir runs/hipro_ct \
               --config.data.shards=SHARDS --config.objective.text.folder=CXR_BERT \
               --config.data.tokenizer=CXR_BERT
           (CXR_BERT: microsoft/BiomedVLP-CXR-BERT-specialized, a hub id or a local folder)
Hardware:  the paper used 4 NVIDIA H800, batch 16 over all of them.
Time:      not published; 50 000 steps.
Expected:  from the paper, RadGenome-ChestCT's test set: zero-shot AUROC 0.729, *weighted* F1 0.716 (ours:
           `zero_shot/weighted_f1`; `zero_shot/f1` is the binary F1 of presence, another number), accuracy
           0.684; R@1/5/10 on 100 pairs 9.65/35.6/54.4 % image to text, 10.1/35.7/54.5 % text to image. Its
           ablation: AUROC 0.702 with the global contrast alone, 0.712 with the local one. Not reproduced
           here.
           --config.objective.weights.damage=0.1 (not the paper's) makes the variance grow with damage, for
           twice the encoding: docs/reference/hipro-ct.md.
"""

from medclip_jax.objectives import hipro_ct
from medclip_jax.reports.findings import CT_RATE_FINDINGS
from medclip_jax.training.config import base_config

REGIONS = (
    "lung",
    "trachea_and_bronchie",
    "pleura",
    "mediastinum",
    "heart",
    "esophagus",
    "bone",
    "thyroid",
    "breast",
    "abdomen",
)


def get_config():
    config = base_config()
    config.data.prepare = {
        "shape": (96, 336, 336),
        "spacing": (3.0, 1.0, 1.0),
        "organ_cell": 8,
        "organs": REGIONS,
        "findings": CT_RATE_FINDINGS,
    }
    config.objective = hipro_ct.default_config()
    config.data.text_length = 512
    config.data.organ_text_length = 128  # sentences of one organ; the paper does not say
    config.batch_size = 16
    config.steps = 50_000
    config.optimizer.learning_rate = 1e-5
    config.optimizer.weight_decay = 0.01  # the paper does not say; AdamW's default
    config.evaluation.split = "validation"
    config.evaluation.evaluators = {"zero_shot": {"template": "is_present"}, "retrieval": {}}
    return config
