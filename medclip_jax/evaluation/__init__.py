"""How good an embedding is: pure metrics, evaluators over prepared shards, heat maps."""
