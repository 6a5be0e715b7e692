"""Masked autoencoding of volumes: stage 1 of Cardiac-CLIP.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (2022), in 3D with the sizes of
Cardiac-CLIP: 75 % of the patches are hidden, a light decoder predicts their voxels.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from medclip_jax.losses import masked
from medclip_jax.models.mae import MaskedDecoder, random_keep
from medclip_jax.models.patches import patchify, unpatchify
from medclip_jax.objectives.base import (
    Batch,
    DataSpec,
    Embedding,
    Features,
    Inputs,
    Objective,
    Reconstruction,
    Term,
    sample_keys,
)
from medclip_jax.objectives.towers import VisionTower, vision_defaults
from medclip_jax.sections import Section
from medclip_jax.transforms import to_float
from medclip_jax.vectors import normalize


def default_config() -> Section:
    """The paper's values: ViT-B, 75 % masked, decoder 384 wide, 5 layers, 6 heads, normalized patches."""
    return Section(
        {
            "name": "mae",
            "vision": vision_defaults(),
            "decoder": {"width": 384, "depth": 5, "heads": 6},
            "mask_fraction": 0.75,  # share of the patches that is hidden
            "normalize_patches": True,  # compare with each patch's own mean 0, variance 1
            # (low, high) HU: the decoder predicts every voxel in these windows; () = what the encoder sees,
            # its channels, and cells where the tower looks at cells.
            "decoder_windows": (),
            "decoder_from_mean": False,  # begin with the mean patch of each place, see `MaskedDecoder`
        }
    )


