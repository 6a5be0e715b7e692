"""CMR-CLIP on late enhancement alone, 28 frames: the public code's ablation without motion.

Shards:    as for configs/cmr_clip/paper.py
Command:   medclip train --config configs/cmr_clip/lge_only.py --workdir runs/cmr_lge \
               --config.data.shards=SHARDS --config.objective.text.folder=BIOCLINICAL \
               --config.data.tokenizer=BIOCLINICAL --config.objective.vision.weights=VIT_B_16
Hardware:  as for configs/cmr_clip/paper.py, 28 frames instead of 64.
Time:      not measured.
Expected:  not measured; the article gives no number.
"""

from . import paper


def get_config():
    config = paper.get_config()
    config.data.views = ("lge_sa", "lge_lax", "lge_2ch", "lge_3ch")
    config.data.frames = config.objective.vision.frames = 28
    return config
