"""Embedding many scans: decoded by worker processes ahead of the device, damaged ones set aside."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from medclip_jax.evaluation.embedder import VolumeInputs
from medclip_jax.evaluation.similarity import Embeddings, Gaussians, means
from medclip_jax.inference.arguments import Center
from medclip_jax.inference.model import Model
from medclip_jax.inference.preparation import Preparation, Prepared
from medclip_jax.inference.scans import Entry
from medclip_jax.inference.studies import PreparedStudy, StudyPreparation
from medclip_jax.inference.table import Failure, Row
from medclip_jax.pool import map_in_order
from medclip_jax.volumes import VolumeRejected

_FEW = 8
"""So many scans are prepared in this process: starting others would take longer."""


class _Reason(NamedTuple):
    """Why a scan cannot be used. A `VolumeRejected` cannot travel between processes."""

    code: str
    text: str


def embed_scans(
    model: Model,
    entries: Sequence[Entry],
    todo: Iterable[int],
    *,
    center: Center = None,
    kernel: str | None = None,
    rule: str = "best",
    workers: int = 1,
) -> Iterator[Row | Failure]:
    """Embed scans, each of which ends as a vector or as a reason.

    A scan has its row in a batch by its place in `entries`, whatever else is embedded or fails: so its vector
    is the same to the bit, on one kind of device and with one batch size, in whichever run it is made.

    Args:
        model: a trained model.
        entries: all scans.
        todo: ascending indices of those to embed.
        center: for those that have none of their own.
        kernel: of DICOM series, as for `volumes.read_volume`.
        rule: which of several series in a folder of a list, as for `volumes.read_volume`.
        workers: processes that read and decode. A file that kills its process is a `Failure`; with 1, or for
            a few scans, this process does the work, and such a file ends it.

    Yields:
        One for each index of `todo`, in order.
    """
    todo = list(todo)
    size = model.embedder.batch_size
    outcomes = map_in_order(
        partial(_attempt, preparation=model.preparation),
        [
            (entry.path, entry.center or center, entry.series, kernel, rule)
            for entry in map(entries.__getitem__, todo)
        ],
        workers if len(todo) > _FEW else 1,
        _died,
    )
    waiting: deque[list[tuple[int, _Outcome]]] = deque()
    found: list[tuple[int, _Outcome]] = []

    def batches() -> Iterator[VolumeInputs]:
        nonlocal found
        for _, members in groupby(todo, key=lambda index: index // size):
            given = [(index, next(outcomes)) for index in members]
            found += given
            rows = {index % size: one.inputs for index, one in given if not isinstance(one, _Reason)}
            if rows:  # else what failed goes along with the next batch
                waiting.append(found)
                found = []
                # Rows of nothing repeat one that is there: no row depends on the others.
                filler = next(iter(rows.values()))
                yield {
                    name: np.stack([rows.get(place, filler)[name] for place in range(size)])
                    for name in filler
                }

    try:
        for vectors in model.embedder.stream(batches()):
            for index, outcome in waiting.popleft():
                if isinstance(outcome, _Reason):
                    yield Failure(entries[index], outcome.code, outcome.text)
                else:
                    yield _row(entries[index], vectors[index % size], outcome.notes)
        for index, outcome in found:
            yield Failure(entries[index], outcome.code, outcome.text)
    finally:
        outcomes.close()


def describe_origin(
    model: Model, center: Center = None, kernel: str | None = None, rule: str = "best"
) -> dict[str, Any]:
    """What vectors depend on besides the scan: weights, architecture, preparation.

    Args:
        model: a trained model.
        center: for scans that have none of their own.
        kernel: of DICOM series, where one was requested.
        rule: by which one of several DICOM series is taken.

    Returns:
        JSON, without any path.
    """
    digest = hashlib.sha256(json.dumps(_without_folders(model.config["objective"]), sort_keys=True).encode())
    state = nnx.to_pure_dict(nnx.split(model.objective)[1])
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        value = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return {
        "model": digest.hexdigest(),
        "objective": model.config["objective"]["name"],
        "shape": list(model.spec.shape),
        "spacing": list(model.spec.spacing),
        "crop": model.crop,
        "modality": model.modality,
        **_frames_of(model),
        **({} if model.percentiles is None else {"percentiles": list(model.percentiles)}),
        "center": None if center is None else [float(number) for number in center],
        # Not where they are as they always were, so that older files are known again.
        **({} if kernel is None else {"kernel": kernel}),
        **({} if rule == "best" else {"series rule": rule}),
    }


_Task = tuple[Any, Center, str | None, str | None, str]
"""Path, center, series, kernel, rule."""

_Outcome = Prepared | PreparedStudy | _Reason


def _attempt(task: _Task, preparation: Preparation | StudyPreparation) -> _Outcome:
    path, center, series, kernel, rule = task
    try:
        return preparation.read(path, center, series=series, kernel=kernel, rule=rule)
    except VolumeRejected as rejection:
        return _Reason(rejection.code, str(rejection))


def _frames_of(model: Model) -> dict[str, Any]:
    """What vectors of studies depend on besides; {} for models that read scans."""
    if not model.reads_studies:
        return {}
    data = model.config["data"]
    return {
        "series": [series.to_json() for series in model.series],
        "frames": [data["frames"], list(data["views"])],
    }


def _row(entry: Entry, embedding: Embeddings, notes: tuple[str, ...]) -> Row:
    uncertainty = float(embedding.trace) if isinstance(embedding, Gaussians) else None
    return Row(entry, means(embedding), notes, uncertainty)


def _died(task: _Task) -> _Reason:
    return _Reason(
        "reader-died",
        "The process that read this file was killed, by a crash of the decoder or for want of memory: "
        "convert the file again, or embed with fewer --workers.",
    )


def _without_folders(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_folders(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in ("folder", "weights")
    }
