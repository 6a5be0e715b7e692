"""Do the patches that a sentence selects lie in the organ that it names?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int16, Int64
from scipy import stats

from medclip_jax.draws import Draw
from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.bootstrap import described
from medclip_jax.evaluation.degradation import Bootstrap, OpenRecords
from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import TEXT_FIELDS, EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.grounding_metrics import Score, most_similar, patch_shares, ratio_to_chance
from medclip_jax.evaluation.metrics import Interval
from medclip_jax.evaluation.results import NotEvaluable, Table, chosen_findings, needs, number, with_interval
from medclip_jax.evaluation.sentence_maps import select
from medclip_jax.evaluation.spacings import spacing_of_records
from medclip_jax.fields import Layout
from medclip_jax.reports.definitions import Findings
from medclip_jax.reports.findings import extract
from medclip_jax.reports.places import finding_place, named_places, read_places
from medclip_jax.reports.sentences import split_sentences

FOCAL = ("lung_nodule", "coronary_calcification", "aortic_calcification", "coronary_stenosis")
"""Findings that take up little of a volume."""

DIFFUSE = (
    "emphysema",
    "pleural_effusion",
    "consolidation",
    "lung_opacity",
    "mosaic_attenuation",
    "interlobular_septal_thickening",
)
"""Findings that take up much of it."""

_SHOWN_SENTENCES = 4
"""Of a scan, at most."""


@dataclass(frozen=True)
class Grounded:
    """A sentence and what it selects.

    Attributes:
        row: of the split.
        text: the sentence.
        count: patches that it selects.
        named: region that it names, and some organ shows, to score.
        everything: score against all of them together; None where it names none.
        findings: finding that it states as present to score, NaN where no organ shows its place.
    """

    row: int
    text: str
    count: int
    named: Mapping[str, Score]
    everything: Score | None
    findings: Mapping[str, Score]


@dataclass(frozen=True)
class Group:
    """Sentences about one place, or that state one finding.

    Attributes:
        sentences: number of them.
        patches: that they select, on average.
        scored: number of them whose place shows in the volume.
        ratio: to chance, mean over the scored.
        most: mean of the highest that they could have.
        interval: of `ratio`; None when none was requested.
    """

    sentences: int
    patches: float
    scored: int
    ratio: float
    most: float
    interval: Interval | None


@dataclass(frozen=True)
class Separation:
    """Whether sentences with diffuse findings select more patches than those with focal ones.

    Attributes:
        probability: that a diffuse sentence selects more than a focal one, a tie counting one half.
        p: of the one-sided Mann-Whitney test, which takes the sentences as independent.
        diffuse, focal: numbers of sentences.
        interval: of `probability`, over patients; None when none was requested.
    """

    probability: float
    p: float
    diffuse: int
    focal: int
    interval: Interval | None


@dataclass(frozen=True)
class ShownSentence:
    """A sentence with its patches, to be drawn.

    Attributes:
        text: of it.
        place: finding or region that it is scored against.
        score: of it.
        similarity: (d, h, w) cosine of each patch with the sentence.
        selected: (d, h, w) whether the sentence selects it.
        shares: (d, h, w) of the place in it.
    """

    text: str
    place: str
    score: Score
    similarity: Float[np.ndarray, "d h w"]
    selected: Bool[np.ndarray, "d h w"]
    shares: Float[np.ndarray, "d h w"]


@dataclass(frozen=True)
class ShownScan:
    """A volume with some sentences of its report.

    Attributes:
        volume: (D, H, W) HU.
        spacing: mm along depth, height, width.
        sentences: of its report.
    """

    volume: Int16[np.ndarray, "D H W"]
    spacing: tuple[float, float, float]
    sentences: Sequence[ShownSentence]


@dataclass(frozen=True)
class GroundingResult:
    """How well sentences find their organs.

    Attributes:
        everything: all sentences that name an organ, each against all that it names.
        organs: region to the sentences that name it, affirmed or denied.
        findings: finding to the sentences that state it as present.
        separation: None where there is no sentence of the one or of the other kind.
        conditions: under which the numbers hold.
        scans: to be drawn.
    """

    everything: Group
    organs: Mapping[str, Group]
    findings: Mapping[str, Group]
    separation: Separation | None
    conditions: Mapping[str, str]
    scans: Sequence[ShownScan] = field(default_factory=tuple)

    def metrics(self) -> dict[str, float]:
        """`ratio`, `patches` and `sentences`, overall, of findings and of organs, and the separation."""
        found: dict[str, float] = {}
        groups = {"": self.everything}
        groups |= {f"/{name}": group for name, group in self.findings.items()}
        groups |= {f"/organ/{name.replace(' ', '_')}": group for name, group in self.organs.items()}
        for name in ("ratio", "most", "patches", "sentences"):
            found |= {f"{name}{key}": float(getattr(group, name)) for key, group in groups.items()}
        if self.separation is not None:
            found["diffuse_above_focal"] = self.separation.probability
            found["diffuse_above_focal_p"] = self.separation.p
        return found

    def table(self) -> Table:
        """One line for each finding, and one for all sentences that name an organ."""
        rows = [_row(name, group) for name, group in self.findings.items() if group.sentences]
        conditions = dict(self.conditions)
        if self.separation is not None:
            found = self.separation
            conditions["diffuse above focal"] = (
                f"{with_interval(found.probability, found.interval)} of the pairs of {found.diffuse} diffuse "
                f"and {found.focal} focal sentences, 0.5 by chance; Mann-Whitney p = {found.p:.2g}"
            )
        return Table("Sentences and patches", _HEADER, (_row("all", self.everything), *rows), conditions)

    def organ_table(self) -> Table:
        """One line for each region that sentences name."""
        rows = tuple(_row(name, group) for name, group in self.organs.items())
        return Table("By the organ that is named, affirmed or denied", _HEADER, rows, {})

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.organ_table()}"


_HEADER = ("", "sentences", "patches", "ratio to chance", "at most")


def _row(name: str, group: Group) -> tuple[str, ...]:
    ratio = with_interval(group.ratio, group.interval)
    counted = str(group.sentences)
    if group.scored < group.sentences:
        counted += f", {group.scored} scored"
    return name.replace("_", " "), counted, number(group.patches, 1), ratio, number(group.most)


@needs("text", "patches")
def evaluate_grounding(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    text: str = "findings_text",
    findings: Sequence[str] = (),
    places: Sequence[str] = (),
    focal: Sequence[str] = FOCAL,
    diffuse: Sequence[str] = DIFFUSE,
    pictures: int = 2,
    draws: int = 1000,
    seed: int = 0,
    embedder: Embedder | None = None,
    open_records: OpenRecords | None = None,
) -> GroundingResult:
    """Compare the patches that each sentence selects with the organs of the volume.

    Which regions a sentence names and which findings it states is read by the rules of
    `medclip_jax.reports`; which region a finding lies in stands in `reports.places.PLACES`.

    Args:
        data: the split.
        encode_texts: not used; texts are read together with their volume.
        text: which text's sentences, one of `TEXT_FIELDS`; where it is empty, the report's.
        findings: that are looked for; () for all columns of the shards.
        places: "FINDING=REGION, REGION" in the place of what the table of places says.
        focal, diffuse: findings whose numbers of patches are compared.
        pictures: scans that are kept to be drawn.
        draws: bootstrap resamples of patients; 0 for no intervals.
        seed: of the bootstrap.
        embedder: of the model.
        open_records: opens the split's records again.

    Returns:
        The result.

    Raises:
        NotEvaluable: the shards hold no organs or no sentences, or organ cells that do not fit the patches.
        ValueError: an unknown text, finding or region.
    """
    if text not in TEXT_FIELDS:
        raise ValueError(f"text={text!r}: use one of {', '.join(TEXT_FIELDS)}")
    if embedder is None or open_records is None:
        raise NotEvaluable("sentences select patches of volumes, which are not to be read again")
    names = chosen_findings(findings, data.reported or data.definitions, data.definitions)
    config = SimpleNamespace(text={text: 1.0}, text_length=embedder.text_length, most_statements=0)
    fields = (*embedder.volume_inputs, "tokens", "sentence")
    layout = Layout(fields, embedder.layout.spec, config, embedder.tokenizer)
    records, organs = open_records(layout.reads)
    if not organs:
        raise NotEvaluable(
            "the shards hold no organs: prepare from a table with organ masks and --organ-cell"
        )
    texts, _ = open_records((*TEXT_FIELDS, "organs"))
    read = _Reader(organs, names, read_places(places), data.definitions)
    grid = tuple(embedder.objective.volume_tower().grid)

    def arguments(index: int) -> tuple[Any, ...]:
        sample = layout.sample(records[index], index)
        inputs = {name: sample[name] for name in embedder.volume_inputs}
        return inputs, sample["tokens"], sample["sentence"]

    spacing_of = spacing_of_records(layout.spec, open_records)
    grounded: list[Grounded] = []
    scans: list[ShownScan] = []
    stated = row = 0
    for batch in embedder.each(select, len(records), arguments, label="ground sentences"):
        for similarity, count, valid in zip(batch.similarity, batch.count, batch.valid, strict=True):
            record = texts[row]
            sentences = split_sentences(Draw(record, row, layout, None).text)
            shares = patch_shares(record["organs"], grid)
            selected = most_similar(similarity, count)
            found = {
                index: _ground(row, sentence, selected[index], shares, read)
                for index, sentence in enumerate(sentences[: len(valid)])
                if valid[index]
            }
            if len(scans) < pictures and any(one.findings for one in found.values()):
                shown = tuple(
                    _shown(found[index], similarity[index], selected[index], shares, read, grid)
                    for index in _worth_showing(found)
                )
                scans.append(ShownScan(np.array(records[row]["volume"]), spacing_of(row), shown))
            grounded += found.values()
            stated += len(sentences)
            row += 1
    if not grounded:
        raise NotEvaluable(f"there is no sentence in {text} of {row} records: evaluate with another text")
    bootstrap = Bootstrap(draws, seed)

    def group(pairs: Iterable[tuple[Grounded, Score]]) -> Group:
        return _group(list(pairs), data.patients, bootstrap)

    regions = sorted({name for one in grounded for name in one.named})
    conditions = {
        "n": f"{row} volumes of {len(np.unique(data.patients))} patients, split {data.name!r}, {text}",
        "sentences": f"{len(grounded)} of {stated}; the others lie beyond the length of texts or the number "
        "of sentences that the model reads",
        "patches": f"of {int(np.prod(grid))}, all visible; the most similar ones",
        "chance": "mean share of the place in all patches; at most: in the patches that it fills most",
        "findings": "stated as present or possible, by rules",
        "intervals": described(draws, seed),
    }
    return GroundingResult(
        everything=group((one, one.everything) for one in grounded if one.everything),
        organs={
            name: group((one, one.named[name]) for one in grounded if name in one.named) for name in regions
        },
        findings={
            name: group((one, one.findings[name]) for one in grounded if name in one.findings)
            for name in names
        },
        separation=_separation(grounded, set(focal), set(diffuse), data.patients, bootstrap),
        conditions=conditions,
        scans=scans,
    )


class _Reader:
    """What sentences say, each distinct one read once.

    Args:
        organs: names of the channels.
        findings: that are looked for.
        places: finding to regions.
        definitions: the findings that are known.
    """

    def __init__(
        self,
        organs: Sequence[str],
        findings: Sequence[str],
        places: Mapping[str, tuple[str, ...]],
        definitions: Findings,
    ):
        self.organs, self.findings, self.places, self.definitions = organs, findings, places, definitions
        self._known: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]] = {}

    def __call__(self, sentence: str) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Regions that it names, and findings that it states as present, each to its channels."""
        if sentence not in self._known:
            status = extract(sentence, self.findings, definitions=self.definitions)
            stated = {
                name: finding_place(name, sentence, self.organs, self.places)
                for name, found in status.items()
                if found == 1
            }
            self._known[sentence] = named_places(sentence, self.organs), stated
        return self._known[sentence]


