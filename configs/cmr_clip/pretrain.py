"""CMR-CLIP on an archive of your own: large batches by gradient caching.

Shards:    as for configs/cmr_clip/paper.py
Command:   medclip train --config configs/cmr_clip/pretrain.py --workdir runs/cmr_clip \
               --config.data.shards=SHARDS --config.objective.text.folder=BIOCLINICAL \
               --config.data.tokenizer=BIOCLINICAL --config.objective.vision.weights=VIT_B_16
Hardware:  `medclip check --config configs/cmr_clip/pretrain.py --chip h100` says what fits yours.
Time:      not measured.
Expected:  not measured.
"""

from . import paper


def get_config():
    config = paper.get_config()
    # 16 studies are few to tell apart; slices of the batch cost time and no memory, and change no gradient.
    config.batch_size = 256
    config.microbatches = 0
    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    # A pretrained text encoder keeps what it knows at a tenth of the rate.
    config.optimizer.multipliers = ((r"^text/", 0.1),)
    return config
