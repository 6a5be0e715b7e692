"""Sets of resized scans: what they hold, say and refuse, and that cropped sets stay as they were."""

import json
from dataclasses import replace

import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.folder import folder as read_table
from medclip_jax.inference.preparation import Preparation
from medclip_jax.objectives.base import DataSpec
from medclip_jax.shards.check import check
from medclip_jax.shards.grid import differences, refuse_other_kind, volume_kind
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.parts import Part
from medclip_jax.shards.prepare import prepare, prepare_part
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.series import SeriesSettings
from medclip_jax.shards.settings import PrepareSettings, resolve
from medclip_jax.training.config import base_config
from medclip_jax.training.data import check_expectation
from medclip_jax.training.settle import settle_objective
from medclip_jax.volumes import crop_and_resample, read_volume
from tests.shards import small_set
from tests.shards.small_set import QUIET, digest

OWN = (None, None, None)
SETTINGS = replace(small_set.SETTINGS, fit="resize", spacing=None, shape=(8, 20, 16), per_shard=3)


@pytest.fixture(scope="module")
def resized(archive, tmp_path_factory):
    return prepare(read_table(archive), tmp_path_factory.mktemp("resized") / "set", SETTINGS, **QUIET)


def records(info) -> list[dict]:
    return [record for split in info.splits for record in open_split(info, split)]


def test_records_hold_complete_scans_and_their_spacing(resized, archive):
    assert (resized.shape, resized.spacing) == ((8, 20, 16), OWN)
    assert resized.series == (SeriesSettings("volume", (8, 20, 16), OWN),)
    by_report = {record["report"]: record for record in records(resized)}
    entries = {entry["id"]: entry for entry in read_manifest(resized.folder)}
    assert len(by_report) == 10
    for study in read_table(archive):
        record, scan = by_report[study.report], read_volume(study.path)
        expected, _ = crop_and_resample(scan, (8, 20, 16), OWN)
        np.testing.assert_array_equal(record["volume"], expected.voxels)
        own = record["volume_spacing"]
        assert (own.dtype, own.shape) == (np.float32, (3,))
        np.testing.assert_allclose(own * (8, 20, 16), np.array(scan.voxels.shape) * scan.spacing, rtol=1e-6)
        np.testing.assert_allclose(entries[record["id"]]["spacing"], own, atol=1e-4)


def test_organ_cells_lie_on_the_resized_grid(resized):
    """The heart spans x 8..13, y 10..13, z 5..8 of 24x20x16 voxels at 4x4x6 mm."""
    record = next(record for record in records(resized) if record["organs"][1].any())
    shares = record["organs"][1] / 255
    assert shares.shape == (2, 5, 4)
    extent = np.array((16 * 6, 20 * 4, 24 * 4))
    np.testing.assert_allclose(record["volume_spacing"] * (8, 20, 16), extent, rtol=1e-5)
    assert shares.sum() * extent.prod() / shares.size == pytest.approx(6 * 4 * 4 * 96, rel=0.35)
    # Depth 5..8 of 16, height 10..13 of 20, width 8..13 of 24: in cells of halves, fifths and quarters.
    assert shares[:, :2].sum() == 0
    assert shares[:, 4].sum() == 0
    assert shares[:, 2].sum() > 0 < shares[:, 3].sum()
    assert shares[0].sum() > shares[1].sum()


def test_prepare_json_says_it_and_sets_that_crop_stay_as_they_were(resized, archive):
    written = json.loads((resized.folder / "prepare.json").read_text())
    assert (written["spacing"], written["settings"]["fit"]) == ([None] * 3, "resize")
    studies = list(read_table(archive))
    for settings in (SETTINGS, small_set.SETTINGS):
        complete = resolve(settings, studies)
        assert PrepareSettings.from_json(json.loads(json.dumps(complete.to_json()))) == complete
        assert resolve(complete, studies) == complete
    assert "fit" not in resolve(small_set.SETTINGS, studies).to_json()
    assert resolve(PrepareSettings(), studies).spacing == (3.0, 1.5, 1.5)


def test_parts_make_the_same_bytes(resized, archive, tmp_path):
    studies = read_table(archive)
    for part in (1, 2):
        prepare_part(Part(part, 2), studies, tmp_path / "parts", SETTINGS, **QUIET)
    assert digest(tmp_path / "parts") == digest(resized.folder)


def test_inspect_shows_the_range_and_draws_each_scan_in_its_proportions(resized, tmp_path, capsys):
    found = check(resized, progress=False)
    assert not found.problems
    own = np.stack([record["volume_spacing"] for record in records(resized)])
    np.testing.assert_array_equal(found.spacings["volume"], [own.min(0), own.max(0)])
    assert main(["inspect", str(resized.folder), "--count", "2", "--out", str(tmp_path / "page.html")]) == 0
    assert "8×20×16 voxels, 12×4×6 mm per voxel" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "12×4×6" in page
    # 96 x 80 x 96 mm: the axial view is wider than high, the coronal one square, whatever the voxels.
    assert "viewBox='0 0 225.0 187.5'" in page
    assert "viewBox='0 0 225.0 225.0'" in page


