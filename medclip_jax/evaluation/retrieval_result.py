"""What retrieval between volumes and texts found: each direction, subsets, pools and keywords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from medclip_jax.evaluation.metrics import mean_of_defined
from medclip_jax.evaluation.results import Table, number
from medclip_jax.evaluation.scored import Scored, ValueTask


@dataclass(frozen=True)
class Direction:
    """One direction between volumes and texts.

    Attributes:
        queries: number of queries.
        gallery: number of items to choose from.
        recall: k to R@k.
        median_rank: of the first hit, from 1.
        mean_rank: of the first hit, from 1.
        hits: k to (queries,) whether the query has a hit among the k nearest; with ties the probability.
        rows: (queries,) volume of `RetrievalResult.ids` that a query is, or whose text it is.
    """

    queries: int
    gallery: int
    recall: Mapping[int, float]
    median_rank: float
    mean_rank: float
    hits: Mapping[int, Float[np.ndarray, " queries"]]
    rows: Int64[np.ndarray, " queries"]


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
class Pools:
    """Retrieval within pools that do not overlap and together hold all pairs, cut many times.

    Attributes:
        size: pairs of a pool, each of another study.
        count: pools of a repeat; 0 where the split has fewer studies than one pool.
        recall: direction to k to R@k over all pools of each repeat, (repeats,); NaN where there is no pool.
    """

    size: int
    count: int
    recall: Mapping[str, Mapping[int, Float[np.ndarray, " repeats"]]]


@dataclass(frozen=True)
class RetrievalResult:
    """Retrieval in both directions, among subsets, and by keyword.

    Attributes:
        image_to_text: volumes as queries, the distinct texts of each study as gallery.
        text_to_image: the reverse.
        subsets: None where none were requested.
        pools: by size; () where none were requested.
        keywords: finding to its keyword query; empty where no label is known.
        conditions: n, text, groups, pooling and tie rule of the two directions, in words.
        subset_conditions: the same of the subsets.
        pool_conditions: the same of the pools.
        keyword_conditions: the same of the keyword queries.
        ids: keyed hashes of the volumes with a text; () where the records hold none.
        patients: (N,) keyed hash of the patient of each.
    """

    image_to_text: Direction
    text_to_image: Direction
    subsets: Subsets | None
    pools: tuple[Pools, ...]
    keywords: Mapping[str, Keyword]
    conditions: Mapping[str, str]
    subset_conditions: Mapping[str, str]
    pool_conditions: Mapping[str, str]
    keyword_conditions: Mapping[str, str]
    ids: Sequence[str]
    patients: Int64[np.ndarray, " N"]

    def metrics(self) -> dict[str, float]:
        """Keys ``image_to_text/R@5``, ``subset/image_to_text/R@5``, ``pool32/text_to_image/R@1``,
        ``keyword/P@10/<finding>``, ..."""
        flat: dict[str, float] = {}
        for name, direction in (("image_to_text", self.image_to_text), ("text_to_image", self.text_to_image)):
            flat |= {f"{name}/R@{k}": value for k, value in direction.recall.items()}
            flat |= {f"{name}/median_rank": direction.median_rank, f"{name}/mean_rank": direction.mean_rank}
        drawn = {"subset": self.subsets.recall} if self.subsets else {}
        drawn |= {f"pool{pools.size}": pools.recall for pools in self.pools}
        for kind, directions in drawn.items():
            for name, recall in directions.items():
                for k, values in recall.items():
                    flat[f"{kind}/{name}/R@{k}"] = float(values.mean())
                    flat[f"{kind}/{name}/R@{k}_std"] = float(values.std())
        ks = sorted({k for keyword in self.keywords.values() for k in keyword.precision})
        for k in ks:
            values = {finding: keyword.precision[k] for finding, keyword in self.keywords.items()}
            flat[f"keyword/P@{k}_mean"] = mean_of_defined(values.values())
            flat |= {f"keyword/P@{k}/{finding}": value for finding, value in values.items()}
        return flat

    def scored(self) -> dict[str, Scored]:
        """Whether each query has a hit: parts ``image_to_text``, ``text_to_image``, a task for each R@k."""
        parts = {}
        for name, direction in (("image_to_text", self.image_to_text), ("text_to_image", self.text_to_image)):
            tasks = {
                f"R@{k}": ValueTask(direction.rows, hits[None], f"R@{k}")
                for k, hits in direction.hits.items()
                if k <= direction.gallery
            }
            parts[name] = Scored(self.ids, self.patients, tasks)
        return parts

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

    def pool_table(self) -> Table | None:
        """Mean and spread over the repeats, by size and direction; None where none were requested."""
        if not self.pools:
            return None
        rows = tuple(
            (
                str(pools.size),
                name.replace("_", " "),
                str(pools.count),
                *(f"{number(x.mean())} ± {number(x.std())}" for x in recall.values()),
            )
            for pools in self.pools
            for name, recall in pools.recall.items()
        )
        ks = next(iter(self.pools[0].recall.values()))
        header = ("pairs", "direction", "pools", *(f"R@{k}" for k in ks))
        return Table("Retrieval in pools", header, rows, self.pool_conditions)

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
        tables = self.table(), self.subset_table(), self.pool_table(), self.keyword_table()
        return "\n\n".join(str(table) for table in tables if table)
