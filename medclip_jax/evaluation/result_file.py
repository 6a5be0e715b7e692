"""The JSON file of an evaluation: numbers, how they came about, and the scores behind them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medclip_jax.evaluation.presets import Protocol
from medclip_jax.evaluation.run import Evaluation
from medclip_jax.evaluation.scored import named, to_json
from medclip_jax.shards.subset import Subset


def write_results(
    path: str | os.PathLike,
    evaluation: Evaluation,
    settings: Mapping[str, Mapping[str, Any]],
    protocols: Iterable[Protocol] = (),
    *,
    subset: Subset | None = None,
) -> Path:
    """Write all numbers of an evaluation as JSON.

    Args:
        path: of the file; folders above it are made.
        evaluation: from `run.evaluate_all`.
        settings: evaluator name to the settings that were given.
        protocols: whose published values are written beside.
        subset: what of the training split was learned from; None for all.

    Returns:
        The path.
    """
    path = Path(path)
    content = {
        "split": evaluation.split,
        "volumes": evaluation.count,
        "subset": subset.to_json() if subset else None,
        "seconds": round(evaluation.seconds, 3),
        "seconds_of": {name: round(seconds, 3) for name, seconds in evaluation.parts.items()},
        "protocols": dict(evaluation.protocols),
        "settings": {name: dict(given) for name, given in settings.items()},
        # JSON has no NaN: what is undefined becomes null.
        "metrics": {name: _number(value) for name, value in evaluation.metrics().items()},
        "intervals": {
            name: [_number(one.low), _number(one.high)] for name, one in evaluation.intervals().items()
        },
        "conditions": {name: dict(result.conditions) for name, result in evaluation.results.items()},
        "curves": {
            name: {
                curve: {key: [_number(value) for value in values] for key, values in parts.items()}
                for curve, parts in result.curves().items()
            }
            for name, result in evaluation.results.items()
            if hasattr(result, "curves")
        },
        "skipped": dict(evaluation.skipped),
        "published": {one.name: [asdict(value) for value in one.published] for one in protocols},
    }
    scores = {name: to_json(one) for name, one in named(evaluation.results).items()}
    text = json.dumps(content, indent=1)
    if scores:
        # A line for each evaluator, and not a line for each number.
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(one)}" for name, one in scores.items())
        text = text.removesuffix("\n}") + f',\n "scores": {{\n{lines}\n }}\n}}'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    return path


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