def test_a_scan_is_prepared_for_a_model_as_the_set_was(resized, archive):
    spec = DataSpec.of(resized, None)
    preparation = Preparation(spec.shape, spec.spacing, volume_kind(resized)["crop"])
    study = next(iter(read_table(archive)))
    record = next(record for record in records(resized) if record["report"] == study.report)
    found = preparation(study.path)
    np.testing.assert_array_equal(found.voxels, record["volume"])
    np.testing.assert_allclose(np.linalg.norm(found.grid.affine[:3, :3], axis=0), record["volume_spacing"])
    np.testing.assert_array_equal(preparation(found.voxels).voxels, found.voxels)
    with pytest.raises(ValueError, match=r"complete scan, resized.*give none") as error:
        preparation(study.path, (0.0, 0.0, 0.0))
    assert error.value.code == "center-of-complete-scan"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit": "stretch"}, "'stretch' is none of crop, resize"),
        ({"spacing": (3.0, 1.5, 1.5)}, "Leave --spacing out, or take --fit crop"),
        ({"crop": "heart"}, "crop 'heart' and resizing.*Leave --crop out"),
        ({"crop": "box"}, "crop 'box' and resizing"),
        ({"fit": "crop", "spacing": OWN}, "that is --fit resize"),
        ({"series": (SeriesSettings("volume", (8, 8, 8), OWN),)}, r"give each series .*\(None, None, None\)"),
        (
            {"fit": "crop", "crop": "heart", "series": (SeriesSettings("volume", (8, 8, 8), OWN),)},
            "crop 'heart' and resizing",
        ),
    ],
)
def test_settings_that_contradict_each_other(archive, change, message):
    with pytest.raises(ShardError, match=message):
        resolve(replace(SETTINGS, **change), list(read_table(archive)))


def test_the_command(archive, tmp_path, capsys):
    command = ["prepare", "--table", str(archive), "--out", str(tmp_path / "set"), "--workers", "1"]
    command += ["--fit", "resize", "--shape", "6", "8", "10", "--tokenizer", "none"]
    assert main([*command, "--spacing", "3", "2", "2"]) != 0
    assert "Leave --spacing out" in capsys.readouterr().err
    assert main(command) == 0
    info = open_shards(tmp_path / "set")
    assert (info.shape, info.spacing) == ((6, 8, 10), OWN)


def test_each_series_says_it_itself(tmp_path):
    import nibabel

    from medclip_jax.corpora.study import Series, Study

    random = np.random.default_rng(0)
    studies = []
    for index in range(2):
        path = tmp_path / f"{index}.nii"
        voxels = random.gamma(2.0, 300.0, (20 + index, 16, 10)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.5, 1.5, 4.0, 1])), path)
        both = (Series(path, "volume", "MR"), Series(path, "cine", "MR"), Series(path, "fine", "MR"))
        studies.append(Study(both, f"r{index}", f"s{index}", f"p{index}", "Normal."))
    series = (
        SeriesSettings("volume", (6, 8, 12), OWN, "MR", (1.0, 99.0)),
        SeriesSettings("cine", (None, 8, 8), OWN, "MR"),
        SeriesSettings("fine", (8, 8, 8), (4.0, 1.5, 1.5), "MR"),
    )
    settings = PrepareSettings(series=series, tokenizer=None, fractions=(1.0, 0.0, 0.0))
    info = prepare(studies, tmp_path / "set", settings, **QUIET)
    assert (info.shape, info.spacing, info.series) == ((6, 8, 12), OWN, series)
    for record in records(info):
        width = round(float(record["volume_spacing"][2]) * 12 / 1.5)
        assert width in (20, 21)
        np.testing.assert_allclose(record["volume_spacing"], (40 / 6, 3.0, 1.5 * width / 12), rtol=1e-6)
        np.testing.assert_allclose(record["cine_spacing"], (4.0, 3.0, 1.5 * width / 8), rtol=1e-6)
        assert record["cine"].shape == (10, 8, 8)
        assert "fine_spacing" not in record
        # Windowed to 0 ... 4095; the scanner's units of the others stay.
        assert 0 < record["volume"].min() < 1000 < 1.4 * record["cine"].max() < record["volume"].max() <= 4095
    entry = read_manifest(info.folder)[0]
    assert set(entry["spacing"]) == {"volume", "cine"}


def test_models_and_sets_of_another_fit_do_not_go_together(resized):
    cropped = volume_kind(resized) | {"spacing": (8.0, 5.0, 5.0)}
    assert differences(cropped, volume_kind(resized)) == [
        "spacing each scan's own mm (--fit resize) instead of 8 x 5 x 5 mm"
    ]
    assert not differences(volume_kind(resized), volume_kind(resized))
    with pytest.raises(ValueError, match=r"Prepare them with --shape 8 20 16 --fit resize, or score"):
        refuse_other_kind(volume_kind(resized), cropped, "the volumes")


@pytest.mark.parametrize(("fit", "spacing"), [("crop", OWN), ("resize", (8.0, 5.0, 5.0))])
def test_a_config_refuses_the_other_fit(fit, spacing):
    data = base_config().data
    data.prepare.fit = fit
    with pytest.raises(ValueError, match=f"prepare with --fit {fit}, or use"):
        check_expectation(data, DataSpec((8, 20, 16), spacing))
    data.prepare.fit = ""
    check_expectation(data, DataSpec((8, 20, 16), spacing))
    data.prepare.spacing = (3.0, 1.5, 1.5)
    with pytest.raises(ValueError, match=r"--spacing 3 1\.5 1\.5"):
        check_expectation(data, DataSpec((8, 20, 16), spacing))


def test_a_patch_is_chosen_without_mm():
    from medclip_jax.objectives import clip

    objective = clip.default_config()
    objective.vision.patch, objective.vision.cell = (), (1, 1, 1)
    settled = settle_objective(objective, DataSpec((64, 128, 96), OWN))
    # As if the scan were 336 mm along each axis.
    mm = (336 / 64, 336 / 128, 336 / 96)
    assert settled.vision.patch == settle_objective(objective, DataSpec((64, 128, 96), mm)).vision.patch
