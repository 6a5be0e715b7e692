"""From the columns of some shards to the findings of a label set, and from prompts to their scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int8

from medclip_jax.evaluation.presets import LabelSet
from medclip_jax.reports.definitions import BUILT_IN, Findings
from medclip_jax.reports.names import UnknownFinding, finding_name


@dataclass(frozen=True)
class MappedLabels:
    """The labels of a set, as far as some shards have them.

    Attributes:
        columns: finding of the set to (N,) 1 present, -1 absent, 0 unknown.
        scored_by: finding of the set to the findings whose prompts stand for it.
        missing: findings of the set that the shards have no column for.
        words: how many there are, and which are missing.
    """

    columns: Mapping[str, Int8[np.ndarray, " N"]]
    scored_by: Mapping[str, tuple[str, ...]]
    missing: tuple[str, ...]
    words: str


def map_labels(
    chosen: LabelSet, columns: Mapping[str, Int8[np.ndarray, " N"]], definitions: Findings = BUILT_IN
) -> MappedLabels:
    """Labels of the findings of a set.

    A finding that several columns stand for is present where any of them is, absent where all of them are,
    and else unknown. Where not all of those columns are there, the column of its own name is taken if the
    set allows that (`LabelSet.mapped`); else the finding is missing.

    Args:
        chosen: the set.
        columns: of the shards.
        definitions: the findings that are known.
    """
    found, missing = {}, []
    for finding in chosen.findings:
        names = [_column(name, columns, definitions) for name in chosen.labels.get(finding, (finding,))]
        if None in names and chosen.mapped:
            names = [_column(finding, columns, definitions)]
        if None in names:
            missing.append(finding)
        else:
            found[finding] = any_present([columns[name] for name in names])
    scored_by = {finding: chosen.scores.get(finding, (finding,)) for finding in found}
    words = f"{chosen.name}, {len(found)} of {len(chosen.findings)} findings"
    if missing:
        words += f" (NOT THE COMPLETE SET: the shards have no column for {', '.join(missing)})"
    return MappedLabels(found, scored_by, tuple(missing), words)


def any_present(columns: list[Int8[np.ndarray, " N"]]) -> Int8[np.ndarray, " N"]:
    """One label for several: present where any is, absent where all are, else unknown.

    Args:
        columns: 1 present, -1 absent, 0 unknown.
    """
    stacked = np.stack(columns)
    return np.where((stacked == 1).any(axis=0), 1, np.where((stacked == -1).all(axis=0), -1, 0)).astype(
        np.int8
    )


def _column(name: str, columns: Mapping[str, object], definitions: Findings) -> str | None:
    try:
        return finding_name(name, columns, definitions=definitions)
    except UnknownFinding:
        return None
