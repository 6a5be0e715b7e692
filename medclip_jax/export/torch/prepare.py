"""From scans as they come to the model's grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

AIR_HU = -1024
"""Fills what lies outside the scan."""
PADDING_BELOW_HU = -1400
"""Lower values mark voxels outside the scanner's field of view."""


def to_hu(voxels, modality: str) -> Tensor:
    """(I, J, K) of any real type to int16: padding below -1400 HU made air, MR in fractions scaled up."""
    if hasattr(voxels, "astype"):  # NumPy's: native byte order, no negative strides
        voxels = voxels.astype(voxels.dtype.newbyteorder("="))
    if not hasattr(voxels, "shape"):
        raise TypeError(f"voxels are an array or an image, not {type(voxels).__name__}")
    voxels = torch.as_tensor(voxels).cpu()
    if voxels.dtype == torch.bool or voxels.is_complex():
        raise TypeError(f"voxels are real numbers, not {voxels.dtype}")
    if voxels.ndim != 3:
        raise ValueError(f"a scan has three axes, not {voxels.ndim}")
    if voxels.dtype != torch.int16:
        fractions = voxels.is_floating_point()
        voxels = voxels if fractions else voxels.to(torch.int32)
        low, high = (float(end) for end in voxels.aminmax())
        if modality == "MR" and fractions and (high > 32767 or low < -32768 or high - low < 256):
            factor = 4095.0 / max(abs(low), abs(high), 1e-30)
            voxels, high = voxels * factor, high * factor
        if not (math.isfinite(low) and high <= 32767):
            raise ValueError(
                f"values from {low:g} to {high:g}: write air (-1024) into NaN, check the rescale"
            )
        voxels = voxels.clamp(min=-32768).round().to(torch.int16)
    return voxels.masked_fill(voxels < PADDING_BELOW_HU, AIR_HU) if modality == "CT" else voxels


def window_by_percentiles(voxels: Tensor, percentiles: Sequence[float]) -> Tensor:
    """Map an MR scan's int16 intensities to 0 ... 4095, cut off at two percentiles of its voxels.

    Raises:
        ValueError: both percentiles are one value.
    """
    counts = torch.bincount(voxels.flatten().to(torch.int64) + 32768, minlength=1 << 16).cumsum(0)
    ranks = [max(math.ceil(voxels.numel() * p / 100), 1) for p in percentiles]
    low, high = (int(torch.searchsorted(counts, rank)) - 32768 for rank in ranks)
    if low == high:
        raise ValueError(f"percentiles {percentiles} of the voxels are both {low}: the scan is nearly empty")
    shifted = voxels.clamp(low, high).to(torch.float32) - low
    return (shifted * (4095 / (high - low))).round().to(torch.int16)


def check_hu(voxels: Tensor) -> None:
    """Refuse what is no CT in HU: nothing below 0, next to no range, or another offset.

    Raises:
        ValueError: with what to do.
    """
    step = max(1, round((voxels.numel() / 1e6) ** (1 / 3)))
    values = voxels[::step, ::step, ::step].flatten().float()
    low, high = values.aminmax()
    if high - low < 200:
        raise ValueError(
            f"values from {low:g} to {high:g} are no HU: undo your scaling, or give the scan itself"
        )
    if voxels.min() >= 0:
        raise ValueError("no voxel is below 0 HU: apply the scan's rescale slope and intercept")
    if not is_ct(values):
        for offset in (1024, 1000, -1024, -1000):
            if is_ct(values - offset):
                raise ValueError(f"values are about {offset} off: HU + ({offset}) is no HU, take it away")


def is_ct(values: Tensor) -> bool:
    """Whether values (N,) look like HU: air near -1000, and most of what is no air like soft tissue."""
    first = values.kthvalue(max(1, round(0.01 * len(values)))).values
    body = values[values > -500]
    soft = (body.abs() <= 150).sum()
    return bool(-1100 <= first <= -850 and soft >= 0.03 * len(values) and soft >= 0.4 * len(body))


def is_image(scan) -> bool:
    """Whether it is an image of nibabel or SimpleITK."""
    return hasattr(scan, "GetDirection") or (hasattr(scan, "dataobj") and hasattr(scan, "affine"))


def array_and_affine(image) -> tuple:
    """Voxels (I, J, K) of an image of nibabel or SimpleITK, and the (4, 4) affine from index to RAS mm."""
    if hasattr(image, "dataobj"):
        voxels = image.get_fdata(dtype="float32")
        while voxels.ndim > 3 and voxels.shape[-1] == 1:
            voxels = voxels[..., 0]
        return voxels, image.affine
    import SimpleITK

    if image.GetDimension() != 3:
        raise ValueError(f"a scan has three axes, not {image.GetDimension()}")
    voxels = SimpleITK.GetArrayFromImage(image).transpose()
    to_ras = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    affine = torch.eye(4, dtype=torch.float64)
    direction = torch.tensor(image.GetDirection(), dtype=torch.float64).view(3, 3)
    affine[:3, :3] = to_ras[:, None] * direction * torch.tensor(image.GetSpacing(), dtype=torch.float64)
    affine[:3, 3] = to_ras * torch.tensor(image.GetOrigin(), dtype=torch.float64)
    return voxels, affine


