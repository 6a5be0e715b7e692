"""Organs through `prepare`: masks on any grid, and the sentences about them."""

import dataclasses
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medclip_jax.corpora.folder import folder
from medclip_jax.corpora.study import Series, Study
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.organs import occupancy, organ_texts
from medclip_jax.shards.plan import examine, make_plan
from medclip_jax.shards.prepare import prepare
from medclip_jax.shards.read import open_split
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.settings import PrepareSettings, resolve
from medclip_jax.volumes import Volume

SHAPE = (24, 20, 16)
"""Of the scans, in NIfTI's order: right, front, up; 4 x 4 x 6 mm."""

SETTINGS = PrepareSettings(
    shape=(16, 20, 24), spacing=(6.0, 4.0, 4.0), cell=4, tokenizer=None, fractions=(1.0, 0.0, 0.0)
)
"""The grid of the scans themselves, so that occupancies can be counted by hand."""

REPORT = "Heart size is normal. Calcified plaques in the aorta. No lesion in the liver."


def save(path, voxels, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


AFFINE = np.diag([4.0, 4.0, 6.0, 1.0])


def scan(path, seed=0):
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    voxels = np.where(np.hypot(*grid[:2]) < 0.8, 40.0, -1000.0) + random.normal(0, 8, SHAPE)
    voxels[(np.hypot(*grid[:2]) < 0.5) & (np.abs(grid[2]) < 0.7)] -= 840
    save(path, np.rint(voxels).astype(np.int16), AFFINE)


def box(low, high):
    """A mask of voxels from low to high, in NIfTI's order."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 1
    return mask


HEART = box((8, 8, 4), (14, 14, 9))


def prepared(tmp_path, masks, settings=SETTINGS, **more):
    """Prepare one study with these masks: name to (array, affine). Returns its record and notes."""
    scan(tmp_path / "scan.nii.gz")
    for name, (mask, affine) in masks.items():
        save(tmp_path / "masks" / f"{name}.nii.gz", mask, affine)
    (tmp_path / "studies.csv").write_text(f"volume,report,organs\nscan.nii.gz,{REPORT},masks\n")
    (study,) = folder(tmp_path / "studies.csv")
    info = prepare(
        [dataclasses.replace(study, **more)],
        tmp_path / "shards",
        settings,
        workers=1,
        key=b"k",
        progress=False,
    )
    (entry,) = read_manifest(info.folder)
    return open_split(info, "train")[0], entry.get("notes")


def counted(mask):
    """Occupancy by counting voxels: (D, H, W) indices run the other way round than NIfTI's."""
    canonical = mask.transpose(2, 1, 0).astype(int)
    cells = canonical.reshape(4, 4, 5, 4, 6, 4).sum((1, 3, 5))
    return np.floor(cells * 255 / 64 + 0.5).astype(np.uint8)


def test_overlapping_organs_both_keep_what_they_share(tmp_path):
    inner = box((10, 9, 5), (13, 12, 8))
    sample, notes = prepared(tmp_path, {"heart": (HEART, AFFINE), "atrial_appendage_left": (inner, AFFINE)})
    assert notes == []
    np.testing.assert_array_equal(sample["organs"], [counted(inner), counted(HEART)])


def flipped(mask):
    """The same mask stored to the left and to the back."""
    affine = np.diag([-4.0, -4.0, 6.0, 1.0])
    affine[:2, 3] = 4 * (np.array(SHAPE[:2]) - 1)
    return np.ascontiguousarray(mask[::-1, ::-1]), affine


def turned(mask):
    """The same mask with axes stored in another order."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = 6.0, 4.0, 4.0, 1.0
    return np.ascontiguousarray(mask.transpose(2, 0, 1)), affine


def cropped(mask):
    """The same mask on a part of the grid only."""
    affine = AFFINE.copy()
    affine[:3, 3] = np.array((6, 6, 2)) * (4, 4, 6)
    return np.ascontiguousarray(mask[6:18, 6:16, 2:12]), affine


def finer(mask):
    """The same mask on half of the spacing; each voxel becomes eight, around the same place."""
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = (-1.0, -1.0, -1.5)
    return mask.repeat(2, 0).repeat(2, 1).repeat(2, 2), affine


@pytest.mark.parametrize(
    ("change", "noted"), [(flipped, False), (turned, False), (cropped, True), (finer, True)]
)
def test_masks_on_other_grids_and_axes_come_to_the_same_cells(tmp_path, change, noted):
    sample, notes = prepared(tmp_path, {"heart": change(HEART)})
    np.testing.assert_array_equal(sample["organs"], [counted(HEART)])
    assert notes == (["organs-on-another-grid"] if noted else [])


def test_a_mask_of_a_rotated_grid_is_looked_up_by_world_coordinates(tmp_path):
    """A slab that is wide in a grid rotated by 90 degrees plus a little keeps its volume and its place."""
    angle = np.radians(93.0)
    affine = np.eye(4)
    affine[:2, :2] = 4 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    affine[2, 2] = 6.0
    # Both grids share their middle voxel, around which the slab lies.
    middle = (np.array(SHAPE) - 1) / 2
    affine[:3, 3] = AFFINE[:3, :3] @ middle - affine[:3, :3] @ middle
    sample, notes = prepared(tmp_path, {"heart": (box((8, 6, 4), (16, 14, 12)), affine)})
    cells = sample["organs"][0].astype(float)
    assert cells.sum() / 255 * 64 == pytest.approx(8 * 8 * 8, rel=0.05)
    places = np.stack(np.meshgrid(*(np.arange(n) * 4 + 1.5 for n in cells.shape), indexing="ij"), -1)
    center = (cells[..., None] * places).sum((0, 1, 2)) / cells.sum()
    np.testing.assert_allclose(center, middle[::-1], atol=0.3)
    assert notes == ["organs-on-another-grid"]


def test_an_empty_mask_beside_others(tmp_path):
    sample, notes = prepared(
        tmp_path, {"aorta": (np.zeros(SHAPE, np.uint8), AFFINE), "heart": (HEART, AFFINE)}
    )
    assert notes == []
    assert not sample["organs"][0].any()
    # It keeps its text; only who draws an organ asks for both.
    assert sample["organ_sentences"]["aorta"]["text"] == "Calcified plaques in the aorta."


def test_empty_masks_alone(tmp_path):
    sample, notes = prepared(tmp_path, {"heart": (np.zeros(SHAPE, np.uint8), AFFINE)})
    assert notes == ["organs-empty"]
    assert not sample["organs"].any()


def test_masks_of_another_scan_are_told(tmp_path):
    elsewhere = AFFINE.copy()
    elsewhere[:3, 3] = (0, 0, 400)
    sample, notes = prepared(tmp_path, {"heart": (HEART, elsewhere)})
    assert notes == ["organs-outside-crop", "organs-beside-scan", "organs-on-another-grid"]
    assert not sample["organs"].any()


def test_one_mask_of_another_scan_among_good_ones_is_told(tmp_path):
    elsewhere = AFFINE.copy()
    elsewhere[:3, 3] = (500, 0, 0)
    sample, notes = prepared(tmp_path, {"aorta": (HEART, elsewhere), "heart": (HEART, AFFINE)})
    assert notes == ["organs-beside-scan", "organs-on-another-grid"]
    assert not sample["organs"][0].any()
    np.testing.assert_array_equal(sample["organs"][1], counted(HEART))


def test_a_mask_outside_of_the_crop_alone_is_of_the_right_scan(tmp_path):
    settings = dataclasses.replace(SETTINGS, shape=(4, 4, 4))
    _, notes = prepared(tmp_path, {"heart": (box((0, 0, 0), (4, 4, 3)), AFFINE)}, settings)
    assert notes == ["organs-outside-crop"]


def test_a_mask_without_a_place_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"organs-no-orientation.*The mask of 'heart': The header holds no"):
        prepared(tmp_path, {"heart": (HEART, np.eye(4))})


def test_labels_of_one_name_are_one_organ(tmp_path):
    scan(tmp_path / "scan.nii.gz")
    left, right = box((2, 2, 2), (6, 6, 6)), box((12, 2, 2), (16, 6, 6))
    save(tmp_path / "ml.nii.gz", left + 2 * right, AFFINE)
    (tmp_path / "ml.json").write_text(json.dumps({"1": "lung", "2": "lung", "3": "heart"}))
    (tmp_path / "studies.csv").write_text(f"volume,report,organs\nscan.nii.gz,{REPORT},ml.nii.gz\n")
    info = prepare(
        folder(tmp_path / "studies.csv"), tmp_path / "out", SETTINGS, workers=1, key=b"k", progress=False
    )
    assert info.organs == ("heart", "lung")
    np.testing.assert_array_equal(open_split(info, "train")[0]["organs"][1], counted(left | right))


def test_sentences_by_rules_and_by_the_archive(tmp_path):
    masks = dict.fromkeys(("heart", "aorta", "liver", "spleen"), (HEART, AFFINE))
    sample, _ = prepared(tmp_path / "rules", masks)
    assert sample["organ_sentences"] == {
        "aorta": {"text": "Calcified plaques in the aorta.", "normal": False},
        "heart": {"text": "Heart size is normal.", "normal": True},
        "liver": {"text": "No lesion in the liver.", "normal": True},
    }
    said = {"heart/heart": "It is enlarged.", "mediastinum/aorta": "Nan", "abdomen": "Organs are normal."}
    sample, _ = prepared(tmp_path / "table", masks, sentences=said)
    assert sample["organ_sentences"] == {
        "heart": {"text": "It is enlarged.", "normal": False},
        "liver": {"text": "Organs are normal.", "normal": True},
        "spleen": {"text": "Organs are normal.", "normal": True},
    }
    own = dataclasses.replace(SETTINGS, organ_text="own")
    sample, _ = prepared(tmp_path / "own", masks, own, sentences=said)
    assert list(sample["organ_sentences"]) == ["heart"]


def test_without_cells_there_are_no_sentences():
    study = Study((Series(Path()),), "v", study_id="s", patient_id="p", organs={"heart": None})
    settings = resolve(dataclasses.replace(SETTINGS, cell=0), [study])
    assert organ_texts(study, REPORT, settings) == {}


def plan_of(settings, **more):
    study = Study((Series("v.nii.gz"),), "v", study_id="s", patient_id="p", report="r", **more)
    resolved = resolve(settings, [study])
    (shard,) = make_plan([study], resolved, b"key")
    return shard.digest, examine(shard, resolved, b"key").fingerprint


def test_a_change_of_the_sentences_is_a_change_of_the_set():
    plain = dataclasses.replace(SETTINGS, cell=0)
    first = plan_of(plain, sentences={"heart": "a"})
    for other in (plan_of(plain), plan_of(plain, sentences={"heart": "b"})):
        assert first[0] != other[0]
        assert first[1] != other[1]
    assert first == plan_of(plain, sentences={"heart": "a"})
    own = dataclasses.replace(plain, organ_text="own")
    assert plan_of(plain) == plan_of(own)  # no organs, no difference
    masks = {"organs": {"heart": "m.nii.gz"}}
    assert plan_of(SETTINGS, **masks) != plan_of(dataclasses.replace(SETTINGS, organ_text="own"), **masks)


def test_occupancy_of_thin_organs_rounds_to_the_nearest():
    """1 voxel of 64 is 3.98 of 255."""
    volume = Volume(np.zeros((4, 4, 4), np.int16), (1.0, 1.0, 1.0), np.eye(4)[[2, 1, 0, 3]])
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = True
    cells, notes = occupancy({"heart": (mask, volume.affine)}, ("heart",), volume, volume, 4)
    assert cells.item() == 4
    assert notes == []


def test_names_of_masks_that_may_be_patients_are_not_written(tmp_path, capsys):
    """A mask is named after its file, and files are named after patients."""
    secret = "PHI-778812_Mueller_heart"
    masks = {"heart": (HEART, AFFINE), secret: (HEART, AFFINE)}
    sample, _ = prepared(tmp_path, masks, dataclasses.replace(SETTINGS, organs=None))
    assert len(sample["organs"]) == 1
    written = {path: path.read_bytes() for path in (tmp_path / "shards").rglob("*") if path.is_file()}
    assert not [path for path, content in written.items() if b"778812" in content or b"Mueller" in content]
    assert json.loads(written[tmp_path / "shards/prepare.json"])["settings"]["unknown_masks"] == 1
    studies = folder(tmp_path / "studies.csv")
    assert not capsys.readouterr().err  # the first was told to say nothing
    settings = dataclasses.replace(SETTINGS, organs=(secret,))
    info = prepare(studies, tmp_path / "named", settings, workers=1, key=b"k")
    assert info.organs == (secret,)
    assert "left out" not in capsys.readouterr().err
    prepare(studies, tmp_path / "told", dataclasses.replace(SETTINGS, organs=None), workers=1, key=b"k")
    assert f"names are not known as organs (1): '{secret}'" in capsys.readouterr().err
    (tmp_path / "masks/heart.nii.gz").unlink()
    settings = dataclasses.replace(SETTINGS, organs=None)
    with pytest.raises(ShardError, match=r"none of the 1 mask names is known .*--organs") as error:
        prepare(folder(tmp_path / "studies.csv"), tmp_path / "none", settings, key=b"k")
    assert secret not in str(error.value)
