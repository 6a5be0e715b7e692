"""Trained models out: a folder for PyTorch with its model card, StableHLO, ONNX, and their parity checks."""
