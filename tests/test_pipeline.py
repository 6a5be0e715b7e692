"""The order of samples and texts is a function of (seed, n) alone."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medclip_jax.pipeline import choose_text, evaluation_batches, study_words, train_batches

TEXTS = ("report", "statements", "findings_text", "impression")
ORGANS = ("heart", "lung", "liver", "spleen")
SHAPE = (2, 3, 4)


class Records:
    """Random access to made-up records; at module level so that worker processes can import it."""

    def __init__(self, count, organs=False):
        self.count, self.organs = count, organs

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        record = {
            "volume": np.full(SHAPE, index, np.int16),
            "findings": np.array([1, -1], np.int8),
            "labels": np.array([0, index % 2], np.int8),
            "study": np.int64(-(2**62) + index),
            **{name: f"{name} {index}" for name in TEXTS},
        }
        if self.organs and index % 2 == 0:
            record["organs"] = np.full((1, 1, 1, 2), index, np.uint8)
        return record


class Described(Records):
    """Records with four organs: the lung is shown and never described, the spleen is described, never shown.

    Every third record says nothing of any organ; the liver of every second one is not shown.
    """

    info = SimpleNamespace(organs=ORGANS, schema=SimpleNamespace(organ_shape=(4, 1, 1, 2)))

    def __getitem__(self, index):
        record = super().__getitem__(index)
        record["organs"] = np.zeros((4, 1, 1, 2), np.uint8)
        record["organs"][:2, ..., 1] = 1
        record["organs"][2] = index % 2
        named = [name for name in ORGANS if name != "lung" and index % 3]
        record["organ_sentences"] = {
            name: {"text": f"{TEXTS[ORGANS.index(name)]} {index}", "normal": index % 2 == 0} for name in named
        }
        return record


class Numbers:
    """Two tokens a text: which field it is, and the record's number."""

    pad = 0

    def __call__(self, texts, length):
        rows = [[TEXTS.index(text.split()[0]), int(text.split()[1])] for text in texts]
        return np.array([row + [0] * (length - 2) for row in rows], np.int32)


def settings(**changes):
    weights = {"report": 0.5, "statements": 0.5, "findings_text": 0.0, "impression": 0.0}
    return SimpleNamespace(**{"text": weights, "text_length": 3, "workers": 0, "prefetch": 2, **changes})


def batches(count, config=None, *, source=None, seed=7, batch_size=8, **options):
    stream = train_batches(
        Records(20) if source is None else source,
        config or settings(),
        Numbers(),
        seed=seed,
        batch_size=batch_size,
        **options,
    )
    found = list(itertools.islice(stream, count))
    stream.close()
    return found


def assert_equal(got, expected):
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_a_batch_has_the_agreed_layout():
    (batch,) = batches(1, source=Records(20, organs=True))
    expected = {
        "volume": ((8, *SHAPE), np.int16),
        "tokens": ((8, 3), np.int32),
        "findings": ((8, 2), np.int8),
        "labels": ((8, 2), np.int8),
        "organs": ((8, 1, 1, 1, 2), np.uint8),
        "study": ((8, 2), np.int32),
        "sample": ((8,), np.int32),
    }
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == expected
    np.testing.assert_array_equal(batch["volume"][:, 0, 0, 0], batch["sample"])
    np.testing.assert_array_equal(batch["tokens"][:, 1], batch["sample"])
    # Records without organs get zeros.
    np.testing.assert_array_equal(
        batch["organs"][:, 0, 0, 0, 0], np.where(batch["sample"] % 2, 0, batch["sample"])
    )


def test_every_epoch_shows_each_record_once_in_a_new_order():
    samples = np.concatenate([batch["sample"] for batch in batches(5)]).reshape(2, 20)
    assert all(sorted(epoch) == list(range(20)) for epoch in samples)
    assert (samples[0] != samples[1]).any()


def test_texts_are_drawn_with_their_weights_and_anew_each_epoch():
    weights = {"report": 3.0, "statements": 1.0, "findings_text": 0.0, "impression": 0.0}
    drawn = np.concatenate([batch["tokens"][:, 0] for batch in batches(250, settings(text=weights))])
    # 2000 draws at 1/4: 5 standard deviations are 0.048.
    assert abs((drawn == TEXTS.index("statements")).mean() - 0.25) < 0.048
    assert set(drawn) == {0, 1}
    found = batches(10, batch_size=4)
    first, second = (
        {sample: text for b in part for sample, text in zip(b["sample"], b["tokens"][:, 0], strict=True)}
        for part in (found[:5], found[5:])
    )
    assert any(first[sample] != second[sample] for sample in first)


