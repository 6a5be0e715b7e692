"""Run any set of evaluators on a split: in the training loop, from the command line, from Python."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medclip_jax.evaluation.embeddings import EmbeddedSplit, Embedder, Tokenizer, embed_split
from medclip_jax.evaluation.results import NotEvaluable, Result
from medclip_jax.evaluation.settings import GIVEN, check_evaluators
from medclip_jax.objectives.base import Objective
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
    objective: Objective,
    evaluators: Mapping[str, Mapping[str, Any]],
    *,
    shards: str | Path,
    split: str,
    tokenizer: Tokenizer | None,
    text_length: int,
    batch_size: int,
    progress: bool = True,
    between: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Score a model; `evaluate_all` returns the tables and intervals too.

    Args:
        objective: the model.
        evaluators: name to settings (a ConfigDict or a mapping). `kind` picks the evaluator and defaults to
            the name; the other settings are the keyword arguments of its function.
        shards: folder of prepared shards.
        split: e.g. "test" or "validation[:500]".
        tokenizer: that the model was trained with; None for an objective without text.
        text_length: tokens for each text.
        batch_size: volumes for each call of the model.
        progress: whether to draw a bar.
        between: called after every batch and evaluator; what it raises ends the evaluation.

    Returns:
        Stable keys ``<evaluator>/<metric>[/<finding>]`` to values, NaN where undefined. Empty for an
        objective without text, with the reason logged.

    Raises:
        ValueError: an unknown evaluator or setting, or an embedding that is not finite.
    """
    evaluation = evaluate_all(
        objective,
        evaluators,
        shards=shards,
        split=split,
        tokenizer=tokenizer,
        text_length=text_length,
        batch_size=batch_size,
        progress=progress,
        between=between,
    )
    for name, reason in evaluation.skipped.items():
        _log.warning("evaluator %s skipped: %s", name, reason)
    return evaluation.metrics()


def evaluate_all(
    objective: Objective,
    evaluators: Mapping[str, Mapping[str, Any]],
    *,
    shards: str | Path,
    split: str,
    tokenizer: Tokenizer | None,
    text_length: int,
    batch_size: int,
    progress: bool = True,
    between: Callable[[], None] = lambda: None,
    definitions: Findings | None = None,
) -> Evaluation:
    """Score a model and keep tables, intervals, scores and embeddings.

    Every volume and every distinct text is embedded once, whatever number of evaluators use it. Where the
    model lies on a mesh of several processes, all of them call this alike, and all get the same numbers.

    Args:
        objective: the model.
        evaluators: as in `evaluate`.
        shards: folder of prepared shards.
        split: e.g. "test".
        tokenizer: that the model was trained with.
        text_length: tokens for each text.
        batch_size: volumes for each call of the model.
        progress: whether to draw a bar.
        between: called after every batch and evaluator; what it raises ends the evaluation.
        definitions: findings with their prompts; None for those that the shards were prepared with.

    Returns:
        The evaluation.

    Raises:
        ValueError: as `evaluate`.
    """
    began = time.monotonic()
    plan = check_evaluators(evaluators)
    embedder = Embedder(
        objective,
        tokenizer,
        text_length=text_length,
        batch_size=batch_size,
        progress=progress,
        between=between,
    )
    try:
        # Before the volumes, which take the time: an objective without text ends here.
        embedder.texts(["There is a finding."])
    except NotEvaluable as reason:
        skipped = {name: str(reason) for name in plan}
        return Evaluation(split, 0, {}, skipped, None, time.monotonic() - began)

    embedded: dict[str, EmbeddedSplit] = {}

    def load_split(name: str) -> EmbeddedSplit:
        if name not in embedded:
            embedded[name] = open_and_embed(shards, name, embedder)
            if definitions is not None:
                embedded[name] = replace(embedded[name], definitions=definitions)
        return embedded[name]

    def open_records(fields: Sequence[str]) -> tuple[Sequence[Mapping[str, Any]], Sequence[str]]:
        from medclip_jax.shards.read import open_shards, open_split

        info = open_shards(shards)
        return open_split(info, split, fields=fields), info.organs

    given = dict(zip(GIVEN, (load_split, embedder, open_records), strict=True))
    data = load_split(split)
    results: dict[str, Result] = {}
    skipped = {}
    for name, (function, settings) in plan.items():
        wanted = inspect.signature(function).parameters
        try:
            results[name] = function(
                data, embedder.texts, **settings, **{key: x for key, x in given.items() if key in wanted}
            )
        except NotEvaluable as reason:
            skipped[name] = str(reason)
        between()
    return Evaluation(split, len(data.volumes), results, skipped, data, time.monotonic() - began)


def open_and_embed(shards: str | Path, split: str, embedder: Embedder) -> EmbeddedSplit:
    """Embed one split of prepared shards.

    Args:
        shards: folder of prepared shards.
        split: its name.
        embedder: of the model.

    Returns:
        The embedded split.

    Raises:
        medclip_jax.shards.record.ShardError: the folder, the split or a shard cannot be read.
    """
    # Imported here: a bare training machine has neither TFDS nor blosc2.
    from medclip_jax.shards.read import open_shards, open_split

    info = open_shards(shards)
    records = open_split(info, split, fields=[name for name in info.schema.arrays if name != "organs"])
    return embed_split(
        split,
        records,
        embedder,
        findings=info.findings,
        measurements=info.measurements,
        definitions=info.definitions,
    )
