"""T3D on real scans resized to one shape: prepare, a few dozen steps, export, the same vectors in torch."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import medclip_jax
from medclip_jax.cli.main import main
from medclip_jax.export.folder import write_folder
from medclip_jax.export.parity import load_torch

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[2] / "configs/t3d/paper.py"
STUDIES = {
    "chest_contrast.nii.gz": "There is a dissection of the descending aorta. No pericardial effusion.",
    "abdomen.nii.gz": "Unenhanced CT of the abdomen. There is aortic calcification. Left kidney stones.",
    "chest_small.nrrd": "There is aortic calcification. There is an opacity in the right lower lobe.",
    "upper_abdomen.nii.gz": "Contrast-enhanced CT of the upper abdomen.",
}
SHAPE = ("64", "128", "128")
STEPS = 24
SMALL = (
    f"--config.data.prepare.shape=({','.join(SHAPE)})",
    "--config.data.tokenizer=",
    "--config.data.text_length=32",
    "--config.objective.vision.depth=10",
    "--config.objective.vision.width=8",
    "--config.objective.vision.dtype=float32",
    "--config.objective.vision.pooling=extremes",
    "--config.objective.text.width=32",
    "--config.objective.text.depth=1",
    "--config.objective.text.heads=2",
    "--config.objective.text.dtype=float32",
    "--config.objective.embedding_width=32",
    "--config.objective.views.count=2",
    "--config.objective.views.shape=(32,64,64)",
    "--config.batch_size=4",
    "--config.mesh.data=1",
    f"--config.steps={STEPS}",
    "--config.epochs=0",
    "--config.optimizer.warmup_fraction=0.0",
    "--config.optimizer.multipliers=()",
    "--config.evaluation.evaluators={}",
    "--config.log.every_steps=1",
    "--config.log.progress=False",
    "--config.log.tensorboard=False",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, real_data):
    """The workdir of a run on four scans of different extents and spacings."""
    folder = tmp_path_factory.mktemp("t3d")
    with (folder / "studies.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("volume", "patient", "report", "split"))
        for index, (name, report) in enumerate(STUDIES.items()):
            table.writerow((real_data / name, f"p{index}", report, "train"))
    assert main([
        *("prepare", "--corpus", "folder", "--table", str(folder / "studies.csv"), "--workers", "1"),
        *("--out", str(folder / "shards"), "--fit", "resize", "--shape", *SHAPE),
        *("--tokenizer", "train", "--vocabulary-size", "200", "--vocabulary-patients", "1"),
    ]) == 0  # fmt: skip
    shards = f"--config.data.shards={folder / 'shards'}"
    command = ["train", "--config", str(CONFIG), "--workdir", str(folder / "workdir"), shards, *SMALL]
    assert main(command) == 0
    return folder / "workdir"


def test_both_losses_fall(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line for line in lines if "terms/contrast" in line}
    assert max(found) == STEPS
    for term in ("terms/contrast", "terms/views"):
        assert found[STEPS][term] < 0.7 * found[1][term]


def test_the_same_vectors_in_torch(run, real_data, tmp_path):
    trained = medclip_jax.load(run, dtype="float32", progress=False)
    write_folder(trained, tmp_path / "export")
    twin = load_torch(tmp_path / "export")
    for name in ("chest_contrast.nii.gz", "upper_abdomen.nii.gz"):
        image = nib.load(real_data / name)
        found = twin.embed_volumes((np.asarray(image.dataobj), image.affine)).mean.numpy()
        np.testing.assert_allclose(found, trained.embed_volumes(real_data / name), atol=1e-5)