def to_canonical(voxels: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
    """Order and flip axes to point most nearly to superior, anterior, right; nothing is interpolated.

    Returns:
        (D, H, W), and the (3, 4) affine from its index (d, h, w, 1) to RAS mm.
    """
    linear, origin = affine[:3, :3], affine[:3, 3]
    directions = linear / linear.norm(dim=0)
    cosines = directions.T @ directions - torch.eye(3, dtype=torch.float64)
    if not cosines.abs().max() < 3.5e-3:  # 0.2 degrees; NaN too
        raise ValueError("the affine's axes are not at right angles: resample the scan to a rectangular grid")
    orders = permutations(range(3))
    order = max(orders, key=lambda axes: sum(abs(directions[2 - k, axis]) for k, axis in enumerate(axes)))
    voxels, linear = voxels.permute(order), linear[:, list(order)]
    flips = [k for k in range(3) if linear[2 - k, k] < 0]
    for k in flips:
        origin = origin + linear[:, k] * (voxels.shape[k] - 1)
        linear[:, k] *= -1
    return voxels.flip(flips), torch.cat([linear, origin[:, None]], dim=1)


def crop_and_resample(voxels: Tensor, affine: Tensor, shape, spacing, center, fill: int) -> Tensor:
    """Resample to `spacing`, then cut or pad to `shape` around a point; only the voxels needed are touched.

    Along an axis without a spacing the scan is resized: its full extent, to the outer edges of its voxels,
    becomes the shape.

    Args:
        voxels: (D, H, W) int16, canonical.
        affine: (3, 4) from (d, h, w, 1) to RAS mm.
        shape: wanted (D, H, W).
        spacing: wanted mm along depth, height, width; None resizes.
        center: RAS mm; None for the middle. It counts along axes with a spacing.
        fill: value outside the scan.
    """
    linear, origin = affine[:, :3], affine[:, 3]
    whole = [step is None for step in spacing]
    steps = zip(spacing, linear.norm(dim=0).tolist(), voxels.shape, shape, strict=True)
    scales = [old / size if step is None else step / length for step, length, old, size in steps]
    middle = (torch.tensor(voxels.shape, dtype=torch.float64) - 1) / 2
    if center is not None:
        point = torch.linalg.solve(linear, torch.as_tensor(center, dtype=torch.float64) - origin)
        middle = torch.where(torch.tensor(whole), middle, point)
    boxes, places, weights = [], [], []
    for point, old, size, scale in zip(middle.tolist(), voxels.shape, shape, scales, strict=True):
        reach = (size / 2 + 2) * scale + 2
        low, high = max(math.floor(point - reach), 0), min(math.ceil(point + reach) + 1, old)
        if low >= high:
            raise ValueError("the center lies outside the scan: give it in RAS mm")
        new = math.floor((high - low) / scale + 0.5 - 1e-6)
        while low > 0 and high < old and (new - size) % 2:  # else the crop lies half a voxel off
            low, high = low - 1, high + 1
            new = math.floor((high - low) / scale + 0.5 - 1e-6)
        new = max(new, 1)
        # The resampled box has the middle of the old one.
        point = (point - (low + high - 1) / 2) / scale + (new - 1) / 2
        start = math.floor(point - (size - 1) / 2 + 0.5 + 1e-6)
        first = max(0, start)
        last = max(first, min(new, start + size))
        boxes.append(slice(low, high))
        places.append(slice(first - start, last - start))
        weights.append(axis_weights(high - low, new, scale)[first:last])
    result = torch.full(tuple(shape), fill, dtype=torch.int16)
    box, (depth, height, width) = voxels[tuple(boxes)], weights
    for index, row in enumerate(depth, places[0].start):
        used = row.nonzero()
        near = slice(int(used[0]), int(used[-1]) + 1)
        plane = (row[near] @ box[near].float().flatten(1)).view(box.shape[1:])
        result[index, places[1], places[2]] = (height @ plane @ width.T).round().to(torch.int16)
    return result


def axis_weights(old: int, new: int, scale: float) -> Tensor:
    """Resampling matrix (new, old) of one axis: linear interpolation, averaged over a box if coarser."""
    position = (old - 1) / 2 + (torch.arange(new, dtype=torch.float64) - (new - 1) / 2) * scale
    width = math.sqrt(max(scale * scale - 1.0, 0.0))
    margin = math.ceil(width / 2 + scale) + 1
    places = torch.arange(-margin, old + margin)
    distance = position[:, None] - places

    def integral(x: Tensor) -> Tensor:
        """Of the hat function max(0, 1 - |t|), up to x."""
        x = x.clamp(-1.0, 1.0)
        return 0.5 + x - 0.5 * x * x.abs()

    weight = (1.0 - distance.abs()).clamp(min=0.0)
    if width > 1e-6:
        weight = (integral(distance + width / 2) - integral(distance - width / 2)) / width
    # Beyond the border the edge voxel repeats.
    matrix = torch.zeros(new, old, dtype=torch.float64).index_add(1, places.clamp(0, old - 1), weight)
    return (matrix / matrix.sum(dim=1, keepdim=True)).float()
