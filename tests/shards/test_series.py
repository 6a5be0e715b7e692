"""Studies of several MR series: one record each, every series an array of its own shape and window."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.study import Series, Study
from medclip_jax.inference.preparation import Preparation
from medclip_jax.shards.check import check
from medclip_jax.shards.grid import volume_kind
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.parts import Part
from medclip_jax.shards.plan import examine, make_plan
from medclip_jax.shards.prepare import prepare, prepare_part
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.series import SeriesSettings
from medclip_jax.shards.settings import PrepareSettings, resolve
from medclip_jax.volumes.modality import WINDOW_TOP, window_by_percentiles
from tests.shards.small_set import KEY, QUIET

STACK = SeriesSettings("short_axis", (None, 16, 20), (None, 2.0, 2.0), "MR", (1.0, 99.0))
SCAR = SeriesSettings("late_enhancement", (6, 12, 12), (8.0, 3.0, 3.0), "MR", (0.5, 99.5), required=False)
SETTINGS = PrepareSettings(
    series=(STACK, SCAR), findings=("pericardial_effusion",), vocabulary_size=200, fractions=(1.0, 0.0, 0.0)
)


def write(path: Path, shape: tuple[int, int, int], spacing: tuple[float, float, float], scale: float) -> Path:
    """An MR stack of (x, y, z) voxels: a bright ball over noise, in a scanner's arbitrary units."""
    random = np.random.default_rng(sum(shape))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    voxels = random.normal(100, 20, shape) + 600 * ((grid**2).sum(0) < 0.5)
    nibabel.save(nibabel.Nifti1Image((scale * voxels).clip(0).astype(np.int16), np.diag([*spacing, 1])), path)
    return path


@pytest.fixture
def studies(tmp_path) -> list[Study]:
    """Three patients; the last has no late enhancement, but a localizer that nobody asked for."""
    found = []
    for index in range(3):
        first = write(tmp_path / f"sax{index}.nii", (24, 20, 7 + index), (1.5, 1.5, 8.0), 1 + 9 * index)
        scar = write(tmp_path / f"lge{index}.nii", (16, 16, 9), (2.5, 2.5, 6.0), 0.3)
        other = Series(scar, "late_enhancement" if index < 2 else "localizer", "MR")
        report = f"Report {index}. No pericardial effusion."
        found.append(
            Study((Series(first, "short_axis", "MR"), other), f"r{index}", f"s{index}", f"p{index}", report)
        )
    return found


def test_a_record_holds_every_series_and_the_set_says_how(studies, tmp_path):
    info = prepare(studies, tmp_path / "set", SETTINGS, **QUIET)
    assert (info.shape, info.series) == ((), (STACK, SCAR))
    assert not check(info, progress=False).problems
    assert main(["inspect", str(info.folder), "--count", "3"]) == 0
    by_depth = {
        sample["short_axis"].shape[0]: sample
        for sample in map(open_split(info, "train").__getitem__, range(3))
    }
    assert sorted(by_depth) == [7, 8, 9]
    for index, (depth, sample) in enumerate(sorted(by_depth.items())):
        assert sample["short_axis"].shape == (depth, 16, 20)
        assert sample["short_axis"].dtype == np.int16
        np.testing.assert_array_equal(sample["short_axis_spacing"], np.array([8, 2, 2], np.float32))
        assert ("late_enhancement" in sample) == (index < 2)
        # Units differ tenfold between the scans, and not in the set.
        assert 0 <= sample["short_axis"].min() < 300
        assert 3000 < sample["short_axis"][depth // 2, 6:10, 8:12].mean() <= WINDOW_TOP
        assert sample["findings"].tolist() == [-1]
    assert by_depth[7]["late_enhancement"].shape == (6, 12, 12)
    entries = {entry["row"]: entry for entry in read_manifest(info.folder)}
    assert {"series-missing:late_enhancement", "series-left-out:localizer"} <= set(entries[3]["notes"])
    assert entries[1]["provenance"]["short_axis"]["modality"] == "MR"
    low, high = entries[1]["provenance"]["short_axis"]["window"]
    assert 0 <= low < 100 < 600 < high
    # The same series of a new scan is prepared alike.
    again = Preparation.of(info.series[0], "center")(studies[0].series[0].path)
    np.testing.assert_array_equal(again.voxels, by_depth[7]["short_axis"])


def test_parts_and_a_second_call_make_the_same(studies, tmp_path):
    prepare(studies, tmp_path / "set", replace(SETTINGS, per_shard=1), **QUIET)
    for index in (1, 2):
        prepare_part(Part(index, 2), studies, tmp_path / "parts", replace(SETTINGS, per_shard=1), **QUIET)
    names = sorted(path.name for path in (tmp_path / "set").glob("*.array_record*"))
    assert len(names) == 3
    for name in (*names, "prepare.json", "manifest.jsonl"):
        assert (tmp_path / "set" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    again = prepare(studies, tmp_path / "set", replace(SETTINGS, per_shard=1), **QUIET)
    assert again == open_shards(tmp_path / "set")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda series: series[1:], "missing-series"),
        (lambda series: (*series, series[0]), "several-series"),
        (lambda series: (replace(series[0], modality="CT"), series[1]), "wrong-modality"),
        (lambda series: (series[0], replace(series[1], path=Path("away.nii"))), "missing-file"),
        (lambda series: (series[0], replace(series[1], path=Path())), "report-without-volume"),
    ],
)
def test_studies_that_cannot_become_a_record(studies, tmp_path, change, reason):
    studies[0] = replace(studies[0], series=change(studies[0].series))
    info = prepare(studies, tmp_path / "set", SETTINGS, **QUIET, max_rejected=0.5)
    (entry,) = [entry for entry in read_manifest(info.folder) if entry["row"] == 1]
    assert (entry["class"], entry["reason"]) == ("rejected-with-reason", reason)


