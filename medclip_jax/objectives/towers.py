"""The two towers that systems share: HU volume → tokens, token ids → text vector."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Num, UInt8

from medclip_jax import transforms
from medclip_jax.dotted import find_class
from medclip_jax.models.adapters import AdapterSize
from medclip_jax.models.bert import Bert, BertConfig
from medclip_jax.models.encoder import Encoded, VisionEncoder
from medclip_jax.models.heads import standardized
from medclip_jax.models.patches import pool_cells
from medclip_jax.objectives.base import DataSpec

KINDS: dict[str, str] = {
    "vit": "medclip_jax.models.vit:VisionTransformer",
    "resnet": "medclip_jax.models.resnet:ResNet",
}
"""Kind of vision tower to its encoder, a `models.encoder.VisionEncoder`."""


def encoder_class(kind: str) -> type[VisionEncoder]:
    """The encoder of a kind of vision tower.

    Args:
        kind: one of `KINDS`, or "package.module:Class" of one that is written elsewhere.

    Raises:
        ValueError: there is no such kind, or the class is no `VisionEncoder`.
    """
    return find_class(kind, KINDS, VisionEncoder, "config.objective.vision.kind")


def vision_defaults(kind: str = "vit") -> dict[str, Any]:
    """Keys of a vision tower of some kind, on one wide window.

    In a config file, another kind is chosen with all its keys at once:
    ``config.objective.vision = vision_defaults("resnet")``.

    Args:
        kind: see `encoder_class`.
    """
    return {
        "kind": kind,  # "vit" | "resnet" | "package.module:Class"
        **encoder_class(kind).defaults(),
        "weights": "",  # file of a published network that a fresh run starts from, see docs/how-to/weights.md
        "windows": ((-1000.0, 1000.0),),  # (low, high) HU, one channel each, scaled to [-1, 1]
        # (mean, standard deviation) of each such channel over the training volumes, to bring them to mean 0
        # and variance 1; () = leave them.
        "standardize": (),
        # Voxels that the tower sees as one: large volumes then cost little, and small bright or dark findings
        # still show where `projections` says "max", "min" or "blob" instead of "mean" for a window.
        "cell": (1, 1, 1),
        "projections": (),  # one entry a window, see `transforms.project`; () = means
        "augment": {"shift_voxels": (0, 0, 0), "noise_hu": 0.0, "offset_hu": 0.0, "gain": 0.0},
        "dtype": "bfloat16",
        "remat": "none",  # what is computed again in the backward pass; values by kind. A decoder follows it
    }


def text_defaults() -> dict[str, Any]:
    """Keys of a text tower: BERT-base."""
    return {
        # Hugging Face folder or hub id: all sizes are then those of its config.json, whatever is said here,
        # and a fresh run starts from its weights.
        "folder": "",
        "vocabulary": 0,  # entries of the embedding table; 0 = as many as the tokenizer has
        "type_vocabulary": 2,
        "width": 768,
        "depth": 12,
        "heads": 12,
        "mlp_ratio": 4.0,
        "max_positions": 512,  # tokens of a text, at most
        "layer_norm_epsilon": 1e-12,
        "activation": "gelu",
        "pooling": "cls",  # one of `Bert.pool`
        # Low-rank adapters of every attention's queries, keys, values and output; rank 0 has none. They learn
        # beside a frozen encoder: config.optimizer.frozen = (r"^text/encoder/(?!.*_adapter/)",). What is
        # loaded or exported has them merged.
        "adapters": {"rank": 0, "alpha": 16.0},
        "dtype": "bfloat16",
        "remat": "none",  # what is computed again in the backward pass, see `models.blocks.run`
        "scan": False,  # one compiled block in a loop
    }


class VisionTower(nnx.Module):
    """Windowing, augmentation and an encoder: HU volume to tokens, and to one vector.

    Args:
        config: the keys of `vision_defaults`.
        spec: fixes the shape of volumes.
        rngs: source of the initial weights.

    Attributes:
        kind: of the encoder.
        shape: (D, H, W) voxels of a volume.
        encoder: the network; its parameters lie at "vision/<encoder.part>".
        grid: tokens of a volume along depth, height, width.
        width: features of a token.
        pooling: how tokens become one vector, in a word.
        pooled_width: features of that vector.
        explanation: how heat maps follow the encoder, see `models.encoder.VisionEncoder`.
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
        self.kind = config.kind
        chosen = encoder_class(config.kind)
        if config.remat not in chosen.remat_policies:
            raise ValueError(
                f"config.objective.vision.remat={config.remat!r}: of kind {config.kind!r} it is one of "
                f"{', '.join(chosen.remat_policies)}"
            )
        self.shape = tuple(spec.shape)
        shape = tuple(size // step for size, step in zip(self.shape, self.cell, strict=True))
        self._part = chosen.part
        setattr(self, chosen.part, chosen.from_config(config, shape, len(self.windows), rngs=rngs))
        self.grid = self.encoder.grid_of(shape)
        self.explanation = chosen.explanation

    @property
    def encoder(self) -> VisionEncoder:
        """The network from voxels to tokens."""
        return getattr(self, self._part)

    @property
    def token_voxels(self) -> tuple[int, int, int]:
        """Voxels of a volume that a token stands for, along depth, height, width.

        Raises:
            ValueError: the tokens do not divide the volume evenly.
        """
        if any(size % count for size, count in zip(self.shape, self.grid, strict=True)):
            raise ValueError(
                f"volumes of {self.shape} voxels make {self.grid} tokens, which do not divide them evenly: "
                "prepare volumes at multiples of the tower's stride"
            )
        return tuple(size // count for size, count in zip(self.shape, self.grid, strict=True))

    def token_centers(self) -> tuple[Float[np.ndarray, " tokens"], ...]:
        """Where tokens lie: the coordinate of each along depth, height, width, in voxels from the first."""
        shape = tuple(size // step for size, step in zip(self.shape, self.cell, strict=True))
        axes = zip(self.encoder.token_centers(shape), self.cell, strict=True)
        return tuple((cells + 0.5) * step - 0.5 for cells, step in axes)

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.encoder.width

    @property
    def pooling(self) -> str:
        """How tokens become one vector, in a word."""
        return self.encoder.pooling

    @property
    def pooled_width(self) -> int:
        """Features of the pooled vector."""
        return self.encoder.pooled_width

    def describe(self) -> str:
        """What the tower is, in words, for tables and cards."""
        cells = " × ".join(map(str, self.cell))
        return self.encoder.describe() + ("" if self.cell == (1, 1, 1) else f"; sees cells of {cells} voxels")

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

    def augment_labels(
        self, labels: UInt8[Array, "B D H W"], keys: jax.Array | None
    ) -> UInt8[Array, "B D H W"]:
        """Label maps, moved as `augment` with these keys moves their volumes; unchanged without keys (B,)."""
        if keys is None:
            return labels
        return transforms.augment_labels(labels, keys, shift_voxels=self.shift_voxels)

    def organ_shares(
        self, cells: UInt8[Array, "B O d h w"], keys: jax.Array | None = None
    ) -> Float[Array, "B O N"]:
        """Share of each patch that each organ fills, moved as `augment` with these keys moves the volumes.

        Args:
            cells: share x 255 of each cell of voxels, as in a batch.
            keys: (B,); None where volumes are as they are.

        Raises:
            ValueError: cells that do not divide the patch.
        """
        size = self.shape[0] // cells.shape[2]
        if keys is not None and any(self.shift_voxels):
            cells = transforms.shift_cells(cells, transforms.shift_offsets(keys, self.shift_voxels), size)
        return pool_cells(cells, size, self.token_voxels)

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
        """Undo the standardization of `to_voxels`: each window in [-1, 1] again, to be looked at."""
        if not self.standardize:
            return voxels
        mean, std = jnp.asarray(self.standardize).T
        return voxels * std + mean

    def encode(
        self,
        voxels: Float[Array, "B D H W C"],
        keep: Int[Array, "B K"] | None = None,
        *,
        train: bool = False,
    ) -> Encoded:
        """Voxels, from `to_voxels`, to tokens; arguments as of `models.encoder.VisionEncoder.encode`."""
        return self.encoder.encode(voxels, keep, train=train)

    def layer_states(self, voxels: Float[Array, "B D H W C"]) -> dict[str, Float[Array, "B tokens features"]]:
        """Voxels to the tokens after each layer, see `models.encoder.VisionEncoder.layer_states`."""
        return self.encoder.layer_states(voxels)

    def pool(self, encoded: Encoded) -> Float[Array, "B pooled"]:
        """One vector a volume."""
        return self.encoder.pool(encoded)

    def calibrate(self, voxels: Float[Array, "B D H W C"]) -> None:
        """Set initial values of the encoder that depend on data, from a run's first volumes."""
        self.encoder.calibrate(voxels)

    def __call__(
        self, volume: Int[Array, "B D H W"], keys: jax.Array | None = None, *, train: bool = False
    ) -> Float[Array, "B pooled"]:
        """One pooled vector per volume; augmented when keys (B,) are given."""
        return self.pool(self.encode(self.to_voxels(volume, keys), train=train))

    def mean_token(
        self, volume: Int[Array, "B D H W"], keys: jax.Array | None = None, *, train: bool = False
    ) -> Float[Array, "B width"]:
        """The mean patch token of the last block, before a final norm, standardized; float32.

        It is what ASAP's probes read. Arguments as for a call.
        """
        states = self.encoder.last_states(self.to_voxels(volume, keys), train=train)
        return standardized(states.astype(jnp.float32).mean(axis=1))


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


def scanned(objective: Any, prefix: str = "") -> tuple[str, ...]:
    """Sections of `config.objective` whose blocks run in one compiled loop (`scan=True`), such as "vision".

    Args:
        objective: `config.objective`, or a section of it.
        prefix: put before the names.
    """
    found: tuple[str, ...] = ()
    for name, value in objective.items():
        if name == "scan" and value:
            found += (prefix.rstrip("."),)
        elif hasattr(value, "items"):
            found += scanned(value, f"{prefix}{name}.")
    return found


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
            adapters=AdapterSize(**config.adapters) if config.adapters.rank else None,
            rngs=rngs,
        )
        self.pooling = config.pooling
        self.pad_token = spec.pad_token

    @property
    def width(self) -> int:
        """Width of the pooled vector."""
        return self.encoder.config.width

    def describe(self) -> str:
        """What the tower is, in words, for tables and cards."""
        sizes = self.encoder.config
        return (
            f"BERT, width {sizes.width}, depth {sizes.depth}, {sizes.heads} heads, "
            f"{sizes.vocabulary_size:,} entries, pooling {self.pooling}"
        )

    def __call__(self, tokens: Int[Array, "B L"]) -> Float[Array, "B width"]:
        """One pooled vector per text."""
        mask = tokens != self.pad_token
        return self.encoder.pool(self.encoder(tokens, mask), tokens, mask, self.pooling)
