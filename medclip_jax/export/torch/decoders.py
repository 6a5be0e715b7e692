"""From tokens or feature maps to classes of voxels: the decoders of UNETR and of a U-Net."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = (8, 4, 2, 1)
"""Features of a decoder's levels, coarsest first, in multiples of its feature size."""


def same_convolution(inputs: int, outputs: int, size: int) -> nn.Conv3d:
    """Stride 1, without bias; the size of a map stays."""
    return nn.Conv3d(inputs, outputs, size, padding=size // 2, bias=False)


def leaky(x: Tensor) -> Tensor:
    """ReLU with a slope of 0.01 below 0."""
    return F.leaky_relu(x, 0.01)


class Enlarge(nn.Module):
    """A transposed convolution whose kernel is its stride: each voxel becomes a block of `factor` voxels."""

    def __init__(self, inputs: int, outputs: int, factor: Sequence[int]):
        super().__init__()
        self.factor = tuple(factor)
        voxels = self.factor[0] * self.factor[1] * self.factor[2]
        self.linear = nn.Linear(inputs, outputs * voxels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, d, h, w) to (B, F, D, H, W), each axis multiplied by the factor."""
        x = self.linear(x.movedim(1, -1)).unflatten(-1, (*self.factor, -1))
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


class ResidualBlock(nn.Module):
    """Two 3 x 3 x 3 convolutions with instance norm, beside the identity or a projection."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1, self.conv2 = same_convolution(inputs, outputs, 3), same_convolution(outputs, outputs, 3)
        self.projection = None if inputs == outputs else same_convolution(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to (B, F, D, H, W)."""
        y = leaky(F.instance_norm(self.conv1(x)))
        y = F.instance_norm(self.conv2(y))
        beside = x if self.projection is None else F.instance_norm(self.projection(x))
        return leaky(y + beside)


class UpBlock(nn.Module):
    """Enlarge a map, put a finer one beside it, and look at both.

    Args:
        inputs: channels of the coarse map.
        beside: channels of the finer map.
        outputs: channels that come out.
        factor: of `Enlarge`; None to resize trilinearly, with a convolution after.
    """

    def __init__(self, inputs: int, beside: int, outputs: int, factor: Sequence[int] | None):
        super().__init__()
        self.resized = factor is None
        self.enlarge = (
            same_convolution(inputs, outputs, 3) if self.resized else Enlarge(inputs, outputs, factor)
        )
        self.block = ResidualBlock(outputs + beside, outputs)

    def forward(self, x: Tensor, finer: Tensor) -> Tensor:
        """Of the shape of the finer map; where enlarging goes beyond it, the end is cut."""
        depth, height, width = finer.shape[2:]
        if self.resized:
            x = self.enlarge(F.interpolate(x, (depth, height, width), mode="trilinear"))
        else:
            x = self.enlarge(x)[:, :, :depth, :height, :width]
        return self.block(torch.cat([x, finer], dim=1))


class VoxelDecoder(nn.Module):
    """Four up-blocks from the coarsest map to the voxels, and a linear map to the classes.

    Args:
        inputs: channels of the coarsest map.
        beside: channels of the finer maps, coarsest first; the last one has the voxels' grid.
        factors: of the four up-blocks, see `UpBlock`.
        classes: that come out, the background included.
        features: of the finest level.
    """

    def __init__(
        self,
        inputs: int,
        beside: Sequence[int],
        factors: Sequence[Sequence[int] | None],
        classes: int,
        features: int,
    ):
        super().__init__()
        self.up = nn.ModuleList()
        for width, skip, factor in zip(LEVELS, beside, factors, strict=True):
            self.up.append(UpBlock(inputs, skip, width * features, factor))
            inputs = width * features
        self.classify = nn.Linear(inputs, classes)

    def forward(self, coarsest: Tensor, finer: Sequence[Tensor]) -> Tensor:
        """Logits (B, D, H, W, classes), float32."""
        x = coarsest
        for block, skip in zip(self.up, finer, strict=True):
            x = block(x, skip)
        return self.classify(x.movedim(1, -1)).float()


class UNet(nn.Module):
    """A decoder on the stages of a residual network, with the voxels themselves beside the last level.

    Args:
        encoder: whose maps are read; it is given at every call, and no part of this module.
        channels: of the voxels.
        classes: that come out, the background included.
        features: of the finest level.
    """

    def __init__(self, encoder: nn.Module, channels: int, classes: int, features: int):
        super().__init__()
        self.first, deepest = ResidualBlock(channels, features), encoder.width
        beside = deepest // 2, deepest // 4, deepest // 8, features
        factors = (2, 2, 2), (2, 2, 2), (2, 2, 2), None
        self.decoder = VoxelDecoder(deepest, beside, factors, classes, features)

    def forward(self, encoder: nn.Module, seen: Tensor, voxels: Tensor) -> Tensor:
        """Logits (B, D, H, W, classes), from what the encoder takes and voxels (B, D, H, W, C)."""
        *finer, coarsest = encoder.stage_maps(seen)
        return self.decoder(coarsest, [*reversed(finer), self.first(voxels.movedim(-1, 1))])


class Ladder(nn.Module):
    """Tokens of one depth brought to the grid of their level: enlarged, and looked at after each step."""

    def __init__(self, inputs: int, outputs: int, factors: Sequence[Sequence[int]]):
        super().__init__()
        self.enlarge, self.blocks = nn.ModuleList(), nn.ModuleDict()
        for step, factor in enumerate(factors):
            self.enlarge.append(Enlarge(inputs, outputs, factor))
            if step:
                self.blocks[str(step)] = ResidualBlock(outputs, outputs)
            inputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, d, h, w) to (B, F, D, H, W)."""
        for step, enlarge in enumerate(self.enlarge):
            x = enlarge(x)
            if step:
                x = self.blocks[str(step)](x)
        return x


class Unetr(nn.Module):
    """The decoder of UNETR on a vision transformer.

    Args:
        encoder: whose tokens are read; it is given at every call, and no part of this module.
        patch: voxels that a token stands for along each axis.
        channels: of the voxels.
        classes: that come out, the background included.
        features: of the finest level.
    """

    def __init__(self, encoder: nn.Module, patch: Sequence[int], channels: int, classes: int, features: int):
        super().__init__()
        depth = len(encoder.blocks)
        self.taps = [round(depth * quarter / 4) for quarter in (1, 2, 3)]
        steps, left = [], list(patch)
        for _ in range(3):  # each axis is doubled for as long as the patch leaves a factor of 2
            steps.append(tuple(2 if size >= 4 else 1 for size in left))
            left = [size // factor for size, factor in zip(left, steps[-1], strict=True)]
        cubic = len(set(patch)) == 1 and patch[0] & (patch[0] - 1) == 0
        widths = [level * features for level in LEVELS]
        self.first = ResidualBlock(channels, features)
        self.ladders = nn.ModuleList(
            Ladder(encoder.width, widths[level], steps[: level + 1]) for level in range(3)
        )
        factors = *steps, tuple(left) if cubic else None
        self.decoder = VoxelDecoder(encoder.width, widths, factors, classes, features)

    def forward(self, encoder: nn.Module, seen: Tensor, voxels: Tensor) -> Tensor:
        """Logits (B, D, H, W, classes), from what the encoder takes and voxels (B, D, H, W, C)."""
        *tapped, last = (
            tokens.transpose(1, 2).unflatten(2, encoder.grid)
            for tokens in encoder.tapped_tokens(seen, self.taps)
        )
        pairs = zip(self.ladders, reversed(tapped), strict=True)
        return self.decoder(
            last, [*(ladder(tokens) for ladder, tokens in pairs), self.first(voxels.movedim(-1, 1))]
        )
