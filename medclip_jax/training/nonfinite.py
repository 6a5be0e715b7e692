"""What to say when a number is no longer finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class NonFiniteError(RuntimeError):
    """Training stopped at a NaN or an infinity; the message names where it was seen first."""


def describe(
    step: int, metrics: Mapping[str, Any], paths: Sequence[str], samples: Sequence[int]
) -> str | None:
    """A report when a step's numbers are not finite, else None.

    Causes come before effects: loss, then gradients, updates, parameters.

    Args:
        step: batches completed, this one included.
        metrics: of the step, on the host, arrays included.
        paths: rows of `metrics["squares"]`.
        samples: record indices of its batch.
    """
    lines = []
    if not np.isfinite(metrics["loss"]):
        terms = [
            name for name, value in metrics.items() if name.startswith("terms/") and not np.isfinite(value)
        ]
        lines.append(f"loss ({metrics['loss']}) through {', '.join(terms) or 'the sum of the terms'}")
    for kind, square in metrics["squares"].items():
        bad = [path for path, value in zip(paths, square, strict=True) if not np.isfinite(value)]
        if bad:
            shown = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
            lines.append(f"{kind} of {len(bad)} of {len(paths)} parameters: {shown}")
    if not lines:
        return None
    culprits = [
        int(sample) for sample, fine in zip(samples, metrics["finite_samples"], strict=True) if not fine
    ]
    origin = (
        f"not finite after encode: {', '.join(map(str, culprits))}" if culprits else "all finite after encode"
    )
    return (
        f"step {step} is not finite. First in the {lines[0]}."
        + "".join(f"\n  then in the {line}" for line in lines[1:])
        + f"\n  samples of this step (record indices): {', '.join(map(str, samples))}; {origin}"
    )
