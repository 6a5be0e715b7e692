"""What every exported model has: loading, preparing, vectors of volumes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from medclip_jax.export.torch.loading import (
    HUB_OPTIONS,
    TRANSFORMERS,
    MedclipConfig,
    PreTrainedModel,
    cached_file,
    check_config,
    read_json,
    read_weights,
)
from medclip_jax.export.torch.prepare import (
    AIR_HU,
    array_and_affine,
    check_hu,
    crop_and_resample,
    is_image,
    to_canonical,
    to_hu,
    window_by_percentiles,
)
from medclip_jax.export.torch.vision import VisionTower


class Embedding(NamedTuple):
    """Points of the joint space, L2-normalized (B, E); `log_variance` (B, E) where the model has one."""

    mean: Tensor
    log_variance: Tensor | None = None


class MedclipOutput(NamedTuple):
    """What `forward` returns; None for what was not requested."""

    volumes: Embedding | None
    texts: Embedding | None
    logits: Tensor | None
    """(volumes, texts): `similarity` times the learned scale, plus the learned bias where there is one."""


class VolumeModel(PreTrainedModel):
    """A volume tower, and the preparation that its input needs.

    Wherever a method takes `volumes`: prepared (B, D, H, W) or (D, H, W) HU, or one scan as an image of
    nibabel or SimpleITK or as a tuple of the arguments of `prepare`, or a list of any of these.

    A subclass defines `see`; its `__init__` adds what follows the tower, and ends with `self.post_init()`.

    Attributes:
        vision_encoder: class of the volume tower's network, see `VisionTower`; None for no such tower.
        has_text: whether it embeds texts, see `TextModel`.
        gaussian: whether its embeddings have a `log_variance`.
        more_files: names of the folder's files that `take_files` reads, where they are there.
    """

    config_class = MedclipConfig
    main_input_name = "volumes"
    # Without types: transformers would evaluate them where this file's imports are not known.
    vision_encoder = None
    has_text = False
    gaussian = False
    more_files = ()

    def __init__(self, config: MedclipConfig):
        super().__init__(config)
        check_config(config.objective, config.data)
        self.files = {}
        self.add_tower(config)

    def add_tower(self, config: MedclipConfig) -> None:
        """Add the volume tower, `vision`."""
        if self.vision_encoder is not None:
            objective, shape = config.objective, config.data["shape"]
            self.vision = VisionTower(objective["vision"], shape, self.vision_encoder)

    @staticmethod
    def packed(volume):
        """What methods take as `volumes`, from the library's fields of a batch."""
        return volume

    @staticmethod
    def is_single(volumes) -> bool:
        """Whether `volumes` are one, and not a batch."""
        return isinstance(volumes, tuple) or is_image(volumes) or getattr(volumes, "ndim", 0) == 3

    def see(self, volumes: Tensor) -> Embedding:
        """Vectors of prepared HU (B, D, H, W), with gradients."""
        raise NotImplementedError

    def take_files(self, files: dict[str, str]) -> None:
        """Read `more_files`: name to content. They are kept for `save_pretrained`."""
        self.files = files

    @classmethod
    def from_pretrained(cls, folder, *args, **options) -> VolumeModel:
        """Load a folder; with transformers installed also a hub id, and any option of transformers.

        Raises:
            FileNotFoundError: no config.json there.
            ValueError: weights are missing or left over.
        """
        if TRANSFORMERS:
            if not Path(folder).is_dir() and Path(folder).parent.is_dir() and str(Path(folder).parent) != ".":
                raise FileNotFoundError(f"no folder {folder}: a mistyped path is not requested on the hub")
            with_info = options.pop("output_loading_info", False)
            model, info = super().from_pretrained(folder, *args, output_loading_info=True, **options)
            missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
            hub = {name: value for name, value in options.items() if name in HUB_OPTIONS}
            hub["_raise_exceptions_for_missing_entries"] = False
            files = {name: cached_file(folder, name, **hub) for name in cls.more_files}
        else:
            folder = Path(folder)
            if not (folder / "config.json").is_file():
                raise FileNotFoundError(
                    f"no config.json in {folder}: give an exported folder; hub ids need transformers"
                )
            config = MedclipConfig(**read_json(folder / "config.json"))
            with torch.device("meta"):  # every weight comes from the file
                model = cls(config).eval()
            missing, unexpected = model.load_state_dict(read_weights(folder), strict=False, assign=True)
            files = {name: folder / name for name in cls.more_files if (folder / name).is_file()}
        if missing or unexpected:
            raise ValueError(f"config.json and weights differ: missing {missing}, unexpected {unexpected}")
        texts = {name: Path(file).read_text(encoding="utf-8") for name, file in files.items() if file}
        model.take_files(texts)
        return (model, info) if TRANSFORMERS and with_info else model

    def save_pretrained(self, folder, *args, **options) -> None:
        """Write a folder that loads in the same ways (needs transformers)."""
        super().save_pretrained(folder, *args, **options)
        for name, content in self.files.items():
            (Path(folder) / name).write_text(content, encoding="utf-8")

    def prepare(self, voxels, affine=None, *, spacing=None, center=None) -> Tensor:
        """Bring a scan to the grid the model was trained on, as `medclip prepare` does.

        Args:
            voxels: an image of nibabel or SimpleITK; or (I, J, K) HU, array or tensor, with `affine` or
                `spacing`; with `spacing` in the order (superior, anterior, right).
            affine: (4, 4) from array index to RAS mm, as nibabel gives it.
            spacing: mm along the three axes, instead of `affine`.
            center: RAS mm of the crop's middle, by default the scan's; with `spacing`, mm to the right of,
                in front of and above the first voxel. None where the complete scan is resized.

        Returns:
            (D, H, W) int16 HU, on the CPU.

        Raises:
            ValueError: the values are no HU, or the geometry is none; the message says what to do.
            TypeError: neither an image nor an array.
        """
        data, modality = self.config.data, self.config.modality
        if center is not None and all(step is None for step in data["spacing"]):
            raise ValueError("the model takes the complete scan, resized: leave center out")
        if is_image(voxels):
            if affine is not None or spacing is not None:
                raise ValueError("an image has its own affine: leave affine and spacing out")
            voxels, affine = array_and_affine(voxels)
        if (affine is None) == (spacing is None):
            raise ValueError("give the affine (array index to RAS mm) or the spacing (mm), one of the two")
        if spacing is not None:
            depth, height, width = spacing
            affine = [[0, 0, width, 0], [0, height, 0, 0], [depth, 0, 0, 0], [0, 0, 0, 1]]
        if center is None and self.config.crop != "center":
            wanted = f"crops around {self.config.crop!r}: give center=(x, y, z), in RAS mm, of that organ"
            warnings.warn(f"the model was trained on {wanted}", stacklevel=2)
        affine = torch.as_tensor(affine, dtype=torch.float64).cpu()
        if affine.shape != (4, 4):
            raise ValueError(f"the affine is (4, 4), array index to RAS mm, not {tuple(affine.shape)}")
        voxels = to_hu(voxels, modality)
        if percentiles := getattr(self.config, "percentiles", None):
            voxels = window_by_percentiles(voxels, percentiles)
        voxels, affine = to_canonical(voxels, affine)
        if modality == "CT":
            check_hu(voxels)
        fill = AIR_HU if modality == "CT" else int(voxels.min())
        return crop_and_resample(voxels, affine, data["shape"], data["spacing"], center, fill)

    def prepared(self, volumes) -> Tensor:
        """(B, D, H, W) on the model's device, from what the public methods take."""
        if isinstance(volumes, tuple):
            volumes = self.prepare(*volumes)
        elif is_image(volumes):
            volumes = self.prepare(volumes)
        elif isinstance(volumes, list):
            if not volumes:
                raise ValueError("no volumes were given")
            volumes = torch.cat([self.prepared(volume) for volume in volumes])
        elif not hasattr(volumes, "shape"):
            raise TypeError(
                f"give arrays, images, (array, affine), or a list, not {type(volumes).__name__}: "
                "read a file with nibabel or SimpleITK"
            )
        volumes = torch.as_tensor(volumes, device=next(self.parameters()).device)
        shape = list(self.config.data["shape"])
        if volumes.ndim not in (3, 4) or list(volumes.shape[-3:]) != shape:
            found = list(volumes.shape)
            raise ValueError(
                f"volumes of {found}, the model takes {shape}: `prepare` them, or give affines too"
            )
        return volumes[None] if volumes.ndim == 3 else volumes

    def patch_tokens(self, volumes) -> Tensor:
        """Tokens (B, N, width) of the volume tower, width fastest; a class token, where it has one, first."""
        return self.vision.encode(self.prepared(volumes)).sequence

    def forward(self, volumes) -> MedclipOutput:
        """Embed volumes. With gradients."""
        return MedclipOutput(self.see(self.prepared(volumes)), None, None)

    @torch.no_grad()
    def embed_volumes(self, volumes) -> Embedding:
        """Vectors of volumes, mean (B, E); log_variance (B, E) where the model has one."""
        if volumes is None:
            raise TypeError("no volumes were given")
        volumes = self.prepared(volumes)
        if self.config.modality == "CT" and volumes.amin() >= 0:
            raise ValueError("no voxel is below 0: volumes are HU, without any scaling of your own")
        return self(volumes=volumes).volumes


def normalized(embedding: Embedding) -> Embedding:
    """Means of length 1, in float32."""
    return embedding._replace(mean=F.normalize(embedding.mean.float(), dim=-1, eps=1e-6))
