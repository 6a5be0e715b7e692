"""The smallest BERT that tests write and read, and ids to try it on."""

import numpy as np

SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
}
IDS = np.random.default_rng(0).integers(1, 60, size=(2, 9))
