"""Segmentation: a volume tower with a decoder that tells the class of each voxel.

UNETR on vision transformers (Hatamizadeh et al. 2022), a U-Net's decoder on residual networks; learned on
crops with a share of foreground, by Dice's coefficient and cross entropy. See
`docs/reference/segmentation.md`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from medclip_jax import transforms
from medclip_jax.losses.dice import overlap_sums, soft_dice
from medclip_jax.models.resnet import ResNet
from medclip_jax.models.unet import UNet
from medclip_jax.models.unetr import Unetr
from medclip_jax.models.vit import VisionTransformer
from medclip_jax.objectives.base import (
    Batch,
    DataSpec,
    Embedding,
    Features,
    Inputs,
    Objective,
    Term,
    sample_keys,
)
from medclip_jax.objectives.towers import VisionTower, vision_defaults
from medclip_jax.sections import Section
from medclip_jax.sharding import batch_sharded
from medclip_jax.vectors import normalize

DICE_OVER = ("crop", "batch")


def default_config() -> Section:
    """UNETR on ViT-B with feature size 16, and 4 crops of 48 x 96 x 96 voxels of each volume."""
    return Section(
        {
            "name": "segment",
            "vision": vision_defaults(),
            "feature_size": 16,  # of the decoder's finest level; the coarser have 2, 4 and 8 times as many
            "crops": {
                "shape": (48, 96, 96),  # voxels along depth, height, width; () = the full volume
                "count": 4,  # of a volume in a step
                "foreground": 0.5,  # share around a voxel of a class; .75 where classes are small
                # Mirrors a crop along each axis with this probability. Left is then right: for classes that
                # have no sides.
                "mirror": 0.0,
                # Turns a crop by one to three quarters about the body's axis with this probability; for crops
                # that are as high as wide.
                "turn": 0.0,
            },
            "weights": {"dice": 1.0, "cross_entropy": 1.0},
            # "crop": Dice of each crop, then the mean | "batch": of all crops of the batch together, for
            # classes that few crops show.
            "dice_over": "crop",
        }
    )


class Segment(Objective):
    """A volume tower and a decoder from its tokens or feature maps to classes of voxels.

    The tower is built for crops: a transformer has the positions of a crop's patches.

    Args:
        config: the keys of `default_config`.
        spec: fixes grid and classes.
        rngs: source of the initial weights.

    Raises:
        ValueError: the data have no classes, crops do not fit, an unknown option, or a volume tower of a kind
            that has no decoder.
    """

    description: ClassVar[str] = "a segmentation model: it tells the class of each voxel of a scan"
    segments: ClassVar[bool] = True
    torch_twin: ClassVar[str] = "medclip_jax.export.torch.segmenter:SegmenterModel"

    @classmethod
    def batch_fields(cls, config: Any) -> tuple[str, ...]:
        """Volumes and the classes of their voxels."""
        return ("volume", "label_map")

    def __init__(self, config: Any, spec: DataSpec, *, rngs: nnx.Rngs):
        if not spec.label_classes:
            raise ValueError(
                "the shards hold no label maps, whose classes a segmentation model learns: prepare a corpus "
                "that has them, or make them of organ masks with --label-maps organs"
            )
        if config.dice_over not in DICE_OVER:
            raise ValueError(f"config.objective.dice_over is {config.dice_over!r}; choose 'crop' or 'batch'")
        self.classes = tuple(spec.label_classes)
        self.crop = tuple(config.crops.shape) or tuple(spec.shape)
        if any(part > size for part, size in zip(self.crop, spec.shape, strict=True)):
            raise ValueError(
                f"config.objective.crops.shape={self.crop} does not fit into volumes of {tuple(spec.shape)}: "
                "take smaller crops, or () for full volumes"
            )
        self.count, self.foreground = config.crops.count, float(config.crops.foreground)
        self.mirror, self.turn = float(config.crops.mirror), float(config.crops.turn)
        if self.turn and self.crop[1] != self.crop[2]:
            raise ValueError(
                f"config.objective.crops.turn={self.turn:g} needs crops as high as wide, and {self.crop} is "
                "not: take others, or turn=0"
            )
        self.dice_over = config.dice_over
        self.dice_weight, self.entropy_weight = config.weights.dice, config.weights.cross_entropy
        self.vision = VisionTower(config.vision, dataclasses.replace(spec, shape=self.crop), rngs=rngs)
        options = {
            "channels": len(self.vision.windows),
            "classes": 1 + len(self.classes),
            "features": config.feature_size,
            "dtype": jnp.dtype(config.vision.dtype),
            "rngs": rngs,
        }
        encoder = self.vision.encoder
        if isinstance(encoder, VisionTransformer):
            self.decoder = Unetr(encoder, self.vision.token_voxels, **options)
        elif isinstance(encoder, ResNet):
            self.decoder = UNet(encoder, **options)
        else:
            raise ValueError(
                f"config.objective.vision.kind={config.vision.kind!r} has no decoder: take 'vit' (UNETR) or "
                "'resnet' (U-Net), or a class derived from theirs"
            )

    def _logits(
        self, crops: Num[Array, "N d h w"], keys: jax.Array | None = None, *, train: bool = False
    ) -> Float[Array, "N d h w K"]:
        """Logits of crops of HU."""
        seen = self.vision.to_voxels(crops)
        cells = self.vision.cell != (1, 1, 1)
        voxels = transforms.to_float(crops, self.vision.windows) if cells else seen
        return self.decoder(self.vision.encoder, seen, voxels, train=train)

    def _crops(self, batch: Batch, key: jax.Array, train: bool):
        """Crops (B * M, d, h, w) of volumes and of their label maps."""
        augment_key, crop_key, pose_key = jax.random.split(key, 3)
        keys = sample_keys(augment_key, batch["sample"]) if train else None
        volume = self.vision.augment(batch["volume"], keys)
        labels = self.vision.augment_labels(batch["label_map"], keys)
        starts = transforms.foreground_starts(
            labels,
            sample_keys(crop_key, batch["sample"]),
            count=self.count,
            shape=self.crop,
            foreground=self.foreground,
        )
        crops = [
            batch_sharded(transforms.cut_boxes(part, starts, self.crop).reshape(-1, *self.crop))
            for part in (volume, labels)
        ]
        if not train:
            return crops
        keys = jax.vmap(lambda key: jax.random.split(key, self.count))(sample_keys(pose_key, batch["sample"]))
        keys = keys.reshape(-1)
        if self.mirror:
            crops = [transforms.mirror(part, keys, self.mirror) for part in crops]
        if self.turn:
            turn_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
            crops = [transforms.quarter_turns(part, turn_keys, self.turn) for part in crops]
        return crops

    def calibrate(self, batch: Batch, key: jax.Array) -> None:
        """Start with each class as probable as it is frequent in the first batch's crops.

        From equal probabilities, the first steps teach every rare class the same: to vanish. That is learned
        by the weights that all voxels share, and small classes then stay at 0 for hundreds of steps. A
        decoder that was trained before keeps its biases.

        References:
            Lin et al. 2017, "Focal loss for dense object detection", section 4.1 (the prior of a rare class).
        """
        labels = self._crops(batch, key, train=True)[1]
        counts = (labels.reshape(-1, 1) == jnp.arange(1 + len(self.classes))).sum(axis=0)
        self.decoder.decoder.start_at(counts)

    def encode(self, batch: Batch, key: jax.Array, *, train: bool) -> Features:
        """Sums over the voxels of each crop, (B, M) and (B, M, K): see `losses.dice.OverlapSums`."""
        volume, labels = self._crops(batch, key, train)
        found = overlap_sums(self._logits(volume, train=train), labels)
        return {
            name: value.reshape(-1, self.count, *value.shape[1:]) for name, value in found._asdict().items()
        }

    def couple(self, features: Features, batch: Batch) -> dict[str, Term]:
        """One less Dice's coefficient, its mean over classes and crops; and cross entropy, over voxels.

        Both leave out what is not labeled; a crop without a labeled voxel has no part in the first.
        """
        sums = [features[name] for name in ("shared", "predicted", "true")]
        labeled = (features["voxels"] > 0).astype(jnp.float32)
        if self.dice_over == "batch":
            dice = soft_dice(*(part.sum((0, 1)) for part in sums)).mean()
            count = jnp.minimum(labeled.sum(), 1.0)
            overlap = Term((1.0 - dice) * count, count, self.dice_weight)
        else:
            dice = soft_dice(*sums).mean(-1)
            overlap = Term(((1.0 - dice) * labeled).sum(), labeled.sum(), self.dice_weight)
        voxels = features["voxels"].sum()
        entropy = Term(features["cross_entropy"].sum(), voxels, self.entropy_weight)
        return {"dice": overlap, "cross_entropy": entropy}

    def segment(self, inputs: Inputs) -> Float[Array, "B d h w K"]:
        """See `Objective.segment`."""
        return self._logits(inputs["volume"])

    def crop_shape(self) -> tuple[int, int, int]:
        """Of the crops that it was built for."""
        return self.crop

    def segmented_classes(self) -> tuple[str, ...]:
        """The data's."""
        return self.classes

    def pool_volumes(self, inputs: Inputs) -> Float[Array, "B pooled"]:
        """Mean over crops that together cover the volume of what the tower pools."""
        volume = inputs["volume"]
        axes = [
            np.linspace(0, size - part, -(-size // part)).round().astype(int)
            for size, part in zip(volume.shape[1:], self.crop, strict=True)
        ]
        starts = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)

        def pool(start: Array) -> Float[Array, "B pooled"]:
            crop = jax.lax.dynamic_slice(volume, (0, *start), (volume.shape[0], *self.crop))
            return self.vision(crop).astype(jnp.float32)

        return jax.lax.map(pool, jnp.asarray(starts)).mean(axis=0)

    def embed_volumes(self, inputs: Inputs) -> Embedding:
        """What `pool_volumes` gives, normalized."""
        return Embedding(normalize(self.pool_volumes(inputs)))

    def pooling(self) -> str:
        """Of the volume tower, over crops."""
        return f"volume {self.vision.pooling}, mean over crops"

    def towers(self) -> dict[str, str]:
        """The volume tower, and what decodes it."""
        kind = "UNETR" if isinstance(self.decoder, Unetr) else "U-Net"
        crop = " × ".join(map(str, self.crop))
        return {
            "volume tower": self.vision.describe(),
            "decoder": f"{kind}, {len(self.classes)} classes, crops of {crop} voxels",
        }
