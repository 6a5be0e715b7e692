"""Run any set of evaluators on a split: in the training loop, from the command line, from Python."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

import medclip_jax
from medclip_jax.evaluation.embedder import Embedder
from medclip_jax.evaluation.embeddings import DESCRIBES, TEXT_FIELDS, EmbeddedSplit, embed_split
from medclip_jax.evaluation.feature_cache import FeatureCache
from medclip_jax.evaluation.metrics import Interval
from medclip_jax.evaluation.random_init import draw_anew
from medclip_jax.evaluation.results import NotEvaluable, Result
from medclip_jax.evaluation.settings import GIVEN, check_evaluators
from medclip_jax.evaluation.volume_features import KINDS
from medclip_jax.fields import Layout, chosen_views, held_arrays
from medclip_jax.objectives.base import DataSpec, Objective
from medclip_jax.reports.definitions import Findings

if TYPE_CHECKING:
    from medclip_jax.evaluation.training_set import TrainingSet
    from medclip_jax.shards.read import PreparedInfo

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
        protocols: evaluator name to its protocol and what of it was changed, for those of a protocol.
        parts: of these seconds, those of each evaluator, with what it was the first to embed; "embedding" is
            that of the split.
    """

    split: str
    count: int
    results: Mapping[str, Result]
    skipped: Mapping[str, str]
    data: EmbeddedSplit | None
    seconds: float
    protocols: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """All numbers under stable keys: ``<evaluator>/<metric>/<finding>``."""
        return {
            f"{name}/{key}": value
            for name, result in self.results.items()
            for key, value in result.metrics().items()
        }

    def intervals(self) -> dict[str, Interval]:
        """Bootstrap intervals under the keys of `metrics`, of the evaluators that give them so."""
        return {
            f"{name}/{key}": interval
            for name, result in self.results.items()
            if hasattr(result, "all_intervals")
            for key, interval in result.all_intervals().items()
        }

    def __str__(self) -> str:
        parts = [
            f"{self.protocols[name]}\n{result}" if name in self.protocols else str(result)
            for name, result in self.results.items()
        ]
        parts += [f"{name}: skipped. {reason}" for name, reason in self.skipped.items()]
        return "\n\n".join(parts)


