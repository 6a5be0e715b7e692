"""What a config leaves to the data is settled here, once they are known, and alike at every start.

`config.json` keeps what was said; the run computes with what was settled.
"""

from __future__ import annotations

import copy
from typing import Any

from medclip_jax.models.patches import choose_patch
from medclip_jax.objectives.base import DataSpec

LARGEST_BATCH = 32
"""Of `batch_size = 0`: enough to contrast with, and little enough for small archives to take many steps."""

SMALLEST_BATCH = 8
"""Of `batch_size = 0`: what up to eight devices can share, however few volumes there are."""


def settle(config: Any, spec: DataSpec, samples: int) -> Any:
    """A config with the values that follow from the data.

    Args:
        config: a full config.
        spec: what the shards and the tokenizer fix.
        samples: volumes of the training split, 0 where that is not known.

    Returns:
        The config itself where it leaves nothing open, else a copy with `batch_size` (see
        `settle_batch_size`) and the objective's fields (see `settle_objective`).
    """
    objective = settle_objective(config.objective, spec)
    batch_size = settle_batch_size(config.batch_size, samples)
    if objective is config.objective and batch_size == config.batch_size:
        return config
    settled = copy.deepcopy(config)
    settled.batch_size = batch_size
    settled.objective = objective
    return settled


def settle_batch_size(batch_size: int, samples: int) -> int:
    """The batch size that is meant: of 0, the largest power of two from 8 to 32 that the volumes fill.

    Args:
        batch_size: of the config.
        samples: volumes of the training split, 0 where that is not known: then 32.
    """
    if batch_size:
        return batch_size
    if not samples:
        return LARGEST_BATCH
    return min(LARGEST_BATCH, max(SMALLEST_BATCH, 1 << (samples.bit_length() - 1)))


def settle_objective(objective: Any, spec: DataSpec) -> Any:
    """An objective's config with the fields that follow from the data.

    A patch of () becomes one that divides the volumes, see `models.patches.choose_patch`; findings of ()
    become all that the shards have.

    Args:
        objective: `config.objective`.
        spec: what the shards fix.

    Returns:
        The config itself where it leaves nothing open, else a copy.
    """
    vision = objective.get("vision", {})
    open_patch = "patch" in vision and not vision["patch"]
    open_findings = "findings" in objective and not objective["findings"]
    if not open_patch and not open_findings:
        return objective
    settled = copy.deepcopy(objective)
    if open_patch:
        cells = list(zip(spec.shape, spec.spacing, vision["cell"], strict=True))
        shape = tuple(size // cell for size, _, cell in cells)
        settled["vision"]["patch"] = choose_patch(
            shape, tuple(None if step is None else step * cell for _, step, cell in cells)
        )
    if open_findings:
        settled["findings"] = tuple(spec.findings)
    return settled