def _of(shares: Float[np.ndarray, "O N"], channels: Sequence[int]) -> Float[np.ndarray, " N"]:
    """Share of each patch that some organs fill together."""
    return np.minimum(shares[list(channels)].sum(axis=0), 1.0)


def _ground(
    row: int,
    sentence: str,
    selected: Bool[np.ndarray, " N"],
    shares: Float[np.ndarray, "O N"],
    read: _Reader,
) -> Grounded:
    named, stated = read(sentence)
    every = sorted({channel for channels in named.values() for channel in channels})

    def score(channels: Sequence[int]) -> Score:
        return ratio_to_chance(_of(shares, channels), selected)

    return Grounded(
        row,
        sentence,
        int(selected.sum()),
        {name: score(channels) for name, channels in named.items()},
        score(every) if every else None,
        {name: score(channels) for name, channels in stated.items()},
    )


def _group(
    pairs: Sequence[tuple[Grounded, Score]], patients: Int64[np.ndarray, " rows"], bootstrap: Bootstrap
) -> Group:
    """Of sentences with a score each."""
    scored = [(one, score) for one, score in pairs if not np.isnan(score.ratio)]
    ratios = np.array([score.ratio for _, score in scored])
    rows = [one.row for one, _ in scored]
    return Group(
        sentences=len(pairs),
        patches=metrics.mean_of_defined(one.count for one, _ in pairs),
        scored=len(scored),
        ratio=metrics.mean_of_defined(ratios),
        most=metrics.mean_of_defined(score.most for _, score in scored),
        interval=bootstrap(lambda drawn: float(ratios[drawn].mean()), patients[rows]) if scored else None,
    )