def evaluate(
    embedder: Embedder,
    evaluators: Mapping[str, Mapping[str, Any]],
    *,
    shards: str | Path | PreparedInfo,
    split: str,
) -> dict[str, float]:
    """Score a model; `evaluate_all` returns the tables and intervals too.

    Args:
        embedder: of the model.
        evaluators: name to settings (a ConfigDict or a mapping). `kind` picks the evaluator and defaults to
            the name; the other settings are the keyword arguments of its function.
        shards: folder of prepared shards, or what `shards.read.open_shards` returned.
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
    shards: str | Path | PreparedInfo,
    split: str,
    definitions: Findings | None = None,
    protocols: Mapping[str, str] | None = None,
    cache: FeatureCache | None = None,
    training_set: TrainingSet | None = None,
) -> Evaluation:
    """Score a model and keep tables, intervals, scores and embeddings.

    Every volume and every distinct text is embedded once, whatever number of evaluators use it. Where the
    model lies on a mesh of several processes, all of them call this alike, and all get the same numbers.

    Args:
        embedder: of the model. Its `between` is called after every evaluator, too.
        evaluators: as in `evaluate`.
        shards: folder of prepared shards, or what `shards.read.open_shards` returned.
        split: e.g. "test".
        definitions: findings with their prompts; None for those that the shards were prepared with.
        protocols: evaluator name to its protocol, from `presets.described`, which its conditions then state.
        cache: where features of volumes are kept, so that another evaluation need not embed them again; None
            for nowhere.
        training_set: another set that evaluators learn from and choose on; None for other splits of
            `shards`.

    Returns:
        The evaluation.

    Raises:
        ValueError: as `evaluate`.
    """
    began = time.monotonic()
    plan = check_evaluators(evaluators)
    skipped: dict[str, str] = {}
    wanted = {name: _needed(*entry) for name, entry in plan.items()}
    for name, needs in wanted.items():
        reasons = [embedder.lacks(need) for need in needs]
        if any(reasons):
            skipped[name] = "; ".join(filter(None, reasons))
    plan = {name: entry for name, entry in plan.items() if name not in skipped}
    if not plan:  # before the volumes, which take the time
        return Evaluation(split, 0, {}, skipped, None, time.monotonic() - began)

    kinds = tuple(one for one in KINDS if any(one in wanted[name] for name in plan))
    if cache is not None:  # it serves evaluators to come
        kinds = tuple(dict.fromkeys(("pooled", *kinds)))
    embedded: dict[str, EmbeddedSplit] = {}
    asked: list[str] = []

    def embedded_of(source: str | Path | PreparedInfo, name: str) -> EmbeddedSplit:
        found = open_and_embed(source, name, embedder, kinds=kinds, cache=cache)
        return found if definitions is None else replace(found, definitions=definitions)

    def load_split(name: str) -> EmbeddedSplit:
        asked.append(name)
        if name not in embedded:
            if training_set is None:
                embedded[name] = embedded_of(shards, name)
            else:
                found = embedded_of(training_set.info, name)
                embedded[name] = training_set.rename_learned(found, data)
        return embedded[name]

    random: list[Objective] = []

    def load_random(name: str, beginning: str) -> EmbeddedSplit:
        learned = shards if training_set is None else training_set.info
        if not random:
            random.append(draw_anew(embedder, learned, beginning))
        trained = embedder.objective
        embedder.update(random[0])
        try:
            if training_set is None:
                return embedded_of(shards, name)
            if name == data.name:
                return training_set.rename_scored(embedded_of(shards, split), _folder(shards))
            return training_set.rename_learned(embedded_of(learned, name), data)
        finally:
            embedder.update(trained)

    def open_records(arrays: Sequence[str]) -> tuple[Sequence[Mapping[str, Any]], Sequence[str]]:
        from medclip_jax.shards.read import open_shards, open_split

        info = open_shards(shards)
        return open_split(info, split, fields=arrays), info.organs

    def open_manifest() -> Mapping[str, Mapping[str, Any]]:
        from medclip_jax.shards.manifest import read_manifest
        from medclip_jax.shards.read import open_shards
        from medclip_jax.shards.record import ShardError

        try:
            return {str(line["id"]): line for line in read_manifest(open_shards(shards).folder)}
        except ShardError as error:
            raise NotEvaluable(str(error)) from None

    def open_label_maps() -> tuple[Sequence[Mapping[str, Any]], Sequence[str]]:
        from medclip_jax.shards.read import open_shards, open_split

        info = open_shards(shards)
        if not info.label_classes:
            raise NotEvaluable(
                "the shards hold no label maps: prepare a corpus that has them, or make them of organ masks "
                "with --label-maps organs"
            )
        return open_split(info, split, fields=("label_map",)), info.label_classes

    openers = open_records, open_manifest, open_label_maps
    results: dict[str, Result] = {}
    given = dict(zip(GIVEN, (load_split, load_random, embedder, *openers, results), strict=True))
    data = embedded_of(shards, split)
    if training_set is not None:
        data = training_set.rename_scored(data, _folder(shards))
    embedded[data.name] = data
    parts = {"embedding": time.monotonic() - began}
    # Those that look at the results of others run after them.
    for name in sorted(plan, key=lambda name: "results" in inspect.signature(plan[name][0]).parameters):
        function, settings = plan[name]
        wanted = inspect.signature(function).parameters
        asked.clear()
        started = time.monotonic()
        try:
            found = function(
                data, embedder.texts, **settings, **{key: x for key, x in given.items() if key in wanted}
            )
            stated = {"protocol": protocols[name]} if protocols and name in protocols else {}
            if training_set is not None and asked:
                stated["learned from"] = training_set.described(data)
            results[name] = _stating(found, stated) if stated else found
        except NotEvaluable as reason:
            skipped[name] = str(reason)
        parts[name] = time.monotonic() - started
        embedder.between()
    return Evaluation(
        split,
        len(data.volumes),
        results,
        skipped,
        data,
        time.monotonic() - began,
        {name: words for name, words in (protocols or {}).items() if name in results},
        parts,
    )


def _stating(result: Any, words: Mapping[str, str]) -> Any:
    """A result whose conditions, all of them, begin with these."""
    stated = {
        one.name: dict(words) | dict(getattr(result, one.name))
        for one in fields(result)
        if one.name == "conditions" or one.name.endswith("_conditions")
    }
    return replace(result, **stated)


def _folder(shards: str | Path | PreparedInfo) -> Path:
    return Path(shards) if isinstance(shards, str | Path) else Path(shards.folder)


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
    shards: str | Path | PreparedInfo,
    split: str,
    embedder: Embedder,
    *,
    kinds: Sequence[str] = (),
    cache: FeatureCache | None = None,
) -> EmbeddedSplit:
    """Embed one split of prepared shards.

    Args:
        shards: folder of prepared shards, or what `shards.read.open_shards` returned.
        split: its name.
        embedder: of the model.
        kinds: features of `Embedder.features` to keep beside the embeddings.
        cache: where features are kept; None to embed all volumes.

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
    kept_features = None
    if cache is not None:
        kept_features = partial(cache.features, _cache_key(embedder, layout, records, split, kinds))
    return embed_split(
        split,
        records,
        embedder,
        findings=info.findings,
        measurements=info.measurements,
        groups=info.groups,
        definitions=info.definitions,
        kinds=kinds,
        kept_features=kept_features,
        descriptions=open_split(
            info, split, fields=[name for name in (*DESCRIBES, *TEXT_FIELDS) if name in held]
        ),
    )


def _cache_key(
    embedder: Embedder, layout: Layout, records: Any, split: str, kinds: Sequence[str]
) -> dict[str, Any]:
    """All that the features of a split follow from: not what is known of its volumes."""

    def plain(config: Any) -> Any:
        return config.to_dict() if isinstance(config, ConfigDict) else config

    def without(given: dict[str, Any], *names: str) -> dict[str, Any]:
        return {name: value for name, value in given.items() if name not in names}

    return {
        "medclip": medclip_jax.__version__,
        "weights": embedder.weights_hash(),
        "objective": plain(embedder.objective_config) or type(embedder.objective).__qualname__,
        "spec": without(asdict(layout.spec), "findings"),
        "data": without(plain(layout.config), "tables", "subset"),
        "inputs": embedder.volume_inputs,
        "shards": records.records_fingerprint,
        "split": split,
        "kinds": kinds,
    }


def _needed(function: Callable[..., Result], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """What a model must be able to embed for an evaluator with these settings."""
    needs = getattr(function, "needs", ())
    return (*needs, "asap") if settings.get("features") == "asap" else needs
