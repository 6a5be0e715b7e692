"""Trained models in use: loading them, preparing scans for them, embedding whole archives."""