def test_the_seed_decides():
    assert_equal(batches(3), batches(3))
    assert (batches(3)[0]["sample"] != batches(3, seed=8)[0]["sample"]).any()


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_any_number_of_hosts_sees_the_same_global_batches(hosts):
    whole = batches(4)
    parts = [batches(4, process_index=host, process_count=hosts) for host in range(hosts)]
    for step, batch in enumerate(whole):
        for host in range(hosts):
            assert_equal([parts[host][step]], [{name: array[host::hosts] for name, array in batch.items()}])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_resuming_at_a_step_is_exact(workers):
    # 5 batches of 8 out of 20 records: the cut lies inside an epoch, and an epoch ends inside a batch.
    assert_equal(batches(3, settings(workers=workers), start_step=2), batches(5)[2:])


def test_a_batch_larger_than_the_split_repeats_it():
    (batch,) = batches(1, source=Records(3), batch_size=8)
    assert np.bincount(batch["sample"]).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_an_empty_text_falls_back_in_the_documented_order():
    rng = np.random.default_rng(0)
    record = {"report": "", "findings_text": " ", "impression": "No change.", "statements": "There is X."}
    assert choose_text(record, {"statements": 1.0}, rng) == "There is X."
    assert choose_text(record, {"report": 1.0}, rng) == "No change."
    assert choose_text({"report": "Clear."} | {"impression": ""}, {"impression": 1.0}, rng) == "Clear."
    assert choose_text(dict.fromkeys(TEXTS, ""), {"report": 1.0}, rng) == ""


def test_study_words_hold_all_64_bits():
    numbers = [0, 1, -1, 2**63 - 1, -(2**63), 123456789012345678]
    words = np.stack([study_words(number) for number in numbers])
    assert words.dtype == np.int32
    again = (words[:, 1].astype(np.int64) << 32) | (words[:, 0].astype(np.int64) & 0xFFFFFFFF)
    assert again.tolist() == numbers


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"batch_size": 9, "process_count": 2}, "positive multiple of the 2 processes"),
        ({}, {"source": Records(0)}, "training split is empty"),
        ({"text": {"report": 0.0}}, {}, r"config\.data\.text"),
        ({"text": {"reprot": 1.0}}, {}, r"config\.data\.text.*reprot"),
    ],
)
def test_settings_that_cannot_work_say_so(changes, options, message):
    with pytest.raises(ValueError, match=message):
        batches(1, settings(**changes), **options)


