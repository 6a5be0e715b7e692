"""ASAP on an archive of your own: the paper's model, a text encoder that learns, batches as memory allows.

Sentences are taught to select the organs that they name, which the paper leaves to chance
(docs/reference/asap.md, "Places").

Shards:    as for configs/asap/paper.py
Command:   medclip train --config configs/asap/pretrain.py --workdir runs/asap --config.data.shards=SHARDS \
               --config.objective.vision.weights=mae_pretrain_vit_base.pth \
               --config.objective.text.folder=CXR_BERT --config.data.tokenizer=CXR_BERT
           From the released weights instead (docs/how-to/weights.md):
           medclip train ... --config.initial_weights.workdir=ASAP
Hardware:  `medclip check --config configs/asap/pretrain.py --chip h100` says what fits yours.
Time:      not measured.
Expected:  not measured.
"""

from . import paper


def get_config():
    config = paper.get_config()
    config.optimizer.frozen = ()
    config.objective.weights.places = 1.0
    # A pretrained text encoder learns slowly, so that it keeps what it knows.
    config.optimizer.multipliers = ((r"^text/", 0.1),)
    config.optimizer.warmup_fraction = 0.05
    config.optimizer.clip_norm = 1.0
    config.microbatches = 0
    return config
