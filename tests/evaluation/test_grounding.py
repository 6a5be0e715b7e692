"""Sentences against the organs that they name: planted selections, of which the ratio to chance is known."""

import re
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.grounding import evaluate_grounding
from medclip_jax.evaluation.grounding_metrics import most_similar, patch_shares, ratio_to_chance
from medclip_jax.evaluation.results import NotEvaluable
from medclip_jax.evaluation.sentence_maps import ground_sentences
from medclip_jax.objectives.base import DataSpec, Embedding, Objective, Selected

GRID, SHAPE, CELLS = (2, 2, 2), (4, 4, 4), (4, 4, 4)
ORGANS = ("heart", "lung_upper_lobe_left", "lung_lower_lobe_left", "aorta")
FINDINGS = ("cardiomegaly", "lung_nodule", "emphysema", "aortic_calcification")
SPEC = DataSpec(SHAPE, (2.0, 1.0, 1.0), findings=FINDINGS, organs=ORGANS, organ_shape=(4, *CELLS),
                vocabulary_size=1000)  # fmt: skip
DATA = SimpleNamespace(text={"report": 1.0}, text_length=64, most_statements=0)


class Words:
    """A number above 0 for each word, by its letters."""

    pad = 0

    def __call__(self, texts, length):
        rows = np.zeros((len(texts), length), np.int32)
        for row, text in zip(rows, texts, strict=True):
            words = re.findall(r"\w+", text)[:length]
            row[: len(words)] = [1 + sum(word.lower().encode()) % 900 for word in words]
        return rows

    def starts(self, text, length):
        found = [match.start() for match in re.finditer(r"\w+", text)][:length]
        return np.array(found + [-1] * (length - len(found)), np.int32)


class Planted(Objective):
    """Sentence s is as similar to patch n as ``similarity[s, n]`` says, and selects ``count[s]`` patches."""

    has_text = True
    selects_patches = True

    def __init__(self, similarity, count):
        self.similarity = nnx.Variable(jnp.asarray(similarity, jnp.float32))
        self.count = nnx.Variable(jnp.asarray(count, jnp.int32))

    def volume_tower(self):
        return SimpleNamespace(grid=GRID, token_centers=lambda: (np.array([0.5, 2.5]),) * 3)

    def embed_volumes(self, inputs):
        return Embedding(jnp.ones((len(inputs["volume"]), 2)))

    def select(self, inputs, tokens, sentence):
        rows, sentences = len(tokens), len(self.count[...])
        valid = (sentence[:, None] == jnp.arange(sentences)[:, None]).any(axis=-1)
        similarity = jnp.broadcast_to(self.similarity[...], (rows, *self.similarity[...].shape))
        return Selected(similarity, jnp.broadcast_to(self.count[...], (rows, sentences)), valid)


REPORTS = (
    "The heart is enlarged. A nodule is seen in the left upper lobe. There is mild emphysema. The spleen is "
    "small. No aortic calcification is seen.",
    "",
    "Cardiomegaly",
    "Emphysema. The heart is of normal size.",
)
SIMILARITY = np.random.default_rng(0).normal(size=(5, 8))
COUNT = np.array([2, 1, 100, 3, 2])


def made_records():
    generator = np.random.default_rng(1)
    organs = generator.integers(0, 256, (len(REPORTS), 4, *CELLS)).astype(np.uint8)
    organs[2, 0] = 0  # no heart, where one is spoken of
    return [
        {
            "volume": np.full(SHAPE, row, np.int16),
            "study": np.int64(row),
            "patient": np.int64(row),
            "organs": organs[row],
            **{name: "" for name in ("report", "impression", "statements")},
            "findings_text": text,
        }
        for row, text in enumerate(REPORTS)
    ]


def ground(objective=None, records=None, organs=ORGANS, data=DATA, **settings):
    records = made_records() if records is None else records
    objective = objective or Planted(SIMILARITY, COUNT)
    embedder = Embedder(objective, SPEC, data, Words(), batch_size=3, progress=False)
    split = EmbeddedSplit(
        "test",
        np.ones((len(records), 2), np.float32),
        studies=np.arange(len(records)),
        patients=np.array([record["patient"] for record in records]),
        reported={name: np.zeros(len(records), np.int8) for name in FINDINGS},
    )
    return evaluate_grounding(
        split,
        embedder.texts,
        **{"draws": 0, **settings},
        embedder=embedder,
        open_records=lambda fields: (records, organs),
    )


