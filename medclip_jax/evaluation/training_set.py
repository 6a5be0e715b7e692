"""External validation: evaluators learn from one prepared set and are scored on another.

What they learn from, and what they choose penalties and thresholds on, is of the other set. Its labels are
brought under the names of the scored set's by a map, or those of both under the names of a label set.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int8

from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.label_mapping import any_present, map_labels
from medclip_jax.evaluation.presets import label_sets
from medclip_jax.shards.grid import differences, volume_kind
from medclip_jax.shards.read import PreparedInfo

Columns = Mapping[str, Int8[np.ndarray, " N"]]


@dataclass(frozen=True)
class LabelMap:
    """Which labels of the one set are which of the other.

    Attributes:
        labels: finding of the scored set to the columns of the set that is learned from, any of which makes
            it present.
        measurements: likewise, to one column.
        label_set: name of a set of `presets.label_sets`, under whose names the findings of both are brought;
            "" for those of the scored set.
        words: where it is from.
    """

    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    measurements: Mapping[str, str] = field(default_factory=dict)
    label_set: str = ""
    words: str = "columns of the same name"


def read_label_map(source: str) -> LabelMap:
    """Read a label map.

    Args:
        source: a TOML file with tables `labels` (finding = "column", or ["column", "column"]) and
            `measurements`, or the name of a set of `presets.label_sets`.

    Raises:
        ValueError: it is neither.
        OSError: the file cannot be read.
    """
    if source in label_sets():
        return LabelMap(label_set=source, words=f"both by label set {source}")
    path = Path(source)
    if not path.exists():
        raise ValueError(
            f"--label-map {source}: there is no such file, and the label sets are {', '.join(label_sets())}"
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        if unknown := set(content) - {"labels", "measurements"}:
            raise ValueError(f"unknown tables {', '.join(sorted(unknown))}")
        labels = {
            name: (given,) if isinstance(given, str) else tuple(map(_text, given))
            for name, given in content.get("labels", {}).items()
        }
        measurements = {name: _text(given) for name, given in content.get("measurements", {}).items()}
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"'{path}' is no label map ({error}): write [labels] with lines such as "
            'lung_opacity = ["consolidation", "ground_glass"], of the scored set = of the other, and '
            "[measurements] likewise"
        ) from None
    return LabelMap(labels, measurements, words=f"by {path.name}, else columns of the same name")


@dataclass(frozen=True)
class TrainingSet:
    """Another set that evaluators learn from.

    Attributes:
        info: of the set.
        labels: how its labels are named in the scored set.
    """

    info: PreparedInfo
    labels: LabelMap

    def check(self, scored: PreparedInfo, *, other_grid: bool) -> None:
        """Check that both sets go together, before anything is loaded.

        Args:
            scored: the set that is scored.
            other_grid: whether spacing, crop and modality may differ.

        Raises:
            ValueError: they do not, or the map names a column that there is not.
        """
        ours, theirs = volume_kind(scored), volume_kind(self.info)
        found = differences(ours, theirs)
        if ours["shape"] != theirs["shape"] or (found and not other_grid):
            more = "" if ours["shape"] != theirs["shape"] else ", or use --other-grid"
            raise ValueError(
                f"the volumes in '{self.info.folder}' are not of the kind of those in '{scored.folder}': "
                f"{'; '.join(found)}. Prepare both alike{more}"
            )
        for what, columns, named in (
            ("label", self.info.findings, [x for names in self.labels.labels.values() for x in names]),
            ("measurement", self.info.measurements, self.labels.measurements.values()),
        ):
            if missing := sorted(set(named) - set(columns)):
                raise ValueError(
                    f"--label-map names no {what} of '{self.info.folder}' by {', '.join(missing)}; it has "
                    f"{', '.join(columns) or 'none'}"
                )
        for what, columns, named in (
            ("label", scored.findings, self.labels.labels),
            ("measurement", scored.measurements, self.labels.measurements),
        ):
            if missing := sorted(set(named) - set(columns)):
                raise ValueError(
                    f"--label-map gives names to {', '.join(missing)}, which is no {what} of the scored set "
                    f"'{scored.folder}'; it has {', '.join(columns) or 'none'}"
                )

    def rename_scored(self, scored: EmbeddedSplit, folder: Path) -> EmbeddedSplit:
        """The scored split under a name that no split of this set has, its findings by the label set.

        Args:
            scored: as it was embedded.
            folder: of its set.
        """
        named = replace(scored, name=f"{scored.name} of {folder.name}")
        if not self.labels.label_set:
            return named
        chosen = label_sets()[self.labels.label_set]
        return replace(
            named,
            labels=map_labels(chosen, scored.labels, scored.definitions).columns,
            reported=map_labels(chosen, scored.reported, scored.definitions).columns,
        )

    def rename_learned(self, learned: EmbeddedSplit, scored: EmbeddedSplit) -> EmbeddedSplit:
        """A split of this set with the columns of the scored one; those that it lacks are unknown.

        Args:
            learned: of this set.
            scored: from `rename_scored`.

        Raises:
            ValueError: a patient is in both.
        """
        shared = np.intersect1d(learned.patients, scored.patients)
        if shared.size:
            raise ValueError(
                f"{shared.size} patients of {scored.name!r} are in {learned.name!r} of "
                f"'{self.info.folder}', too: learn from other patients. Where only their ids are the same, "
                "and the people are not, prepare one of the sets with another --key"
            )
        count = len(learned.patients)
        measured = {
            name: learned.measurements.get(
                self.labels.measurements.get(name, name), np.full(count, np.nan, np.float32)
            )
            for name in scored.measurements
        }
        return replace(
            learned,
            name=f"{learned.name} of {self.info.folder.name}",
            labels=self._named(learned.labels, scored.labels, learned),
            reported=self._named(learned.reported, scored.reported, learned),
            measurements=measured,
            definitions=scored.definitions,
        )

    def described(self, scored: EmbeddedSplit) -> str:
        """What was learned from, for the conditions of a result.

        Args:
            scored: from `rename_scored`.
        """
        known = set(self._sources(scored.labels))
        lacking = [name for name in scored.labels if not self._columns(name)]
        words = f"another set, {self.info.folder.name}; its labels {self.labels.words}"
        if lacking:
            words += f"; it has none of {', '.join(lacking)}"
        if unused := [name for name in self.info.findings if name not in known]:
            words += f"; not used of it: {', '.join(unused)}"
        return f"{words}; no hash of a patient is in both, which tells nothing where their --key differs"

    def _named(self, columns: Columns, wanted: Columns, learned: EmbeddedSplit) -> dict[str, np.ndarray]:
        """Columns of this set under the wanted names."""
        if not columns:
            return {}
        if self.labels.label_set:
            columns = map_labels(label_sets()[self.labels.label_set], columns, learned.definitions).columns
        nothing = np.zeros(len(learned.patients), np.int8)
        found = {}
        for name in wanted:
            sources = self.labels.labels.get(name, (name,))
            given = [columns[source] for source in sources if source in columns]
            found[name] = any_present(given) if given else nothing
        return found

    def _columns(self, name: str) -> tuple[str, ...]:
        """Columns of this set that stand for a finding of the scored one."""
        names = self.labels.labels.get(name, (name,))
        if self.labels.label_set:
            names = label_sets()[self.labels.label_set].labels.get(name, (name,))
            names = names if set(names) <= set(self.info.findings) else (name,)
        return tuple(source for source in names if source in self.info.findings)

    def _sources(self, wanted: Columns) -> list[str]:
        return [source for name in wanted for source in self._columns(name)]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value
