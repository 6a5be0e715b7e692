"""RAD-ChestCT in the archive's layout: arrays of 0.8 mm, labels by place, no reports."""

import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.corpora.rad_chest_ct import ABNORMALITIES, rad_chest_ct
from medclip_jax.corpora.registry import CORPORA
from medclip_jax.corpora.tables import TableError
from medclip_jax.evaluation.label_mapping import map_labels
from medclip_jax.evaluation.presets import label_sets
from medclip_jax.reports.findings_file import choose_findings
from medclip_jax.reports.rad_chest_ct import RAD_CHEST_ABNORMALITIES, RAD_CHEST_FINDINGS
from medclip_jax.reports.vocabulary import CT_RATE_FINDINGS
from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.read import open_shards, open_split
from tests.corpora.made_ct_rate import write_csv
from tests.corpora.tiny_training import train_step
from tests.volumes.made_scans import chest

PLACES = ("left_upper", "heart")
NAMES = [f"trn0000{number}" for number in range(1, 9)] + ["val00001", "tst00001"]


def label_row(name, *present):
    """One row of labels: ``nodule*heart`` and the like are 1, all others 0."""
    kept = dict.fromkeys([one for own in ABNORMALITIES.values() for one in own] + [*RAD_CHEST_ABNORMALITIES])
    columns = [f"{one}*{place}" for one in kept for place in PLACES]
    columns += [f"fracture*{place}" for place in PLACES]
    return {"NoteAcc_DEID": name} | {column: int(column in present) for column in columns}


def archive(root, names=NAMES):
    root.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        volume = np.clip(chest((16, 32, 32), seed), -1000, 1000)[::-1, ::-1, ::-1]  # feet, back, left
        np.savez_compressed(root / f"{name}.npz", ct=volume)
    for table, start in {"imgtrain": "trn", "imgvalid": "val", "imgtest": "tst"}.items():
        rows = [
            label_row(name, "nodulegr1cm*heart", "calcification*left_upper")
            if name.endswith("1")
            else label_row(name, "fracture*heart")
            for name in names
            if name.startswith(start)
        ]
        if rows:
            write_csv(root / f"{table}_Abnormality_and_Location_Labels.csv", rows)
    people = [{"NoteAcc_DEID": name, "MRN_DEID": f"p{name[-1]}{name[:3]}", "Other": 1} for name in names]
    write_csv(root / "CT_Scan_Metadata_Complete_35747.csv", people)
    return root


def test_labels_are_the_maximum_over_places(tmp_path):
    table = rad_chest_ct(archive(tmp_path))
    studies = {study.record_id: study for study in table}
    first = studies["trn00001"]
    present = {name for name, label in first.labels.items() if label == 1}
    assert present == {"lung_nodule", "nodulegr1cm", "arterial_wall_calcification", "calcification"}
    assert set(first.labels.values()) == {1, -1}
    assert set(first.labels) == {*ABNORMALITIES, *RAD_CHEST_ABNORMALITIES}
    assert set(studies["trn00002"].labels.values()) == {-1}  # fractures are in no finding of either set
    assert {study.split for study in table} == {"train", "validation", "test"}
    assert studies["val00001"].split == "validation"
    assert first.patient_id == "p1trn"
    assert (first.series[0].axes, first.series[0].spacing) == ("IPL", (0.8, 0.8, 0.8))
    assert "10 volumes (8 train, 1 test, 1 validation)" in table.remarks[0]


