"""CT and MR files in, canonical Hounsfield arrays out."""

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
