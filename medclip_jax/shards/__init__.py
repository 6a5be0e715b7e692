"""Prepared shards: studies in, one TFDS dataset folder of compressed volumes out, and back."""
