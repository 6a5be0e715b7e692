"""configs/strong/pretrain.py with a text encoder that stays as published: its vectors are computed once.

Shards:    as for configs/strong/pretrain.py
Command:   medclip cache-text --config configs/strong/frozen.py --out VECTORS --config.data.shards=SHARDS \
               --config.objective.text.folder=TEXT --config.data.tokenizer=TEXT
           medclip train --config configs/strong/frozen.py --workdir runs/strong_frozen \
               --config.data.shards=SHARDS --config.objective.text.folder=TEXT --config.data.tokenizer=TEXT \
               --config.data.text_vectors.folder=VECTORS
           (TEXT: as for configs/strong/pretrain.py; of another width than 768, with
           --config.data.text_vectors.width)
Hardware:  as for configs/strong/pretrain.py.
Time:      computed by `medclip check`, not measured: docs/reference/strong.md.
Expected:  not measured.
"""

from . import pretrain


def get_config():
    config = pretrain.get_config()
    config.objective.text.adapters.rank = 0
    config.objective.cached_texts = True
    config.optimizer.frozen = (r"^text/encoder/",)
    return config
