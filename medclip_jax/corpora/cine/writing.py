"""Studies on disk: a NIfTI file for every series, and a table with a row for each."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel
import numpy as np

from medclip_jax.corpora.cine.generate import generate
from medclip_jax.corpora.cine.settings import CineSettings
from medclip_jax.corpora.generated_set import alone, is_whole, make_all, replace_file, split_of, table_text

_RECIPE_FILE = "phantoms.json"
"""What the phantoms of a folder were made from; written before the table, which is written last."""


def _write_one(task: tuple[str, int, int, CineSettings]) -> list[dict[str, object]]:
    """Generate and write one study; return its rows of the table."""
    folder, seed, index, settings = task
    study = generate(seed, index, settings=settings)
    facts = {
        "impression": study.impression,
        "split": split_of(seed, study.patient_id),
        **{f"label:{name}": value for name, value in study.labels.items()},
        **{f"measurement:{name}": f"{value:.6g}" for name, value in study.measurements.items()},
    }
    rows = []
    for name, picture in study.series.items():
        path = f"series/{study.study_id}_{name}.nii"
        # Not compressed: noise hardly compresses, and the files are read once.
        image = nibabel.Nifti1Image(np.asfortranarray(picture.voxels), picture.affine)
        image.header.set_xyzt_units("mm", "sec")
        if picture.seconds:
            image.header.set_zooms((*image.header.get_zooms()[:3], picture.seconds))
        nibabel.save(image, Path(folder) / path)
        ids = {"patient_id": study.patient_id, "study_id": study.study_id}
        rows.append({**ids, "series": name, "path": path, **facts})
    return rows


def write(
    folder: str | Path,
    count: int,
    *,
    seed: int = 0,
    settings: CineSettings | None = None,
    workers: int = 1,
    start: int = 0,
) -> Path:
    """Write `count` studies and `studies.csv`, in parallel; the table appears last.

    Studies that the same call wrote before are kept. Of several processes that want the same ones, the
    first generates them and the others wait.

    Args:
        folder: made if missing.
        count: studies to write.
        seed: of the set.
        settings: `CineSettings()` if None.
        workers: processes; 1 runs in this one.
        start: index of the first study, to extend a set or draw a disjoint one.

    Returns:
        The path of `studies.csv`: a row for every series; the columns other than series and path repeat in
        the rows of a study.

    Raises:
        ValueError: `count` is below 1.
        concurrent.futures.process.BrokenProcessPool: a worker was killed.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    import medclip_jax

    folder = Path(folder)
    (folder / "series").mkdir(parents=True, exist_ok=True)
    settings = settings or CineSettings()
    recipe = json.dumps(
        {
            "version": medclip_jax.__version__,
            "count": count,
            "seed": seed,
            "start": start,
            "settings": dataclasses.asdict(settings),
        }
    )
    table = folder / "studies.csv"
    with alone(folder):
        if is_whole(folder / _RECIPE_FILE, recipe, table, ("path",), count * len(settings.series)):
            return table
        table.unlink(missing_ok=True)  # of another recipe
        tasks = [(str(folder), seed, start + n, settings) for n in range(count)]
        studies = make_all(_write_one, tasks, workers, label="phantoms", unit="patient")
        replace_file(folder / _RECIPE_FILE, recipe)
        replace_file(table, table_text([row for rows in studies for row in rows]))
    return table