class MaskedAutoencoder(Objective):
    """Encoder on visible patches, decoder on all of them, mean squared error on the hidden ones.

    Args:
        config: the keys of `default_config`.
        spec: fixes the grid.
        rngs: source of the initial weights.
    """

    description: ClassVar[str] = "a masked autoencoder: its vectors describe a scan, it reads no text"
    torch_twin: ClassVar[str] = "medclip_jax.export.torch.masked:MaskedModel"
    reconstructs: ClassVar[bool] = True

    @classmethod
    def batch_fields(cls, config: Any) -> tuple[str, ...]:
        """Volumes alone."""
        return ("volume",)

    def __init__(self, config: Any, spec: DataSpec, *, rngs: nnx.Rngs):
        self.vision = VisionTower(config.vision, spec, rngs=rngs)
        if not self.vision.encoder.drops_patches:
            raise ValueError(
                f"config.objective.vision.kind={config.vision.kind!r} cannot leave patches out, which masked "
                "autoencoding does: take 'vit'"
            )
        self.grid = self.vision.grid
        self.tokens = self.grid[0] * self.grid[1] * self.grid[2]
        self.keep = max(1, round(self.tokens * (1.0 - config.mask_fraction)))
        self.normalize_patches = config.normalize_patches
        self.decoder_windows = tuple((float(low), float(high)) for low, high in config.decoder_windows)
        self.decoded_patch, self.channels = self.vision.token_voxels, len(self.decoder_windows)
        if not self.decoder_windows:
            cells = zip(self.decoded_patch, self.vision.cell, strict=True)
            self.decoded_patch = tuple(voxels // cell for voxels, cell in cells)
            self.channels = len(self.vision.windows)
        self.decoder = MaskedDecoder(
            grid=self.grid,
            patch=self.decoded_patch,
            channels=self.channels,
            encoder_width=self.vision.width,
            width=config.decoder.width,
            depth=config.decoder.depth,
            heads=config.decoder.heads,
            from_mean=config.decoder_from_mean,
            dtype=jnp.dtype(config.vision.dtype),
            remat=config.vision.remat,
            scan=config.vision.scan,
            rngs=rngs,
        )

    def _target(
        self, volume: Num[Array, "B D H W"], voxels: Float[Array, "B d h w C"]
    ) -> Float[Array, "B N P"]:
        """What the decoder is to predict: patches of the tower's channels, or of the voxels."""
        if self.decoder_windows:
            voxels = to_float(volume, self.decoder_windows)
        return patchify(voxels, self.decoded_patch)

    def _predict(
        self, voxels: Float[Array, "B D H W C"], keys: jax.Array
    ) -> tuple[Float[Array, "B N P"], Float[Array, "B N"]]:
        keep, restore, mask = random_keep(keys, self.tokens, self.keep)
        return self.decoder(self.vision.encode(voxels, keep), restore), mask

    def encode(self, batch: Batch, key: jax.Array, *, train: bool) -> Features:
        """Sum over hidden patches of their mean squared error, and their number, per sample."""
        augment_key, mask_key = jax.random.split(key)
        augment_keys = sample_keys(augment_key, batch["sample"]) if train else None
        volume = self.vision.augment(batch["volume"], augment_keys)
        voxels = self.vision.to_voxels(volume)
        prediction, mask = self._predict(voxels, sample_keys(mask_key, batch["sample"]))
        error, count = masked.reconstruction_sums(
            prediction, self._target(volume, voxels), mask, normalize_patches=self.normalize_patches
        )
        return {"error": error, "count": count}

    def couple(self, features: Features, batch: Batch) -> dict[str, Term]:
        """Mean squared error over all hidden patches of the batch."""
        return {"reconstruction": Term(features["error"].sum(), features["count"].sum())}

    def calibrate(self, batch: Batch, key: jax.Array) -> None:
        """With `decoder_from_mean`, begin with the mean patches of the first batch."""
        target = self._target(batch["volume"], self.vision.to_voxels(batch["volume"]))
        self.decoder.set_means(masked.normalize_target(target) if self.normalize_patches else target)

    def embed_volumes(self, inputs: Inputs) -> Embedding:
        """The encoder's pooled vector with every patch visible."""
        return Embedding(normalize(self.vision(inputs["volume"])))

    def pool_volumes(self, inputs: Inputs) -> Float[Array, "B pooled"]:
        """What the volume tower pools, every patch visible."""
        return self.vision(inputs["volume"]).astype(jnp.float32)

    def pooling(self) -> str:
        """Of the volume tower."""
        return f"volume {self.vision.pooling}"

    def towers(self) -> dict[str, str]:
        """The volume tower; the decoder is for training."""
        return {"volume tower": self.vision.describe()}

    def volume_tower(self) -> VisionTower:
        """The encoder."""
        return self.vision

    def reconstructed_windows(self) -> tuple[tuple[float, float], ...]:
        """Those of the decoder, where it has its own, else those of the volume tower."""
        return self.decoder_windows or self.vision.windows

    def reconstruct(self, volumes: Int[Array, "B D H W"], key: jax.Array) -> Reconstruction:
        """Hide patches, fill them in, and put everything back on the voxel grid, to be looked at.

        With `normalize_patches` the decoder predicts each patch up to its mean and scale; those of the
        original are put back, as the published figures do.

        Args:
            volumes: prepared volumes (HU).
            key: draws the mask.
        """
        voxels = self.vision.to_voxels(volumes)
        prediction, mask = self._predict(voxels, jax.random.split(key, volumes.shape[0]))
        target = self._target(volumes, voxels)
        prediction = prediction.astype(jnp.float32)
        if self.normalize_patches:
            mean = target.mean(axis=-1, keepdims=True)
            prediction = prediction * jnp.sqrt(target.var(axis=-1, keepdims=True) + 1e-6) + mean
        hidden = mask[..., None] > 0

        def to_grid(patches: Float[Array, "B N P"]) -> Float[Array, "B D H W C"]:
            grid = unpatchify(patches, self.grid, self.decoded_patch, self.channels)
            return grid if self.decoder_windows else self.vision.to_windows(grid)

        return Reconstruction(
            to_grid(target),
            to_grid(jnp.where(hidden, jnp.nan, target)),
            to_grid(jnp.where(hidden, prediction, target)),
        )
