"""T3D on an archive of your own: ResNet-50 without batch statistics, batches as memory allows.

Shards:    as for configs/t3d/paper.py
Command:   medclip train --config configs/t3d/pretrain.py --workdir runs/t3d --config.data.shards=SHARDS \
               --config.objective.text.folder=MEDCPT --config.data.tokenizer=MEDCPT
           From a published 3D ResNet-50 (MedicalNet, MONAI; docs/how-to/weights.md), which has batch norm:
           medclip train ... --config.objective.vision.norm=batch \
               --config.objective.vision.weights=resnet_50.pth
Hardware:  `medclip check --config configs/t3d/pretrain.py --chip h100` says what fits yours.
Time:      not measured.
Expected:  not measured.
"""

from . import paper


def get_config():
    config = paper.get_config()
    # A batch that is encoded in slices then has the loss and the gradient of the full batch.
    config.objective.vision.norm = "group"
    config.optimizer.clip_norm = 1.0
    config.microbatches = 0
    return config
