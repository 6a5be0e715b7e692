"""Label maps through `prepare`: nearest neighbor on the volume's grid, what counts for nothing, refusals."""

import dataclasses
import json

import numpy as np
import pytest

from medclip_jax.corpora.folder import folder
from medclip_jax.corpora.study import LabelMap, Series, Study
from medclip_jax.corpora.tables import TableError
from medclip_jax.fields import Layout
from medclip_jax.objectives.base import DataSpec
from medclip_jax.shards.manifest import may_pass, read_manifest
from medclip_jax.shards.plan import examine, make_plan
from medclip_jax.shards.prepare import prepare
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.settings import PrepareSettings, resolve
from tests.made_label_maps import AFFINE, SHAPE, body, canonical, labels, save
from tests.made_records import settings as data_settings

CLASSES = {1: "liver", 2: "tumor"}

SETTINGS = PrepareSettings(
    shape=(16, 20, 24),
    spacing=(6.0, 4.0, 4.0),
    tokenizer=None,
    fractions=(1.0, 0.0, 0.0),
    empty_report="note",
    label_maps="corpus",
)
"""The grid of the scans themselves."""


def study(tmp_path, found=None, affine=AFFINE, classes=CLASSES, name="a", **changes):
    path = tmp_path / f"{name}.nii.gz"
    save(path, body(ord(name)))
    given = None
    if found is not None:
        given = LabelMap(save(tmp_path / f"{name}_labels.nii.gz", found, affine), classes, **changes)
    report = f"Report {name}."
    return Study((Series(path),), name, study_id=name, patient_id=name, report=report, label_map=given)


def prepared(tmp_path, *studies, settings=SETTINGS):
    """Prepare; returns the folder's info and its manifest."""
    info = prepare(studies, tmp_path / "out", settings, workers=1, key=b"k", progress=False, max_rejected=1)
    return info, read_manifest(info.folder)


def one(tmp_path, *args, settings=SETTINGS, **more):
    """The map of one study, and its notes."""
    info, (entry,) = prepared(tmp_path, study(tmp_path, *args, **more), settings=settings)
    return open_split(info, "train")[0]["label_map"], [n for n in entry["notes"] if n.startswith("label")]


def test_on_the_scans_own_grid_every_voxel_keeps_its_class(tmp_path):
    given = labels(3)
    found, notes = one(tmp_path, given)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, canonical(given))
    assert notes == []
    info = open_shards(tmp_path / "out")
    assert info.label_classes == ("liver", "tumor")
    assert info.schema.arrays["label_map"].shape == (16, 20, 24)


def test_flipped_storage_is_the_same_map(tmp_path):
    given = labels(3)
    affine = np.diag([-4.0, -4.0, 6.0, 1.0])
    affine[:2, 3] = 4 * (np.array(SHAPE[:2]) - 1)
    found, notes = one(tmp_path, np.ascontiguousarray(given[::-1, ::-1]), affine)
    np.testing.assert_array_equal(found, canonical(given))
    assert notes == []


def test_a_finer_map_is_looked_up_and_noted(tmp_path):
    given, affine = labels(4), np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = (-1.0, -1.0, -1.5)
    found, notes = one(tmp_path, given.repeat(2, 0).repeat(2, 1).repeat(2, 2), affine)
    np.testing.assert_array_equal(found, canonical(given))
    assert notes == ["label-map-resampled"]


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_the_map_is_resampled_as_an_independent_lookup_says(tmp_path, fit):
    """Brute force: the middle of each prepared voxel, by its own formula, and the label nearest to it."""
    given, shape = labels(5), (14, 14, 17)
    spacing = np.array([6.0, 4.0, 4.0]) * np.array(given.shape[::-1]) / shape
    if fit == "crop":
        spacing = np.array([8.0, 5.0, 5.0])
    settings = dataclasses.replace(
        SETTINGS, shape=shape, fit=fit, spacing=None if fit == "resize" else tuple(spacing)
    )
    found, _ = one(tmp_path, given, settings=settings)
    middle = (np.array(given.shape[::-1]) - 1) / 2 * (6.0, 4.0, 4.0)
    expected = np.full(shape, 255)
    for place in np.ndindex(*shape):
        world = middle + (np.array(place) - (np.array(shape) - 1) / 2) * spacing
        index = np.floor(world / (6.0, 4.0, 4.0) + 0.5 + 1e-6).astype(int)
        if (index >= 0).all() and (index < given.shape[::-1]).all():
            expected[place] = canonical(given)[tuple(index)]
    np.testing.assert_array_equal(found, expected)
    assert (fit == "crop") == (found == 255).any()


