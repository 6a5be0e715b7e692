"""Metrics as lines of text, the undefined ones counted and not listed."""

from __future__ import annotations

import math
from collections.abc import Mapping


def metric_lines(metrics: Mapping[str, float], *, digits: int = 6) -> list[str]:
    """A line for each number, then one for those that are undefined.

    Args:
        metrics: name to value; NaN where undefined, such as the AUROC of a finding that no volume has.
        digits: significant ones.
    """
    defined = {name: value for name, value in metrics.items() if math.isfinite(value)}
    width = max([40, *map(len, defined)])
    lines = [f"{name:{width}s} {value:.{digits}g}" for name, value in defined.items()]
    undefined = [name for name in metrics if name not in defined]
    if undefined:
        such = ", ".join(undefined[:2]) + (", ..." if len(undefined) > 2 else "")
        lines.append(
            f"{len(undefined)} undefined, for too few volumes with or without a finding, or to rank: {such}"
        )
    return lines
