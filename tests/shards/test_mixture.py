"""Several sets in one run: shares, order, identity, and what is refused."""

import shutil
from collections import Counter

import numpy as np
import pytest

from medclip_jax.fields import Layout
from medclip_jax.objectives.base import DataSpec
from medclip_jax.pipeline import train_batches
from medclip_jax.shards.mixture import Mixture, open_training
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.shards.record import Schema
from medclip_jax.shards.write import write_shards
from medclip_jax.training.config import base_config
from medclip_jax.training.data import identify, open_data
from tests.tiny_run import FINDINGS, SHAPE, SPACING, made_records

FIELDS = ("volume", "findings")


def made(folder, count, seed, **changes):
    schema = {"shape": SHAPE, "spacing": SPACING, "findings": FINDINGS, "measurements": ("cac_grade",)}
    write_shards(folder, Schema(**schema | changes), {"train": list(made_records(count, seed))})
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return made(folder / "large", 12, 1), made(folder / "small", 5, 2)


def config_of(*sets, shards=None):
    config = base_config().data
    config.update(shards=shards or sets[0][0], sets=tuple(sets))
    return config


def order(source, config, count, hosts=1, start=0):
    """(sample, study) of the run's samples from the step on."""
    layout = Layout((), DataSpec.of(source.info, None), config)
    found = []
    for host in range(hosts):
        batches = train_batches(
            source, layout, seed=3, batch_size=4, start_step=start, process_index=host, process_count=hosts
        )
        found.append([next(batches) for _ in range(count)])
    steps = [
        [pair for batch in step for pair in zip(batch["sample"], batch["study"].tolist(), strict=True)]
        for step in zip(*found, strict=True)
    ]
    return [sorted((int(sample), tuple(study)) for sample, study in step) for step in steps]


def test_every_epoch_holds_the_shares_and_every_record(folders):
    large, small = folders
    source = open_training(config_of((large, 3), (small, 1)), ["study"])
    assert source.counts == (15, 5)
    assert len(source) == 20
    source = open_training(config_of((large, 0.25), (small, 0.75)), ["study"])
    assert source.counts == (12, 36)
    seen = Counter(int(source[index]["study"]) for index in range(len(source)))
    assert {study: n for study, n in seen.items() if study < 2000} == dict.fromkeys(range(1000, 1012), 1)
    # Of 36 samples from 5 records, none is there more than once more than another.
    assert sorted(n for study, n in seen.items() if study >= 2000) == [7, 7, 7, 7, 8]
    with pytest.raises(IndexError):
        source[48]


def test_order_is_a_function_of_seed_and_step(folders):
    config = config_of((folders[0], 1), (folders[1], 1))
    source = open_training(config, ["study", "volume"])
    once = order(source, config, 12)
    assert order(source, config, 12, hosts=2) == order(source, config, 12, hosts=4) == once
    assert order(source, config, 5, start=7) == once[7:]
    # Two epochs of 24: exact shares, and a sample's id stands for one record.
    samples = [pair for step in once for pair in step]
    assert Counter(sample for sample, _ in samples) == dict.fromkeys(range(24), 2)
    assert len(set(samples)) == 24
    assert sum(study[0] >= 2000 for _, study in samples) == 24


def test_one_set_is_the_split_itself(folders):
    config = config_of((folders[0], 2.5))
    alone = open_training(config_of(shards=folders[0]), ["study", "volume"])
    assert not isinstance(alone, Mixture)
    mixed = open_training(config, ["study", "volume"])
    assert len(mixed) == len(alone) == 12
    assert order(mixed, config, 6) == order(alone, config, 6)


def test_identity_knows_every_set_and_the_shares(folders, tmp_path):
    large, small = folders

    def identity(*sets, shards=large):
        return identify(open_data(config_of(*sets, shards=shards), FIELDS))

    first = identity((large, 1), (small, 1))
    moved = shutil.copytree(small, tmp_path / "elsewhere")
    assert identity((large, 2), (str(moved), 2)) == first
    assert identity((large, 1), (small, 1), shards=small) == first
    others = (identity((large, 1), (small, 2)), identity((small, 1), (large, 1)), identity((large, 1)))
    changed = identity((large, 1), (made(tmp_path / "changed", 5, 4), 1))
    for other in (*others, changed):
        assert other != first
    assert changed["samples"] == first["samples"]
    assert identity()["shards"] == open_shards(large).fingerprint


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (("", 1), "no prepared|not a prepared"),
        (("{}", 0), "its weight above 0, such as"),
        (("{}", -1), "its weight above 0"),
        (("{}", float("nan")), "its weight above 0"),
        (("{}", "1"), "its weight above 0"),
        ("{}", "each is a pair of a prepared folder"),
        (("{}", 1e-12), "an epoch would hold .* bring the weights"),
    ],
)
def test_entries_that_are_none(folders, entry, said):
    large, small = folders
    entry = small if isinstance(entry, str) else (entry[0].format(small), entry[1])
    with pytest.raises(ValueError, match=said):
        open_training(config_of((large, 1), entry))


def test_a_set_twice(folders):
    with pytest.raises(ValueError, match="twice: add up the weights"):
        open_training(config_of((folders[0], 1), (folders[0], 1)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spacing": (4.0, 6.0, 6.0)}, "spacing 4 x 6 x 6 mm instead of 8 x 6 x 6 mm"),
        ({"findings": FINDINGS[::-1]}, r"findings \('coronary_calcification', .*\(--findings\)"),
    ],
)
def test_sets_that_differ(folders, tmp_path, changes, said):
    other = made(tmp_path / "other", 3, 3, **changes)
    with pytest.raises(ValueError, match=f"other' cannot be mixed with .*large': {said}. Prepare it as"):
        open_training(config_of((folders[0], 1), (other, 1)))
    with pytest.raises(ValueError, match="cannot be mixed"):
        open_data(config_of((folders[0], 1), (folders[1], 1), shards=other), FIELDS)


def test_tokenizers_that_differ(folders, tmp_path):
    from medclip_jax.reports.tokenizer import train_wordpiece

    other = shutil.copytree(folders[1], tmp_path / "other")
    train_wordpiece(["no effusion"] * 3, other / "tokenizer", 60)
    config = config_of((folders[0], 1), (str(other), 1))
    with pytest.raises(ValueError, match=r"different tokenizers: set config\.data\.tokenizer"):
        open_data(config, FIELDS)
    config.tokenizer = str(other / "tokenizer")
    assert open_data(config, FIELDS).tokenizer is not None


def test_raw_records_are_those_of_the_sets(folders):
    source = open_training(config_of((folders[0], 1), (folders[1], 1)))
    small = open_split(folders[1], "train")
    assert source.raw(12) == small.raw(0)
    assert source.raw(17) == small.raw(0)
    np.testing.assert_array_equal(source[13]["volume"], small[1]["volume"])
