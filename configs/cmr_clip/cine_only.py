"""CMR-CLIP on cine alone, 36 frames: the public code's ablation without late enhancement.

Shards:    as for configs/cmr_clip/paper.py
Command:   medclip train --config configs/cmr_clip/cine_only.py --workdir runs/cmr_cine \
               --config.data.shards=SHARDS --config.objective.text.folder=BIOCLINICAL \
               --config.data.tokenizer=BIOCLINICAL --config.objective.vision.weights=VIT_B_16
Hardware:  as for configs/cmr_clip/paper.py, 36 frames instead of 64.
Time:      not measured.
Expected:  not measured; the article gives no number.
"""

from . import paper


def get_config():
    config = paper.get_config()
    config.data.views = ("cine_lax", "cine_sa")
    config.data.frames = config.objective.vision.frames = 36
    return config
