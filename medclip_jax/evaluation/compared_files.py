"""Files of `medclip evaluate --json`, compared on the volumes that all of them have."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from medclip_jax.evaluation.paired import Pair
from medclip_jax.evaluation.results import FEWEST, is_enough
from medclip_jax.evaluation.scored import FindingTask, Scored, ScoredTask, SurvivalTask, from_json


@dataclass(frozen=True)
class ResultFile:
    """What a comparison needs of a file.

    Attributes:
        path: of the file.
        split: that was scored.
        scores: evaluator, or part of one, to the scores of its volumes.
        conditions: evaluator to its conditions.
    """

    path: Path
    split: str
    scores: Mapping[str, Scored]
    conditions: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class System:
    """What is compared: a file, or the files of several runs.

    Attributes:
        name: of tables and pictures.
        files: of its runs, in the order given.
    """

    name: str
    files: tuple[ResultFile, ...]


@dataclass(frozen=True)
class Matched:
    """Scores of all systems on the volumes that they share.

    Attributes:
        tasks: name to the runs of each system, which all have the same rows and the same truth.
        patients: (N,) of the shared volumes.
        words: how many there are, and what does not go together.
    """

    tasks: Mapping[str, tuple[tuple[ScoredTask, ...], ...]]
    patients: Int64[np.ndarray, " N"]
    words: Mapping[str, str]

    def pairs(self, names: Sequence[str], first: int, second: int) -> dict[str, Pair]:
        """Two systems' scores.

        Args:
            names: of tasks.
            first: place of a system.
            second: of another.
        """
        return {name: Pair(self.tasks[name][first], self.tasks[name][second]) for name in names}

    @property
    def shown(self) -> tuple[str, ...]:
        """The tasks with enough volumes, and of findings enough of both kinds."""
        return tuple(name for name, sides in self.tasks.items() if has_enough(sides[0][0]))


def has_enough(task: ScoredTask) -> bool:
    """Whether a task has volumes enough for its scores to be shown.

    Args:
        task: of any kind.
    """
    if isinstance(task, FindingTask):
        return is_enough(int(task.labels.sum()), int((~task.labels).sum()))
    if isinstance(task, SurvivalTask):
        return int(task.events.sum()) >= FEWEST
    return len(task.rows) >= FEWEST


def read_result(path: str | os.PathLike) -> ResultFile:
    """Read a file of `medclip evaluate --json`.

    Args:
        path: of the file.

    Raises:
        ValueError: it is something else, or holds no scores of volumes.
        OSError: it cannot be read.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
        scores = {name: from_json(one) for name, one in content.get("scores", {}).items()}
        found = ResultFile(path, str(content["split"]), scores, dict(content["conditions"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"'{path}' is no file of `medclip evaluate --json` ({type(error).__name__}: {error})"
        ) from None
    if not scores:
        raise ValueError(
            f"'{path}' holds no scores of volumes: run `medclip evaluate` again with --json, with an "
            "evaluator that has some, such as zero_shot, probe or mlp_probe"
        )
    return found


def read_systems(files: Sequence[str], groups: Sequence[str]) -> tuple[System, ...]:
    """The systems of a command line.

    Args:
        files: paths, each a system of its own with the name of its file.
        groups: texts "NAME=a.json,b.json": runs of one system.

    Raises:
        ValueError: a group is written otherwise, two systems go by one name, or there are fewer than two.
        OSError: a file cannot be read.
    """
    stems = [Path(path).stem for path in files]
    systems = []
    for place, (stem, path) in enumerate(zip(stems, files, strict=True), 1):
        # By their paths where their names do not tell them apart, and one file twice by its place.
        name = stem if stems.count(stem) == 1 else path if files.count(path) == 1 else f"{path} ({place})"
        systems.append(System(name, (read_result(path),)))
    for text in groups:
        name, _, paths = text.partition("=")
        chosen = [path.strip() for path in paths.split(",") if path.strip()]
        if not name or not chosen:
            raise ValueError(f"--group {text}: write NAME=a.json,b.json,c.json, the runs of one system")
        if len({Path(path).resolve() for path in chosen}) < len(chosen):
            raise ValueError(f"--group {text}: it names a file twice; each is a run of its own")
        systems.append(System(name.strip(), tuple(read_result(path) for path in chosen)))
    names = [system.name for system in systems]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two systems are called {', '.join(sorted(twice))}: give each --group another name")
    if len(systems) < 2:
        raise ValueError("two systems are compared, or more: name their files, or runs of one with --group")
    return tuple(systems)


def shared_evaluators(systems: Sequence[System], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Which evaluators of the systems are compared with each other.

    Args:
        systems: all.
        names: one name for all, or one for each; () for all that all have.

    Returns:
        For each comparison a name for each system.

    Raises:
        ValueError: a file has no evaluator of that name, or they share none.
    """
    if len(names) not in (0, 1, len(systems)):
        raise ValueError(
            f"--evaluator takes one name, or one for each of the {len(systems)} systems: not {len(names)}"
        )
    if names:
        chosen = tuple(names) if len(names) > 1 else tuple(names) * len(systems)
        for name, system in zip(chosen, systems, strict=True):
            for file in system.files:
                if name not in file.scores:
                    raise ValueError(
                        f"'{file.path}' has no scores of {name!r}; it has {', '.join(file.scores)}"
                    )
        return [chosen]
    files = [file for system in systems for file in system.files]
    shared = [name for name in files[0].scores if all(name in file.scores for file in files)]
    if not shared:
        have = "; ".join(f"'{file.path}' has {', '.join(file.scores)}" for file in files)
        raise ValueError(f"the files share no evaluator: {have}. Name one of each with --evaluator")
    return [(name,) * len(systems) for name in shared]


def match(systems: Sequence[System], evaluators: Sequence[str]) -> Matched:
    """Bring the scores of all files together by the hashed ids of their volumes.

    Args:
        systems: all.
        evaluators: the name of the evaluator of each.

    Raises:
        ValueError: they share no volume or no task, or disagree on a label.
    """
    sides = [
        [file.scores[name] for file in system.files] for system, name in zip(systems, evaluators, strict=True)
    ]
    every = [one for side in sides for one in side]
    places = [{name: place for place, name in enumerate(one.ids)} for one in every]
    ids = [name for name in every[0].ids if all(name in known for known in places)]
    if not ids:
        counts = ", ".join(str(len(one.ids)) for one in every)
        raise ValueError(
            f"the files share no volume ({counts}): all must be of the same prepared shards, or of shards "
            "prepared with the same key"
        )
    patients = every[0].patients[[places[0][name] for name in ids]]
    words = {"n": f"{len(ids)} volumes of {len(np.unique(patients))} patients"}
    files = [file for system in systems for file in system.files]
    left = {
        file.path: len(one.ids) - len(ids)
        for file, one in zip(files, every, strict=True)
        if len(one.ids) > len(ids)
    }
    if left:
        counts = ", ".join(f"{count} volumes of '{path}'" for path, count in left.items())
        words["left out"] = f"{counts}, which not all files have"
    shared = [name for name in every[0].tasks if all(name in one.tasks for one in every)]
    if not shared:
        raise ValueError("the files share no finding, and no other task")
    alone = sorted({name for one in every for name in one.tasks} - set(shared))
    if alone:
        words["not in all files"] = ", ".join(alone)
    tasks, disagreeing = {}, {}
    for name in shared:
        aligned, wrong = _aligned(
            [_on(one.tasks[name], known, ids) for one, known in zip(every, places, strict=True)]
        )
        if wrong:
            disagreeing[name] = wrong
        given = iter(aligned)
        tasks[name] = tuple(tuple(next(given) for _ in side) for side in sides)
    if disagreeing:
        counts = ", ".join(f"{name} ({count} volumes)" for name, count in disagreeing.items())
        raise ValueError(
            f"the files disagree on labels: {counts}. Compare results with the same `labels` and `label_set`"
        )
    words |= _other_conditions(systems, evaluators)
    return Matched(tasks, patients, words)


def _on(task: ScoredTask, places: Mapping[str, int], ids: Sequence[str]) -> ScoredTask:
    """A task on the shared volumes, which its rows then count."""
    where = np.full(len(places), -1)
    where[[places[name] for name in ids]] = np.arange(len(ids))
    return _taken(replace(task, rows=where[task.rows]), where[task.rows] >= 0)


def _aligned(tasks: Sequence[ScoredTask]) -> tuple[list[ScoredTask], int]:
    """All on the volumes that each of them scores, and how many of those have another truth in one."""
    rows = tasks[0].rows
    for task in tasks[1:]:
        rows = np.intersect1d(rows, task.rows)
    found = [_taken(task, np.isin(task.rows, rows)) for task in tasks]
    if len({type(task) for task in found}) > 1:
        return found, len(rows)
    truths = [_truth(task) for task in found]
    return found, int(np.any([(truth != truths[0]).any(axis=0) for truth in truths], axis=0).sum())


def _taken(task: ScoredTask, kept: np.ndarray) -> ScoredTask:
    """Some of a task's volumes, in the order of their rows."""
    order = np.flatnonzero(kept)
    order = order[np.argsort(task.rows[order], kind="stable")]
    columns = {
        key: getattr(task, key)[order] for key in ("rows", "labels", "times", "events") if hasattr(task, key)
    }
    return replace(task, scores=task.scores[:, order], **columns)


def _truth(task: ScoredTask) -> np.ndarray:
    """(C, n) what is true of each volume."""
    columns = [getattr(task, key) for key in ("labels", "times", "events") if hasattr(task, key)]
    return np.array(columns, np.float64).reshape(len(columns), len(task.rows))


def _other_conditions(systems: Sequence[System], evaluators: Sequence[str]) -> dict[str, str]:
    """What was not computed alike, which the reader must know."""
    others = {}
    for key in ("protocol", "learned from", "labels", "prompts", "threshold", "features"):
        values = [
            _condition(file, name).get(key, "none")
            for system, name in zip(systems, evaluators, strict=True)
            for file in system.files
        ]
        if len(set(values)) > 1:
            others[f"{key} differs"] = " | ".join(dict.fromkeys(values))
    splits = [file.split for system in systems for file in system.files]
    if len(set(splits)) > 1:
        others["split differs"] = " | ".join(dict.fromkeys(splits))
    return others


def _condition(file: ResultFile, name: str) -> Mapping[str, str]:
    """Of the evaluator, or of the one that it is a part of: "probe" of "probe/10%"."""
    of = [known for known in file.conditions if name == known or name.startswith(f"{known}/")]
    return file.conditions[max(of, key=len)] if of else {}
