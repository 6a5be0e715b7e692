"""The two towers that systems share: HU volume → tokens, token ids → text vector."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from medclip_jax import transforms
from medclip_jax.models.bert import Bert, BertConfig
from medclip_jax.models.vit import VisionTransformer
from medclip_jax.objectives.base import DataSpec


def vision_defaults() -> dict[str, Any]:
    """ViT-B on one wide window, as Cardiac-CLIP was released (patch 8, class token).

    A `patch` of () follows from the volumes, see `training.settle`.

    `windows` are (low, high) HU, one channel each, scaled to [-1, 1]; `standardize` may give (mean, standard
    deviation) of each such channel over the training volumes, to bring them to mean 0 and variance 1.

    With a `cell` above one voxel the tower sees one value a cell: each window's entry of `projections`
    ("mean", "max", "min" or "blob", see `transforms.project`) says which, and `patch` counts cells. Large
    volumes then cost little, and small bright or dark findings still show.

    `pre_norm`, `activation` ("gelu" or "quick_gelu") and `layer_norm_epsilon` are there for published models:
    CLIP's towers normalise before the first block, use the quick GELU and 1e-5. `weights` names a checkpoint
    of a 2D or 3D ViT that a fresh run starts from, and `weights_patch` what becomes of its patch layer:
    "inflate" or "fresh"; see `weights.vision`.

    `remat` and `scan` say how blocks are run, see `models.blocks.run`; a decoder follows them.
    """
    return {
        "patch": (8, 8, 8),
        "peaks": False,
        "width": 768,
        "depth": 12,
        "heads": 12,
        "mlp_ratio": 4.0,
        "pooling": "cls",
        "grid_features": 16,
        "skip": False,
        "extremes": False,
        "position": "sincos",
        "pre_norm": False,
        "activation": "gelu",
        "layer_norm_epsilon": 1e-6,
        "weights": "",
        "weights_patch": "inflate",
        "windows": ((-1000.0, 1000.0),),
        "standardize": (),
        "cell": (1, 1, 1),
        "projections": (),
        "augment": {"shift_voxels": (0, 0, 0), "noise_hu": 0.0, "offset_hu": 0.0, "gain": 0.0},
        "dtype": "bfloat16",
        "remat": "none",
        "scan": False,
    }


def text_defaults() -> dict[str, Any]:
    """BERT-base.

    `folder` names a Hugging Face folder or a hub id: all sizes are then those of its config.json, whatever is
    said here, and a fresh run starts from its weights. `vocabulary` is how many entries the embedding table
    has, 0 for as many as the tokenizer. `pooling` is one of `Bert.pool`.
    """
    return {
        "folder": "",
        "vocabulary": 0,
        "type_vocabulary": 2,
        "width": 768,
        "depth": 12,
        "heads": 12,
        "mlp_ratio": 4.0,
        "max_positions": 512,
        "layer_norm_epsilon": 1e-12,
        "activation": "gelu",
        "pooling": "cls",
        "dtype": "bfloat16",
        "remat": "none",
        "scan": False,
    }


class VisionTower(nnx.Module):
    """Windowing, augmentation and the 3D vision transformer.

    Args:
        config: the keys of `vision_defaults`.
        spec: fixes the grid.
        rngs: source of the initial weights.
    """

    def __init__(self, config: Any, spec: DataSpec, *, rngs: nnx.Rngs):
        self.windows = tuple((float(low), float(high)) for low, high in config.windows)
        self.standardize = tuple((float(mean), float(std)) for mean, std in config.standardize)
        if self.standardize and len(self.standardize) != len(self.windows):
            raise ValueError(
                f"config.objective.vision.standardize has {len(self.standardize)} (mean, std) for "
                f"{len(self.windows)} windows: give one for each, or () for none"
            )
        self.cell = tuple(config.cell)
        self.projections = tuple(config.projections) or ("mean",) * len(self.windows)
        if len(self.projections) != len(self.windows):
            raise ValueError(
                f"config.objective.vision.projections has {len(self.projections)} entries for "
                f"{len(self.windows)} windows: give one for each, or () for means"
            )
        self.shift_voxels = tuple(config.augment.shift_voxels)
        self.noise_hu = float(config.augment.noise_hu)
        self.offset_hu = float(config.augment.offset_hu)
        self.gain = float(config.augment.gain)
        self.transformer = VisionTransformer(
            shape=tuple(size // step for size, step in zip(spec.shape, self.cell, strict=True)),
            patch=tuple(config.patch),
            channels=len(self.windows),
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            peaks=config.peaks,
            mlp_ratio=config.mlp_ratio,
            pooling=config.pooling,
            grid_features=config.grid_features,
            skip=config.skip,
            extremes=config.extremes,
            position=config.position,
            pre_norm=config.pre_norm,
            activation=config.activation,
            layer_norm_epsilon=config.layer_norm_epsilon,
            dtype=jnp.dtype(config.dtype),
            remat=config.remat,
            scan=config.scan,
            rngs=rngs,
        )

    def augment(self, volume: Num[Array, "B D H W"], keys: jax.Array | None) -> Num[Array, "B D H W"]:
        """HU of volumes, varied as the config says; unchanged without keys (B,)."""
        if keys is None:
            return volume
        return transforms.augment(
            volume,
            keys,
            shift_voxels=self.shift_voxels,
            noise_hu=self.noise_hu,
            offset_hu=self.offset_hu,
            gain=self.gain,
        )

    def to_voxels(
        self, volume: Num[Array, "B D H W"], keys: jax.Array | None = None
    ) -> Float[Array, "B D H W C"]:
        """HU to floats, one channel a window; augmented when keys (B,) are given."""
        volume = self.augment(volume, keys)
        if self.cell == (1, 1, 1):
            voxels = transforms.to_float(volume, self.windows)
        else:
            seen = {how: transforms.project(volume, self.cell, how) for how in sorted(set(self.projections))}
            channels = zip(self.projections, self.windows, strict=True)
            voxels = jnp.concatenate(
                [transforms.to_float(seen[how], [window]) for how, window in channels], -1
            )
        if self.standardize:
            mean, std = jnp.asarray(self.standardize).T
            voxels = (voxels - mean) / std
        return voxels

    def to_windows(self, voxels: Float[Array, "B D H W C"]) -> Float[Array, "B D H W C"]:
        """Undo the standardisation of `to_voxels`: each window in [-1, 1] again, to be looked at."""
        if not self.standardize:
            return voxels
        mean, std = jnp.asarray(self.standardize).T
        return voxels * std + mean

    def __call__(
        self, volume: Int[Array, "B D H W"], keys: jax.Array | None = None
    ) -> Float[Array, "B pooled"]:
        """One pooled vector per volume."""
        return self.transformer.pool(self.transformer(self.to_voxels(volume, keys)))


def encoder_config(config: Any, spec: DataSpec) -> BertConfig:
    """Sizes of the text encoder: those of `config.folder` where it is set, else those of `config`.

    Args:
        config: the keys of `text_defaults`.
        spec: fixes vocabulary and padding.

    Raises:
        ValueError, FileNotFoundError: see `TextTower`.
    """
    if config.folder:
        # Imported here: a hub id needs the hub client, which a bare training machine may lack.
        from medclip_jax.hub import locate

        sizes = BertConfig.from_hf(locate(config.folder, weights=False))
        where, remedy = f"the encoder in {config.folder!r}", "config.data.tokenizer to the same folder"
    else:
        if not (config.vocabulary or spec.vocabulary_size):
            raise ValueError("no tokenizer: prepare with --tokenizer train, or set config.data.tokenizer")
        sizes = BertConfig(
            vocabulary_size=config.vocabulary or spec.vocabulary_size,
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            mlp_width=round(config.width * config.mlp_ratio),
            max_positions=config.max_positions,
            type_vocabulary=config.type_vocabulary,
            layer_norm_epsilon=config.layer_norm_epsilon,
            pad_token=spec.pad_token,
            activation=config.activation,
        )
        where, remedy = "config.objective.text.vocabulary", "it to that or 0"
    if spec.vocabulary_size > sizes.vocabulary_size:
        raise ValueError(
            f"the tokenizer has {spec.vocabulary_size} entries but {where} embeds {sizes.vocabulary_size}: "
            f"set {remedy}"
        )
    return sizes


class TextTower(nnx.Module):
    """A BERT-type encoder with pooling, drawn at random: weights come later, see `weights.pretrained`.

    Args:
        config: the keys of `text_defaults`.
        spec: fixes vocabulary and padding.
        rngs: source of the initial weights.

    Raises:
        ValueError: no tokenizer, or one with more entries than the embedding table.
        FileNotFoundError: `config.folder` is no folder with a config.json, nor on the hub.
    """

    def __init__(self, config: Any, spec: DataSpec, *, rngs: nnx.Rngs):
        self.encoder = Bert(
            encoder_config(config, spec),
            dtype=jnp.dtype(config.dtype),
            remat=config.remat,
            scan=config.scan,
            rngs=rngs,
        )
        self.pooling = config.pooling
        self.pad_token = spec.pad_token

    @property
    def width(self) -> int:
        """Width of the pooled vector."""
        return self.encoder.config.width

    def __call__(self, tokens: Int[Array, "B L"]) -> Float[Array, "B width"]:
        """One pooled vector per text."""
        mask = tokens != self.pad_token
        return self.encoder.pool(self.encoder(tokens, mask), tokens, mask, self.pooling)
