"""Segmentation through prepare, the one loop, `medclip evaluate` and its page, on a few scans of boxes."""

import csv
import json

import nibabel
import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.study import LabelMap, Series, Study
from medclip_jax.objectives import segment
from medclip_jax.objectives.towers import vision_defaults
from medclip_jax.shards.prepare import prepare
from medclip_jax.shards.settings import PrepareSettings
from medclip_jax.training.config import base_config
from medclip_jax.training.loop import train
from tests.made_label_maps import AFFINE, body, labels, save

SETTINGS = PrepareSettings(
    shape=(16, 20, 24),
    spacing=(6.0, 4.0, 4.0),
    tokenizer=None,
    empty_report="note",
    label_maps="corpus",
)


def make_shards(folder, count=4):
    """Scans whose classes are brighter than all around them."""

    def study(number):
        found, split = labels(number), "train" if number < count else "test"
        voxels = np.where(found > 0, 300 * found.astype(np.int16) + 100, body(number))
        scan = save(folder / f"{number}.nii.gz", voxels.astype(np.int16))
        given = LabelMap(save(folder / f"{number}_labels.nii.gz", found), {1: "liver", 2: "tumor"})
        name = str(number)
        return Study((Series(scan),), name, name, name, report="A report.", split=split, label_map=given)

    studies = [study(number) for number in range(count + 2)]
    prepare(studies, folder / "shards", SETTINGS, workers=1, key=b"k", progress=False)


def config_of(shards, kind):
    config = base_config()
    config.objective = segment.default_config()
    if kind == "vit":
        config.objective.vision.update(patch=(4, 4, 4), width=24, depth=4, heads=2)
    else:
        config.objective.vision = vision_defaults("resnet")
        config.objective.vision.update(depth=18, width=4, stem_size=(3, 3, 3), stem_stride=(1, 1, 1))
        config.objective.vision.norm = "group"
    config.objective.vision.update(windows=((-1000.0, 1000.0),), dtype="float32")
    config.objective.feature_size = 4
    config.objective.crops.update(shape=(8, 12, 12), count=4)
    config.data.shards = str(shards)
    config.batch_size = 4
    config.mesh.data = 1
    config.optimizer.learning_rate = 1e-2
    config.log.tensorboard = config.log.progress = False
    config.evaluation.split = "test"
    config.evaluation.evaluators = {"segmentation": {"overlap": 0.5, "draws": 0, "pictures": 1}}
    return config


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "enough"), [("vit", 0.6), ("resnet", 0.6)])
def test_from_scans_to_scores(kind, enough, tmp_path, capsys):
    """So much of two scans that it never saw. Of four scans a UNETR learns the places by heart."""
    make_shards(tmp_path, count=16)
    config = config_of(tmp_path / "shards", kind)
    config.steps = 200
    train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    # Dice of crops counts classes that a crop lacks, so that it cannot fall far.
    losses = [line["terms/cross_entropy"] for line in lines if "terms/cross_entropy" in line]
    assert losses[-1] < 0.5 * losses[0]
    (scores,) = [line for line in lines if "segmentation/dice_mean" in line]
    assert scores["segmentation/dice_mean"] > enough
    page, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    words = ["evaluate", "--workdir", str(tmp_path / "run"), "--page", str(page), "--json", str(numbers)]
    assert main(words) == 0
    assert "surface Dice at 3 mm" in capsys.readouterr().out
    found = json.loads(numbers.read_text())["metrics"]
    assert found["segmentation/dice_mean"] == pytest.approx(scores["segmentation/dice_mean"], abs=1e-6)
    assert "Segmentation" in page.read_text()
    (tmp_path / "broken.nii.gz").write_bytes(b"no scan")
    scans = [str(tmp_path / name) for name in ("17.nii.gz", "broken.nii.gz")]
    words = ["segment", str(tmp_path / "run"), *scans, "--out", str(tmp_path / "labels"), "--overlap", "0.5"]
    assert main(words) == 1
    assert "not segmented" in capsys.readouterr().err
    written = nibabel.load(tmp_path / "labels/17.nii.gz")
    np.testing.assert_allclose(written.affine, AFFINE)
    told, true = np.asarray(written.dataobj) > 0, labels(17) > 0
    assert 2 * (told & true).sum() / (told.sum() + true.sum()) > enough
    with open(tmp_path / "labels/segments.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["liver", "tumor"]
    # A voxel of the prepared grid, which is the scan's own, has 96 cubic mm.
    volume = sum(float(row["milliliters"]) for row in rows)
    assert volume == pytest.approx(told.sum() * 0.096, abs=0.02)


@pytest.mark.slow
def test_slices_of_a_batch_are_the_batch(tmp_path):
    """Gradient caching: the loss of crops that are encoded one volume after the other."""
    make_shards(tmp_path, count=2)
    losses = []
    # Classes start as probable as they are in as many volumes as are encoded at once: so from one start.
    for name, microbatches in (("start", 1), ("one", 1), ("two", 2)):
        config = config_of(tmp_path / "shards", "vit")
        config.objective.vision.update(width=12, depth=1, patch=(8, 12, 12))
        config.objective.dice_over = "batch"
        config.objective.crops.count = 2
        config.update(steps=2, batch_size=2, microbatches=microbatches)
        config.log.every_steps = 1
        config.evaluation.evaluators = {}
        if name != "start":
            config.initial_weights.workdir = str(tmp_path / "start")
        train(config, tmp_path / name)
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert len(losses[1]) == 2
    np.testing.assert_allclose(losses[1], losses[2], rtol=1e-4)
