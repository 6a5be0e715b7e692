"""Phantoms on disk, in the layout of `corpora.folder`."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import os
from pathlib import Path

import nibabel
import numpy as np
from tqdm import tqdm

from medclip_jax.corpora.phantom.generate import generate
from medclip_jax.corpora.phantom.organs import ORGAN_CLASSES
from medclip_jax.corpora.phantom.settings import FINDINGS, PhantomSettings

SPLIT_SHARES = (("test", 0.15), ("validation", 0.15))
"""Shares of patients held out; the rest is for training."""


def split_of(seed: int, patient: str) -> str:
    """Split of a patient: a hash of the seed and the id, so that it does not depend on the count."""
    digest = hashlib.blake2b(f"{seed}/{patient}".encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    for name, size in SPLIT_SHARES:
        if share < size:
            return name
        share -= size
    return "train"


def _write_one(task: tuple[str, int, int, PhantomSettings]) -> dict[str, object]:
    """Generate and write one phantom; return its row of the table."""
    folder, seed, index, settings = task
    phantom = generate(seed, index, settings=settings)
    name = f"{phantom.volume_id}.nii.gz"
    for kind, array in (("volumes", phantom.voxels), ("organs", phantom.organs)):
        image = nibabel.Nifti1Image(np.ascontiguousarray(array), phantom.affine)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, Path(folder) / kind / name)
    return {
        "volume": f"volumes/{name}",
        "study": phantom.study_id,
        "patient": phantom.patient_id,
        "report": phantom.report,
        "findings": phantom.sections["findings"],
        "impression": phantom.sections["impression"],
        "split": split_of(seed, phantom.patient_id),
        "organs": f"organs/{name}",
        "organ_classes": "organ_classes.json",
        **{f"label:{name}": phantom.labels[name] for name in FINDINGS},
        **{f"measurement:{name}": f"{value:.6g}" for name, value in phantom.measurements.items()},
    }


def write(
    folder: str | Path,
    count: int,
    *,
    seed: int = 0,
    settings: PhantomSettings | None = None,
    workers: int = 1,
    start: int = 0,
) -> Path:
    """Write `count` phantoms with organ maps and `studies.csv`, in parallel.

    Args:
        folder: made if missing.
        count: volumes to write.
        seed: of the set.
        settings: `PhantomSettings()` if None.
        workers: processes; 1 runs in this one.
        start: index of the first volume, to extend a set or draw a disjoint one.

    Returns:
        The path of `studies.csv`.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    folder = Path(folder)
    for kind in ("volumes", "organs"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    settings = settings or PhantomSettings()
    tasks = [(str(folder), seed, start + n, settings) for n in range(count)]
    show = {"total": count, "desc": "phantoms", "unit": "volume"}
    if workers <= 1:
        rows = list(tqdm(map(_write_one, tasks), **show))
    else:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")  # read by the children when they load NumPy
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            rows = list(tqdm(pool.imap(_write_one, tasks, chunksize=4), **show))
    (folder / "organ_classes.json").write_text(json.dumps(ORGAN_CLASSES, indent=1))
    table = folder / "studies.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table
