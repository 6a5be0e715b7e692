"""Retrieval between volumes and reports, and of volumes by a keyword."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from medclip_jax.evaluation import metrics
from medclip_jax.evaluation.embeddings import TEXT_FIELDS, EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.metrics import mean_of_defined
from medclip_jax.evaluation.results import NotEvaluable, Table, number
from medclip_jax.evaluation.similarity import Embeddings, similarity
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
        prompt: the query.
        relevant: volumes that have the finding.
        gallery: volumes whose label is known.
        precision: k to P@k.
    """

    prompt: str
    relevant: int
    gallery: int
    precision: Mapping[int, float]


@dataclass(frozen=True)
class RetrievalResult:
    """Retrieval in both directions and by keyword.

    Attributes:
        image_to_text: volumes as queries, the distinct texts of each study as gallery.
        text_to_image: the reverse.
        keywords: finding to its keyword query; empty where no label is known.
        conditions: n, text, groups, pooling and tie rule of the two directions, in words.
        keyword_conditions: the same of the keyword queries.
    """

    image_to_text: Direction
    text_to_image: Direction
    keywords: Mapping[str, Keyword]
    conditions: Mapping[str, str]
    keyword_conditions: Mapping[str, str]

    def metrics(self) -> dict[str, float]:
        """Keys ``image_to_text/R@5``, ``text_to_image/median_rank``, ``keyword/P@10/<finding>``, ..."""
        flat: dict[str, float] = {}
        for name, direction in (("image_to_text", self.image_to_text), ("text_to_image", self.text_to_image)):
            flat |= {f"{name}/R@{k}": value for k, value in direction.recall.items()}
            flat |= {f"{name}/median_rank": direction.median_rank, f"{name}/mean_rank": direction.mean_rank}
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

    def keyword_table(self) -> Table | None:
        """One line for each keyword; None where no label is known."""
        if not self.keywords:
            return None
        ks = next(iter(self.keywords.values())).precision
        rows = tuple(
            (
                finding,
                str(keyword.relevant),
                str(keyword.gallery),
                number(keyword.relevant / keyword.gallery if keyword.gallery else float("nan")),
                *(number(value) for value in keyword.precision.values()),
            )
            for finding, keyword in self.keywords.items()
        )
        header = ("finding", "relevant", "gallery", "chance", *(f"P@{k}" for k in ks))
        return Table("Keyword to image", header, rows, self.keyword_conditions)

    def __str__(self) -> str:
        return "\n\n".join(str(table) for table in (self.table(), self.keyword_table()) if table)


def evaluate_retrieval(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    text: str = "report",
    ks: Sequence[int] = (1, 5, 10, 50),
    keyword_ks: Sequence[int] = (5, 10, 50),
    findings: Sequence[str] = (),
    labels: str = "labels",
    template: str = "there_is",
) -> RetrievalResult:
    """Find the report of a volume, the volume of a report, and the volumes with a finding.

    The text gallery holds each text of each study once, however many reconstructions share it. Any item of
    the query's study is a hit. Volumes without text take no part in the two directions.

    Args:
        data: the split; it is the whole pool.
        encode_texts: the model's text side.
        text: field of the records, one of `TEXT_FIELDS`.
        ks: of R@k.
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
    pairs = list(dict.fromkeys(zip(studies.tolist(), np.array(texts, object)[has_text], strict=True)))
    text_studies = np.array([study for study, _ in pairs], np.int64)
    similarity = _similarity(volumes, [entry for _, entry in pairs], encode_texts)
    ties = "ties count as their expectation"
    conditions = {
        "n": f"{len(volumes)} volumes of {len(np.unique(studies))} studies, split {data.name!r}"
        + (f"; {int((~has_text).sum())} without text left out" if not has_text.all() else ""),
        "text": f"{text}, {len({entry for _, entry in pairs})} distinct",
        "prompts": "none, the texts themselves",
        "pooling": data.pooling,
        "hit": f"any item of the same study; {ties}",
        "threshold": "none needed",
    }
    keyword_conditions = {
        "n": f"{len(data.volumes)} volumes, split {data.name!r}; those with an unknown label left out",
        "labels": "ground truth" if labels == "labels" else "from the reports, not mentioned left out",
        "prompts": f'"{prompts.TEMPLATES[template][0].format("X")}"',
        "pooling": data.pooling,
        "hit": f"the volume has the finding; chance is their share; {ties}",
        "threshold": "none needed",
    }
    return RetrievalResult(
        image_to_text=_direction(similarity, studies, text_studies, ks),
        text_to_image=_direction(similarity.T, text_studies, studies, ks),
        keywords=_keywords(data, encode_texts, findings, labels, template, keyword_ks),
        conditions=conditions,
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
        recall=metrics.recall_at_k(similarity, query_studies, gallery_studies, ks),
        median_rank=metrics.median_rank(similarity, query_studies, gallery_studies),
        mean_rank=metrics.mean_rank(similarity, query_studies, gallery_studies),
    )


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
    for finding in tuple(findings) or tuple(columns):
        if finding not in columns:
            raise ValueError(f"no column for {finding}; the shards have {', '.join(columns)}")
        known = columns[finding] != 0
        prompt = prompts.pair(finding, template)[0]
        scores = similarity(data.volumes[known], encode_texts([prompt]))[:, 0]
        relevant = columns[finding][known] == 1
        keywords[finding] = Keyword(
            prompt, int(relevant.sum()), int(known.sum()), metrics.precision_at_k(relevant, scores, ks)
        )
    return keywords
