"""CT and MR files in, canonical Hounsfield arrays out."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medclip_jax.volumes.checks import check_hu, resolve_rescale
    from medclip_jax.volumes.crop import crop_and_resample
    from medclip_jax.volumes.dicom_choice import RULES
    from medclip_jax.volumes.geometry import (
        canonical,
        crop_or_pad,
        fraction_in_cells,
        mask_center,
        resample,
        resample_labels,
    )
    from medclip_jax.volumes.images import is_image, to_scan
    from medclip_jax.volumes.read import read_labels, read_scan, read_volume, to_volume
    from medclip_jax.volumes.scan import Scan
    from medclip_jax.volumes.volume import AIR_HU, Volume, VolumeRejected

_MODULES = {
    "AIR_HU": "volume",
    "RULES": "dicom_choice",
    "Scan": "scan",
    "Volume": "volume",
    "VolumeRejected": "volume",
    "canonical": "geometry",
    "check_hu": "checks",
    "crop_and_resample": "crop",
    "crop_or_pad": "geometry",
    "fraction_in_cells": "geometry",
    "is_image": "images",
    "mask_center": "geometry",
    "read_labels": "read",
    "read_scan": "read",
    "read_volume": "read",
    "resample": "geometry",
    "resample_labels": "geometry",
    "resolve_rescale": "checks",
    "to_scan": "images",
    "to_volume": "read",
}
"""Name to the module here that it comes from."""

__all__ = [
    "AIR_HU",
    "RULES",
    "Scan",
    "Volume",
    "VolumeRejected",
    "canonical",
    "check_hu",
    "crop_and_resample",
    "crop_or_pad",
    "fraction_in_cells",
    "is_image",
    "mask_center",
    "read_labels",
    "read_scan",
    "read_volume",
    "resample",
    "resample_labels",
    "resolve_rescale",
    "to_scan",
    "to_volume",
]


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562): readers of files take seconds to import, and training needs none."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
