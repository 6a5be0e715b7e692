"""External validation: names of labels, patients, grids, and the same numbers as from one set."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.probe import evaluate_probe
from medclip_jax.evaluation.training_set import LabelMap, TrainingSet, read_label_map
from tests.evaluation.test_probe import made_splits


def column(*values):
    return np.array(values, np.int8)


def made(name, patients, labels, **measurements):
    count = len(patients)
    return EmbeddedSplit(
        name=name,
        volumes=np.ones((count, 2), np.float32),
        studies=np.arange(count),
        patients=np.array(patients),
        labels=labels,
        reported={key: -values for key, values in labels.items()},
        measurements={key: np.array(values, np.float32) for key, values in measurements.items()},
    )


def other_set(labels, findings, folder="ours"):
    return TrainingSet(SimpleNamespace(folder=Path(folder), findings=findings), labels)


SCORED = made(
    "train", [1, 2], {"lung_opacity": column(1, -1), "emphysema": column(1, 1), "cardiomegaly": column(0, 1)},
    age=[50, 60],
)  # fmt: skip
LEARNED = made(
    "train",
    [7, 8, 9],
    {
        "consolidation": column(1, -1, -1),
        "ground_glass_opacity": column(-1, -1, 0),
        "emphysema": column(-1, 1, 0),
        "atelectasis": column(1, 1, 1),
    },
    years=[1, 2, 3],
)


def test_labels_come_under_the_names_of_the_scored_set():
    opacity = {"lung_opacity": ("consolidation", "ground_glass_opacity")}
    labels = LabelMap(opacity, {"age": "years"}, words="by map.toml")
    ours = other_set(labels, tuple(LEARNED.labels))
    scored = ours.rename_scored(SCORED, Path("/data/theirs"))
    assert scored.name == "train of theirs"
    found = ours.rename_learned(LEARNED, scored)
    assert found.name == "train of ours"
    assert list(found.labels) == list(SCORED.labels)
    # Any of both columns; unknown where neither is present and one is unknown.
    np.testing.assert_array_equal(found.labels["lung_opacity"], [1, -1, 0])
    np.testing.assert_array_equal(found.labels["emphysema"], LEARNED.labels["emphysema"])
    np.testing.assert_array_equal(found.labels["cardiomegaly"], [0, 0, 0])
    np.testing.assert_array_equal(found.reported["emphysema"], [1, -1, 0])
    np.testing.assert_array_equal(found.measurements["age"], [1, 2, 3])
    words = ours.described(scored)
    assert "its labels by map.toml; it has none of cardiomegaly; not used of it: atelectasis" in words
    unmapped = other_set(LabelMap(), tuple(LEARNED.labels)).rename_learned(LEARNED, scored)
    assert not unmapped.labels["lung_opacity"].any()
    assert np.isnan(unmapped.measurements["age"]).all()


def test_both_by_a_label_set():
    """A finding for which several columns stand, in either set."""
    ours = other_set(read_label_map("rad_chest_standard"), ("arterial_wall_calcification", "emphysema"))
    columns = {"arterial_wall_calcification": column(1, -1), "emphysema": column(-1, 1)}
    scored = ours.rename_scored(made("test", [1, 2], columns), Path("theirs"))
    learned = ours.rename_learned(made("train", [3, 4], columns), scored)
    for split in (scored, learned):
        assert set(split.labels) == set(columns)
        np.testing.assert_array_equal(split.labels["emphysema"], [-1, 1])
    assert "both by label set rad_chest_standard" in ours.described(scored)


def test_patients_of_both_are_refused():
    ours = other_set(LabelMap(), tuple(LEARNED.labels))
    with pytest.raises(ValueError, match="1 patients of 'train of theirs' are in 'train' of 'ours'"):
        ours.rename_learned(
            replace(LEARNED, patients=np.array([7, 2, 9])), ours.rename_scored(SCORED, Path("theirs"))
        )


def test_label_maps_are_read(tmp_path):
    path = tmp_path / "map.toml"
    path.write_text('[labels]\na = "b"\nc = ["d", "e"]\n[measurements]\nage = "years"\n')
    found = read_label_map(str(path))
    assert found.labels == {"a": ("b",), "c": ("d", "e")}
    assert found.measurements == {"age": "years"}
    for text in ("[label]\na = 'b'", "[labels]\na = 3", "[labels]\na = [3]", "nothing"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"is no label map .*write \[labels\]"):
            read_label_map(str(path))
    with pytest.raises(ValueError, match="no such file, and the label sets are ct_rate_18"):
        read_label_map("rad_chest")


def test_a_probe_learns_what_it_would_from_one_set():
    """The same splits, once as splits of one set and once as those of two with other names of labels."""
    splits = made_splits(signal=0.5)
    settings = {"shares": (0.1, 1.0), "penalties": (1.0, 0.01), "draws": 0}
    one = evaluate_probe(splits["test"], None, load_split=splits.get, **settings).metrics()
    ours = other_set(LabelMap({"planted": ("theirs",)}), ("theirs", "absent_there"))
    scored = ours.rename_scored(splits["test"], Path("theirs"))

    def load_split(name):
        split = splits[name]
        labels = {"theirs": split.labels["planted"], "absent_there": split.labels["absent_there"]}
        return ours.rename_learned(replace(split, labels=labels), scored)

    two = evaluate_probe(scored, None, load_split=load_split, **settings).metrics()
    assert two == pytest.approx(one, abs=1e-12, nan_ok=True)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Both splits in one set; and apart, with another name of a label in the set to learn from."""
    from medclip_jax.shards.record import Schema
    from medclip_jax.shards.write import write_shards
    from tests.tiny_run import FINDINGS, SHAPE, SPACING, made_records

    folder = tmp_path_factory.mktemp("sets")
    records = {name: list(made_records(n, seed)) for name, n, seed in (("train", 20, 5), ("test", 14, 6))}
    renamed = ("emphysema", *FINDINGS[1:])
    # Scored is the split of the name that the other set's split has, too.
    for name, findings, splits, spacing in (
        ("one", FINDINGS, records, SPACING),
        ("theirs", FINDINGS, {"train": records["test"]}, SPACING),
        ("ours", renamed, {"train": records["train"]}, SPACING),
        ("coarse", renamed, {"train": records["train"]}, (10.0, 6.0, 6.0)),
        ("overlap", FINDINGS, {"train": records["train"] + records["test"][:1]}, SPACING),
    ):
        write_shards(folder / name, Schema(SHAPE, spacing, findings, (), ("cac_grade",)), splits)
    (folder / "map.toml").write_text('[labels]\ncardiomegaly = "emphysema"\n')
    return folder


