"""Weights from an earlier stage."""

from __future__ import annotations

import difflib
import logging
import re
from typing import Any

from medclip_jax.training.checkpoints import restore_params
from medclip_jax.training.state import Tree, combine, flatten, unflatten


def load_initial_weights(config: Any, params: Tree) -> Tree:
    """Replace parameters by those of an earlier run.

    Args:
        config: `config.initial_weights`.
        params: freshly initialised.

    Returns:
        `params` with everything that was included replaced, as host arrays.

    Raises:
        FileNotFoundError: no checkpoint there.
        ValueError: a regex matches nothing, an included parameter has no place here or another shape.
    """
    loaded = {}
    for name, value in flatten(
        restore_params(config.workdir, include=config.include, ema=config.ema)
    ).items():
        for pattern, replacement in config.rename:
            name = re.sub(pattern, replacement, name)
        loaded[name] = value
    own = flatten(params)
    where = f"config.initial_weights.workdir={config.workdir!r}"
    homeless = [name for name in loaded if name not in own]
    if homeless:
        near = difflib.get_close_matches(homeless[0], own, n=1, cutoff=0.3)
        raise ValueError(
            f"{where}: {len(homeless)} included parameters have no place in this model, such as "
            f"{homeless[0]!r} (nearest here: {near[0] if near else 'none'}). Narrow "
            "config.initial_weights.include to what both share, or map names with its `rename`"
        )
    for name, value in loaded.items():
        if value.shape != own[name].shape:
            raise ValueError(
                f"{where}: {name!r} has shape {value.shape} there and {own[name].shape} here: build both "
                "stages with the same shape, patch and width, or narrow config.initial_weights.include"
            )
    fresh = sorted({name.split("/")[0] for name in own if name not in loaded})
    logging.info(
        "%d of %d parameters from %s; fresh: %s",
        len(loaded),
        len(own),
        config.workdir,
        ", ".join(fresh) or "none",
    )
    return combine(params, unflatten({k: v.astype(own[k].dtype) for k, v in loaded.items()}))