def test_padding_is_told_from_background(tmp_path):
    given = labels(6)
    settings = dataclasses.replace(SETTINGS, shape=(20, 24, 28))
    found, _ = one(tmp_path, given, settings=settings)
    np.testing.assert_array_equal(found[2:-2, 2:-2, 2:-2], canonical(given))
    assert (found == 255).sum() == 20 * 24 * 28 - given.size


def test_what_a_map_does_not_reach_is_not_labeled(tmp_path):
    given, affine = labels(7), AFFINE.copy()
    affine[:3, 3] = AFFINE[:3, :3] @ (0, 0, 4)
    found, notes = one(tmp_path, np.ascontiguousarray(given[:, :, 4:]), affine)
    assert notes == ["label-map-resampled", "label-map-partial:75%"]
    assert (found[:4] == 255).all()
    np.testing.assert_array_equal(found[4:], canonical(given)[4:])


def test_ignored_voxels_count_for_nothing(tmp_path):
    given = labels(8)
    given[:, :, 0] = 3
    found, notes = one(tmp_path, given, ignored=(3,))
    assert (found[0] == 255).all()
    assert notes == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda found: np.zeros_like(found), ["label-map-empty"]),
        (lambda found: np.where(np.arange(SHAPE[2]) < 2, 1, 0).astype(np.uint8) * np.ones_like(found),
         ["label-map-outside-crop"]),
    ],
)  # fmt: skip
def test_empty_maps_and_crops_are_noted(tmp_path, change, expected):
    settings = dataclasses.replace(SETTINGS, shape=(4, 20, 24))
    found, notes = one(tmp_path, change(labels(9)), settings=settings)
    assert notes == expected
    assert not found.any()


def test_a_map_of_another_scan_is_told(tmp_path):
    elsewhere = AFFINE.copy()
    elsewhere[:3, 3] = (0, 0, 4000)
    found, notes = one(tmp_path, labels(1), elsewhere)
    assert notes == ["label-map-resampled", "label-map-beside-scan", "label-map-outside-crop"]
    assert (found == 255).all()


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (labels(1) * 3, "label-map-unknown-values", "holds 3, 6, which its class map does not name"),
        (labels(1).astype(np.float32) / 2, "label-map-not-labels", "fractions"),
        (labels(1).astype(np.int32) * 100000, "label-map-not-labels", "is this a scan"),
        (labels(1).astype(np.int16) - 1, "label-map-not-labels", "labels start from 0"),
    ],
)
def test_maps_that_cannot_be_right_reject_their_study(tmp_path, given, code, message):
    good = study(tmp_path, labels(2), name="b")
    _, entries = prepared(tmp_path, study(tmp_path, given), good)
    (bad,) = [entry for entry in entries if entry["class"] == "rejected-with-reason"]
    assert bad["reason"] == code
    assert message in bad["message"]


def test_a_map_without_a_place_rejects_its_study(tmp_path):
    good = study(tmp_path, labels(2), name="b")
    _, entries = prepared(tmp_path, study(tmp_path, labels(1), np.eye(4)), good)
    assert {entry.get("reason") for entry in entries} == {None, "label-map-no-orientation"}


def test_what_may_pass_is_tried_again():
    assert may_pass({"class": "rejected-with-reason", "reason": "label-map-unreadable"})
    assert not may_pass({"class": "rejected-with-reason", "reason": "label-map-not-labels"})


