"""What a batch holds: each field's shape, type and value, what is drawn for it, and what is refused."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from medclip_jax import fields
from medclip_jax.draws import choose_text
from medclip_jax.fields import FIELDS, Field, Layout, study_words
from medclip_jax.objectives.base import DataSpec
from medclip_jax.pipeline import train_batches
from medclip_jax.reports.definitions import Findings
from medclip_jax.reports.finding import Finding
from tests.made_records import ORGAN, SPEC, TEXTS, Numbers, Records, settings

WORDED = ("prompts", "text_vector")
"""Fields that need names of findings that are known, or a folder; they have tests of their own."""

ALL = tuple(name for name in FIELDS if name not in WORDED)


def made(names=ALL, *, index=4, seed=None, record=None, config=None):
    layout = Layout(names, SPEC, config or settings(), Numbers())
    rng = None if seed is None else np.random.default_rng(seed)
    return layout.sample(record or Records(20)[index], index, rng)


def batches(count, names=ALL):
    layout = Layout(names, SPEC, settings(), Numbers())
    stream = train_batches(Records(20), layout, seed=7, batch_size=8)
    found = list(itertools.islice(stream, count))
    stream.close()
    return found


@pytest.mark.parametrize("seed", [None, 3])
def test_every_field_has_the_shape_and_type_that_it_says(seed):
    sample, shapes = made(seed=seed), Layout(ALL, SPEC, settings(), Numbers()).shapes()
    assert sample.keys() == shapes.keys() == FIELDS.keys() - set(WORDED)
    assert {name: (array.shape, array.dtype) for name, array in sample.items()} == shapes


def test_a_batch_holds_what_is_asked_for_and_study_and_sample():
    assert made(("findings",)).keys() == {"findings", "study", "sample"}
    assert Layout(("findings",), SPEC, settings()).reads == ("findings", "study")
    assert Layout(("volume",), SPEC, settings()).reads == ("volume", "study")


def test_a_record_without_organs_shows_none():
    record = {name: value for name, value in Records(20)[5].items() if name != "organs"}
    sample = made(ORGAN, record=record, seed=0)
    assert not sample["organs"].any()
    assert sample["organ"] == -1
    assert not sample["organ_tokens"].any()


@pytest.mark.parametrize("seed", range(20))
def test_no_field_changes_what_is_drawn_for_another(seed):
    """In whatever order and company: what is made of one sample follows from its generator alone."""
    for index in (1, 2, 5):
        together = made(index=index, seed=seed)
        for names in (
            ALL[::-1],
            ("organ", "tokens"),
            ("organ_tokens",),
            ("tokens",),
            ("organ_normal", "organ"),
        ):
            for name, array in made(names, index=index, seed=seed).items():
                np.testing.assert_array_equal(array, together[name], err_msg=f"{name} of {names}")


class Pair(Field):
    """Two drawn numbers, the same two in both fields of this class."""

    def shape(self, spec, config):
        return (2,)

    def make(self, draw):
        return draw.once("pair", lambda rng: rng.integers(1000, size=2)) if draw.training else (500, 500)


def test_a_new_field_is_one_entry_and_shifts_no_draw(monkeypatch):
    before = [made(seed=seed) for seed in range(10)]
    monkeypatch.setitem(FIELDS, "pair", Pair())
    monkeypatch.setitem(FIELDS, "same_pair", Pair())
    after = [made(("pair", "same_pair", *ALL), seed=seed) for seed in range(10)]
    for old, new in zip(before, after, strict=True):
        for name, array in old.items():
            np.testing.assert_array_equal(array, new[name])
        np.testing.assert_array_equal(new["pair"], new["same_pair"])
    # Alone, and after other draws, it is the same; another sample's is another.
    np.testing.assert_array_equal(made(("pair",), seed=3)["pair"], after[3]["pair"])
    assert len({tuple(sample["pair"]) for sample in after}) == 10
    assert made(("pair",))["pair"].tolist() == [500, 500]
    batch = batches(1, ("pair", "tokens"))[0]
    assert batch["pair"].shape == (8, 2)
    assert len({tuple(row) for row in batch["pair"]}) == 8


def test_in_evaluation_a_sample_is_the_same_every_time():
    first, second = made(index=7), made(index=7)
    assert all((first[name] == second[name]).all() for name in first)
    texts = {int(made(index=index)["tokens"][0]) for index in range(40)}
    assert texts == {TEXTS.index("report"), TEXTS.index("statements")}


NOTHING = DataSpec((2, 3, 4), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("names", "spec", "changes", "message"),
    [
        (("tokens",), NOTHING, {}, "batch field 'tokens': there is no tokenizer: prepare with --tokenizer"),
        (("findings",), NOTHING, {}, "'findings': the shards hold no findings: prepare with --findings"),
        (("organs",), NOTHING, {}, "'organs': the shards hold no organs: .*--organ-cell.*weights.local=0"),
        (("organ",), NOTHING, {}, "'organ': the shards hold no organs"),
        (
            ("organ_tokens",),
            SPEC,
            {"organ_text_length": 0},
            "'organ_tokens': config.data.organ_text_length is 0",
        ),
        (("tokens",), SPEC, {"text": {"report": 0.0}}, r"'tokens': config\.data\.text"),
        (("tokens",), SPEC, {"text": {"reprot": 1.0}}, r"config\.data\.text.*reprot"),
        (("organ",), SPEC, {"text": {"reprot": 1.0}}, r"'organ': config\.data\.text"),
        (("volum",), SPEC, {}, "no batch field 'volum': .*FIELDS has volume, tokens"),
    ],
)
def test_what_the_data_cannot_give_is_refused_by_name(names, spec, changes, message):
    with pytest.raises(ValueError, match=message):
        Layout(names, spec, settings(**changes))


def test_arrays_that_the_records_lack_are_named():
    arrays = dict.fromkeys(("study", "organs", *TEXTS, "organ_sentences"))
    info = SimpleNamespace(settings={"cell": 4}, schema=SimpleNamespace(arrays=arrays))
    with pytest.raises(ValueError, match=r"'organ': the records hold no organ_sentences: .*prepare again"):
        Layout(ORGAN, SPEC, settings(), arrays=fields.held_arrays(info))
    info.settings["organ_text"] = "own"
    Layout(ORGAN, SPEC, settings(), arrays=fields.held_arrays(info))
    with pytest.raises(ValueError, match="'volume': the records hold no volume: train an objective"):
        Layout(("volume",), SPEC, settings(), arrays=("study", "frames"))


def test_organ_text_is_of_an_organ_that_is_shown_and_described():
    found = batches(60)
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


@pytest.mark.parametrize(
    ("most", "lengths"), [(1, {1}), (2, {1, 2}), (0, {1, 2, 3, 4, 5}), (9, {1, 2, 3, 4, 5})]
)
def test_most_statements_bounds_how_many_are_taken(most, lengths):
    record = {"statements": " ".join(f"There is finding {letter}." for letter in "abcde")}
    drawn = [
        choose_text(record, {"some_statements": 1.0}, np.random.default_rng(seed), most)
        for seed in range(200)
    ]
    assert {text.count(".") for text in drawn} == lengths
    assert len({text[-2] for text in drawn}) == 5  # none is left out


class Letters:
    """A token for each letter of a text, which can so be read again."""

    pad = 0

    def __call__(self, texts, length):
        return np.array([[*map(ord, text[:length])] + [0] * (length - len(text)) for text in texts], np.int32)


NAMED = DataSpec((2, 2, 2), (1.0, 1.0, 1.0), findings=("cardiomegaly", "nodule_of_ours"), vocabulary_size=200)
OURS = Findings([Finding("nodule_of_ours", "nodule", positive=("P1", "P2"), negative=("N",))])
WORDINGS = (("There is {}.", "There is no {}."), ("{} seen", "{} not seen"), ("yes {}", "no {}"))


def prompted(**changes):
    given = {"prompt_length": 30, "prompt_wordings": WORDINGS, **changes}
    return Layout(("prompts",), NAMED, settings(**given), Letters(), definitions=OURS)


def read(prompts):
    return [tuple("".join(map(chr, side[side > 0])) for side in pair) for pair in prompts]


def test_prompts_are_worded_anew_and_a_findings_own_are_taken():
    layout, record = prompted(), {"study": 1}
    drawn = [read(layout.sample(record, 0, np.random.default_rng(seed))["prompts"]) for seed in range(40)]
    first, second = zip(*drawn, strict=True)
    assert set(first) == {
        ("There is cardiomegaly.", "There is no cardiomegaly."),
        ("Cardiomegaly seen", "Cardiomegaly not seen"),
        ("yes cardiomegaly", "no cardiomegaly"),
    }
    assert set(second) == {("P1", "N"), ("P2", "N")}
    # Each finding's wording is drawn for itself.
    assert len(set(map(tuple, drawn))) == 6
    again = [read(layout.sample(record, 0, np.random.default_rng(seed))["prompts"]) for seed in range(40)]
    assert again == drawn
    still = [read(layout.sample(record, 3)["prompts"]) for _ in range(2)]
    assert still[0] == still[1]


def test_prompts_have_the_shape_that_check_computes_with():
    layout = prompted()
    assert layout.sample({"study": 1}, 0)["prompts"].shape == layout.shapes()["prompts"][0] == (2, 2, 30)
    bare = Layout(("prompts",), NAMED, settings(prompt_length=8, prompt_wordings=WORDINGS))
    assert bare.shapes()["prompts"] == ((2, 2, 8), np.int32)


def test_prompts_that_cannot_be_are_refused():
    with pytest.raises(
        ValueError, match=r"prompt_length=20 cuts the prompt 'There is cardiomegaly.': set it"
    ):
        prompted(prompt_length=20)
    with pytest.raises(ValueError, match=r"'prompts': config\.data\.prompt_wordings is \(\)"):
        prompted(prompt_wordings=())
    with pytest.raises(ValueError, match="'prompts': the shards hold no findings"):
        Layout(("prompts",), NOTHING, settings(prompt_length=8, prompt_wordings=WORDINGS))
