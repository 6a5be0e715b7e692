"""Hidden words of reports, filled in with the volume, with another patient's, and without any."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np
from jaxtyping import Bool, Int, Int64

from medclip_jax.evaluation.bootstrap import described
from medclip_jax.evaluation.degradation import Bootstrap, OpenRecords
from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import TEXT_FIELDS, EmbeddedSplit, EncodeTexts, in_full_batches
from medclip_jax.evaluation.metrics import Interval
from medclip_jax.evaluation.results import NotEvaluable, Table, needs, with_interval
from medclip_jax.fields import Layout, report_text
from medclip_jax.objectives.base import Batch, Objective
from medclip_jax.reports.definitions import Findings
from medclip_jax.reports.findings import read_report
from medclip_jax.reports.sentences import sentence_ends

IMAGES = ("own", "other", "none")
"""Of `Objective.fill_words`."""

_SHORTEST = 4
"""Letters of a word of a finding: "of" and "the" stand in mentions, too."""


@dataclass(frozen=True)
class Accuracy:
    """Shares of the hidden words that were found.

    Attributes:
        words: number of them.
        values: "own", "other" and "none" to accuracy, "gain_over_other" and "gain_over_none" to how much
            more of them the own volume finds; NaN where undefined.
        intervals: the same to bootstrap intervals over patients; empty where none were requested.
    """

    words: int
    values: Mapping[str, float]
    intervals: Mapping[str, Interval]


@dataclass(frozen=True)
class ShownWord:
    """A word, or a piece of one, with what follows it up to the next.

    Attributes:
        text: as it stands in the report.
        hidden: whether it was hidden.
        filled: "own" and "none" to what was filled in.
        right: "own" and "none" to whether that is the word.
    """

    text: str
    hidden: bool
    filled: Mapping[str, str]
    right: Mapping[str, bool]


@dataclass(frozen=True)
class MaskedWordsResult:
    """What volumes are worth for the words of their reports.

    Attributes:
        groups: "words", all of them, and "finding_words", those that findings are stated or denied with.
        conditions: under which the numbers hold.
        reports: to be shown.
    """

    groups: Mapping[str, Accuracy]
    conditions: Mapping[str, str]
    reports: Sequence[Sequence[ShownWord]] = field(default_factory=tuple)

    def metrics(self) -> dict[str, float]:
        """Accuracies and gains of all words, and the same with "/finding_words" behind."""
        found = {}
        for group, accuracy in self.groups.items():
            behind = "" if group == "words" else f"/{group}"
            found |= {f"{name}{behind}": value for name, value in accuracy.values.items()}
            found[f"words{behind}"] = float(accuracy.words)
        return found

    def table(self) -> Table:
        """One line for each group."""
        names = ("own", "other", "none", "gain_over_other", "gain_over_none")
        rows = tuple(
            (
                group.replace("_", " "),
                str(accuracy.words),
                *(with_interval(accuracy.values[name], accuracy.intervals.get(name)) for name in names),
            )
            for group, accuracy in self.groups.items()
        )
        header = ("", "hidden", "own volume", "another's", "none", "gain over another's", "gain over none")
        return Table("Hidden words that were found", header, rows, self.conditions)

    def __str__(self) -> str:
        return str(self.table())


@needs("words")
def evaluate_masked_words(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    pictures: int = 2,
    draws: int = 1000,
    seed: int = 0,
    embedder: Embedder | None = None,
    open_records: OpenRecords | None = None,
) -> MaskedWordsResult:
    """Hide words of every report, always the same ones, and count those that are found.

    Args:
        data: the split.
        encode_texts: not used; words are filled in by another part of the model.
        pictures: reports that are kept to be shown.
        draws: bootstrap resamples of patients; 0 for no intervals.
        seed: of the bootstrap.
        embedder: of the model.
        open_records: opens the split's records again.

    Returns:
        The result.

    Raises:
        NotEvaluable: no word was hidden.
    """
    if embedder is None or open_records is None:
        raise NotEvaluable("words are filled in from volumes, which are not to be read again")
    fields = embedder.objective.word_inputs
    layout = Layout(fields, embedder.layout.spec, embedder.layout.config, embedder.tokenizer)
    records, _ = open_records(layout.reads)
    texts, _ = open_records(TEXT_FIELDS)
    count, size = len(data.patients), embedder.batch_size
    places, before = in_full_batches(data.patients, size)

    def arguments(place: int) -> tuple[Mapping[str, np.ndarray]]:
        index = int(places[place])
        return (layout.sample(records[index], index),)

    read = _FindingWords(tuple(data.definitions), data.definitions)
    hits = np.zeros((count, len(IMAGES), 2))
    counts = np.zeros((count, 2))
    kept: dict[int, Sequence[ShownWord]] = {}
    place = 0
    for batch in embedder.each(_fill, len(places), arguments, label="fill in words"):
        for row, hidden in enumerate(batch["hidden"]):
            index = int(places[place])
            if place < count:
                text = report_text(texts[index])
                truth = np.asarray(embedder.tokenizer([text], embedder.text_length), np.int32)[0]
                starts = embedder.tokenizer.starts(text, embedder.text_length)
                groups = np.stack([hidden, hidden & read(text, starts)])
                right = np.stack([batch[image][row] == truth for image in IMAGES])
                counts[index] = groups.sum(axis=1)
                hits[index] = (right[:, None] & groups).sum(axis=2)
                if len(kept) < pictures and hidden.any():
                    filled = {image: batch[image][row] for image in ("own", "none")}
                    kept[index] = _shown(text, starts, hidden, truth, filled, embedder.tokenizer.decode)
            place += 1
    if not counts.any():
        raise NotEvaluable("no word was hidden: the split has no reports")
    compared = np.zeros(count, bool)
    compared[places[:count]] = data.patients[before[:count]] != data.patients[places[:count]]
    bootstrap = Bootstrap(draws, seed)
    conditions = {
        "n": f"{count} reports of {len(np.unique(data.patients))} patients, split {data.name!r}",
        "words": "pieces of words, as the tokenizer cuts them; of findings: in the words by which rules read "
        f"a finding as present or absent, of {_SHORTEST} letters or more",
        "hidden": "drawn from a fixed key and the record's index; the same for all volumes",
        "another's": f"the volume before in batches of {size}, in the order of the split, patients' second "
        f"volumes after all first ones; {int((~compared).sum())} reports beside their own patient left out",
        "intervals": described(draws, seed),
    }
    groups = {
        name: _accuracy(hits[..., group], counts[:, group], compared, data.patients, bootstrap)
        for group, name in enumerate(("words", "finding_words"))
    }
    return MaskedWordsResult(groups, conditions, [kept[index] for index in sorted(kept)])


def _fill(objective: Objective, batch: Batch) -> dict[str, jax.Array]:
    # The compiler sees what the three have in common, and computes it once.
    found = {image: objective.fill_words(batch, jax.random.key(0), image=image) for image in IMAGES}
    return {"hidden": found["own"].hidden} | {image: words.filled for image, words in found.items()}


class _FindingWords:
    """Which tokens belong to words by which a finding is stated or denied; each sentence is read once."""

    def __init__(self, findings: Sequence[str], definitions: Findings):
        self.findings, self.definitions = findings, definitions
        self._known: dict[str, frozenset[str]] = {}

    def __call__(self, text: str, starts: Int[np.ndarray, " L"]) -> Bool[np.ndarray, " L"]:
        """Of the tokens of a text, by the characters at which they begin."""
        inside = np.zeros(len(text) + 1, bool)
        begin = 0
        for end in sentence_ends(text):
            words = self._words(text[begin:end])
            for match in _WORD.finditer(text[begin:end]):
                if match.group().lower() in words:
                    inside[begin + match.start() : begin + match.end()] = True
            begin = end
        return np.where(starts >= 0, inside[np.maximum(starts, 0)], False)

    def _words(self, sentence: str) -> frozenset[str]:
        if sentence not in self._known:
            reading = read_report(sentence, self.findings, definitions=self.definitions)
            mentions = [
                mention.mention
                for section in reading.sections
                for part in section.sentences
                for evidence in part.evidence.values()
                for mention in evidence
            ]
            words = {word.lower() for mention in mentions for word in _WORD.findall(mention)}
            self._known[sentence] = frozenset(word for word in words if len(word) >= _SHORTEST)
        return self._known[sentence]


_WORD = re.compile(r"[^\W\d_]+")


def _accuracy(
    hits: np.ndarray,
    counts: np.ndarray,
    compared: Bool[np.ndarray, " N"],
    patients: Int64[np.ndarray, " N"],
    bootstrap: Bootstrap,
) -> Accuracy:
    """Of rows with `hits` (N, images) of `counts` (N,) words; "other" counts where `compared`."""
    own, other, none = hits.T
    scores = {
        "own": (own, counts > 0),
        "other": (other, compared),
        "none": (none, counts > 0),
        "gain_over_other": (own - other, compared),
        "gain_over_none": (own - none, counts > 0),
    }
    values, intervals = {}, {}
    for name, (found, among) in scores.items():
        rows = np.flatnonzero(among & (counts > 0))
        found, words = found[rows], counts[rows]

        def share(drawn: np.ndarray, found: np.ndarray = found, words: np.ndarray = words) -> float:
            return float(found[drawn].sum() / words[drawn].sum()) if len(drawn) else float("nan")

        values[name] = share(np.arange(len(rows)))
        interval = bootstrap(share, patients[rows]) if len(rows) else None
        if interval is not None:
            intervals[name] = interval
    return Accuracy(int(counts.sum()), values, intervals)


def _shown(text, starts, hidden, truth, filled, decode) -> list[ShownWord]:
    """A text in pieces, from each token's first character to the next one's."""
    places = np.flatnonzero(starts >= 0)
    ends = [*starts[places[1:]], len(text)]
    return [
        ShownWord(
            text[starts[place] : end],
            bool(hidden[place]),
            {image: decode([tokens[place]]).removeprefix("##") for image, tokens in filled.items()},
            {image: bool(tokens[place] == truth[place]) for image, tokens in filled.items()},
        )
        for place, end in zip(places, ends, strict=True)
    ]
