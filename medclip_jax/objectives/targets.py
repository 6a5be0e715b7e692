"""What a supervised system is to predict: findings, classes, grades, or the time to an event."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from medclip_jax.losses import supervised, survival
from medclip_jax.objectives.base import Batch, DataSpec

TASKS = ("multi_label", "multi_class", "ordinal", "hazards", "cox")
"""Tasks; the last two are of the time to an event."""

_TIMED = ("hazards", "cox")

SOURCES = ("labels", "findings")
"""Ground truth, and what the reports say."""

Columns = Mapping[str, np.ndarray]
"""Name to (N,) numbers."""


def target_defaults() -> dict[str, Any]:
    """Keys of `config.objective.target`."""
    return {
        # "multi_label": findings, each there or not. "multi_class": findings that exclude one another, or
        # grades of a measurement, each by itself. "ordinal": grades of a measurement, in their order.
        # "hazards": the probability of an event by each horizon. "cox": its logarithmic hazard.
        "task": "multi_label",
        "labels": "labels",  # of findings: "labels", the ground truth, or "findings", what reports say
        "findings": (),  # by name; () = all of the shards, for "multi_label" alone
        "measurement": "",  # whose grades are told
        "edges": (),  # where the grades 1, 2, ... begin, in the measurement's unit: (1, 100, 400, 1000)
        "time": "",  # the measurement of "hazards" and "cox" that says when the event came, or the last look
        "event": "",  # and the one that says whether it came: 1, or 0 for a last look without it
        "horizons": (),  # for "hazards", in the unit of the time: (1, 6, 12)
        "form": "hazards",  # or "released", see `losses.survival.discrete_hazards`
        "ties": "efron",  # or "breslow", of events at the same time, see `losses.survival.cox`
    }


@dataclass(frozen=True)
class Target:
    """What is predicted. See `make_target`.

    Attributes:
        task: one of `TASKS`.
        outputs: names of what is predicted.
        field: the batch field that tells the truth.
        columns: places of what counts in that field.
        names: of these columns.
        edges: where grades 1, 2, ... of the measurement begin, or the horizons of hazards; () for others.
        option: form of "hazards", ties of "cox".
    """

    task: str
    outputs: tuple[str, ...]
    field: str
    columns: tuple[int, ...]
    names: tuple[str, ...]
    edges: tuple[float, ...] = ()
    option: str = ""

    @property
    def scores(self) -> int:
        """Numbers that a head gives: grades in their order come of a single one."""
        return 1 if self.task == "ordinal" else len(self.outputs)

    @property
    def outcome(self) -> tuple[str, ...]:
        """See `Objective.outcome`."""
        return self.names if self.task in _TIMED else ()

    def loss(self, logits: Float[Array, "B K"], batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Sum of the loss over what is known of a batch, and the count it is divided by.

        Args:
            logits: (B, K), one for each of `outputs`.
            batch: with `field`.
        """
        known = batch[self.field][:, jnp.asarray(self.columns)]
        if self.task == "multi_label":
            return supervised.multi_label(logits, known)
        if self.task == "hazards":
            return survival.discrete_hazards(logits, *known.T, self.edges, form=self.option)
        if self.task == "cox":
            return survival.cox(logits[:, 0], *known.T, ties=self.option)
        answer = self._grade(known[:, 0], jnp) if self.edges else _only_one(known, jnp)
        loss = supervised.ordinal if self.task == "ordinal" else supervised.multi_class
        return loss(logits, answer)

    def probabilities(self, logits: Float[Array, "B K"]) -> Float[Array, "B K"]:
        """(B, K) of each of `outputs`; of "cox" the logarithmic hazard itself."""
        if self.task == "hazards":
            return -jnp.expm1(-survival.cumulative_hazards(logits))
        if self.task == "cox":
            return logits
        if self.task == "multi_class":
            return jax.nn.softmax(logits, axis=1)
        return jax.nn.sigmoid(logits)

    def truths(
        self, labels: Columns, reported: Columns, measurements: Columns
    ) -> dict[str, Int8[np.ndarray, " N"]]:
        """See `Objective.truths`."""
        source = {"labels": labels, "findings": reported, "measurements": measurements}[self.field]
        if any(name not in source for name in self.names):
            return {}
        if self.task in _TIMED:
            return self._by_horizons(*(np.asarray(source[name], np.float64) for name in self.names))
        found = np.stack([source[name] for name in self.names], axis=1)
        if self.task == "multi_label":
            return dict(zip(self.outputs, found.T.astype(np.int8), strict=True))
        answer = self._grade(found[:, 0], np) if self.edges else _only_one(found, np)
        first = 1 if self.task == "ordinal" else 0
        truths = {}
        for place, name in enumerate(self.outputs, first):
            holds = answer >= place if self.task == "ordinal" else answer == place
            truths[name] = np.where(answer < 0, 0, np.where(holds, 1, -1)).astype(np.int8)
        return truths

    def describe(self) -> str:
        """In words, for tables and cards."""
        what = {
            "multi_label": "findings, each there or not",
            "multi_class": "classes that exclude one another",
            "ordinal": "ordered grades",
            "hazards": "probability of an event by horizons",
            "cox": "logarithmic hazard of an event",
        }[self.task]
        where = {"labels": "ground truth", "findings": "what reports say", "measurements": "measurements"}
        return f"{what}, from {where[self.field]}"

    def _by_horizons(self, time: np.ndarray, event: np.ndarray) -> dict[str, np.ndarray]:
        """Whether the event came by each horizon; unknown where the last look was before it."""
        truths = {}
        for name, horizon in zip(self.outputs, self.edges, strict=False):  # "cox" has none
            horizon = np.float32(horizon)  # as times are
            came = (event == 1) & (time <= horizon)
            without = np.where(event == 1, time > horizon, (event == 0) & (time >= horizon))
            truths[name] = np.where(came, 1, np.where(without, -1, 0)).astype(np.int8)
        return truths

    def _grade(self, measured: Any, numpy: Any) -> Any:
        """Grade of each number, from 0; -1 where it is unknown. For host and device alike."""
        # float32 on both sides: 0.1 is then as much as the record's 0.1.
        edges = numpy.asarray(np.asarray(self.edges, np.float32))
        grades = (measured[:, None] >= edges).sum(axis=1)
        return numpy.where(numpy.isnan(measured), -1, grades)


