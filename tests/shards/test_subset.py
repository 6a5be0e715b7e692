"""Shares and folds of a split: by patient, nested, stratified, the same on every machine."""

from types import SimpleNamespace

import numpy as np
import pytest

from medclip_jax.fields import Layout
from medclip_jax.objectives.base import DataSpec
from medclip_jax.pipeline import train_batches
from medclip_jax.shards import chosen
from medclip_jax.shards.mixture import open_training
from medclip_jax.shards.read import open_configured, open_shards, open_split
from medclip_jax.shards.record import Schema, ShardError
from medclip_jax.shards.subset import Subset, subset_rows
from medclip_jax.shards.write import write_shards
from medclip_jax.training.config import base_config, load_config
from medclip_jax.training.data import identify, open_data
from medclip_jax.training.start import check_evaluation
from tests.tiny_run import FINDINGS, SHAPE, SPACING, made_records

PATIENTS = np.repeat(np.arange(40) * 7919 - 100_000, [1, 2, 3, 1] * 10)
"""Hashes of forty patients, each with one to three rows."""

STRATA = np.repeat((np.arange(40) % 5 == 0).astype(int), [1, 2, 3, 1] * 10)


def owners(rows, patients=PATIENTS):
    return set(patients[rows].tolist())


def test_all_rows_of_a_patient_go_one_way_and_folds_cover_the_split():
    held = [subset_rows(PATIENTS, folds=5, fold=fold, held_out=True) for fold in range(5)]
    assert sorted(np.concatenate(held).tolist()) == list(range(len(PATIENTS)))
    for fold, rows in enumerate(held):
        learned = subset_rows(PATIENTS, folds=5, fold=fold)
        assert not owners(rows) & owners(learned)
        assert len(owners(rows)) == 8
        assert sorted([*rows, *learned]) == list(range(len(PATIENTS)))
        assert (np.diff(learned) > 0).all()


def test_a_smaller_share_is_part_of_a_larger_one():
    for folds in (0, 4):
        before: set[int] = set()
        for share in (0.01, 0.1, 0.3, 0.75, 1.0):
            found = owners(
                subset_rows(PATIENTS, STRATA, share=share, folds=folds, fold=min(folds, 2), seed=3)
            )
            assert before <= found
            before = found
        assert len(before) == (30 if folds else 40)
    assert len(owners(subset_rows(PATIENTS, share=0.25))) == 10


def test_shares_and_folds_have_the_strata_of_the_split():
    with_it = set(PATIENTS[STRATA == 1].tolist())  # eight of forty
    assert len(owners(subset_rows(PATIENTS, STRATA, share=0.5, seed=1)) & with_it) == 4
    # One per cent of the labels still has one patient of each kind.
    few = owners(subset_rows(PATIENTS, STRATA, share=0.01, seed=1))
    assert (len(few & with_it), len(few - with_it)) == (1, 1)
    for fold in range(5):
        held = owners(subset_rows(PATIENTS, STRATA, folds=5, fold=fold, held_out=True))
        assert len(held) == 8
        assert len(held & with_it) in (1, 2)


def test_a_patient_is_of_the_highest_stratum_of_its_rows():
    patients = np.array([1, 1, 2, 3, 4, 4])
    strata = np.array([-1, 1, 0, 0, 0, -1])  # one patient with it, three without
    found = [owners(subset_rows(patients, strata, share=0.4, seed=s), patients) for s in range(8)]
    assert all(1 in one and len(one) == 2 for one in found)


def test_the_choice_does_not_depend_on_the_order_of_rows_and_does_on_the_seed():
    mixed = np.random.default_rng(0).permutation(len(PATIENTS))
    here = owners(subset_rows(PATIENTS, STRATA, share=0.3, folds=3, fold=1, seed=5))
    there = subset_rows(PATIENTS[mixed], STRATA[mixed], share=0.3, folds=3, fold=1, seed=5)
    assert owners(there, PATIENTS[mixed]) == here
    assert owners(subset_rows(PATIENTS, STRATA, share=0.3, folds=3, fold=1, seed=6)) != here
    # Written down: a run of today must resume tomorrow.
    assert sorted(owners(subset_rows(np.arange(10), share=0.3, seed=0), np.arange(10))) == [0, 4, 6]


def test_too_few_patients():
    with pytest.raises(ValueError, match="2 patients cannot be cut into 3 folds"):
        subset_rows(np.array([1, 1, 2]), folds=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 0.0}, r"subset.share=0.0: a share is above 0 and at most 1"),
        ({"share": 1.5}, "at most 1"),
        ({"folds": 1}, "give 2 or more, or 0"),
        ({"folds": 5, "fold": 5}, "the 5 folds are 0 to 4"),
        ({"fold": 1}, "there are no folds"),
    ],
)
def test_settings_that_make_no_sense(given, message):
    with pytest.raises(ValueError, match=message):
        Subset(**given)


