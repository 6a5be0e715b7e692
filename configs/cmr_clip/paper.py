"""CMR-CLIP with the values of its public code: six series, 64 frames, ViT-B/16, Bio_ClinicalBERT.

Shards:    medclip prepare --corpus cmr --table SERIES --out SHARDS --tokenizer BIOCLINICAL \
               --series cine_lax:middle cine_sa:middle lge_sa lge_lax lge_2ch lge_3ch
           (docs/how-to/cardiac-mr.md describes the table)
Command:   medclip train --config configs/cmr_clip/paper.py --workdir runs/cmr_clip \
               --config.data.shards=SHARDS --config.objective.text.folder=BIOCLINICAL \
               --config.data.tokenizer=BIOCLINICAL --config.objective.vision.weights=VIT_B_16
           (BIOCLINICAL: emilyalsentzer/Bio_ClinicalBERT; VIT_B_16: timm's vit_base_patch16_224)
Hardware:  the public code asks for 4 GPUs; `medclip check --config configs/cmr_clip/paper.py --chip h100`
           says what fits yours.
Time:      the article does not say.
Expected:  from the article, accuracy of an MLP on the frozen vectors: hypertrophic cardiomyopathy 98.6 %,
           amyloidosis 96.2 %, nonischemic 88.5 %, ischemic 88.0 %. Not reproduced here.
           Different from the public code: any series may be missing, padding is masked, frames say of which
           series they are, time attention can learn, nothing is mirrored: docs/reference/cmr-clip.md.
"""

from medclip_jax.objectives import cmr_clip
from medclip_jax.training.config import base_config

SERIES = ("cine_lax", "cine_sa", "lge_sa", "lge_lax", "lge_2ch", "lge_3ch")
IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
"""Mean and standard deviation of the three channels that the ViT was trained on."""


def get_config():
    config = base_config()
    config.data.prepare.update(views=SERIES, frame_shape=(224, 224))
    config.data.frames = 64
    config.data.text.update(report=0.0, impression=1.0)
    config.data.text_length = 512
    config.objective = cmr_clip.default_config()
    config.objective.vision.channels = IMAGENET
    config.objective.vision.augment.crop_area = (0.5, 1.0)
    config.objective.vision.remat = "block"
    config.objective.text.remat = "dots"
    config.batch_size = 16
    config.epochs = 100.0
    config.optimizer.learning_rate = 3e-5
    config.optimizer.warmup_fraction = 10 / 100
    config.optimizer.weight_decay = 1e-5
    config.evaluation.split = "validation"
    return config