def _only_one(known: Any, numpy: Any) -> Any:
    """The one that is present of each row; -1 where none is, or several are. For host and device alike."""
    present = known > 0
    return numpy.where(present.sum(axis=1) == 1, present.argmax(axis=1), -1)


def make_target(config: Any, spec: DataSpec) -> Target:
    """The target of a run.

    Args:
        config: `config.objective.target`.
        spec: whose findings and measurements there are.

    Raises:
        ValueError: an unknown task, settings that do not go with it, or data that lack what it names; the
            message says what to do.
    """
    _check_choice("task", config.task, TASKS)
    _check_choice("labels", config.labels, SOURCES)
    edges = tuple(float(edge) for edge in config.edges)
    where = "config.objective.target"
    if config.task in _TIMED:
        return _timed_target(config, spec)
    if config.measurement:
        if config.task == "multi_label":
            raise ValueError(f"{where}.measurement is for tasks 'multi_class' and 'ordinal': leave it ''")
        if config.findings:
            raise ValueError(f"{where} names findings and a measurement: leave one of them empty")
        if not edges or any(low >= high for low, high in itertools.pairwise(edges)):
            raise ValueError(
                f"{where}.edges={edges}: give where the grades 1, 2, ... of {config.measurement!r} begin, "
                "from low to high, such as (1, 100, 400, 1000)"
            )
        place = _place(config.measurement, spec.measurements, f"{where}.measurement", "measurements")
        reached = tuple(f"{config.measurement}_from_{edge:g}" for edge in edges)
        if config.task == "ordinal":
            outputs = reached
        else:
            between = (f"{config.measurement}_{low:g}_to_{high:g}" for low, high in itertools.pairwise(edges))
            outputs = (f"{config.measurement}_below_{edges[0]:g}", *between, reached[-1])
        return Target(config.task, outputs, "measurements", (place,), (config.measurement,), edges)
    if edges or config.task == "ordinal":
        raise ValueError(f"{where}.measurement is empty: name the one whose grades are told")
    names = tuple(config.findings)
    if config.task == "multi_class" and len(names) < 2:
        raise ValueError(f"{where}.findings={names}: name two or more that exclude one another")
    names = names or tuple(spec.findings)
    if not names:
        raise ValueError(f"{where}.findings is (), and the shards hold none: prepare with --findings")
    places = tuple(_place(name, spec.findings, f"{where}.findings", "findings") for name in names)
    return Target(config.task, names, config.labels, places, names)


def _timed_target(config: Any, spec: DataSpec) -> Target:
    where = "config.objective.target"
    if config.findings or config.measurement or config.edges:
        raise ValueError(
            f"{where}: task {config.task!r} takes time and event alone: leave findings, measurement and "
            "edges empty"
        )
    names = config.time, config.event
    if not all(names):
        raise ValueError(f"{where}.time and .event: name the measurements of when and whether the event came")
    fields = ("time", "event")
    places = tuple(
        _place(name, spec.measurements, f"{where}.{field}", "measurements")
        for field, name in zip(fields, names, strict=True)
    )
    horizons = tuple(float(horizon) for horizon in config.horizons)
    if config.task == "cox":
        if horizons:
            raise ValueError(f"{where}.horizons are for task 'hazards': leave them ()")
        _check_choice("ties", config.ties, survival.TIES)
        return Target("cox", (f"{config.event}_log_hazard",), "measurements", places, names, (), config.ties)
    _check_choice("form", config.form, survival.FORMS)
    if not horizons or any(low >= high for low, high in itertools.pairwise((0.0, *horizons))):
        raise ValueError(
            f"{where}.horizons={horizons}: give times above 0, from early to late, such as (1, 6, 12)"
        )
    outputs = tuple(f"{config.event}_by_{horizon:g}" for horizon in horizons)
    return Target("hazards", outputs, "measurements", places, names, horizons, config.form)


def target_fields(config: Any) -> tuple[str, ...]:
    """Batch fields that a target reads.

    Args:
        config: `config.objective.target`.
    """
    timed = config.task in _TIMED
    return ("measurements",) if timed or config.measurement else (config.labels,)


def _place(name: str, names: Sequence[str], where: str, what: str) -> int:
    if name not in names:
        have = ", ".join(names) or "none"
        raise ValueError(f"{where} names {name!r}; the {what} of the shards are: {have}")
    return names.index(name)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"config.objective.target.{name}={value!r}: use one of {', '.join(choices)}")
