"""Small scans with label maps, and trees of them in the layouts of public data sets."""

import json
from pathlib import Path

import nibabel
import numpy as np

SHAPE = (24, 20, 16)
"""Of the scans, in NIfTI's order: right, front, up."""

AFFINE = np.diag([4.0, 4.0, 6.0, 1.0])

GRID = ("--shape", "16", "20", "24", "--spacing", "6", "4", "4", "--tokenizer", "none")
"""Options that prepare the scans on their own grid, so that labels can be compared voxel by voxel."""


def body(seed: int) -> np.ndarray:
    """A noisy body with lungs, in air; HU."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    radius = np.hypot(*grid[:2])
    voxels = np.where(radius < 0.8, 40.0, -1000.0)
    voxels[(radius < 0.5) & (np.abs(grid[2]) < 0.7)] = -800
    return np.rint(voxels + random.normal(0, 8, SHAPE)).astype(np.int16)


def labels(seed: int, top: int = 2) -> np.ndarray:
    """Boxes of the classes 1 to `top`, somewhere."""
    random = np.random.default_rng(seed)
    found = np.zeros(SHAPE, np.uint8)
    for value in range(1, top + 1):
        low = [int(random.integers(2, n - 8)) for n in SHAPE]
        found[tuple(slice(start, start + 5) for start in low)] = value
    return found


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def canonical(voxels: np.ndarray) -> np.ndarray:
    """From NIfTI's order to (depth, height, width)."""
    return voxels.transpose(2, 1, 0)


def write_nnunet(root: Path, count: int = 6, tests: int = 2, **changes: object) -> Path:
    """A data set of version 2 with one channel."""
    written = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumor": 2},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    for number in range(count):
        save(root / f"imagesTr/liver_{number:03d}_0000.nii.gz", body(number))
        save(root / f"labelsTr/liver_{number:03d}.nii.gz", labels(number))
    for number in range(tests):
        save(root / f"imagesTs/liver_{100 + number}_0000.nii.gz", body(100 + number))
    (root / "dataset.json").write_text(json.dumps(written | changes))
    return root


def write_decathlon(root: Path, count: int = 5, tests: int = 2) -> Path:
    """A task of one sequence, with the files that macOS leaves."""
    names = [f"lung_{number:03d}.nii.gz" for number in range(count + tests)]
    for number, name in enumerate(names):
        save(root / ("imagesTr" if number < count else "imagesTs") / name, body(number))
        if number < count:
            save(root / "labelsTr" / name, labels(number))
            (root / "imagesTr" / f"._{name}").write_bytes(b"\0\5\x16\7")
    written = {
        "name": "Lung",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "lung", "2": "cancer"},
        "numTraining": count,
        "training": [
            {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names[:count]
        ],
        "test": [f"./imagesTs/{name}" for name in names[count:]],
    }
    (root / "dataset.json").write_text(json.dumps(written))
    return root