def test_both_label_sets_are_computed_from_one_set(tmp_path):
    """Every volume has other abnormalities; what each set makes of them is counted here column by column."""
    generator = np.random.default_rng(0)
    names = [f"trn{number:05d}" for number in range(1, 41)]
    columns = [column for column in label_row("") if column != "NoteAcc_DEID"]
    present = {name: {one for one in columns if generator.random() < 0.06} for name in names}
    for name in names:
        (tmp_path / f"{name}.npz").touch()
    write_csv(tmp_path / "imgtrain_x.csv", [label_row(name, *present[name]) for name in names])
    studies = {study.record_id: study for study in rad_chest_ct(tmp_path)}
    findings, definitions = choose_findings([CORPORA["rad_chest_ct"].findings])
    assert findings == RAD_CHEST_FINDINGS
    assert findings[:18] == CT_RATE_FINDINGS
    held = {
        finding: np.array([studies[name].labels.get(finding, 0) for name in names], np.int8)
        for finding in findings
    }
    for chosen in (label_sets()["rad_chest_standard"], label_sets()["rad_chest_rate"]):
        mapped = map_labels(chosen, held, definitions)
        assert mapped.missing == ()
        assert list(mapped.columns) == list(chosen.findings)
        for finding, column in mapped.columns.items():
            wanted = {f"{one}*{place}" for one in chosen.labels.get(finding, (finding,)) for place in PLACES}
            expected = [1 if wanted & present[name] else -1 for name in names]
            assert column.tolist() == expected, (chosen.name, finding)
    # What the adapter maps itself is the first set.
    for finding in ABNORMALITIES:
        mapped = map_labels(label_sets()["rad_chest_standard"], held, definitions)
        np.testing.assert_array_equal(held[finding], mapped.columns[finding])


def test_from_the_archive_to_a_training_step(tmp_path):
    words = ["prepare", "--corpus", "rad_chest_ct", "--root", str(archive(tmp_path / "rad"))]
    words += ["--out", str(tmp_path / "set"), "--shape", "16", "32", "32", "--workers", "1"]
    assert main([*words, "--spacing", "0.8", "0.8", "0.8"]) == 0
    info = open_shards(tmp_path / "set")
    assert dict(info.splits) == {"train": 8, "validation": 1, "test": 1}
    record = open_split(info, "test")[0]
    np.testing.assert_array_equal(record["volume"], np.clip(chest((16, 32, 32), 9), -1000, 1000))
    assert record["labels"][info.findings.index("lung_nodule")] == 1
    assert record["labels"][info.findings.index("mosaic_attenuation")] == 0
    assert record["report"] == ""
    notes = [entry["notes"] for entry in read_manifest(tmp_path / "set")]
    assert all("empty-report" in one and any(n.startswith("clipped:") for n in one) for one in notes)
    train_step(tmp_path / "set", tmp_path / "run", objective="mae")


def test_what_has_no_partner(tmp_path):
    archive(tmp_path, NAMES[:3])
    (tmp_path / "trn00009.npz").write_bytes(b"PK")
    table = rad_chest_ct(tmp_path)
    assert table.unmatched["labels"] == (("trn00009",), ())
    (tmp_path / "trn00001.npz").unlink()
    assert rad_chest_ct(tmp_path).unmatched["patients"] == (("trn00009",), ("trn00001",))
    (tmp_path / "CT_Scan_Metadata_Complete_35747.csv").unlink()
    table = rad_chest_ct(tmp_path)
    assert {study.patient_id for study in table} == {"trn00002", "trn00003", "trn00009"}
    assert any("every volume counts as a patient of its own" in remark for remark in table.remarks)


def test_an_archive_that_cannot_be_used(tmp_path):
    with pytest.raises(TableError, match="no folder"):
        rad_chest_ct(tmp_path / "nowhere")
    with pytest.raises(TableError, match="holds no volume of RAD-ChestCT"):
        rad_chest_ct(tmp_path)
    np.savez(tmp_path / "trn00001.npz", ct=chest())
    with pytest.raises(TableError, match="holds no table of labels"):
        rad_chest_ct(tmp_path)
    path = write_csv(tmp_path / "imgtrain_x.csv", [label_row("trn00001") | {"nodule*heart": 2}])
    with pytest.raises(TableError, match=r"row 1 of '.*': a label of lung_nodule is neither 0 nor 1"):
        rad_chest_ct(tmp_path)
    write_csv(path, [{"NoteAcc_DEID": "trn00001", "nodule*heart": 1, "emphysema*heart": ""}])
    table = rad_chest_ct(tmp_path)
    assert table.studies[0].labels == {"lung_nodule": 1, "nodule": 1, "emphysema": 0}
    assert any("has no column of medical_material" in remark for remark in table.remarks)
    write_csv(path, [label_row("")])
    with pytest.raises(TableError, match=r"row 1 of '.*' has no NoteAcc_DEID"):
        rad_chest_ct(tmp_path)
