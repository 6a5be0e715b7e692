"""Named protocols, read from `protocols.toml`: settings of evaluators, label sets, and published values."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from medclip_jax.evaluation.results import Table
from medclip_jax.reports.vocabulary import CT_RATE_COLUMNS

FILE = "protocols.toml"


@dataclass(frozen=True)
class LabelSet:
    """Which findings are scored, and by what.

    Attributes:
        name: of the set.
        about: one line.
        findings: in order.
        labels: finding to the columns that stand for it, where that is not the column of its own name.
        scores: finding to the findings whose prompts stand for it, where that is not itself alone.
        mapped: whether the column of a finding's own name stands for it where those of `labels` are not
            there, because the corpus is read so.
    """

    name: str
    about: str
    findings: tuple[str, ...]
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mapped: bool = False


@dataclass(frozen=True)
class Published:
    """A value of an article. It is never a result of this library.

    Attributes:
        model: whose.
        metric: which.
        value: as published.
        source: article and table.
        year: of the source.
        note: how its computation differs from the protocol's; "" where nothing is known to.
    """

    model: str
    metric: str
    value: str
    source: str
    year: int
    note: str = ""


@dataclass(frozen=True)
class Protocol:
    """A named way of evaluating.

    Attributes:
        name: such as "ct_rate/mean7".
        about: one line.
        split: of the archive, on which values were published; shards may name theirs otherwise.
        evaluators: name to settings, `kind` among them.
        published: values that stand beside the results.
    """

    name: str
    about: str
    split: str
    evaluators: Mapping[str, Mapping[str, Any]]
    published: tuple[Published, ...] = ()

    @property
    def plan(self) -> dict[str, dict[str, Any]]:
        """Its evaluators, under the names that results have: the protocol's, where there is one alone."""
        alone = len(self.evaluators) == 1
        return {
            self.name if alone else f"{self.name}/{name}": {"kind": settings.get("kind", name), **settings}
            for name, settings in self.evaluators.items()
        }


@cache
def _file() -> Mapping[str, Any]:
    return tomllib.loads((resources.files(__package__) / FILE).read_text(encoding="utf-8"))


@cache
def label_sets() -> Mapping[str, LabelSet]:
    """All label sets, by name."""
    found = {}
    for name, written in _file()["label_sets"].items():
        maps = {
            key: {finding: tuple(names) for finding, names in written.get(key, {}).items()}
            for key in ("labels", "scores")
        }
        found[name] = LabelSet(
            name, written["about"], tuple(written["findings"]), **maps, mapped=written.get("mapped", False)
        )
    return found


@cache
def name_tables() -> Mapping[str, Mapping[str, str]]:
    """What stands for X in prompts: name of the table to finding to text."""
    tables = {"ct_rate": {finding: title for title, finding in CT_RATE_COLUMNS.items()}}
    for name, written in _file()["names"].items():
        tables[name] = tables.get(written.get("base", ""), {}) | written["findings"]
    return tables


@cache
def protocols() -> Mapping[str, Protocol]:
    """All protocols, by name."""
    found = {}
    for name, written in _file()["protocols"].items():
        published = tuple(Published(**one) for one in written.get("published", ()))
        found[name] = Protocol(name, written["about"], written["split"], written["evaluators"], published)
    return found


def find_protocols(names: str | Sequence[str]) -> tuple[Protocol, ...]:
    """The protocols that are meant.

    Args:
        names: of protocols, or one text of them with commas between.

    Raises:
        ValueError: there is none of that name; the message names the nearest.
    """
    given = names.split(",") if isinstance(names, str) else names
    known, found = protocols(), []
    for name in dict.fromkeys(text.strip() for text in given if text.strip()):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            near = near or [full for full in known if full.endswith(f"/{name}")]
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"no protocol {name!r}.{hint} `medclip evaluate --protocol list` shows all")
        found.append(known[name])
    return tuple(found)


def plan_of(chosen: Iterable[Protocol]) -> dict[str, dict[str, Any]]:
    """The evaluators of several protocols together."""
    return {name: dict(settings) for protocol in chosen for name, settings in protocol.plan.items()}


def described(chosen: Iterable[Protocol], plan: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What each evaluator of a plan is called in results: its protocol, and what of it was changed.

    Args:
        chosen: protocols whose evaluators are in the plan.
        plan: evaluator to settings, as they are now.

    Returns:
        evaluator to a text such as "ct_rate/mean7" or "ct_rate/mean7, changed: threshold".
    """
    words = {}
    for protocol in chosen:
        for name, settings in protocol.plan.items():
            if name not in plan:
                continue
            now = plan[name]
            changed = [
                key for key in {**settings, **now} if _plain(settings.get(key)) != _plain(now.get(key))
            ]
            words[name] = protocol.name + (f", changed: {', '.join(changed)}" if changed else "")
    return words


def listing() -> str:
    """All protocols with a line each, and the label sets."""
    lines = ["protocols:"]
    width = max(map(len, [*protocols(), *label_sets()]))
    lines += [f"  {name:{width}}  {protocol.about}" for name, protocol in protocols().items()]
    lines += ["", "label sets (--set EVALUATOR.label_set=NAME):"]
    lines += [f"  {name:{width}}  {one.about}" for name, one in label_sets().items()]
    return "\n".join(lines)


def published_table(chosen: Iterable[Protocol]) -> Table | None:
    """The published values of some protocols; None where there are none."""
    rows = [
        (
            protocol.name,
            protocol.split,
            one.model,
            one.metric,
            one.value,
            f"{one.source}, {one.year}",
            one.note,
        )
        for protocol in chosen
        for one in protocol.published
    ]
    if not rows:
        return None
    header = ("protocol", "split", "model", "metric", "value", "source", "note")
    conditions = {"whose": "of the articles named, computed by their authors: none is a result of yours"}
    return Table("Published values", header, tuple(rows), conditions)


def _plain(value: Any) -> Any:
    """A setting as it compares: lists and tuples alike."""
    return tuple(value) if isinstance(value, list | tuple) else value
