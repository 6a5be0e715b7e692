"""The JSON of Cardiac-CLIP's public code, and arrays of 0 to 1 of which nobody wrote down what they are."""

import json

import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.cardiac_clip import cardiac_clip
from medclip_jax.corpora.tables import TableError
from medclip_jax.reports.vocabulary import CARDIAC_FINDINGS
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.read import open_shards, open_split
from tests.corpora.tiny_training import train_step
from tests.volumes.made_scans import chest

LOW, HIGH = -1024.0, 1500.0


def entry(root, number, *, images=1, kind="unit"):
    """An entry with its arrays, written where it says."""
    paths = []
    for image in range(images):
        path = f"arrays/{number}_{image}.npy"
        (root / "arrays").mkdir(parents=True, exist_ok=True)
        hu = np.clip(chest((16, 32, 32), 10 * number + image), LOW, HIGH)[:, ::-1, ::-1]  # head, back, left
        np.save(root / path, ((hu - LOW) / (HIGH - LOW)).astype(np.float32) if kind == "unit" else hu)
        paths.append(path)
    labels = [int(place == number % 7) for place in range(7)]
    return {
        "img_path": paths,
        "texts": ["There is no cardiomegaly. There is atherosclerosis.", f"Plaques in case {number}."],
        "labels": labels,
    }


def write(root, *, path=lambda text: text, **options):
    lists = {
        "train": [entry(root, number, images=1 + (number == 0), **options) for number in range(8)],
        "val": [entry(root, 8, **options)],
        "test": [entry(root, 9, **options)],
        "zero_shot": [],
    }
    for entries in lists.values():
        for one in entries:
            one["img_path"] = [path(text) for text in one["img_path"]]
    (root / "data.json").write_text(json.dumps(lists))
    return root


def test_entries_become_studies(tmp_path):
    table = cardiac_clip(write(tmp_path))
    assert len(table) == 11
    first, second = table.studies[:2]  # two images of one entry
    assert first.study_id == second.study_id
    assert first.record_id != second.record_id
    assert first.report == "Plaques in case 0."
    assert [study.split for study in table][-2:] == ["validation", "test"]
    assert first.labels == {name: 1 if place == 0 else -1 for place, name in enumerate(CARDIAC_FINDINGS)}
    assert table.zero_label == "absent"
    assert first.notes == ("spacing-unknown", "orientation-assumed")
    assert any("lists that name no split and are not read: zero_shot" in remark for remark in table.remarks)


@pytest.mark.parametrize("kind", ["unit", "hu"])
def test_from_the_json_to_a_training_step(tmp_path, kind):
    words = ["prepare", "--corpus", "cardiac_clip", "--root", str(write(tmp_path / "data", kind=kind))]
    words += ["--out", str(tmp_path / "set"), "--shape", "16", "32", "32", "--workers", "1"]
    words += ["--spacing", "1", "1.25", "1.25", "--vocabulary-patients", "1", "--vocabulary-size", "200"]
    assert main(words) == 0
    info = open_shards(tmp_path / "set")
    assert dict(info.splits) == {"train": 9, "validation": 1, "test": 1}
    record = open_split(info, "test")[0]
    expected = np.clip(chest((16, 32, 32), 90), LOW, HIGH)
    assert np.abs(record["volume"].astype(int) - expected).max() <= 1
    assert record["report"] == "Plaques in case 9."
    notes = read_manifest(tmp_path / "set")[0]["notes"]
    assert {"spacing-unknown", "orientation-assumed"} <= set(notes)
    assert ("table-rescale-not-applied" in notes) == (kind == "hu")
    if kind == "unit":
        train_step(tmp_path / "set", tmp_path / "run")


def test_paths_of_another_machine(tmp_path):
    for place, path in enumerate(
        (lambda text: f"/elsewhere/{text}", lambda text: "C:\\x\\" + text.replace("/", "\\"))
    ):
        table = cardiac_clip(write(tmp_path / str(place), path=path))
        assert all(study.path.is_file() for study in table)
    written = write(tmp_path / "absolute", path=lambda text: str(tmp_path / "absolute" / text))
    assert all(study.path.is_file() for study in cardiac_clip(written))
    (tmp_path / "0/arrays/9_0.npy").unlink()
    assert not cardiac_clip(tmp_path / "0").studies[-1].path.exists()  # `prepare` says that it is missing


def test_a_window_of_your_own(tmp_path):
    table = cardiac_clip(write(tmp_path), hu_window=(-200, 400))
    assert table.studies[0].series[0].rescale == (600, -200)
    with pytest.raises(TableError, match="is empty: give the lower HU first"):
        cardiac_clip(tmp_path, hu_window=(400, -200))


def test_labels_of_three_kinds(tmp_path):
    write(tmp_path)
    lists = json.loads((tmp_path / "data.json").read_text())
    lists["train"][0]["labels"] = [-1] * 7
    (tmp_path / "data.json").write_text(json.dumps(lists))
    table = cardiac_clip(tmp_path)
    assert table.zero_label == "unknown"
    assert set(table.studies[2].labels.values()) == {0, 1}


def test_a_json_that_cannot_be_used(tmp_path):
    with pytest.raises(TableError, match="no folder"):
        cardiac_clip(tmp_path / "nowhere")
    (tmp_path / "other.json").write_text('{"train": 3}')
    with pytest.raises(TableError, match="holds no JSON of lists"):
        cardiac_clip(tmp_path)
    good = {"img_path": ["a.npy"], "texts": ["x"], "labels": [0] * 7}

    def error(**changed):
        (tmp_path / "data.json").write_text(json.dumps({"train": [good | changed]}))
        with pytest.raises(TableError) as caught:
            cardiac_clip(tmp_path)
        return str(caught.value)

    assert "entry 1 of the list 'train'" in error(labels=[0] * 6)
    assert "labels must be 7 numbers" in error(labels=[0, 0, 0, 0, 0, 0, 2])
    assert "labels must be 7 numbers" in error(labels="none")
    assert "img_path must be a list" in error(img_path=[3])
    assert "texts must be a list" in error(texts=[None])
    (tmp_path / "data.json").write_text(json.dumps({"train": [{"img_path": ["a.npy"]}]}))
    with pytest.raises(TableError, match="must hold img_path and texts"):
        cardiac_clip(tmp_path)
    (tmp_path / "data.json").write_text(json.dumps({"all": [good]}))
    with pytest.raises(TableError, match="no list named train, val or test"):
        cardiac_clip(tmp_path)
    (tmp_path / "more.json").write_text(json.dumps({"train": [good]}))
    with pytest.raises(TableError, match=r"several JSON files \(data\.json, more\.json\)"):
        cardiac_clip(tmp_path)
