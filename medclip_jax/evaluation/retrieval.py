"""Retrieval between volumes and reports, and of volumes by a keyword."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from medclip_jax.evaluation import ranking
from medclip_jax.evaluation.chosen_volumes import choose_volumes
from medclip_jax.evaluation.embeddings import TEXT_FIELDS, EmbeddedSplit, EncodeTexts
from medclip_jax.evaluation.means_alone import OF_MEANS, ranked_by
from medclip_jax.evaluation.results import NotEvaluable, chosen_findings, label_source, needs
from medclip_jax.evaluation.retrieval_result import Direction, Keyword, Pools, RetrievalResult, Subsets
from medclip_jax.evaluation.similarity import Embeddings, averaged, describe, similarity
from medclip_jax.reports import prompts

PAIRS = ("studies", "volumes")
"""What belongs together: all volumes and texts of a study, or each volume and its own text alone."""

DIRECTIONS = ("image_to_text", "text_to_image")


@needs("text")
def evaluate_retrieval(
    data: EmbeddedSplit,
    encode_texts: EncodeTexts,
    *,
    text: str = "report",
    volumes: str = "all",
    pairs: str = "studies",
    ks: Sequence[int] = (1, 5, 10, 50),
    subset: int = 100,
    subset_draws: int = 100,
    subset_ks: Sequence[int] = (1, 5, 10),
    pools: Sequence[int] = (),
    pool_repeats: int = 100,
    pool_ks: Sequence[int] = (1, 8),
    seed: int = 0,
    keyword_ks: Sequence[int] = (5, 10, 50),
    findings: Sequence[str] = (),
    labels: str = "labels",
    template: str = "there_is",
    ranking: str = "similarity",
    open_manifest: Callable[[], Mapping[str, Mapping[str, Any]]] | None = None,
) -> RetrievalResult:
    """Find the report of a volume, the volume of a report, and the volumes with a finding.

    With ``pairs="studies"`` the text gallery holds each text of each study once, however many
    reconstructions share it, and any item of the query's study is a hit. With ``pairs="volumes"`` each volume
    and its text are a pair of their own, as in CT-CLIP's evaluation: the reconstruction beside it is no hit.
    Volumes without text take no part in the two directions.

    Args:
        data: the split; it is the full pool.
        encode_texts: the model's text side.
        text: field of the records, one of `TEXT_FIELDS`.
        volumes: which of the split, see `choose_volumes`.
        pairs: one of `PAIRS`; subsets and pools are always of studies.
        ks: of R@k.
        subset: pairs of a subset: one volume and its text of each of so many studies; 0 for no subsets.
        subset_draws: how many subsets.
        subset_ks: of R@k in a subset.
        pools: sizes of pools that do not overlap: one volume and its text of each study, shuffled and cut
            into as many complete pools as there are; () for none.
        pool_repeats: how often they are shuffled.
        pool_ks: of R@k in a pool.
        seed: of the subsets and pools.
        keyword_ks: of P@k.
        findings: keywords; () for all columns of the shards, and none where no label is known.
        labels: "labels" for ground truth, "findings" for what the reports say.
        template: prompt wording; the query is its positive half.
        ranking: "similarity", or "means": Gaussians by their means alone, see `means_alone.ranked_by`.
        open_manifest: reads the manifest of the shards, which some choices of `volumes` need.

    Returns:
        The result.

    Raises:
        NotEvaluable: no volume has the text.
        ValueError: an unknown option, or a NaN embedding.
    """
    if text not in TEXT_FIELDS:
        raise ValueError(f"text={text!r}: use one of {', '.join(TEXT_FIELDS)}")
    if pairs not in PAIRS:
        raise ValueError(f"pairs={pairs!r}: use one of {', '.join(PAIRS)}")
    rows, taken = choose_volumes(data, volumes, open_manifest)
    data, encode_texts = ranked_by(ranking, data.take(rows), encode_texts)
    texts = data.texts.get(text, [""] * len(data.volumes))
    has_text = np.array([bool(entry.strip()) for entry in texts], bool)
    if not has_text.any():
        raise NotEvaluable(f"no record of split {data.name!r} has a {text!r}: set text to another field")
    embedded, studies = data.volumes[has_text], data.studies[has_text]
    said = np.array(texts, object)[has_text]
    groups = studies if pairs == "studies" else np.arange(len(studies))
    gallery = list(dict.fromkeys(zip(groups.tolist(), said, strict=True)))
    text_groups = np.array([group for group, _ in gallery], np.int64)
    similarity = _similarity(embedded, [entry for _, entry in gallery], encode_texts)
    ties = "ties count as their expectation: ranks and recall are those expected of a random order"
    conditions = {
        "n": f"{len(embedded)} volumes of {len(np.unique(studies))} studies, split {data.name!r}"
        + (f", {taken}" if volumes != "all" else "")
        + (f"; {int((~has_text).sum())} without text left out" if not has_text.all() else ""),
        "text": f"{text}, {len({entry for _, entry in gallery})} distinct",
        "prompts": "none, the texts themselves",
        "similarity": describe(data.volumes) + OF_MEANS[ranking],
        "pooling": data.pooling,
        "hit": (
            "any item of the same study" if pairs == "studies" else "the volume's own text, and the reverse"
        )
        + f"; {ties}",
        "threshold": "none needed",
    }
    keyword_conditions = {
        "n": f"{len(data.volumes)} volumes, split {data.name!r}; those with an unknown label left out",
        "labels": label_source(labels),
        "prompts": prompts.describe_prompts((), template, positive=True) + ", or a finding's own",
        "pooling": data.pooling,
        "hit": f"the volume has the finding; chance is their share; {ties}",
        "threshold": "none needed",
    }
    columns = {pair: column for column, pair in enumerate(gallery)}
    own = np.array([columns[pair] for pair in zip(groups.tolist(), said, strict=True)])
    # The volume that a text is of; of several with the same text, the first.
    first = np.unique(own, return_index=True)[1]
    count = len(np.unique(studies))
    subset_conditions = {
        "n": f"one volume and its text of each of {subset} studies, of {count} in split {data.name!r}"
        + (f": too few, set subset to at most {count}" if count < subset else ""),
        "draws": f"{subset_draws}, seed {seed}; mean ± standard deviation over them",
        "chance": f"k / {subset}; {ties}",
    }
    pool_conditions = {
        "n": f"one volume and its text of each of {count} studies in split {data.name!r}, shuffled and cut "
        "into pools; those that fill none are left out of the repeat",
        "repeats": f"{pool_repeats}, seed {seed}; mean ± standard deviation over them",
        "chance": f"k / pairs; {ties}",
    }
    return RetrievalResult(
        image_to_text=_direction(similarity, groups, text_groups, ks, np.arange(len(own))),
        text_to_image=_direction(similarity.T, text_groups, groups, ks, first),
        subsets=_subsets(similarity, own, studies, subset, subset_draws, subset_ks, seed) if subset else None,
        pools=_pools(similarity, own, studies, pools, pool_repeats, pool_ks, seed),
        keywords=_keywords(data, encode_texts, findings, labels, template, keyword_ks),
        conditions=conditions,
        subset_conditions=subset_conditions,
        pool_conditions=pool_conditions,
        keyword_conditions=keyword_conditions,
        ids=tuple(np.array(data.ids, object)[has_text]) if len(data.ids) else (),
        patients=data.patients[has_text],
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
    rows: Int64[np.ndarray, " Q"],
) -> Direction:
    hits = ranking.hits_at_k(similarity, query_studies, gallery_studies, ks)
    return Direction(
        queries=similarity.shape[0],
        gallery=similarity.shape[1],
        recall={k: float(np.mean(found)) for k, found in hits.items()},
        median_rank=ranking.median_rank(similarity, query_studies, gallery_studies),
        mean_rank=ranking.mean_rank(similarity, query_studies, gallery_studies),
        hits=hits,
        rows=rows,
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
    recall = {name: {k: np.full(draws, np.nan) for k in ks} for name in DIRECTIONS}
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


def _pools(
    similarity: Float[np.ndarray, "N T"],
    own: Int64[np.ndarray, " N"],
    studies: Int64[np.ndarray, " N"],
    sizes: Sequence[int],
    repeats: int,
    ks: Sequence[int],
    seed: int,
) -> tuple[Pools, ...]:
    """Column ``own[i]`` of `similarity` is the text of volume i."""
    if min(sizes, default=1) < 1 or repeats < 1 or min(ks, default=1) < 1:
        raise ValueError(f"pools={sizes}, pool_repeats={repeats}, pool_ks={ks}: none may be below 1")
    counts = {size: len(np.unique(studies)) // size for size in sizes}
    recall = {s: {name: {k: np.full(repeats, np.nan) for k in ks} for name in DIRECTIONS} for s in sizes}
    generator = np.random.default_rng(seed)
    for repeat in range(repeats if sizes else 0):
        shuffled = generator.permutation(len(studies))
        _, first = np.unique(studies[shuffled], return_index=True)
        rows = generator.permutation(shuffled[first])
        for size, count in counts.items():
            if not count:
                continue
            pools = rows[: count * size].reshape(count, size)
            squares = similarity[pools[:, :, None], own[pools][:, None, :]]
            for name, axis in (("image_to_text", 2), ("text_to_image", 1)):
                found = _recall_of_one(squares, axis, ks)
                for k in ks:
                    recall[size][name][k][repeat] = found[k] if k <= size else np.nan
    return tuple(Pools(size, counts[size], recall[size]) for size in sizes)


def _recall_of_one(
    squares: Float[np.ndarray, "pools size size"], axis: int, ks: Sequence[int]
) -> dict[int, float]:
    """R@k where the diagonal is the one hit: with t others tied with it, a place in the tie is 1 in t + 1."""
    ranking.refuse_nan(squares, "similarity")
    diagonal = np.diagonal(squares, axis1=1, axis2=2)
    match = np.expand_dims(diagonal, axis)
    above, tied = (squares > match).sum(axis=axis), (squares == match).sum(axis=axis)
    return {k: float(np.mean(np.clip((k - above) / tied, 0.0, 1.0))) for k in ks}


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