def evaluated(tiny_run, tmp_path, *arguments):
    numbers = tmp_path / "numbers.json"
    options = [
        "--evaluators",
        "mlp_probe,zero_shot",
        "--set",
        "mlp_probe.epochs=2",
        "--set",
        "mlp_probe.draws=0",
    ]
    options += ["--set", "zero_shot.draws=0", "--json", str(numbers)]
    assert main(["evaluate", "--workdir", str(tiny_run / "workdir"), *arguments, *options]) == 0
    return json.loads(numbers.read_text())


@pytest.mark.slow
def test_two_sets_give_the_numbers_of_one(tiny_run, sets, tmp_path):
    one = evaluated(tiny_run, tmp_path, "--shards", str(sets / "one"))
    other = ["--train-shards", str(sets / "ours"), "--label-map", str(sets / "map.toml"), "--split", "train"]
    two = evaluated(tiny_run, tmp_path, "--shards", str(sets / "theirs"), *other)
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-6, nan_ok=True)
    learned = two["conditions"]["mlp_probe"]["learned from"]
    assert learned.startswith("another set, ours; its labels by map.toml")
    assert "learned from" not in two["conditions"]["zero_shot"]  # it learned nothing
    assert "learned from" not in one["conditions"]["mlp_probe"]
    own = [*other, "--set", "zero_shot.threshold=train"]
    chosen = evaluated(tiny_run, tmp_path, "--shards", str(sets / "theirs"), *own)
    assert chosen["conditions"]["zero_shot"]["threshold"] == "best f1 on split 'train'"
    assert "another set" in chosen["conditions"]["zero_shot"]["learned from"]


@pytest.mark.parametrize(
    ("learned", "more", "message"),
    [
        ("coarse", [], "8 x 6 x 6 mm. Prepare both alike, or use --other-grid"),
        ("theirs", [], "is the scored set itself"),
        ("overlap", [], "1 patients of 'train of theirs' are in 'train' of"),
        ("ours", ["--label-map", "MAP2"], "names no label of"),
        ("ours", ["--label-map", "MAP3"], "gives names to lung_nodule, which is no label of the scored set"),
        ("ours", ["--set", "mlp_probe.train=trian"], "mlp_probe.train: no split 'trian'"),
        ("", ["--label-map", "rad_chest_standard"], "--label-map goes with --train-shards"),
    ],
)  # fmt: skip
def test_sets_that_do_not_go_together(tiny_run, sets, tmp_path, capsys, learned, more, message):
    maps = {"MAP2": 'cardiomegaly = "lung_nodule"', "MAP3": 'lung_nodule = "emphysema"'}
    for name, text in maps.items():
        (tmp_path / name).write_text(f"[labels]\n{text}\n")
    more = [str(tmp_path / one) if one in maps else one for one in more]
    arguments = ["evaluate", "--workdir", str(tiny_run / "workdir"), "--shards", str(sets / "theirs")]
    arguments += ["--split", "train", "--evaluators", "mlp_probe", *more]
    arguments += ["--train-shards", str(sets / learned)] if learned else []
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
