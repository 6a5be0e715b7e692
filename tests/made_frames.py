"""A beating ring in MR contrast, as cine and late enhancement series in NIfTI."""

from pathlib import Path

import nibabel
import numpy as np

_RIGHT = np.array([0.65, 0.55, -0.52]) / np.linalg.norm([0.65, 0.55, -0.52])
_THROUGH = np.cross(_RIGHT, [-0.53, -0.17, -0.83])
_THROUGH /= np.linalg.norm(_THROUGH)
SHORT_AXIS = np.stack([_RIGHT, np.cross(_THROUGH, _RIGHT), _THROUGH])
"""Right, down and through the plane on screen, LPS, of a usual short axis (rows of the matrix)."""


def beating(slices: int = 5, phases: int = 8, size: int = 40, seed: int = 0) -> np.ndarray:
    """(slices, phases, rows, columns) of a bright pool in a dark wall, smallest in the middle of the phases.

    A bright spot marks the upper left of every picture; it grows from slice to slice.
    """
    random = np.random.default_rng(seed)
    y, x = np.meshgrid(*(np.linspace(-1, 1, size),) * 2, indexing="ij")
    pictures = np.full((slices, phases, size, size), 120.0)
    for place in range(slices):
        for phase in range(phases):
            radius = (0.5 - 0.05 * place) * (1 - 0.3 * np.sin(np.pi * phase / max(phases - 1, 1)))
            distance = np.hypot(y - 0.05, x + 0.1)
            pictures[place, phase][distance < radius + 0.15] = 60
            pictures[place, phase][distance < radius] = 500
        pictures[place, :, 3:6, 3 : 6 + 2 * place] = 900
    return np.rint(pictures + random.normal(0, 5, pictures.shape)).clip(0).astype(np.int16)


def affine_of(axes: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """RAS affine of an array (column, row, slice).

    Args:
        axes: as `SHORT_AXIS`.
        spacing: mm between slices, rows, columns.
    """
    affine = np.eye(4)
    lengths = np.array(spacing)[[2, 1, 0]]
    affine[:3, :3] = (axes * lengths[:, None]).T * np.array([[-1.0], [-1.0], [1.0]])
    return affine


def write_nifti(
    path: Path,
    pictures: np.ndarray,
    *,
    axes: np.ndarray = SHORT_AXIS,
    spacing: tuple[float, float, float] = (8.0, 1.5, 1.5),
) -> Path:
    """Write (slices, phases, rows, columns) as (x, y, slice, phase); (slices, rows, columns) as a stack."""
    order = (3, 2, 0, 1) if pictures.ndim == 4 else (2, 1, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(pictures.transpose(order), affine_of(axes, spacing))
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
    return path