def test_studies_without_a_map_stay(tmp_path):
    info, entries = prepared(tmp_path, study(tmp_path, labels(1)), study(tmp_path, name="b"))
    assert sorted(len(entry["notes"]) for entry in entries) == [0, 1]
    assert ["label-map-missing"] in [entry["notes"] for entry in entries]
    records = open_split(info, "train")
    assert sorted("label_map" in records[index] for index in range(2)) == [False, True]
    # In a batch, nothing of such a volume counts.
    layout = Layout(("volume", "label_map"), DataSpec.of(info, None), data_settings())
    maps = [layout.sample(records[index], index)["label_map"] for index in range(2)]
    assert sorted((found == 255).all() for found in maps) == [False, True]


def test_classes_of_maps_that_number_them_differently_are_joined_by_name(tmp_path):
    first, second = labels(1), labels(1)
    a = study(tmp_path, first, classes={1: "liver", 2: "tumor"})
    b = study(tmp_path, second, classes={1: "tumor", 2: "kidney"}, name="b")
    info, _ = prepared(tmp_path, a, b)
    assert info.label_classes == ("liver", "tumor", "kidney")
    maps = [record["label_map"] for record in open_split(info, "train")]
    assert sorted(tuple(np.unique(found)) for found in maps) == [(0, 1, 2), (0, 2, 3)]


def test_organ_masks_become_one_map_with_the_smaller_organ_on_top(tmp_path):
    heart, aorta = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    heart[6:16, 6:14, 4:10] = 1
    aorta[8:10, 8:10, 2:12] = 1
    # The aorta's mask is cropped to it: beyond, there is no aorta, but a background all the same.
    cropped = AFFINE.copy()
    cropped[:3, 3] = AFFINE[:3, :3] @ (8, 8, 2)
    organs = {
        "aorta": save(tmp_path / "m/aorta.nii.gz", np.ascontiguousarray(aorta[8:10, 8:10, 2:12]), cropped),
        "heart": save(tmp_path / "m/heart.nii.gz", heart),
    }
    given = dataclasses.replace(study(tmp_path), organs=organs)
    settings = dataclasses.replace(SETTINGS, label_maps="organs")
    info, (entry,) = prepared(tmp_path, given, settings=settings)
    assert info.label_classes == ("aorta", "heart")
    expected = np.where(aorta > 0, 1, 2 * heart)
    np.testing.assert_array_equal(open_split(info, "train")[0]["label_map"], canonical(expected))
    assert entry["notes"] == ["label-map-resampled", "label-map-overlaps"]


def test_a_multilabel_file_of_organs_becomes_a_map_of_those_wanted(tmp_path):
    path = save(tmp_path / "ml.nii.gz", labels(2, top=3))
    classes = {1: "heart", 2: "aorta", 3: "liver"}
    given = dataclasses.replace(study(tmp_path), organs={"*": path}, organ_classes=classes)
    settings = dataclasses.replace(SETTINGS, label_maps="organs", organs=("liver", "heart"))
    info, (entry,) = prepared(tmp_path, given, settings=settings)
    renamed = np.array([0, 2, 0, 1], np.uint8)[labels(2, top=3)]
    np.testing.assert_array_equal(open_split(info, "train")[0]["label_map"], canonical(renamed))
    assert entry["notes"] == []


def plan_of(settings, **more):
    given = Study((Series("v.nii.gz"),), "v", study_id="s", patient_id="p", report="r", **more)
    resolved = resolve(settings, [given])
    (shard,) = make_plan([given], resolved, b"key")
    return shard.digest, examine(shard, resolved, b"key").fingerprint


def test_sets_without_label_maps_keep_their_settings_and_fingerprints(tmp_path):
    plain = resolve(dataclasses.replace(SETTINGS, label_maps=""), [study(tmp_path)])
    assert not {name for name in plain.to_json() if name.startswith("label")}
    assert "label_map" not in plain.schema.arrays
    again = PrepareSettings.from_json(json.loads(json.dumps(plain.to_json())))
    assert again.to_json() == plain.to_json()


