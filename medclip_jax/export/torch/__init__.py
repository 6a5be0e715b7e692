"""PyTorch code of exported models, in parts: `export.assemble` joins those that one model needs.

Parts import torch, the standard library and each other, nothing else of this package: what they say travels
with every exported model.
"""
