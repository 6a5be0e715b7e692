"""The whole way with real scans: table, prepare, two stages of training, embed. Small shapes, few steps."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from medclip_jax.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs/cardiac_clip"
STUDIES = {
    "chest_contrast.nii.gz": "There is a dissection of the descending aorta. No pericardial effusion.",
    "abdomen.nii.gz": "Unenhanced CT of the abdomen. There is aortic calcification. Left kidney stones.",
    "chest_small.nrrd": "There is aortic calcification. There is an opacity in the right lower lobe.",
    "dicom_jpeg2000": "Contrast-enhanced CT of the upper abdomen. There is aortic calcification.",
    "mr_small.nii.gz": "MR of the upper abdomen.",
}
SMALL = (
    "--config.data.prepare.shape=()",
    "--config.objective.vision.patch=(4,8,8)",
    "--config.objective.vision.width=24",
    "--config.objective.vision.depth=1",
    "--config.objective.vision.heads=2",
    "--config.objective.vision.dtype=float32",
    "--config.batch_size=2",
    "--config.mesh.data=1",
    "--config.steps=2",
    "--config.epochs=0",
    "--config.optimizer.warmup_steps=0",
    "--config.log.progress=False",
    "--config.log.tensorboard=False",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, real_data):
    """A user's folder after `medclip prepare`: `studies.csv`, `shards`."""
    folder = tmp_path_factory.mktemp("user")
    with (folder / "studies.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("volume", "patient", "report", "split", "organs"))
        for index, (name, report) in enumerate(STUDIES.items()):
            masks = "masks" if name == "chest_contrast.nii.gz" else ""
            table.writerow((real_data / name, f"p{index}", report, "train", masks))
    (folder / "masks").mkdir()
    for organ in ("heart", "pulmonary_artery"):
        shutil.copy(real_data / "chest_contrast_masks" / f"{organ}.nii.gz", folder / "masks")
    assert main(prepare(folder, "--max-rejected", "0.2")) == 0
    return folder


def prepare(folder, *more):
    return [
        *("prepare", "--corpus", "folder", "--table", str(folder / "studies.csv"), "--workers", "1"),
        *("--out", str(folder / "shards"), "--shape", "8", "32", "32", "--spacing", "24", "10", "10"),
        *("--organ-cell", "4", *more),
    ]


def manifest(folder):
    return {
        line["row"]: line
        for line in map(json.loads, (folder / "shards/manifest.jsonl").read_text().splitlines())
    }


def test_every_scan_is_classed(folder):
    found = manifest(folder)
    assert {row: line["class"] for row, line in found.items()} == {
        1: "accepted-with-note",
        2: "accepted-with-note",
        3: "accepted-with-note",
        4: "accepted-with-note",
        5: "rejected-with-reason",
    }
    assert found[5]["reason"] == "not-hounsfield"
    assert "Is this MR" in found[5]["message"]
    assert found[1]["notes"] == ["organs-on-another-grid"]
    assert "padding:-3024:21.6%" in found[3]["notes"]
    assert found[4]["provenance"]["transfer_syntax"].startswith("JPEG 2000")


def test_the_mr_stops_a_careful_run(folder, capsys):
    strict = prepare(folder)
    strict[strict.index("--out") + 1] = str(folder / "strict")
    assert main(strict) == 2
    error = capsys.readouterr().err
    assert "stopped: 1 of 5 studies rejected" in error
    assert "not-hounsfield (1, row 5): Values between" in error


def test_a_scan_among_the_masks_is_left_out_or_rejected_by_name(folder, real_data, capsys):
    masks = folder / "masks"
    shutil.copy(real_data / "chest_contrast_masks/ct_cropped.nii.gz", masks)
    strict = [*prepare(folder), "--limit", "1", "--tokenizer", "none"]
    try:
        strict[strict.index("--out") + 1] = str(folder / "strange")
        assert main(strict) == 0
        assert "names are not known as organs (1): 'ct_cropped'" in capsys.readouterr().err
        strict[strict.index("--out") + 1] = str(folder / "stranger")
        assert main([*strict, "--organs", "heart,ct_cropped"]) == 2
    finally:
        (masks / "ct_cropped.nii.gz").unlink()
    assert "organs-not-labels (1, row 1): The mask of 'ct_cropped'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def workdir(folder, real_data):
    """The contrastive run, alone: shards and first stage are gone."""
    shards, encoder = f"--config.data.shards={folder / 'shards'}", real_data / "minilm"
    first = ["train", "--config", f"{CONFIGS}/mae.py", "--workdir", str(folder / "mae"), shards, *SMALL]
    decoder = [f"--config.objective.decoder.{name}" for name in ("width=24", "depth=1", "heads=2")]
    assert main([*first, *decoder]) == 0
    assert main([
        *("train", "--config", f"{CONFIGS}/contrastive.py", "--workdir", str(folder / "clip")),
        *(shards, *SMALL),
        f"--config.initial_weights.workdir={folder / 'mae'}",
        f"--config.objective.text.folder={encoder}",
        f"--config.data.tokenizer={encoder}",
        "--config.data.text_length=32",
        "--config.optimizer.frozen=('^text/',)",
        "--config.objective.text.dtype=float32",
        "--config.objective.embedding_width=16",
        "--config.evaluation.split=train",
    ]) == 0  # fmt: skip
    for gone in ("mae", "shards"):
        (folder / gone).rename(folder / f"{gone}.gone")
    yield (folder / "clip").rename(folder / "moved")
    (folder / "shards.gone").rename(folder / "shards")


def test_embed_a_nifti_and_a_dicom_folder(workdir, real_data, tmp_path, capsys):
    scans = [str(real_data / name) for name in ("upper_abdomen.nii.gz", "dicom_jpeg2000")]
    texts = ["There is aortic calcification.", "There is no aortic calcification."]
    out = tmp_path / "vectors.parquet"
    command = ["embed", str(workdir), *scans, "--out", str(out)]
    assert main([*command, *(f"--text={text}" for text in texts)]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 scans embedded, 16 numbers each" in printed
    assert texts[1] in printed
    found = pq.read_table(out)
    assert found["scan"].to_pylist() == scans
    vectors = np.array(found["embedding"].to_pylist())
    assert vectors.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-4
    assert np.abs([found[f"cosine:{text}"].to_pylist() for text in texts]).max() <= 1


def test_embed_notices_the_mr(workdir, real_data, capsys):
    scans = [str(real_data / name) for name in ("mr_small.nii.gz", "chest_small.nrrd")]
    assert main(["embed", str(workdir), *scans, "--findings", "none"]) == 1
    printed = capsys.readouterr()
    assert "1 of 2 scans embedded" in printed.out
    assert "mr_small.nii.gz: " in printed.err
    assert "Is this MR" in printed.err