def _separation(
    grounded: Sequence[Grounded],
    focal: set[str],
    diffuse: set[str],
    patients: Int64[np.ndarray, " rows"],
    bootstrap: Bootstrap,
) -> Separation | None:
    """Of sentences that state findings of one kind alone; None where one kind has none."""
    kinds = [(one, bool(focal & set(one.findings)), bool(diffuse & set(one.findings))) for one in grounded]
    chosen = [(one, is_diffuse) for one, is_focal, is_diffuse in kinds if is_focal != is_diffuse]
    counts = np.array([one.count for one, _ in chosen], float)
    large = np.array([is_diffuse for _, is_diffuse in chosen], bool)
    if not large.any() or large.all():
        return None
    test = stats.mannwhitneyu(counts[large], counts[~large], alternative="greater")
    return Separation(
        probability=metrics.auroc(large, counts),
        p=float(test.pvalue),
        diffuse=int(large.sum()),
        focal=int((~large).sum()),
        interval=bootstrap(
            lambda drawn: metrics.auroc(large[drawn], counts[drawn]), patients[[one.row for one, _ in chosen]]
        ),
    )


def _worth_showing(found: Mapping[int, Grounded]) -> list[int]:
    """Sentences to draw: first those that state something present, each finding once, then other organs."""
    chosen: list[int] = []
    seen: set[str] = set()
    for stating in (True, False):
        for index, one in found.items():
            what = set(one.findings) if stating else set(one.named) - {""}
            if index not in chosen and what - seen and len(chosen) < _SHOWN_SENTENCES:
                chosen.append(index)
                seen |= {*one.findings, *one.named}
    return sorted(chosen)


def _shown(
    one: Grounded,
    similarity: Float[np.ndarray, " N"],
    selected: Bool[np.ndarray, " N"],
    shares: Float[np.ndarray, "O N"],
    read: _Reader,
    grid: tuple[int, int, int],
) -> ShownSentence:
    """Against the finding that it states, else against what it names."""
    named, stated = read(one.text)
    for places, scores in ((stated, one.findings), (named, one.named)):
        for place, channels in places.items():
            return ShownSentence(
                one.text,
                place,
                scores[place],
                similarity.reshape(grid),
                selected.reshape(grid),
                _of(shares, channels).reshape(grid),
            )
    raise AssertionError("only sentences that say something of a place are shown")