def test_the_config_is_checked_before_anything_is_opened():
    over = ["--config.data.subset.folds=5", "--config.data.subset.fold=7"]
    with pytest.raises(ValueError, match=r"config\.data\.subset\.fold=7: the 5 folds are 0 to 4"):
        load_config("configs/demo/contrastive.py", over)
    with pytest.raises(ValueError, match=r"config\.data\.subset\.share=0\.0: it must be a number above 0"):
        load_config("configs/demo/contrastive.py", ["--config.data.subset.share=0"])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Twenty records of ten patients."""
    folder = tmp_path_factory.mktemp("subset") / "shards"
    records = [record | {"patient": 500 + n // 2} for n, record in enumerate(made_records(20, 1))]
    test = list(made_records(4, 2))
    write_shards(
        folder, Schema(SHAPE, SPACING, FINDINGS, (), ("cac_grade",)), {"train": records, "test": test}
    )
    return folder


def config_of(shards, **subset):
    config = base_config().data
    config.shards = str(shards)
    config.subset.update(subset)
    return config


def test_the_source_of_a_run_has_the_chosen_rows_alone(shards):
    config = config_of(shards, share=0.5, folds=5, fold=2, seed=1)
    info = open_configured(config)
    learned = open_training(config, ["patient", "id"])
    held = open_split(info, "fold", fields=["patient", "id"])
    assert (len(learned), len(held)) == (8, 4)
    assert not {one["patient"] for one in learned} & {one["patient"] for one in held}
    everything = open_split(shards, "train", fields=["id"])
    assert [one["id"] for one in learned] == [everything[int(row)]["id"] for row in learned.rows]
    assert learned.raw(3) == everything.raw(int(learned.rows[3]))
    assert len(open_split(info, "test", fields=["id"])) == 4
    assert open_training(config_of(shards), ["id"]).__class__.__name__ == "ShardSource"
    with pytest.raises(IndexError):
        learned[8]


def test_strata_come_from_labels_measurements_or_refuse(shards):
    source = open_split(shards, "train", fields=["patient", "labels"])
    present = {int(one["patient"]) for one in source if one["labels"][0] == 1}
    found = open_training(config_of(shards, share=0.3, by="cardiomegaly"), ["patient"])
    taken = {int(one["patient"]) for one in found}
    assert len(taken & present) == max(1, round(0.3 * len(present)))
    assert len(open_training(config_of(shards, share=0.5, by="cac_grade"), ["patient"])) >= 8
    with pytest.raises(ShardError, match=r"subset\.by='gout'.*no finding, measurement or group.*cac_grade"):
        open_training(config_of(shards, share=0.5, by="gout"), ["patient"])
    with pytest.raises(ShardError, match="10 patients cannot be cut into 11 folds"):
        open_training(config_of(shards, folds=11), ["patient"])


def test_a_fold_needs_folds(shards):
    with pytest.raises(ShardError, match=r"no split 'fold' without folds: set config\.data\.subset\.folds"):
        open_split(shards, "fold")


def test_a_fold_cannot_choose_the_checkpoint_that_it_judges(shards):
    config = base_config()
    config.data = config_of(shards, folds=5)
    config.evaluation.update(split="fold", every_steps=2, evaluators={"spectrum": {}})
    check_evaluation(config)
    config.evaluation.best.metric = "spectrum/pooled/effective_rank"
    with pytest.raises(ValueError, match=r"choose on 'validation', and score with `medclip evaluate --fold`"):
        check_evaluation(config)


def test_hosts_see_the_same_samples_and_a_run_goes_on_from_its_step(shards):
    config = config_of(shards, folds=5, fold=0)
    source = open_training(config, ["study"])
    layout = Layout((), DataSpec.of(source.info, None), config)

    def order(count, hosts=1, start=0):
        batches = [
            train_batches(
                source, layout, seed=3, batch_size=4, start_step=start, process_index=h, process_count=hosts
            )
            for h in range(hosts)
        ]
        steps = [[next(one) for one in batches] for _ in range(count)]
        return [
            sorted(
                (int(s), tuple(w))
                for b in step
                for s, w in zip(b["sample"], b["study"].tolist(), strict=True)
            )
            for step in steps
        ]

    once = order(8)
    assert order(8, hosts=2) == order(8, hosts=4) == once
    assert order(3, start=5) == once[5:]
    # Two epochs of the sixteen rows that are left.
    assert sorted(sample for step in once for sample, _ in step) == sorted(list(range(16)) * 2)


def test_a_run_is_told_from_one_on_other_rows(shards):
    found = [
        identify(open_data(config_of(shards, folds=5, fold=fold), ("findings",)))["shards"]
        for fold in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]
    assert found[0] != open_shards(shards).fingerprint


def test_a_subset_of_each_of_several_sets(shards):
    found = []
    for share in (0.5, 1.0):
        config = config_of(shards, share=share)
        config.sets = ((str(shards), 1.0),)
        found.append(open_training(config, ["patient"]))
    assert [len(source) for source in found] == [10, 20]
    assert found[0].fingerprint != found[1].fingerprint


def test_the_manifest_tells_the_patients_and_is_not_trusted_blindly(shards, monkeypatch):
    source = open_split(shards, "train", fields=["patient"])
    patients = [int(one["patient"]) for one in source]
    lines = [
        {"class": "accepted", "shard": name, "index": index, "patient": patient}
        for (name, index), patient in zip(source.places(), patients, strict=True)
    ]
    monkeypatch.setattr(chosen, "read_manifest", lambda folder: lines[::-1])
    assert chosen._patients_of_manifest(source).tolist() == patients
    lines[0]["patient"] += 1
    assert chosen._patients_of_manifest(source) is None
    part = open_split(shards, "train[5:9]", fields=["patient"])
    assert chosen._patients_of_manifest(part).tolist() == patients[5:9]
    monkeypatch.setattr(chosen, "read_manifest", lambda folder: lines[:3])
    assert chosen._patients_of_manifest(SimpleNamespace(info=source.info, places=source.places)) is None
