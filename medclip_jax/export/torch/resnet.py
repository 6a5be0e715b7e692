"""3D residual network with batch or group norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medclip_jax.export.torch.vision import Encoded

LAYERS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
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


class Standard(nn.Module):
    """How far each feature is from what is usual at its place, in units of its usual spread there.

    Args:
        places: N.
        features: C.
    """

    def __init__(self, places: int, features: int):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(places, features))
        self.register_buffer("running_var", torch.ones(places, features))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) by the running statistics; in training by the batch's, which then move those."""
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = x.mean(dim=0), x.var(dim=0, correction=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, 0.1)
                self.running_var.lerp_(variance * len(x) / max(len(x) - 1, 1), 0.1)
        spread = (variance + 1e-8).sqrt()
        return (x - mean) / (spread + 0.25 * spread.mean(dim=0) + 1e-6)


class Extremes(nn.Module):
    """One vector from several feature maps: their means, and what is most unusual anywhere in them.

    Args:
        sizes: (places, features) of each map.
        width: features of the vector.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], width: int):
        super().__init__()
        self.standards = nn.ModuleList(Standard(*size) for size in sizes)
        count = 3 * sum(features for _, features in sizes)
        self.norm, self.linear = BatchNorm(count), nn.Linear(count, width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, N, C) each to (B, width)."""
        found = []
        for standard, features in zip(self.standards, maps, strict=True):
            unusual = standard(features)
            found += [features.mean(dim=1), unusual.amax(dim=1), unusual.amin(dim=1)]
        return self.linear(self.norm(torch.cat(found, dim=-1)))


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
        self.shape, self.extremes = tuple(shape), None
        if config.get("pooling", "mean") == "extremes":  # folders of earlier versions do not say
            places, sizes = [math.prod(shape)], [len(config["windows"])]
            for stage, factor in enumerate((2, 2, 4, 8, 16)):
                steps = zip(shape, config["stem_stride"], strict=True)
                places.append(math.prod(-(-size // (stride * factor)) for size, stride in steps))
                sizes.append(width if not stage else self.width * 2**stage // 16)
            self.extremes = Extremes(list(zip(places, sizes, strict=True)), self.width)

    def encode(self, voxels: Tensor) -> Encoded:
        """Intensities (B, D, H, W, C) to tokens (B, N, width), and to what is unusual, if pooled."""
        found = [x.flatten(2).transpose(1, 2) for x in self.all_maps(voxels)]
        maps = [voxels.flatten(1, 3), *found]
        if self.extremes is None or tuple(voxels.shape[1:4]) != self.shape:
            return Encoded(maps[-1])
        return Encoded(maps[-1], self.extremes(maps))

    def all_maps(self, voxels: Tensor) -> list[Tensor]:
        """Feature maps (B, F, d, h, w) of the stem, after its max pooling, and of the four stages."""
        x = self.bn1(self.conv1(voxels.movedim(-1, 1))).relu()
        maps = [F.max_pool3d(x, 3, stride=2, padding=1)]
        for stage in range(1, 5):
            maps.append(getattr(self, f"layer{stage}")(maps[-1]))
        return maps

    def stage_maps(self, voxels: Tensor) -> list[Tensor]:
        """Feature maps (B, F, d, h, w) of the four stages."""
        return self.all_maps(voxels)[1:]

    def last_states(self, voxels: Tensor) -> Tensor:
        """The tokens: no norm follows the last stage."""
        return self.encode(voxels).tokens

    def pool(self, encoded: Encoded) -> Tensor:
        """The mean over the tokens, (B, pooled_width); plus the summary where there is one."""
        mean = encoded.tokens.float().mean(dim=1).to(encoded.tokens.dtype)
        if self.extremes is None:
            return mean
        if encoded.summary is None:
            raise ValueError(f"the model knows what is usual in volumes of {self.shape} cells alone")
        return mean + encoded.summary
