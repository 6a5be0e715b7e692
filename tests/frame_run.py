"""The smallest run on studies of frames: an archive, its shards, and a CMR-CLIP model after two steps."""

import csv
from pathlib import Path

from tests.made_frames import beating, write_nifti

STUDIES = 11
SIZE = ("--frame-shape", "16", "16", "--frame-spacing", "3.75", "3.75")


def make_archive(folder: Path) -> Path:
    """Write a folder for each study, `studies/0` and so on, and their table; every third has no scar."""
    rows = []
    for index in range(STUDIES):
        place = folder / "studies" / str(index)
        write_nifti(place / "cine_sa.nii.gz", beating(slices=3, phases=5 + index % 3, seed=index))
        said = {"impression": f"Pericardial effusion. Case {index}." if index % 2 else f"Normal, {index}."}
        said["split"] = "train" if index < 8 else "test"
        said["label:pericardial_effusion"] = "1" if index % 2 else "-1"
        names = {"patient": f"P{index}", "study": f"S{index}"}
        rows.append({**names, "series": "cine_sa", "path": f"studies/{index}/cine_sa.nii.gz", **said})
        if index % 3:
            stack = beating(slices=4, phases=1, seed=50 + index)[:, 0]
            write_nifti(place / "lge_sa.nii.gz", stack)
            rows.append({**names, "series": "lge_sa", "path": f"studies/{index}/lge_sa.nii.gz"})
    with open(folder / "studies.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)
    return folder / "studies.csv"


def make_run(folder: Path) -> None:
    """Write `studies.csv` with its `studies`, `shards`, and the `workdir` of a model after two steps."""
    from medclip_jax.cli.main import main
    from medclip_jax.objectives import cmr_clip
    from medclip_jax.training.config import base_config
    from medclip_jax.training.loop import train

    table = make_archive(folder)
    words = ["prepare", "--corpus", "cmr", "--table", str(table), "--out", str(folder / "shards"), *SIZE]
    words += ["--findings", "pericardial_effusion", "--vocabulary-size", "200", "--vocabulary-patients", "1"]
    assert main([*words, "--workers", "1"]) == 0
    config = base_config()
    config.objective = cmr_clip.default_config()
    config.objective.vision.update(
        patch=(8, 8), width=24, depth=1, heads=2, frames=8, views=2, dtype="float32"
    )
    config.objective.text.update(width=24, depth=1, heads=2, max_positions=32, dtype="float32")
    config.objective.embedding_width = 16
    config.data.shards = str(folder / "shards")
    config.data.text_length = 16
    config.data.frames = 8
    config.batch_size = 8
    config.steps = 2
    config.evaluation.split = "test"
    config.evaluation.evaluators = {"zero_shot": {"draws": 0}}
    config.log.tensorboard = False
    config.log.progress = False
    train(config, folder / "workdir")
