"""Which volumes of a split an evaluation takes: all, or one for each report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64

from medclip_jax.evaluation.embeddings import EmbeddedSplit
from medclip_jax.evaluation.results import NotEvaluable

VOLUMES = ("all", "first_per_report", "one_per_text", "colipri", "no_head")
"""What `choose_volumes` knows."""

NO_CHEST = "no-chest"
"""Note of the manifest at volumes that a corpus lists as showing no chest, such as CT-RATE's heads."""

OpenManifest = Callable[[], Mapping[str, Mapping[str, Any]]]
"""Gives the lines of the prepared folder's manifest by the id of the volume."""


def choose_volumes(
    split: EmbeddedSplit, how: str, open_manifest: OpenManifest | None = None
) -> tuple[Int64[np.ndarray, " M"], str]:
    """The volumes to score.

    Args:
        split: with `ids`.
        how: "all"; "first_per_report", of each study the volume that stood first in the corpus;
            "one_per_text", of each report text, whosever it is, the volume that stood first; "colipri", of
            each study the one whose voxels are finest in the axial plane, and of studies with one findings
            text the first; "no_head", all but those of studies with a volume that shows no chest.
        open_manifest: says where a volume stood in the corpus, its own spacing and its notes.

    Returns:
        Their places, ascending; and in words what was left out.

    Raises:
        NotEvaluable: the shards do not say what the choice depends on.
        ValueError: an unknown choice.
    """
    everything = np.arange(len(split.volumes))
    if how not in VOLUMES:
        raise ValueError(f"volumes={how!r}: use one of {', '.join(VOLUMES)}")
    if how == "all":
        return everything, "all volumes"
    lines = _lines(split, how, open_manifest)
    rows = np.array([line["row"] for line in lines])
    if how == "no_head":
        kept = _with_chest(split, lines)
        words = "without studies that have a volume of no chest"
    elif how == "first_per_report":
        kept = _first_of_each(split.studies, everything[np.argsort(rows, kind="stable")])
        words = "the first volume of each study"
    elif how == "one_per_text":
        kept = _distinct_texts(split, everything[np.argsort(rows, kind="stable")], "report", alike=True)
        words = "the first volume of each report text"
    else:
        area = np.array([_axial_area(line) for line in lines])
        finest = _first_of_each(split.studies, everything[np.lexsort((rows, area))])
        kept = _distinct_texts(
            split, finest[np.argsort(rows[finest], kind="stable")], "findings_text", alike=False
        )
        words = "of each study the volume of the finest axial voxels, each findings text once"
    kept = np.sort(kept)
    return kept, f"{words}; {len(everything) - len(kept)} others left out"


def _lines(split: EmbeddedSplit, how: str, open_manifest: OpenManifest | None) -> list[Mapping[str, Any]]:
    reason = f'volumes="{how}" needs'
    if open_manifest is None or len(split.ids) != len(split.volumes):
        raise NotEvaluable(f"{reason} shards of `medclip prepare` with their manifest.jsonl")
    manifest = open_manifest()
    missing = sum(name not in manifest for name in split.ids)
    if missing:
        raise NotEvaluable(
            f"{reason} the manifest of these shards: {missing} of {len(split.ids)} volumes are not in it"
        )
    return [manifest[name] for name in split.ids]


def _first_of_each(
    groups: Int64[np.ndarray, " N"], order: Int64[np.ndarray, " N"]
) -> Int64[np.ndarray, " M"]:
    """The first of each group in an order of all."""
    _, first = np.unique(groups[order], return_index=True)
    return order[first]


def _axial_area(line: Mapping[str, Any]) -> float:
    """mm² of a voxel of the scan as it was, in the axial plane."""
    provenance = line.get("provenance")
    spacing = provenance.get("spacing") if isinstance(provenance, Mapping) else None
    if not spacing or len(spacing) != 3:
        raise NotEvaluable(
            'volumes="colipri" needs the spacing of each scan, which the manifest of these shards lacks: '
            'prepare them again, or use volumes="first_per_report"'
        )
    return float(spacing[1]) * float(spacing[2])


def _distinct_texts(
    split: EmbeddedSplit, order: Int64[np.ndarray, " M"], field: str, *, alike: bool
) -> Int64[np.ndarray, " K"]:
    """The first volume of each text, with `alike` case and white space aside; all of those without one."""
    texts = split.texts.get(field, ())
    if not any(text.strip() for text in texts):
        raise NotEvaluable(
            f"the records have no {field}, by which one of several volumes is chosen: use "
            'volumes="first_per_report"'
        )
    seen: set[str] = set()
    kept = []
    for row in order.tolist():
        text = " ".join(texts[row].lower().split()) if alike else texts[row].strip()
        if not text or text not in seen:
            kept.append(row)
        seen.add(text)
    return np.array(kept, np.int64)


def _with_chest(split: EmbeddedSplit, lines: list[Mapping[str, Any]]) -> Int64[np.ndarray, " M"]:
    flagged = np.array([NO_CHEST in line.get("notes", ()) for line in lines])
    if not flagged.any():
        raise NotEvaluable(
            f'volumes="no_head" needs the note {NO_CHEST!r} at volumes of no chest, and the manifest of '
            "these shards has none: prepare them from a corpus that lists such volumes (CT-RATE's "
            'no_chest_*.txt), or use volumes="all"'
        )
    return np.flatnonzero(~np.isin(split.studies, split.studies[flagged]))
