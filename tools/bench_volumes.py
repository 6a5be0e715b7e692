"""Reading and resampling of one CT, side by side with SimpleITK: one JSON line per result.

    python tools/bench_volumes.py [--repeats 5] [--slices 300]

A synthetic 512x512x300 .nii.gz is read, brought to 1.5x1.5x3 mm and cropped to 224x224x112, on one thread.
Ratios: SimpleITK time over ours within the same run. SimpleITK stands here twice: `linear` samples
without any low-pass filter, which aliases; `smoothed` blurs first with a Gaussian of the width that
the coarser grid asks for, which is the comparable result.
"""

# ruff: noqa: E402
import os

for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")  # before numpy is imported: one core each

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from medclip_jax.volumes import AIR_HU, Volume, crop_or_pad, read_volume, resample

SPACING = (3.0, 1.5, 1.5)
SHAPE = (112, 224, 224)


def synthetic_chest(slices: int, generator: np.random.Generator) -> np.ndarray:
    """A noisy body with lungs in air, int16 (D, 512, 512): compresses about as well as a real CT."""
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    plane = np.full((512, 512), -1000.0)
    plane[(x / 0.9) ** 2 + (y / 0.65) ** 2 < 1] = 40
    for side in (-1, 1):
        plane[((x - 0.42 * side) / 0.3) ** 2 + (y / 0.45) ** 2 < 1] = -850
    noise = generator.normal(0, 20, (32, 512, 512)).astype(np.float32)
    volume = np.empty((slices, 512, 512), np.int16)
    for d in range(slices):
        volume[d] = plane + np.roll(noise[d % 32], 7 * (d // 32), axis=1)
    return volume


def ours(path: Path) -> Volume:
    """Read, resample, crop."""
    return crop_or_pad(resample(read_volume(path), SPACING), SHAPE)


def simpleitk(path: Path, smoothed: bool) -> np.ndarray:
    """The same job by SimpleITK: orient, optionally smooth, resample straight onto the cropped grid."""
    image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    return simpleitk_resample(image, smoothed)


def simpleitk_resample(image: sitk.Image, smoothed: bool) -> np.ndarray:
    """Linear resampling onto a grid of SHAPE and SPACING in the middle of the image."""
    spacing = SPACING[::-1]
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    direction = np.reshape(image.GetDirection(), (3, 3))
    extent = (np.asarray(SHAPE[::-1]) - 1) / 2 * spacing
    origin = np.asarray(middle) - direction @ extent
    if smoothed:
        # Standard deviation of the box that widens an old voxel to a new one.
        sigma = [
            max(1e-3, np.sqrt(max(0.0, s**2 - o**2) / 12))
            for s, o in zip(spacing, image.GetSpacing(), strict=True)
        ]
        image = sitk.SmoothingRecursiveGaussian(image, sigma)
    grid = (SHAPE[::-1], sitk.Transform(), sitk.sitkLinear, origin.tolist(), spacing, image.GetDirection())
    return sitk.GetArrayFromImage(sitk.Resample(image, *grid, AIR_HU)).astype(np.int16)


def seconds(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Best time of each job; the jobs take turns, so that a busy moment hits all of them."""
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> None:
    """Print one JSON line per job and comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slices", type=int, default=300)
    arguments = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    voxels = synthetic_chest(arguments.slices, np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "volume.nii.gz"
        affine = np.diag([-0.7, -0.7, 1.0, 1.0])  # what dcm2niix writes: left, posterior, superior
        nib.save(nib.Nifti1Image(voxels.T, affine), path)
        volume = read_volume(path)
        image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
        jobs = {
            "read": {"ours": lambda: read_volume(path), "simpleitk": lambda: sitk.ReadImage(str(path))},
            "resample_crop": {
                "ours": lambda: crop_or_pad(resample(volume, SPACING), SHAPE),
                "simpleitk_linear": lambda: simpleitk_resample(image, False),
                "simpleitk_smoothed": lambda: simpleitk_resample(image, True),
            },
            "read_resample_crop": {
                "ours": lambda: ours(path),
                "simpleitk_linear": lambda: simpleitk(path, False),
                "simpleitk_smoothed": lambda: simpleitk(path, True),
            },
        }
        for job, variants in jobs.items():
            best = seconds(variants, arguments.repeats)
            line = {
                "job": job,
                "shape": voxels.shape,
                "threads": 1,
                "megabytes": round(path.stat().st_size / 1e6, 1),
            }
            line |= {f"seconds_{name}": round(value, 3) for name, value in best.items()}
            line |= {
                f"ratio_{name}": round(value / best["ours"], 2)
                for name, value in best.items()
                if name != "ours"
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
