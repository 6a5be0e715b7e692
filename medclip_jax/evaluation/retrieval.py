"""Retrieval between volumes and reports, and of volumes by a keyword."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from medclip_jax.evaluation import ranking
from medclip_jax.evaluation.embeddings import TEXT_FIELDS, EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.metrics import mean_of_defined
from medclip_jax.evaluation.results import NotEvaluable, Table, chosen_findings, needs, number
from medclip_jax.evaluation.similarity import Embeddings, averaged, describe, similarity
from medclip_jax.reports import prompts


@dataclass(frozen=True)
class Direction:
    """One direction between volumes and texts.

    Attributes:
        queries: number of queries.
        gallery: number of items to choose from.
        recall: k to R@k.
        median_rank: of the first hit, from 1.
        mean_rank: of the first hit, from 1.
    """

    queries: int
    gallery: int
    recall: Mapping[int, float]
    median_rank: float
    mean_rank: float


@dataclass(frozen=True)
class Keyword:
    """One keyword as a query for volumes.

    Attributes:
        prompts: the query; of several, their average.
        relevant: volumes that have the finding.
        gallery: volumes whose label is known.
        precision: k to P@k.
    """

    prompts: tuple[str, ...]
    relevant: int
    gallery: int
    precision: Mapping[int, float]


@dataclass(frozen=True)
class Subsets:
    """Retrieval among a few pairs, drawn many times: comparable between splits of any size.

    Attributes:
        size: pairs of a subset, each of another study.
        recall: direction ("image_to_text", "text_to_image") to k to R@k of each draw, (draws,); NaN where
            the split has fewer studies.
    """

    size: int
    recall: Mapping[str, Mapping[int, Float[np.ndarray, " draws"]]]


@dataclass(frozen=True)
class RetrievalResult:
    """Retrieval in both directions, among subsets, and by keyword.

    Attributes:
        image_to_text: volumes as queries, the distinct texts of each study as gallery.
        text_to_image: the reverse.
        subsets: None where none were requested.
        keywords: finding to its keyword query; empty where no label is known.
        conditions: n, text, groups, pooling and tie rule of the two directions, in words.
        subset_conditions: the same of the subsets.
        keyword_conditions: the same of the keyword queries.
    """

    image_to_text: Direction
    text_to_image: Direction
    subsets: Subsets | None
    keywords: Mapping[str, Keyword]
    conditions: Mapping[str, str]
    subset_conditions: Mapping[str, str]
    keyword_conditions: Mapping[str, str]

    def metrics(self) -> dict[str, float]:
        """Keys ``image_to_text/R@5``, ``subset/image_to_text/R@5``, ``keyword/P@10/<finding>``, ..."""
        flat: dict[str, float] = {}
        for name, direction in (("image_to_text", self.image_to_text), ("text_to_image", self.text_to_image)):
            flat |= {f"{name}/R@{k}": value for k, value in direction.recall.items()}
            flat |= {f"{name}/median_rank": direction.median_rank, f"{name}/mean_rank": direction.mean_rank}
        for name, recall in self.subsets.recall.items() if self.subsets else ():
            for k, values in recall.items():
                flat[f"subset/{name}/R@{k}"] = float(values.mean())
                flat[f"subset/{name}/R@{k}_std"] = float(values.std())
        ks = sorted({k for keyword in self.keywords.values() for k in keyword.precision})
        for k in ks:
            values = {finding: keyword.precision[k] for finding, keyword in self.keywords.items()}
            flat[f"keyword/P@{k}_mean"] = mean_of_defined(values.values())
            flat |= {f"keyword/P@{k}/{finding}": value for finding, value in values.items()}
        return flat

    def table(self) -> Table:
        """One line for each direction."""
        rows = [
            (
                name,
                str(direction.queries),
                str(direction.gallery),
                *(number(value) for value in direction.recall.values()),
                number(direction.median_rank, 1),
                number(direction.mean_rank, 1),
            )
            for name, direction in (
                ("image to text", self.image_to_text),
                ("text to image", self.text_to_image),
            )
        ]
        recall = tuple(f"R@{k}" for k in self.image_to_text.recall)
        header = ("direction", "queries", "gallery", *recall, "median rank", "mean rank")
        return Table("Retrieval", header, tuple(rows), self.conditions)

    def subset_table(self) -> Table | None:
        """Mean and spread over the draws, one line for each direction; None where none were requested."""
        if self.subsets is None:
            return None
        rows = tuple(
            (name.replace("_", " "), *(f"{number(x.mean())} ± {number(x.std())}" for x in recall.values()))
            for name, recall in self.subsets.recall.items()
        )
        ks = next(iter(self.subsets.recall.values()))
        header = ("direction", *(f"R@{k}" for k in ks))
        return Table(f"Retrieval among {self.subsets.size} pairs", header, rows, self.subset_conditions)

    def keyword_table(self) -> Table | None:
        """One line for each keyword that any volume has; None where there is none."""
        shown = {finding: keyword for finding, keyword in self.keywords.items() if keyword.relevant}
        if not shown:
            return None
        ks = next(iter(shown.values())).precision
        rows = tuple(
            (
                finding,
                str(keyword.relevant),
                str(keyword.gallery),
                number(keyword.relevant / keyword.gallery),
                *(number(value) for value in keyword.precision.values()),
            )
            for finding, keyword in shown.items()
        )
        header = ("finding", "relevant", "gallery", "chance", *(f"P@{k}" for k in ks))
        return Table("Keyword to image", header, rows, self.keyword_conditions)

    def __str__(self) -> str:
        tables = self.table(), self.subset_table(), self.keyword_table()
        return "\n\n".join(str(table) for table in tables if table)


@needs("text")
def evaluate_retrieval(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    text: str = "report",
    ks: Sequence[int] = (1, 5, 10, 50),
    subset: int = 100,
    subset_draws: int = 100,
    subset_ks: Sequence[int] = (1, 5, 10),
    seed: int = 0,
    keyword_ks: Sequence[int] = (5, 10, 50),
    findings: Sequence[str] = (),
    labels: str = "labels",
    template: str = "there_is",
) -> RetrievalResult:
    """Find the report of a volume, the volume of a report, and the volumes with a finding.

    The text gallery holds each text of each study once, however many reconstructions share it. Any item of
    the query's study is a hit. Volumes without text take no part in the two directions.

    Args:
        data: the split; it is the full pool.
        encode_texts: the model's text side.
        text: field of the records, one of `TEXT_FIELDS`.
        ks: of R@k.
        subset: pairs of a subset: one volume and its text of each of so many studies; 0 for no subsets.
        subset_draws: how many subsets.
        subset_ks: of R@k in a subset.
        seed: of the subsets.
        keyword_ks: of P@k.
        findings: keywords; () for all columns of the shards, and none where no label is known.
        labels: "labels" for ground truth, "findings" for what the reports say.
        template: prompt wording; the query is its positive half.

    Returns:
        The result.

    Raises:
        NotEvaluable: no volume has the text.
        ValueError: an unknown option, or a NaN embedding.
    """
    if text not in TEXT_FIELDS:
        raise ValueError(f"text={text!r}: use one of {', '.join(TEXT_FIELDS)}")
    texts = data.texts.get(text, [""] * len(data.volumes))
    has_text = np.array([bool(entry.strip()) for entry in texts], bool)
    if not has_text.any():
        raise NotEvaluable(f"no record of split {data.name!r} has a {text!r}: set text to another field")
    volumes, studies = data.volumes[has_text], data.studies[has_text]
    said = np.array(texts, object)[has_text]
    pairs = list(dict.fromkeys(zip(studies.tolist(), said, strict=True)))
    text_studies = np.array([study for study, _ in pairs], np.int64)
    similarity = _similarity(volumes, [entry for _, entry in pairs], encode_texts)
    ties = "ties count as their expectation: ranks and recall are those expected of a random order"
    conditions = {
        "n": f"{len(volumes)} volumes of {len(np.unique(studies))} studies, split {data.name!r}"
        + (f"; {int((~has_text).sum())} without text left out" if not has_text.all() else ""),
        "text": f"{text}, {len({entry for _, entry in pairs})} distinct",
        "prompts": "none, the texts themselves",
        "similarity": describe(data.volumes),
        "pooling": data.pooling,
        "hit": f"any item of the same study; {ties}",
        "threshold": "none needed",
    }
    keyword_conditions = {
        "n": f"{len(data.volumes)} volumes, split {data.name!r}; those with an unknown label left out",
        "labels": "ground truth" if labels == "labels" else "from the reports, not mentioned left out",
        "prompts": prompts.describe_prompts((), template, positive=True) + ", or a finding's own",
        "pooling": data.pooling,
        "hit": f"the volume has the finding; chance is their share; {ties}",
        "threshold": "none needed",
    }
    columns = {pair: column for column, pair in enumerate(pairs)}
    own = np.array([columns[pair] for pair in zip(studies.tolist(), said, strict=True)])
    count = len(np.unique(studies))
    subset_conditions = {
        "n": f"one volume and its text of each of {subset} studies, of {count} in split {data.name!r}"
        + (f": too few, set subset to at most {count}" if count < subset else ""),
        "draws": f"{subset_draws}, seed {seed}; mean ± standard deviation over them",
        "chance": f"k / {subset}; {ties}",
    }
    return RetrievalResult(
        image_to_text=_direction(similarity, studies, text_studies, ks),
        text_to_image=_direction(similarity.T, text_studies, studies, ks),
        subsets=_subsets(similarity, own, studies, subset, subset_draws, subset_ks, seed) if subset else None,
        keywords=_keywords(data, encode_texts, findings, labels, template, keyword_ks),
        conditions=conditions,
        subset_conditions=subset_conditions,
        keyword_conditions=keyword_conditions,
    )


def _similarity(
    volumes: Embeddings, texts: Sequence[str], encode_texts: EncodeTexts
) -> Float[np.ndarray, "N T"]:
    # Once for each distinct text: rounding of the product must not break ties between equal texts.
    distinct = {entry: column for column, entry in enumerate(dict.fromkeys(texts))}
    found = similarity(volumes, encode_texts(list(distinct)))
    return found[:, [distinct[entry] for entry in texts]]


def _direction(
    similarity: Float[np.ndarray, "Q G"],
    query_studies: Int64[np.ndarray, " Q"],
    gallery_studies: Int64[np.ndarray, " G"],
    ks: Sequence[int],
) -> Direction:
    return Direction(
        queries=similarity.shape[0],
        gallery=similarity.shape[1],
        recall=ranking.recall_at_k(similarity, query_studies, gallery_studies, ks),
        median_rank=ranking.median_rank(similarity, query_studies, gallery_studies),
        mean_rank=ranking.mean_rank(similarity, query_studies, gallery_studies),
    )


def _subsets(
    similarity: Float[np.ndarray, "N T"],
    own: Int64[np.ndarray, " N"],
    studies: Int64[np.ndarray, " N"],
    size: int,
    draws: int,
    ks: Sequence[int],
    seed: int,
) -> Subsets:
    """Column ``own[i]`` of `similarity` is the text of volume i."""
    if size < 1 or draws < 1:
        raise ValueError(f"subset={size}, subset_draws={draws}: give at least 1, or subset=0 for none")
    recall = {name: {k: np.full(draws, np.nan) for k in ks} for name in ("image_to_text", "text_to_image")}
    generator = np.random.default_rng(seed)
    if size <= len(np.unique(studies)):
        for draw in range(draws):
            shuffled = generator.permutation(len(studies))
            # The first volume of each study in a random order is a random one of the study.
            _, first = np.unique(studies[shuffled], return_index=True)
            rows = generator.permutation(shuffled[first])[:size]
            square, groups = similarity[np.ix_(rows, own[rows])], studies[rows]
            for name, matrix in (("image_to_text", square), ("text_to_image", square.T)):
                for k, value in ranking.recall_at_k(matrix, groups, groups, ks).items():
                    recall[name][k][draw] = value
    return Subsets(size, recall)


def _keywords(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    findings: Sequence[str],
    labels: str,
    template: str,
    ks: Sequence[int],
) -> dict[str, Keyword]:
    try:
        columns = data.findings(labels)
    except NotEvaluable:
        if findings:
            raise
        return {}
    keywords = {}
    for finding in chosen_findings(findings, columns, data.definitions):
        known = columns[finding] != 0
        wording = prompts.prompts_of(finding, template, definitions=data.definitions).positive
        query = averaged(encode_texts(wording))[None]
        scores = similarity(data.volumes[known], query)[:, 0]
        relevant = columns[finding][known] == 1
        keywords[finding] = Keyword(
            wording, int(relevant.sum()), int(known.sum()), ranking.precision_at_k(relevant, scores, ks)
        )
    return keywords