def expected(row, sentence, channels):
    """Ratio to chance of a sentence, patch by patch and cell by cell."""
    cells = made_records()[row]["organs"].astype(np.float64) / 255
    shares = np.zeros(8)
    for patch, (d, h, w) in enumerate(np.ndindex(GRID)):
        block = cells[channels, 2 * d : 2 * d + 2, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
        shares[patch] = min(sum(float(one.mean()) for one in block), 1.0)
    order = sorted(range(8), key=lambda patch: -SIMILARITY[sentence, patch])
    chosen = order[: min(COUNT[sentence], 8)]
    return np.mean([shares[patch] for patch in chosen]) / shares.mean()


def test_ratios_are_those_of_a_loop_over_patches():
    result = ground()
    assert result.findings["cardiomegaly"].ratio == pytest.approx(expected(0, 0, [0]), abs=1e-12)
    assert result.findings["lung_nodule"].ratio == pytest.approx(expected(0, 1, [1]), abs=1e-12)
    emphysema = [expected(0, 2, [1, 2]), expected(3, 0, [1, 2])]
    assert emphysema[0] == pytest.approx(1.0)  # 100 patches are all there are
    assert result.findings["emphysema"].ratio == pytest.approx(np.mean(emphysema), abs=1e-12)
    hearts = [expected(0, 0, [0]), expected(3, 1, [0])]
    assert result.organs["heart"].ratio == pytest.approx(np.mean(hearts), abs=1e-12)
    everything = [*hearts, expected(0, 1, [1]), *emphysema, expected(0, 4, [3])]
    assert result.everything.ratio == pytest.approx(np.mean(everything), abs=1e-12)


def test_counts_say_what_took_part():
    result = ground()
    assert result.findings["cardiomegaly"].sentences == 2
    assert result.findings["cardiomegaly"].scored == 1  # no heart shows in the third
    assert result.findings["emphysema"].patches == (8 + 2) / 2
    assert result.findings["aortic_calcification"].sentences == 0  # denied
    assert result.organs["aorta"].sentences == 1
    assert np.isnan(result.findings["aortic_calcification"].ratio)
    assert result.conditions["sentences"].startswith("8 of 8;")
    flat = result.metrics()
    assert flat["ratio"] == result.everything.ratio
    assert flat["patches/lung_nodule"] == 1
    assert flat["sentences/organ/left_lung_upper_lobe"] == 1
    assert "2, 1 scored" in str(result)


def test_perfect_selection_reaches_the_most():
    records = made_records()[:1]
    shares = patch_shares(records[0]["organs"], GRID)
    result = ground(Planted(np.stack([shares[0]] * 5), [3] * 5), records)
    found = result.findings["cardiomegaly"]
    assert found.ratio == pytest.approx(found.most)
    assert found.ratio > 1.15


def test_a_text_that_is_cut_and_a_cap_lose_sentences_and_say_so():
    short = SimpleNamespace(text=DATA.text, text_length=5, most_statements=0)
    assert ground(data=short).conditions["sentences"].startswith("5 of 8;")
    capped = ground(Planted(SIMILARITY[:1], COUNT[:1]))
    assert capped.conditions["sentences"].startswith("3 of 8;")
    assert capped.everything.sentences == 3


def test_no_sentence_at_all():
    with pytest.raises(NotEvaluable, match="no sentence in findings_text of 1 records"):
        ground(records=made_records()[1:2])


def test_without_organs_or_with_cells_that_do_not_fit():
    with pytest.raises(NotEvaluable, match="hold no organs"):
        ground(organs=())
    records = [{**record, "organs": record["organs"][:, :3]} for record in made_records()]
    with pytest.raises(NotEvaluable, match=r"\(3, 4, 4\) organ cells do not divide into \(2, 2, 2\) patches"):
        ground(records=records)


def test_diffuse_above_focal():
    separation = ground(focal=("lung_nodule",), diffuse=("emphysema",), draws=20).separation
    assert (separation.diffuse, separation.focal) == (2, 1)
    assert separation.probability == 1.0  # 8 and 2 patches against 1
    assert separation.p == pytest.approx(1 / 3)
    equal = ground(Planted(SIMILARITY, [4] * 5), focal=("lung_nodule",), diffuse=("emphysema",)).separation
    assert equal.probability == 0.5
    assert equal.p == 1.0
    assert ground(focal=("aortic_calcification",)).separation is None


def test_places_can_be_changed():
    result = ground(places=("lung_nodule=heart",))
    assert result.findings["lung_nodule"].ratio == pytest.approx(expected(0, 1, [0]), abs=1e-12)
    with pytest.raises(ValueError, match="no region 'hart'"):
        ground(places=("lung_nodule=hart",))


def test_intervals_are_over_patients():
    records = made_records()
    assert ground(records=records, draws=50).everything.interval.low < ground().everything.ratio
    one = [{**record, "patient": np.int64(7)} for record in records]
    low, high, _ = ground(records=one, draws=50).everything.interval
    assert low == high  # a single patient is drawn again and again


def test_what_is_drawn():
    result = ground(pictures=1)
    (scan,) = result.scans
    np.testing.assert_array_equal(scan.volume, made_records()[0]["volume"])
    assert [one.place for one in scan.sentences] == ["cardiomegaly", "lung_nodule", "emphysema", "aorta"]
    nodule = scan.sentences[1]
    assert nodule.selected.sum() == 1
    assert nodule.similarity[nodule.selected] == pytest.approx(SIMILARITY[1].max())
    assert not ground(pictures=0).scans


def test_the_most_similar_of_equal_ones_are_the_first():
    similarity = np.array([[1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(
        most_similar(similarity, np.array([2, 9])), [[False, True, True, False], [True] * 4]
    )


def test_ratio_without_organ_or_selection_is_undefined():
    assert np.isnan(ratio_to_chance(np.zeros(4), np.ones(4, bool)).ratio)
    assert np.isnan(ratio_to_chance(np.ones(4), np.zeros(4, bool)).ratio)
    assert ratio_to_chance(np.array([1.0, 0, 0, 0]), np.array([True, False, False, False])) == (4.0, 4.0)


def map_sentences(sentences, data=DATA, count=COUNT):
    embedder = Embedder(Planted(SIMILARITY, count), SPEC, data, Words(), batch_size=2, progress=False)
    return ground_sentences(embedder, np.zeros(SHAPE, np.int16), sentences)


def test_a_map_for_each_sentence():
    first, second, third = map_sentences(["The heart is large.", "A nodule", "Emphysema."])
    assert [one.text for one in (first, second, third)] == ["The heart is large.", "A nodule", "Emphysema."]
    assert [one.count for one in (first, second, third)] == [2, 1, 8]  # 100 are more than there are
    np.testing.assert_allclose(second.patches.ravel(), SIMILARITY[1], atol=1e-6)
    assert second.patches[second.selected] == pytest.approx([SIMILARITY[1].max()])
    assert second.voxels.shape == SHAPE
    assert second.voxels[0, 0, 0] == pytest.approx(SIMILARITY[1][0], abs=1e-6)  # before the first center
    assert second.voxels[3, 3, 3] == pytest.approx(SIMILARITY[1][7], abs=1e-6)
    with pytest.raises(ValueError, match="does not say where it lies"):
        first.save("map.nii.gz")


def test_sentences_that_are_too_many_or_too_long():
    with pytest.raises(ValueError, match="1 of 6 sentences lie beyond the 64 tokens or the 5 sentences"):
        map_sentences(["Clear."] * 6)
    short = SimpleNamespace(text=DATA.text, text_length=4, most_statements=0)
    with pytest.raises(ValueError, match="1 of 2 sentences lie beyond the 4 tokens"):
        map_sentences(["The heart is large.", "A nodule"], data=short)
    with pytest.raises(ValueError, match="hold no word"):
        map_sentences(["The heart is large.", "..."])


def test_a_model_that_selects_nothing():
    class Blind(Planted):
        selects_patches = False

    embedder = Embedder(Blind(SIMILARITY, COUNT), SPEC, DATA, Words(), batch_size=2, progress=False)
    with pytest.raises(NotEvaluable, match="selects no patches for sentences"):
        ground_sentences(embedder, np.zeros(SHAPE, np.int16), ["Clear."])