def test_a_series_without_contrast_is_rejected_by_name(studies, tmp_path):
    voxels = np.zeros((24, 20, 7), np.int16)
    voxels[:2, :1] = 7
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.5, 1.5, 8.0, 1])), studies[0].path)
    info = prepare(studies, tmp_path / "set", SETTINGS, **QUIET, max_rejected=0.5)
    (entry,) = [entry for entry in read_manifest(info.folder) if entry["row"] == 1]
    assert entry["reason"] == "no-contrast"
    assert entry["message"].startswith("Series 'short_axis': ")


def test_every_series_counts_in_the_fingerprint(studies):
    def fingerprint(study):
        settings = resolve(SETTINGS, [study])
        (shard,) = make_plan([study], settings, KEY)
        return examine(shard, settings, KEY).fingerprint

    first = studies[0]
    before = fingerprint(first)
    assert fingerprint(replace(first, series=first.series[:1])) != before
    write(first.series[1].path, (16, 16, 9), (2.5, 2.5, 6.0), 0.4)
    assert fingerprint(first) != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"series": (STACK, STACK)}, "each needs a name of its own"),
        ({"series": (replace(STACK, name="report"),)}, "each needs a name of its own"),
        ({"series": (replace(STACK, name="short axis"),)}, "cannot name a series"),
        ({"series": (replace(STACK, spacing=(8.0, 2.0, 2.0)),)}, "keeps its own voxels, both are None"),
        ({"series": (replace(STACK, percentiles=(99, 1)),)}, "the lower first"),
        ({"series": (STACK,), "cell": 4}, "organ cells lie on the grid of 'volume'"),
        ({"percentiles": (1, 99)}, "CT holds HU, which no percentiles may change"),
        ({"series": (replace(STACK, name="volume"),)}, "name a ragged series otherwise"),
    ],
)
def test_settings_that_make_no_sense(studies, settings, message):
    with pytest.raises(ShardError, match=message):
        resolve(PrepareSettings(**settings), studies)


def test_settings_come_back_from_json(studies):
    settings = resolve(SETTINGS, studies)
    assert PrepareSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_percentiles_are_values_of_the_scan():
    voxels = np.arange(-50, 50, dtype=np.int16)
    windowed, window = window_by_percentiles(voxels, (10, 90))
    assert window == (-41, 39)
    assert windowed[:10].tolist() == [0] * 10
    assert windowed[-10:].tolist() == [WINDOW_TOP] * 10
    np.testing.assert_allclose(windowed[9:90], (voxels[9:90] + 41) * (WINDOW_TOP / 80), atol=0.51)


def test_one_mr_volume_a_record_from_the_command_line(studies, tmp_path):
    lines = [f"{study.path},MR,{study.report}" for study in studies]
    (tmp_path / "studies.csv").write_text("\n".join(["volume,modality,report", *lines]) + "\n")
    arguments = ["prepare", "--table", str(tmp_path / "studies.csv"), "--out", str(tmp_path / "set")]
    arguments += ["--modality", "MR", "--percentiles", "1", "99", "--workers", "1"]
    assert main([*arguments, "--shape", "6", "16", "20", "--spacing", "8", "2", "2"]) == 0
    info = open_shards(tmp_path / "set")
    assert volume_kind(info)["percentiles"] == info.series[0].percentiles == (1.0, 99.0)
    split = next(iter(info.splits))
    voxels = open_split(info, split)[0]["volume"]
    assert (voxels.shape, voxels.dtype) == ((6, 16, 20), np.int16)
    assert 3000 < voxels[3, 6:10, 8:12].mean() <= WINDOW_TOP
    assert "MR intensities" in (tmp_path / "set" / "features.json").read_text()
    assert main(["inspect", str(tmp_path / "set"), "--count", "1"]) == 0
