"""From an archive as it lies on the disk, through `medclip prepare`, to the numbers of its protocols."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from sklearn.metrics import roc_auc_score

from medclip_jax.cli.main import main
from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.presets import find_protocols, label_sets, plan_of
from medclip_jax.evaluation.run import evaluate_all
from medclip_jax.objectives.base import DataSpec
from medclip_jax.reports.vocabulary import CT_RATE_COLUMNS
from medclip_jax.shards.read import open_shards
from tests.corpora import made_ct_rate
from tests.corpora import test_bimcv_r as bimcv
from tests.corpora import test_merlin as merlin
from tests.corpora import test_rad_chest_ct as rad_chest
from tests.evaluation.point_toy import Toy, tokenize, unit
from tests.tiny_run import PREPARE
from tests.volumes.made_scans import chest, write_nifti

MEAN7 = (
    ("{}.", "No {}."),
    ("Findings are compatible with {}.", "Findings are not compatible with {}."),
    ("There is {}.", "There is no {}."),
    ("{} is seen.", "{} is not seen."),
    ("{}.", "Not {}."),
    ("{} is observed.", "{} is not observed."),
    ("{} is present.", "{} is not present."),
)


class Letters:
    """Token ids by the letters of a text alone."""

    vocabulary_size, mask, pad = 40, 0, 0

    def __call__(self, texts, length):
        return tokenize(texts, length)


def embedder_of(shards):
    """Random and linear in the voxels; texts are random vectors by their letters."""
    objective = Toy()
    info = open_shards(shards)
    objective.weight = nnx.Param(jax.random.normal(jax.random.key(0), (int(np.prod(info.shape)), 6)))
    return Embedder(
        objective,
        DataSpec(info.shape, info.spacing),
        SimpleNamespace(text_length=6),
        Letters(),
        batch_size=16,
        progress=False,
    )


def evaluated(shards, protocols, **settings):
    """Some protocols on the test split, with few draws."""
    plan = plan_of(find_protocols(protocols))
    for one in plan.values():
        one |= {key: value for key, value in settings.items() if key in one}
    evaluation = evaluate_all(embedder_of(shards), plan, shards=shards, split="test")
    assert evaluation.skipped == {}
    assert set(evaluation.results) == set(plan)
    return evaluation


def text_vectors(texts):
    return unit(tokenize(texts, 6) - 20.0).astype(np.float64)


def mean7_scores(volumes, title):
    """Softmax of the pair; a side is the mean of its seven vectors, of length 1 before and after."""
    sides = [unit(text_vectors([pair[side].format(title) for pair in MEAN7]).mean(axis=0)) for side in (0, 1)]
    present, absent = (volumes.astype(np.float64) @ side.astype(np.float64) for side in sides)
    return np.exp(present) / (np.exp(present) + np.exp(absent))


def prepare(corpus, root, out, *options):
    assert main(["prepare", "--corpus", corpus, "--root", str(root), "--out", str(out), *options]) == 0


def write_ct_rate(root):
    """Patients with two reconstructions, the second of finer voxels; two patients have one report."""
    generator = np.random.default_rng(0)
    for split, patients in (("train", 2), ("valid", 12)):
        rows = {"reports": [], "metadata": [], "labels": []}
        for patient in range(1, patients + 1):
            if patient % 2:  # every other one has the labels of the one before
                present = [title for title in CT_RATE_COLUMNS if generator.random() < 0.5]
            for number, step in ((1, 1.6), (2, 1.5)):
                name = f"{split}_{patient}_a_{number}"
                folder = made_ct_rate.folder_of(root, name, fixed=True)
                affine = np.diag([3.0, step, step, 1.0])
                write_nifti(
                    folder / f"{name}.nii.gz", chest(seed=100 * patients + 2 * patient + number), affine
                )
                text = f"Report {patient}, {split}." if patient < 11 else "Normal."
                rows["reports"].append(made_ct_rate.report_row(name, text))
                rows["metadata"].append(
                    made_ct_rate.metadata_row(name, XYSpacing=f"[{step}, {step}]", RescaleIntercept=0)
                )
                rows["labels"].append(made_ct_rate.label_row(name, *present))
        long = "train" if split == "train" else "validation"
        made_ct_rate.write_csv(root / f"{long}_reports.csv", rows["reports"])
        made_ct_rate.write_csv(root / f"{long}_metadata.csv", rows["metadata"])
        made_ct_rate.write_csv(root / f"{split}_predicted_labels.csv", rows["labels"])


def test_ct_rate(tmp_path):
    write_ct_rate(tmp_path / "archive")
    prepare("ct_rate", tmp_path / "archive", tmp_path / "set", *PREPARE)
    names = ("ct_rate/mean7", "ct_rate/ct_clip", "ct_rate/retrieval", "ct_rate/volumes")
    evaluation = evaluated(tmp_path / "set", names, draws=20)
    data, results = evaluation.data, evaluation.results
    found = results["ct_rate/mean7"]
    assert len(found.findings) == 18
    assert "18 of 18 findings" in found.conditions["labels"]
    first = np.unique(data.studies, return_index=True)[1]
    compared = 0
    for title, finding in CT_RATE_COLUMNS.items():
        one = found.findings[finding]
        assert len(one.labels) == len(first) == 12
        rows = [data.ids.index(name) for name in np.array(found.ids)[one.rows]]
        labels = data.labels[finding][rows] == 1
        np.testing.assert_array_equal(one.labels == 1, labels)
        if len(set(labels)) == 2:
            expected = roc_auc_score(labels, mean7_scores(data.volumes[rows], title))
            assert one.values["auroc"] == pytest.approx(expected, abs=1e-9)
            compared += 1
    assert compared > 12
    assert {len(one.labels) for one in results["ct_rate/ct_clip"].findings.values()} == {24}
    # Each volume is the only right answer to its own report.
    similarity = text_vectors(data.texts["report"]) @ data.volumes.astype(np.float64).T
    ranks = 1 + (similarity > np.diagonal(similarity)[:, None]).sum(axis=1)
    numbers = evaluation.metrics()
    for k in (5, 10):
        assert numbers[f"ct_rate/retrieval/text_to_image/R@{k}"] == pytest.approx(np.mean(ranks <= k))
    assert {
        key: results[f"ct_rate/volumes/{key}"].queries for key in ("overlap", "identical", "any")
    } == {"overlap": 24, "identical": 12, "any": 12}  # fmt: skip


def test_merlin(tmp_path):
    ids = [f"AC4214d{n:02x}" for n in range(36)]
    reports = [
        {**row, "Impression": f"Case {n}.", "Split": "train" if n < 4 else "test"}
        for n, row in enumerate(merlin.rows_of_reports(ids))
    ]
    merlin.write(tmp_path / "a", ids=ids, reports=reports, findings=merlin.rows_of_findings(ids))
    prepare("merlin", tmp_path / "a", tmp_path / "set", *PREPARE)
    evaluation = evaluated(tmp_path / "set", ("merlin/findings", "merlin/pools"), draws=20, pool_repeats=3)
    found = evaluation.results["merlin/findings"].findings
    assert list(found) == list(label_sets()["merlin_30"].findings)
    assert [int(found["ascites"].labels.sum()), len(found["ascites"].labels)] == [16, 32]
    # Of the gallstones a third is unknown, and as many absent as present count.
    present = int(found["gallstones"].labels.sum())
    assert (len(found["gallstones"].labels), found["gallstones"].unknown) == (2 * present, 10)
    one = found["ascites"]
    assert one.values["auroc"] == pytest.approx(roc_auc_score(one.labels, one.scores), abs=1e-9)
    numbers = evaluation.metrics()
    for text in ("findings", "impression", "report"):
        pools = {key: value for key, value in numbers.items() if key.startswith(f"merlin/pools/{text}/")}
        assert any("32" in key and np.isfinite(value) for key, value in pools.items()), pools


def test_rad_chest(tmp_path):
    names = [*(f"trn0000{n}" for n in range(1, 3)), *(f"tst000{n:02d}" for n in range(1, 21))]
    root = rad_chest.archive(tmp_path / "archive", names)
    generator = np.random.default_rng(0)
    columns = [column for column in rad_chest.label_row("") if "*" in column]
    present = {name: {one for one in columns if generator.random() < 0.08} for name in names}
    rows = [rad_chest.label_row(name, *present[name]) for name in names if name.startswith("tst")]
    made_ct_rate.write_csv(root / "imgtest_Abnormality_and_Location_Labels.csv", rows)
    options = ("--shape", "8", "16", "16", "--spacing", "1.6", "1.6", "1.6", "--workers", "1")
    prepare("rad_chest_ct", root, tmp_path / "set", *options)
    evaluation = evaluated(tmp_path / "set", ("rad_chest/mean7", "rad_chest/mean7_rate"), draws=20)
    data = evaluation.data
    titles = {finding: title for title, finding in CT_RATE_COLUMNS.items()}
    for protocol, label_set in (("mean7", "rad_chest_standard"), ("mean7_rate", "rad_chest_rate")):
        chosen = label_sets()[label_set]
        found = evaluation.results[f"rad_chest/{protocol}"]
        assert list(found.findings) == list(chosen.findings)
        assert f"{len(chosen.findings)} of {len(chosen.findings)} findings" in found.conditions["labels"]
        for finding, one in found.findings.items():
            # Abnormalities at any place, counted in the table: as many volumes have one.
            wanted = chosen.labels.get(finding, (finding,))
            stated = [
                any(column.partition("*")[0] in wanted for column in present[name])
                for name in names
                if name.startswith("tst")
            ]
            assert int(one.labels.sum()) == sum(stated)
            if len(set(stated)) == 2:
                scored_by = chosen.scores.get(finding, (finding,))
                scores = np.max([mean7_scores(data.volumes, titles[name]) for name in scored_by], axis=0)
                expected = roc_auc_score(one.labels, scores)
                assert one.values["auroc"] == pytest.approx(expected, abs=1e-9)


def test_bimcv_r(tmp_path):
    root = bimcv.write(tmp_path / "BIMCV_R", voxels=True)
    # The key decides which patients are tested: with a new one at times too few for R@10.
    (tmp_path / "key").write_text("01" * 32)
    splits = ("--fractions", "0.2", "0.2", "0.6", "--key", str(tmp_path / "key"))
    prepare("bimcv_r", root, tmp_path / "set", *PREPARE, *splits)
    evaluation = evaluated(tmp_path / "set", "bimcv/retrieval")
    data, numbers = evaluation.data, evaluation.metrics()
    similarity = text_vectors(data.texts["report"]) @ data.volumes.astype(np.float64).T
    right = data.studies[:, None] == data.studies
    best = np.where(right, similarity, -np.inf).max(axis=1)
    ranks = 1 + (similarity > best[:, None]).sum(axis=1)
    _, asked = np.unique(data.studies, return_index=True)
    for k in (1, 5, 10):
        expected = np.mean(ranks[asked] <= k)
        assert numbers[f"bimcv/retrieval/text_to_image/R@{k}"] == pytest.approx(expected)