def test_evaluation_goes_through_once_in_order_and_marks_the_filling():
    found = list(evaluation_batches(Records(10), 4, ("volume", "labels", "study", "report")))
    assert [batch["sample"].tolist() for batch in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert [batch["valid"].tolist() for batch in found] == [[True] * 4] * 2 + [[True, True, False, False]]
    last = found[-1]
    assert last["volume"].shape == (4, *SHAPE)
    assert last["report"].tolist() == ["report 8", "report 9", "report 9", "report 9"]
    np.testing.assert_array_equal(last["study"][1], study_words(-(2**62) + 9))


def test_some_statements_are_a_random_part_in_random_order():
    statements = [f"There is {'no ' if i % 2 else ''}finding {'abcde'[i]}." for i in range(5)]
    record = {"statements": " ".join(statements), "report": "Long."}
    drawn = [
        choose_text(record, {"some_statements": 1.0}, np.random.default_rng(seed)) for seed in range(400)
    ]
    parts = [[s + "." for s in text.rstrip(".").split(". ")] for text in drawn]
    assert all(set(part) <= set(statements) and len(set(part)) == len(part) for part in parts)
    lengths = np.bincount([len(part) for part in parts], minlength=6)[1:]
    assert lengths.min() > 50  # 80 of each length expected
    assert {part[0] for part in parts} == set(statements)
    assert (
        choose_text({**record, "statements": ""}, {"some_statements": 1.0}, np.random.default_rng(0))
        == "Long."
    )


ORGAN_FIELDS = {"organ", "organ_tokens", "organ_normal"}


def test_organ_text_is_of_an_organ_that_is_shown_and_described():
    found = batches(60, settings(organ_text_length=4), source=Described(20))
    names = ("organ", "organ_normal", "organ_tokens", "sample")
    rows = [row for batch in found for row in zip(*(batch[name] for name in names), strict=True)]
    drawn = {}
    for organ, normal, tokens, sample in rows:
        assert tokens.shape == (4,)
        drawn.setdefault(int(sample), []).append(int(organ))
        if organ < 0:
            assert normal == 0
            assert not tokens.any()
        else:
            np.testing.assert_array_equal(tokens, [organ, sample, 0, 0])
            assert normal == (sample % 2 == 0)
    for sample, organs in drawn.items():
        expected = {-1} if sample % 3 == 0 else {0, 2} if sample % 2 else {0}
        assert set(organs) == expected, sample
    # Uniformly: of some 150 draws between two organs, half, give or take four standard deviations.
    both = [organ for sample, organs in drawn.items() if sample % 3 and sample % 2 for organ in organs]
    assert abs(np.mean(np.array(both) == 0) - 0.5) < 4 * 0.5 / np.sqrt(len(both))
    types = [found[0][name].dtype for name in ("organ", "organ_tokens", "organ_normal")]
    assert types == [np.int32, np.int32, np.int8]


def test_organ_text_changes_nothing_that_was_drawn_before():
    plain = batches(6, settings(), source=Described(20))
    with_text = batches(6, settings(organ_text_length=4), source=Described(20))
    assert with_text[0].keys() - plain[0].keys() == ORGAN_FIELDS
    assert_equal([{name: b[name] for name in plain[0]} for b in with_text], plain)


@pytest.mark.parametrize("hosts", [2, 4])
def test_organ_text_is_the_same_on_any_number_of_hosts(hosts):
    config = settings(organ_text_length=4)
    whole = batches(4, config, source=Described(20))
    shares = [
        batches(4, config, source=Described(20), process_index=h, process_count=hosts) for h in range(hosts)
    ]
    for step, batch in enumerate(whole):
        for host in range(hosts):
            assert_equal([shares[host][step]], [{name: batch[name][host::hosts] for name in batch}])
    assert_equal(batches(2, config, source=Described(20), start_step=2), whole[2:])


def test_organ_text_without_organs_or_tokenizer_is_refused():
    with pytest.raises(ValueError, match="needs shards prepared with --organ-cell"):
        batches(1, settings(organ_text_length=4))
    old = Described(20)
    old.info = SimpleNamespace(**vars(Described.info), settings={"cell": 4})
    with pytest.raises(ValueError, match=r"kept no sentences about organs\. Prepare them again"):
        batches(1, settings(organ_text_length=4), source=old)
    old.info.settings["organ_text"] = "own"
    assert "organ" in batches(1, settings(organ_text_length=4), source=old)[0]
    with pytest.raises(ValueError, match="needs a tokenizer"):
        train_batches(Described(20), settings(organ_text_length=4), None, seed=0, batch_size=2)


def test_workers_end_when_the_process_that_reads_is_killed():
    script = Path(__file__).with_name("killed_reader.py")
    killed = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in killed.stdout.split()]
    assert workers
    for worker in workers:
        # Before this was mended it stayed for good; a machine that is busy may need its time.
        for _ in range(600):
            if not Path(f"/proc/{worker}").exists():
                break
            time.sleep(0.1)
        else:
            os.kill(worker, signal.SIGKILL)
            pytest.fail("a worker outlived the process that it read for")


def test_a_batch_may_be_one_sample():
    """Grain's own endless repetition overflows there."""
    from ml_collections import ConfigDict

    source = [{"study": n, "volume": np.zeros((1, 1, 1), np.int16)} for n in range(3)]
    data = {"text": {"report": 1.0}, "text_length": 4, "workers": 0, "prefetch": 1}
    batches = train_batches(source, ConfigDict(data), None, seed=0, batch_size=1, start_step=4)
    seen = [int(next(batches)["sample"][0]) for _ in range(5)]
    batches.close()
    assert set(seen) <= {0, 1, 2}
