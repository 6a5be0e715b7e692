"""What the importers of published checkpoints give back."""

from __future__ import annotations

from typing import Any, NamedTuple

from medclip_jax.objectives.base import DataSpec, Objective


class Release(NamedTuple):
    """A published checkpoint as one of our models.

    Attributes:
        objective: the system with the checkpoint's weights.
        config: the full config of a run that would build it.
        spec: what its data would have been.
        left_out: names in the checkpoint that the model has no use for.
    """

    objective: Objective
    config: Any
    spec: DataSpec
    left_out: list[str]
