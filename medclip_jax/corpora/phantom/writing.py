"""Phantoms on disk, in the layout of `corpora.folder`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from medclip_jax.corpora.generated_set import alone, is_whole, make_all, replace_file, split_of, table_text
from medclip_jax.corpora.phantom.generate import generate
from medclip_jax.corpora.phantom.organs import LABEL_CLASSES, ORGAN_CLASSES
from medclip_jax.corpora.phantom.settings import FINDINGS, PhantomSettings

_RECIPE_FILE = "phantoms.json"
"""What the phantoms of a folder were made from; written before the table, which is written last."""

_CLASS_FILE = "label_classes.json"


def _write_one(task: tuple[str, int, int, PhantomSettings, bool]) -> dict[str, object]:
    """Generate and write one phantom; return its row of the table."""
    import nibabel  # takes a while: configs of training import this package, too

    folder, seed, index, settings, label_maps = task
    phantom = generate(seed, index, settings=settings)
    name = f"{phantom.volume_id}.nii.gz"
    kinds = {"volumes": phantom.voxels, "organs": phantom.organs}
    if label_maps:
        kinds["label_maps"] = phantom.label_map()
    for kind, array in kinds.items():
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
        **({"label_map": f"label_maps/{name}", "label_classes": _CLASS_FILE} if label_maps else {}),
        **{f"label:{name}": phantom.labels[name] for name in FINDINGS},
        **{f"measurement:{name}": f"{value:.6g}" for name, value in phantom.measurements.items()},
        **{f"group:{name}": group for name, group in phantom.groups.items()},
    }


def write(
    folder: str | Path,
    count: int,
    *,
    seed: int = 0,
    settings: PhantomSettings | None = None,
    workers: int = 1,
    start: int = 0,
    label_maps: bool = False,
) -> Path:
    """Write `count` phantoms with organ maps and `studies.csv`, in parallel; the table appears last.

    Phantoms that the same call wrote before are kept. Of several processes that want the same ones, the
    first generates them and the others wait.

    Args:
        folder: made if missing.
        count: volumes to write.
        seed: of the set.
        settings: `PhantomSettings()` if None.
        workers: processes; 1 runs in this one.
        start: index of the first volume, to extend a set or draw a disjoint one.
        label_maps: also write a map of lesions and large organs for each (`LABEL_CLASSES`), named in the
            table's column `label_map`; all else stays the same.

    Returns:
        The path of `studies.csv`.

    Raises:
        ValueError: `count` is below 1.
        concurrent.futures.process.BrokenProcessPool: a worker was killed.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    import medclip_jax

    folder = Path(folder)
    for kind in ("volumes", "organs", *(["label_maps"] if label_maps else [])):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    settings = settings or PhantomSettings()
    recipe = json.dumps(
        {
            "version": medclip_jax.__version__,
            "count": count,
            "seed": seed,
            "start": start,
            "settings": dataclasses.asdict(settings),
            "survival": True,
            **({"label_maps": True} if label_maps else {}),
        }
    )
    table = folder / "studies.csv"
    with alone(folder):
        files = ("volume", "organs", *(["label_map"] if label_maps else []))
        if is_whole(folder / _RECIPE_FILE, recipe, table, files, count):
            return table
        table.unlink(missing_ok=True)  # of another recipe
        tasks = [(str(folder), seed, start + n, settings, label_maps) for n in range(count)]
        rows = make_all(_write_one, tasks, workers, label="phantoms", unit="volume")
        replace_file(folder / "organ_classes.json", json.dumps(ORGAN_CLASSES, indent=1))
        if label_maps:
            replace_file(folder / _CLASS_FILE, json.dumps(LABEL_CLASSES, indent=1))
        replace_file(folder / _RECIPE_FILE, recipe)
        replace_file(table, table_text(rows))
    return table