def test_another_class_map_is_another_set(tmp_path):
    path = save(tmp_path / "l.nii.gz", labels(1))
    first = plan_of(SETTINGS, label_map=LabelMap(path, {1: "liver"}))
    assert first == plan_of(SETTINGS, label_map=LabelMap(path, {1: "liver"}))
    assert first[0] != plan_of(SETTINGS, label_map=LabelMap(path, {1: "spleen"}))[0]
    save(path, labels(2))
    assert first[1] != plan_of(SETTINGS, label_map=LabelMap(path, {1: "liver"}))[1]


def test_settings_with_regions_survive_json(tmp_path):
    given = study(tmp_path, labels(1), regions={"whole": ("liver", "tumor")})
    settings = resolve(SETTINGS, [given])
    again = PrepareSettings.from_json(json.loads(json.dumps(settings.to_json())))
    assert again.label_regions == settings.label_regions == {"whole": ("liver", "tumor")}
    info, _ = prepared(tmp_path, given)
    assert open_shards(info.folder).label_regions == {"whole": ("liver", "tumor")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_maps": "maps"}, "none of corpus, organs"),
        ({"label_maps": "corpus"}, "no study has one"),
        ({"label_maps": "organs"}, "no study has a mask of a known organ"),
    ],
)
def test_settings_that_give_no_map_are_refused(tmp_path, settings, message):
    with pytest.raises(ShardError, match=message):
        resolve(dataclasses.replace(SETTINGS, **settings), [study(tmp_path)])


def test_more_classes_than_a_byte_holds_are_refused(tmp_path):
    many = {value: f"class {value}" for value in range(1, 256)}
    with pytest.raises(ShardError, match="255 classes, and a label map holds at most 254"):
        resolve(SETTINGS, [study(tmp_path, labels(1), classes=many)])


def test_a_batch_without_label_maps_is_refused_by_name(tmp_path):
    info, _ = prepared(tmp_path, study(tmp_path), settings=dataclasses.replace(SETTINGS, label_maps=""))
    with pytest.raises(ValueError, match=r"'label_map': the shards hold no label maps.*--label-maps organs"):
        Layout(("label_map",), DataSpec.of(info, None), data_settings(), arrays=info.schema.arrays)


def write_table(tmp_path, rows):
    (tmp_path / "labels.json").write_text(json.dumps({"1": "liver", "2": "tumor"}))
    lines = ["volume,report,label_map,label_classes", *rows]
    (tmp_path / "studies.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "studies.csv"


def test_a_tables_column_names_label_maps(tmp_path):
    save(tmp_path / "a.nii.gz", body(0))
    save(tmp_path / "b.nii.gz", body(1))
    save(tmp_path / "maps/a.nii.gz", labels(1))
    rows = ["a.nii.gz,Report a.,maps/a.nii.gz,labels.json", "b.nii.gz,Report b.,maps/b.nii.gz,labels.json"]
    table = folder(write_table(tmp_path, rows))
    first, second = table.studies
    assert first.label_map == LabelMap(tmp_path / "maps/a.nii.gz", CLASSES)
    assert second.label_map is None
    assert second.notes == ("label-map-not-found",)
    assert any("column 'label_map': no such file" in remark for remark in table.remarks)
    info, _ = prepared(tmp_path, *table)
    maps = {r["report"]: r.get("label_map") for r in open_split(info, "train")}
    np.testing.assert_array_equal(maps["Report a."], canonical(labels(1)))
    assert maps["Report b."] is None


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("maps/missing.nii.gz,labels.json", "column 'label_map': no such file"),
        ("maps/a.nii.gz,", "needs the column label_classes"),
        ("maps,labels.json", "a label map is one file"),
        ("maps/a.nii.gz,studies.csv", "column 'label_classes': must be JSON"),
    ],
)
def test_tables_whose_label_maps_cannot_be_used_are_refused(tmp_path, cells, message):
    save(tmp_path / "a.nii.gz", body(0))
    save(tmp_path / "maps/a.nii.gz", labels(1))
    with pytest.raises(TableError, match=message):
        folder(write_table(tmp_path, [f"a.nii.gz,Report a.,{cells}"]))
