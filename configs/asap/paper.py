"""ASAP with the paper's values: CT-RATE, ImageNet's masked autoencoder and CXR-BERT to start from.

Shards:    medclip prepare --table STUDIES --out SHARDS --tokenizer CXR_BERT --shape 112 224 224 \
               --spacing 3 1.5 1.5 --findings ct_rate --organ-cell 8 --organs \
               lung_upper_lobe_left,lung_lower_lobe_left,lung_upper_lobe_right,lung_middle_lobe_right,\
lung_lower_lobe_right,heart,atrial_appendage_left,esophagus,aorta
           (masks of TotalSegmentator in the table's column organs, docs/how-to/data.md)
Command:   medclip train --config configs/asap/paper.py --workdir runs/asap --config.data.shards=SHARDS \
               --config.objective.vision.weights=mae_pretrain_vit_base.pth \
               --config.objective.text.folder=CXR_BERT --config.data.tokenizer=CXR_BERT
           (CXR_BERT: microsoft/BiomedVLP-CXR-BERT-specialized, a hub id or a local folder)
Hardware:  the paper used 4 NVIDIA A800, 14 volumes on each. On an H100 that takes 13.8 of 68.6 usable GiB
           (computed by `medclip check`).
Time:      15 hours (from the paper).
Expected:  from the paper, AUROC of a linear probe: CT-RATE 0.822, 0.835, 0.841 with 1, 10, 100 % of the
           labels, Rad-ChestCT 0.761 and 0.790 with 10 and 100 %. Not reproduced here.
           The released code also averages 8 batches into one update (config.optimizer.accumulate=8) and lets
           the cosine run to 200 epochs, of which 130 are trained.
"""

from medclip_jax.objectives import asap
from medclip_jax.reports.findings import CT_RATE_FINDINGS
from medclip_jax.training.config import base_config

ORGANS = (
    "lung_upper_lobe_left",
    "lung_lower_lobe_left",
    "lung_upper_lobe_right",
    "lung_middle_lobe_right",
    "lung_lower_lobe_right",
    "heart",
    "atrial_appendage_left",
    "esophagus",
    "aorta",
)


def get_config():
    config = base_config()
    config.data.prepare = {
        "shape": (112, 224, 224),
        "spacing": (3.0, 1.5, 1.5),
        "organ_cell": 8,
        "organs": ORGANS,
        "findings": CT_RATE_FINDINGS,
    }
    config.objective = asap.default_config()
    config.data.text.update(report=0.0, findings_text=1.0)
    config.data.text_length = 512
    config.batch_size = 56
    config.epochs = 130.0
    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.warmup_fraction = 20 / 130  # the paper does not say
    config.optimizer.weight_decay = 0.05
    config.optimizer.betas = (0.9, 0.95)
    config.optimizer.frozen = (r"^text/",)  # as in the released code; the paper does not say
    config.evaluation.split = "validation"
    return config
