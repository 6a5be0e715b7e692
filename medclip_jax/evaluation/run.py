"""Run any set of evaluators on a split: in the training loop, from the command line, from Python."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import DESCRIBES, TEXT_FIELDS, EmbeddedSplit, embed_split
from medclip_jax.evaluation.random_init import draw_anew
from medclip_jax.evaluation.results import NotEvaluable, Result
from medclip_jax.evaluation.settings import GIVEN, check_evaluators
from medclip_jax.fields import Layout, chosen_views, held_arrays
from medclip_jax.objectives.base import DataSpec, Objective
from medclip_jax.reports.definitions import Findings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Everything that came out of one split.

    Attributes:
        split: its name.
        count: number of volumes.
        results: evaluator name to result.
        skipped: evaluator name to the reason why it did not run.
        data: the embedded split; None when every evaluator was skipped before the volumes were embedded.
        seconds: wall time, compilation included.
    """

    split: str
    count: int
    results: Mapping[str, Result]
    skipped: Mapping[str, str]
    data: EmbeddedSplit | None
    seconds: float

    def metrics(self) -> dict[str, float]:
        """All numbers under stable keys: ``<evaluator>/<metric>/<finding>``."""
        return {
            f"{name}/{key}": value
            for name, result in self.results.items()
            for key, value in result.metrics().items()
        }

    def __str__(self) -> str:
        parts = [str(result) for result in self.results.values()]
        parts += [f"{name}: skipped. {reason}" for name, reason in self.skipped.items()]
        return "\n\n".join(parts)


def evaluate(
    embedder: Embedder,
    evaluators: Mapping[str, Mapping[str, Any]],
    *,
    shards: str | Path,
    split: str,
) -> dict[str, float]:
    """Score a model; `evaluate_all` returns the tables and intervals too.

    Args:
        embedder: of the model.
        evaluators: name to settings (a ConfigDict or a mapping). `kind` picks the evaluator and defaults to
            the name; the other settings are the keyword arguments of its function.
        shards: folder of prepared shards.
        split: e.g. "test" or "validation[:500]".

    Returns:
        Stable keys ``<evaluator>/<metric>[/<finding>]`` to values, NaN where undefined; of those evaluators
        that could run, the others' reasons are logged.

    Raises:
        ValueError: an unknown evaluator or setting, shards that lack what the model embeds, or an embedding
            that is not finite.
    """
    evaluation = evaluate_all(embedder, evaluators, shards=shards, split=split)
    for name, reason in evaluation.skipped.items():
        _log.warning("evaluator %s skipped: %s", name, reason)
    return evaluation.metrics()


def evaluate_all(
    embedder: Embedder,
    evaluators: Mapping[str, Mapping[str, Any]],
    *,
    shards: str | Path,
    split: str,
    definitions: Findings | None = None,
) -> Evaluation:
    """Score a model and keep tables, intervals, scores and embeddings.

    Every volume and every distinct text is embedded once, whatever number of evaluators use it. Where the
    model lies on a mesh of several processes, all of them call this alike, and all get the same numbers.

    Args:
        embedder: of the model. Its `between` is called after every evaluator, too.
        evaluators: as in `evaluate`.
        shards: folder of prepared shards.
        split: e.g. "test".
        definitions: findings with their prompts; None for those that the shards were prepared with.

    Returns:
        The evaluation.

    Raises:
        ValueError: as `evaluate`.
    """
    began = time.monotonic()
    plan = check_evaluators(evaluators)
    skipped: dict[str, str] = {}
    for name, (function, _) in plan.items():
        reasons = [embedder.lacks(need) for need in getattr(function, "needs", ())]
        if any(reasons):
            skipped[name] = "; ".join(filter(None, reasons))
    plan = {name: entry for name, entry in plan.items() if name not in skipped}
    if not plan:  # before the volumes, which take the time
        return Evaluation(split, 0, {}, skipped, None, time.monotonic() - began)

    pooled = any("pooled" in getattr(function, "needs", ()) for function, _ in plan.values())
    embedded: dict[str, EmbeddedSplit] = {}

    def load_split(name: str) -> EmbeddedSplit:
        if name not in embedded:
            embedded[name] = open_and_embed(shards, name, embedder, pooled=pooled)
            if definitions is not None:
                embedded[name] = replace(embedded[name], definitions=definitions)
        return embedded[name]

    random: list[Objective] = []

    def load_random(name: str, beginning: str) -> EmbeddedSplit:
        if not random:
            random.append(draw_anew(embedder, shards, beginning))
        trained = embedder.objective
        embedder.update(random[0])
        try:
            return open_and_embed(shards, name, embedder, pooled=True)
        finally:
            embedder.update(trained)

    def open_records(arrays: Sequence[str]) -> tuple[Sequence[Mapping[str, Any]], Sequence[str]]:
        from medclip_jax.shards.read import open_shards, open_split

        info = open_shards(shards)
        return open_split(info, split, fields=arrays), info.organs

    given = dict(zip(GIVEN, (load_split, load_random, embedder, open_records), strict=True))
    data = load_split(split)
    results: dict[str, Result] = {}
    for name, (function, settings) in plan.items():
        wanted = inspect.signature(function).parameters
        try:
            results[name] = function(
                data, embedder.texts, **settings, **{key: x for key, x in given.items() if key in wanted}
            )
        except NotEvaluable as reason:
            skipped[name] = str(reason)
        embedder.between()
    return Evaluation(split, len(data.volumes), results, skipped, data, time.monotonic() - began)


def _layout(embedder: Embedder, info: Any, held: Sequence[str]) -> Layout:
    """What is read of the records: of frames, the series that the model looks at, as far as there are any.

    Raises:
        ValueError: the shards lack what the model embeds.
    """
    spec, config = DataSpec.of(info, embedder.tokenizer), embedder.layout.config
    if looked_at := chosen_views(embedder.layout.spec, config):
        # It does without the others, as it does with studies that lack one.
        shared = tuple(name for name in looked_at if name in spec.views)
        if not shared:
            raise ValueError(
                f"'{info.folder}' holds none of the series that the model looks at ({', '.join(looked_at)}); "
                f"it has {', '.join(spec.views) or 'no series of frames'}: prepare with their names"
            )
        spec, config = replace(spec, views=shared), ConfigDict({**config.to_dict(), "views": ()})
    return Layout(embedder.volume_inputs, spec, config, arrays=held)


def open_and_embed(
    shards: str | Path, split: str, embedder: Embedder, *, pooled: bool = False
) -> EmbeddedSplit:
    """Embed one split of prepared shards.

    Args:
        shards: folder of prepared shards.
        split: its name.
        embedder: of the model.
        pooled: whether to keep what the volume tower pools, too.

    Returns:
        The embedded split.

    Raises:
        NotEvaluable: there is no such split.
        medclip_jax.shards.record.ShardError: the folder or a shard cannot be read.
        ValueError: the shards lack what the model embeds.
    """
    # Imported here: a bare training machine has neither TFDS nor blosc2.
    from medclip_jax.shards.read import check_split, open_shards, open_split

    info = open_shards(shards)
    try:
        check_split(info, split)
    except ValueError as error:
        raise NotEvaluable(str(error)) from None
    held = held_arrays(info)
    layout = _layout(embedder, info, held)
    wanted = dict.fromkeys((*layout.reads, *DESCRIBES, *TEXT_FIELDS))
    records = open_split(info, split, fields=[name for name in wanted if name in held])
    return embed_split(
        split,
        records,
        embedder,
        findings=info.findings,
        measurements=info.measurements,
        definitions=info.definitions,
        pooled=pooled,
    )
