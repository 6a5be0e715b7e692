"""3D residual networks (10, 18, 34, 50, 101, 152 layers) with batch or group norm.

Attributes are named as in PyTorch's ResNet (conv1, bn1, layer1 to layer4, downsample), so that a parameter's
path is the name that published checkpoints give it; see `medclip_jax.weights.resnet`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from medclip_jax.models.blocks import stack
from medclip_jax.models.convolution import convolution
from medclip_jax.models.encoder import Encoded, VisionEncoder
from medclip_jax.models.extremes import Extremes
from medclip_jax.models.kernels import variance_scaling
from medclip_jax.models.norms import NORMS
from medclip_jax.sharding import batch_sharded

STAGES = ("layer1", "layer2", "layer3", "layer4")
FACTORS = (2, 2, 4, 8, 16)
"""Strides of the stem's map and of each stage's, over the stride of the first convolution."""
POOLINGS = ("mean", "extremes")
REMAT = ("none", "stage")
"""What is kept for the backward pass: everything, or the input of each stage alone."""


def _convolution(
    inputs: int, outputs: int, size: int | Sequence[int], strides: Sequence[int], *, dtype, rngs: nnx.Rngs
) -> nnx.Conv:
    """Without bias, padded alike on both sides so that stride 1 keeps the size."""
    sizes = (size,) * 3 if isinstance(size, int) else tuple(size)
    return convolution(
        inputs,
        outputs,
        sizes,
        strides,
        dtype=dtype,
        initial=variance_scaling(2.0, "fan_out", "normal"),
        rngs=rngs,
    )


class _Residual(nnx.Module):
    """What both kinds of block share: the path beside the convolutions, and the sum."""

    def _add_downsample(self, inputs: int, outputs: int, stride: int, *, norm, dtype, rngs: nnx.Rngs) -> None:
        self.downsample = nnx.Dict()
        if stride != 1 or inputs != outputs:
            self.downsample["0"] = _convolution(inputs, outputs, 1, (stride,) * 3, dtype=dtype, rngs=rngs)
            self.downsample["1"] = norm(outputs)

    def _beside(self, x: Float[Array, "B D H W C"], train: bool) -> Float[Array, "B d h w F"]:
        if not len(self.downsample):
            return x
        return self.downsample["1"](self.downsample["0"](x), train=train)


class BasicBlock(_Residual):
    """Two 3 x 3 x 3 convolutions beside the identity, or beside a projection where the shape changes."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, *, norm, dtype, rngs: nnx.Rngs):
        self.conv1 = _convolution(inputs, width, 3, (stride,) * 3, dtype=dtype, rngs=rngs)
        self.bn1 = norm(width)
        self.conv2 = _convolution(width, width, 3, (1, 1, 1), dtype=dtype, rngs=rngs)
        self.bn2 = norm(width)
        self._add_downsample(inputs, width, stride, norm=norm, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B D H W C"], *, train: bool) -> Float[Array, "B d h w F"]:
        """Each axis divided by the stride, rounded up."""
        y = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        y = self.bn2(self.conv2(y), train=train)
        return jax.nn.relu(y + self._beside(x, train))


class Bottleneck(_Residual):
    """Convolutions of 1, 3 and 1 voxels, the last to four times the width; the second has the stride."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, *, norm, dtype, rngs: nnx.Rngs):
        outputs = self.expansion * width
        self.conv1 = _convolution(inputs, width, 1, (1, 1, 1), dtype=dtype, rngs=rngs)
        self.bn1 = norm(width)
        self.conv2 = _convolution(width, width, 3, (stride,) * 3, dtype=dtype, rngs=rngs)
        self.bn2 = norm(width)
        self.conv3 = _convolution(width, outputs, 1, (1, 1, 1), dtype=dtype, rngs=rngs)
        self.bn3 = norm(outputs)
        self._add_downsample(inputs, outputs, stride, norm=norm, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B D H W C"], *, train: bool) -> Float[Array, "B d h w F"]:
        """Each axis divided by the stride, rounded up."""
        y = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        y = jax.nn.relu(self.bn2(self.conv2(y), train=train))
        y = self.bn3(self.conv3(y), train=train)
        return jax.nn.relu(y + self._beside(x, train))


LAYERS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    10: (BasicBlock, (1, 1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
"""Depth to kind of block and blocks in each stage."""


class ResNet(VisionEncoder):
    """Volume to a feature map that is 32 times smaller along each axis, rounded up; volumes of any shape.

    Args:
        depth: 10, 18, 34, 50, 101 or 152 layers.
        channels: C of the volume.
        width: channels of the stem; the map has 8 times as many, 32 times with depth 50 and more.
        stem_size: voxels of the first kernel along depth, height, width, all odd. (3, 7, 7) is that of
            networks inflated from 2D.
        stem_stride: of the first convolution along depth, height, width. (1, 2, 2) keeps twice the depth,
            for volumes of few slices.
        norm: "batch", or "group" (see `norms.GroupNorm`).
        pooling: "mean" of the last map's places, or "extremes": that mean, plus what
            `extremes.Extremes` makes of the volume and of the maps of the stem and of every stage, which
            volumes of `shape` alone have.
        shape: (D, H, W) of the volumes that "extremes" pools.
        dtype: compute type; parameters and statistics are float32.
        remat: one of `REMAT`.
        rngs: draws the kernels (He normal by fan-out).

    Raises:
        ValueError: no such depth, a stem of even size, unknown `norm`, `pooling` or `remat`; pooling
            "extremes" with group norm, or without a shape.

    References:
        He et al. 2016, "Deep residual learning for image recognition"; Hara et al. 2018, "Can spatiotemporal
        3D CNNs retrace the history of 2D CNNs and ImageNet?"; Chen et al. 2019, "Med3D" (10 layers).
    """

    part: ClassVar[str] = "resnet"
    remat_policies: ClassVar[tuple[str, ...]] = REMAT
    explanation: ClassVar[str] = "gradcam"
    any_shape: ClassVar[bool] = True
    weights_reader: ClassVar[str] = "medclip_jax.weights.resnet:read_resnet_weights"
    torch_twin: ClassVar[str] = "medclip_jax.export.torch.resnet:ResNet"

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """ResNet-50."""
        return {
            "depth": 50,  # layers: 10, 18, 34, 50, 101 or 152
            "width": 64,  # channels of the stem
            "stem_size": (7, 7, 7),  # voxels of the first kernel; (3, 7, 7) where inflated from 2D
            "stem_stride": (2, 2, 2),  # (1, 2, 2) keeps twice the depth, for volumes of few slices
            "norm": "batch",  # or "group": independent of the batch, so exact with gradient caching
            "pooling": "mean",  # or "extremes": and what is most unusual for its place, in every map
        }

    @classmethod
    def from_config(
        cls, config: Any, shape: tuple[int, int, int], channels: int, *, rngs: nnx.Rngs
    ) -> ResNet:
        """See `VisionEncoder.from_config`."""
        options = {name: config[name] for name in cls.defaults()}
        options |= {"dtype": jnp.dtype(config.dtype), "remat": config.remat}
        return cls(channels=channels, shape=shape, **options, rngs=rngs)

    def __init__(
        self,
        depth: int,
        *,
        channels: int = 1,
        width: int = 64,
        stem_size: Sequence[int] = (7, 7, 7),
        stem_stride: Sequence[int] = (2, 2, 2),
        norm: str = "batch",
        pooling: str = "mean",
        shape: Sequence[int] = (),
        dtype=jnp.float32,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        if depth not in LAYERS:
            raise ValueError(f"no ResNet of {depth} layers: choose one of {tuple(LAYERS)}")
        if len(stem_size) != 3 or any(size < 1 or size % 2 == 0 for size in stem_size):
            raise ValueError(f"stem_size={tuple(stem_size)}: three odd numbers, (7, 7, 7) or (3, 7, 7)")
        if norm not in NORMS:
            raise ValueError(f"norm={norm!r} is unknown: use one of {tuple(NORMS)}")
        if remat not in REMAT:
            raise ValueError(f"remat={remat!r} is unknown: use one of {REMAT}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling!r} is unknown: use one of {POOLINGS}")
        if pooling == "extremes" and (norm != "batch" or len(shape) != 3):
            raise ValueError(
                "pooling='extremes' compares the volumes of a batch, place by place: it needs norm='batch' "
                "and their shape"
            )
        self.depth = depth
        self.norm = norm
        self.pooling = pooling
        self.shape = tuple(shape)
        self.remat = remat
        self.stem_stride = tuple(stem_stride)
        self.dtype = dtype
        kind, counts = LAYERS[depth]
        self.width = self.pooled_width = 8 * width * kind.expansion
        self.conv1 = _convolution(channels, width, stem_size, self.stem_stride, dtype=dtype, rngs=rngs)
        self.bn1 = NORMS[norm](width)
        options = {"norm": NORMS[norm], "dtype": dtype, "rngs": rngs}
        inputs = width
        for stage, (name, count) in enumerate(zip(STAGES, counts, strict=True)):
            plan = []
            for index in range(count):
                plan.append((inputs, width * 2**stage, 2 if stage and not index else 1))
                inputs = width * 2**stage * kind.expansion
            blocks = iter(plan)
            setattr(self, name, stack(count, lambda b=blocks: kind(*next(b), **options)))
        self.extremes = self._extremes(channels, dtype, rngs) if pooling == "extremes" else None

    def _extremes(self, channels: int, dtype, rngs: nnx.Rngs) -> Extremes:
        grids = {"voxels": self.shape} | self.grids_of(self.shape)
        expansion = LAYERS[self.depth][0].expansion
        stem = self.conv1.out_features
        widths = [channels, stem, *(stem * 2**stage * expansion for stage in range(len(STAGES)))]
        sizes = [(math.prod(grid), features) for grid, features in zip(grids.values(), widths, strict=True)]
        return Extremes(sizes, self.width, dtype=dtype, rngs=rngs)

    def __call__(
        self, volume: Float[Array, "B D H W C"], *, train: bool = False
    ) -> Float[Array, "B d h w F"]:
        """Feature map of the last stage.

        Args:
            volume: (B, D, H, W, C).
            train: normalize by the batch, and update the running statistics in place.
        """
        return self.feature_maps(volume, train=train)[STAGES[-1]]

    def feature_maps(
        self, volume: Float[Array, "B D H W C"], *, train: bool = False
    ) -> dict[str, Float[Array, "B d h w F"]]:
        """Feature maps of the stem, after its max pooling, and of every stage.

        Args:
            volume: (B, D, H, W, C).
            train: as of `__call__`.

        Returns:
            "stem", "layer1", ..., "layer4" to (B, d, h, w, F); (d, h, w) is that of `grids_of`.
        """
        x = batch_sharded(self._stem(volume, train))
        maps = {"stem": x}
        for name in STAGES:
            maps[name] = x = batch_sharded(self._run(getattr(self, name), x, train))
        return maps

    def _stem(self, volume: Float[Array, "B D H W C"], train: bool) -> Float[Array, "B d h w F"]:
        x = batch_sharded(volume).astype(self.dtype)
        x = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        return nnx.max_pool(x, (3, 3, 3), strides=(2, 2, 2), padding=[(1, 1)] * 3)

    def _run(self, stage: nnx.Dict, x: Float[Array, "B D H W C"], train: bool) -> Float[Array, "B d h w F"]:
        graph, state = nnx.split(stage)

        # A pure function of the stage, so that it can be run again for the backward pass.
        def apply(state, x):
            blocks = nnx.merge(graph, state)
            for index in range(len(blocks)):
                x = blocks[str(index)](x, train=train)
            return x, nnx.state(blocks, nnx.BatchStat)

        x, statistics = (jax.checkpoint(apply) if self.remat == "stage" else apply)(state, x)
        if train:
            nnx.update(stage, statistics)
        return x

    def grid_of(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Size (d, h, w) of the feature map of a volume of `shape` (D, H, W)."""
        return self.grids_of(shape)[STAGES[-1]]

    def grids_of(self, shape: Sequence[int]) -> dict[str, tuple[int, int, int]]:
        """Size (d, h, w) of each of `feature_maps` for volumes of `shape` (D, H, W)."""
        pairs = tuple(zip(shape, self.stem_stride, strict=True))
        # Each layer with a stride rounds up.
        return {
            name: tuple(-(-size // (stride * factor)) for size, stride in pairs)
            for name, factor in zip(("stem", *STAGES), FACTORS, strict=True)
        }

    def token_centers(self, shape: Sequence[int]) -> tuple[Float[np.ndarray, " tokens"], ...]:
        """See `VisionEncoder.token_centers`: a kernel of odd size stands on every stride-th voxel."""
        axes = zip(self.grid_of(shape), self.stem_stride, strict=True)
        return tuple(np.arange(count) * float(FACTORS[-1] * stride) for count, stride in axes)

    def encode(
        self,
        voxels: Float[Array, "B D H W C"],
        keep: Int[Array, "B kept"] | None = None,
        *,
        train: bool = False,
    ) -> Encoded:
        """The feature map as tokens (B, d * h * w, F); a summary of what is unusual where that is pooled.

        Args:
            voxels: (B, D, H, W, C).
            keep: None: a convolution sees the full volume.
            train: as of `__call__`.

        Raises:
            ValueError: `keep` is given.
        """
        if keep is not None:
            raise ValueError("a ResNet cannot leave patches out: encode without keep")
        maps = [_as_tokens(features) for features in self.feature_maps(voxels, train=train).values()]
        if self.extremes is None or voxels.shape[1:4] != self.shape:
            return Encoded(maps[-1])
        summary = self.extremes([_as_tokens(voxels), *maps], train=train)
        return Encoded.of(maps[-1], summary.astype(maps[-1].dtype))

    def layer_states(
        self, voxels: Float[Array, "B D H W C"]
    ) -> dict[str, Float[Array, "batch tokens features"]]:
        """See `VisionEncoder.layer_states`: "stem", pooled, and each stage."""
        return {name: _as_tokens(features) for name, features in self.feature_maps(voxels).items()}

    def describe(self) -> str:
        """See `VisionEncoder.describe`."""
        sizes, strides = (" × ".join(map(str, given)) for given in (self.conv1.kernel_size, self.stem_stride))
        stem = f"first kernel {sizes} with strides {strides}"
        return f"ResNet-{self.depth}, width {self.width}, {stem}, {self.norm} norm, pooling {self.pooling}"

    def pool(self, encoded: Encoded) -> Float[Array, "B F"]:
        """Mean over the tokens of each volume, summed in float32; plus the summary where that is pooled.

        Raises:
            ValueError: "extremes" pooling of volumes of another shape.
        """
        mean = encoded.tokens.mean(axis=1, dtype=jnp.float32).astype(encoded.tokens.dtype)
        if self.extremes is None:
            return mean
        if encoded.summary is None:
            raise ValueError(f"pooling='extremes' knows what is usual in volumes of {self.shape} cells alone")
        return mean + encoded.summary


def _as_tokens(features: Float[Array, "B d h w F"]) -> Float[Array, "B tokens F"]:
    return features.reshape(features.shape[0], -1, features.shape[-1])
