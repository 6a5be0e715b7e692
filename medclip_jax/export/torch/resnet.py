"""3D residual network with batch or group norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medclip_jax.export.torch.vision import Encoded

LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Depth to blocks in each stage; from 50 on they are bottlenecks."""


class BatchNorm(nn.Module):
    """Batch norm over all axes but the channels, of any number of them.

    Not torch's own: that also counts batches, for which published and exported weights have no number.
    """

    def __init__(self, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) by the running statistics; in training by its own, which then move those."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, 1e-5
        )


class GroupNorm(nn.GroupNorm):
    """32 groups, or fewer where those would not be equal or hold one channel alone."""

    def __init__(self, features: int):
        super().__init__(math.gcd(32, max(features // 2, 1)), features)


NORMS = {"batch": BatchNorm, "group": GroupNorm}


def convolution(inputs: int, outputs: int, size: Sequence[int], stride: Sequence[int]) -> nn.Conv3d:
    """Without bias, padded alike on both sides so that stride 1 keeps the size."""
    padding = tuple(step // 2 for step in size)
    return nn.Conv3d(inputs, outputs, tuple(size), tuple(stride), padding, bias=False)


class Residual(nn.Module):
    """Convolutions beside the identity, or beside a projection where the shape changes.

    Args:
        inputs: channels that come in.
        width: channels within.
        stride: of the first convolution of 3 voxels, along each axis.
        bottleneck: convolutions of 1, 3 and 1 voxels, the last to four times the width, instead of two of 3.
        norm: one of `NORMS`.
    """

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool, norm: str):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            plan = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        else:
            plan = [(inputs, width, 3, stride), (width, width, 3, 1)]
        self.steps = len(plan)
        for index, (before, after, size, step) in enumerate(plan, start=1):
            self.add_module(f"conv{index}", convolution(before, after, (size,) * 3, (step,) * 3))
            self.add_module(f"bn{index}", NORMS[norm](after))
        beside = []
        if stride != 1 or inputs != outputs:
            beside = [convolution(inputs, outputs, (1, 1, 1), (stride,) * 3), NORMS[norm](outputs)]
        self.downsample = nn.Sequential(*beside)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W); each axis divided by the stride, rounded up."""
        y = x
        for index in range(1, self.steps + 1):
            y = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(y))
            y = y.relu() if index < self.steps else y
        return (y + self.downsample(x)).relu()


class ResNet(nn.Module):
    """A feature map that is 32 times smaller along each axis, rounded up; volumes of any shape.

    Args:
        config: `objective["vision"]` of config.json.
        shape: (D, H, W) of what it sees: voxels, or cells of them.
    """

    part = "resnet"

    def __init__(self, config: dict, shape: Sequence[int]):
        super().__init__()
        width, bottleneck = config["width"], config["depth"] >= 50
        strides = [16 * stride for stride in config["stem_stride"]]
        self.grid = tuple(-(-size // stride) for size, stride in zip(shape, strides, strict=True))
        self.conv1 = convolution(len(config["windows"]), width, config["stem_size"], config["stem_stride"])
        self.bn1 = NORMS[config["norm"]](width)
        inputs = width
        for stage, count in enumerate(LAYERS[config["depth"]]):
            inside, blocks = width * 2**stage, []
            for index in range(count):
                stride = 2 if stage and not index else 1
                blocks.append(Residual(inputs, inside, stride, bottleneck, config["norm"]))
                inputs = 4 * inside if bottleneck else inside
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.width = self.pooled_width = inputs

    def encode(self, voxels: Tensor) -> Encoded:
        """Intensities (B, D, H, W, C) to tokens (B, N, width)."""
        x = self.bn1(self.conv1(voxels.movedim(-1, 1))).relu()
        x = F.max_pool3d(x, 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return Encoded(x.flatten(2).transpose(1, 2))

    def pool(self, encoded: Encoded) -> Tensor:
        """The mean over the tokens, (B, pooled_width)."""
        return encoded.tokens.float().mean(dim=1).to(encoded.tokens.dtype)
