"""Which values the numbers of a config can have: looked at before anything is opened or built."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from medclip_jax.evaluation.presets import protocols
from medclip_jax.shards.subset import Subset

LARGEST = 2**31 - 1
"""Of whole numbers: a device counts steps and samples in 32 bits."""


class _Rule(NamedTuple):
    """What a field can be: in words for the message, and as a test."""

    words: str
    allows: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(low: int, high: int = LARGEST) -> _Rule:
    words = f"a whole number from {low} to {high}"
    return _Rule(words, lambda value: _is_number(value) and isinstance(value, int) and low <= value <= high)


def _number(words: str, allows: Callable[[float], bool]) -> _Rule:
    return _Rule(f"a number {words}", lambda value: _is_number(value) and allows(value))


def _listed(
    words: str, allows: Callable[[Any], bool], length: int | None = None, *, empty: bool = False
) -> _Rule:
    return _Rule(
        words,
        lambda value: (
            isinstance(value, list | tuple)
            and (length in (None, len(value)) or (empty and not value))
            and all(map(allows, value))
        ),
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_REGEXES = _listed("regular expressions, such as (r'^vision/',)", _is_text)
_FROM_0 = _number("of 0 or more", lambda value: value >= 0)
_ABOVE_0 = _number("above 0", lambda value: value > 0)
_SHARE = _number("from 0 to 1", lambda value: 0 <= value <= 1)
_BELOW_1 = _number("from 0 to below 1", lambda value: 0 <= value < 1)
_THREE_OR_NONE = _listed("three whole numbers above 0, or ()", _whole(1).allows, 3, empty=True)
_THREE_FROM_1 = _listed("three whole numbers above 0, such as (8, 8, 8)", _whole(1).allows, 3)
_PATCH = _Rule(
    "three whole numbers above 0, such as (8, 8, 8), or () for one that follows from the volumes",
    lambda value: value in ((), []) or _THREE_FROM_1.allows(value),
)
_WINDOWS = _listed(
    "(low, high) HU for each channel, low below high, such as ((-1000.0, 1000.0),)",
    lambda pair: (
        isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_is_number, pair)) and pair[0] < pair[1]
    ),
)
_STANDARDIZE = _listed(
    "(mean, standard deviation above 0) for each channel, or ()",
    lambda pair: (
        isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_is_number, pair)) and pair[1] > 0
    ),
)

_RULES: dict[str, _Rule] = {
    r"seed": _whole(0, 2**32 - 1),
    r"data\.text\.\w+": _FROM_0,
    r"data\.(text_length|prompt_length)": _whole(2),
    r"data\.text_vectors\.width": _whole(1),
    r"data\.prompt_wordings": _listed(
        "pairs of sentences with {} in place of the finding, such as (('There is {}.', 'There is no {}.'),)",
        lambda pair: (
            isinstance(pair, list | tuple)
            and len(pair) == 2
            and all(_is_text(side) and side.replace("{{", "").count("{}") == 1 for side in pair)
        ),
    ),
    r"data\.(most_statements|organ_text_length|workers)": _whole(0),
    r"data\.tables": _listed("names that `medclip label` gave, such as ('outcomes',)", _is_text),
    r"data\.subset\.share": _number("above 0 and up to 1", lambda value: 0 < value <= 1),
    r"data\.subset\.(folds|fold)": _whole(0),
    r"data\.subset\.seed": _whole(0, 2**32 - 1),
    r"data\.(prefetch|frames)": _whole(1),
    r"data\.(prepare\.)?views": _listed("names of series, such as ('cine_sa',), or ()", _is_text),
    r"data\.prepare\.frame_shape": _listed(
        "two whole numbers above 0, or ()", _whole(1).allows, 2, empty=True
    ),
    r"data\.prepare\.shape": _THREE_OR_NONE,
    r"data\.prepare\.spacing": _listed("three numbers above 0 (mm), or ()", _ABOVE_0.allows, 3, empty=True),
    r"data\.prepare\.fit": _Rule("'crop', 'resize' or ''", lambda value: value in ("", "crop", "resize")),
    r"data\.prepare\.(organ_cell|vocabulary_size)": _whole(0),
    r"data\.prepare\.(organs|findings|label_classes)": _listed("names, such as ('heart',)", _is_text),
    r"batch_size|microbatches|steps": _whole(0),
    r"epochs": _number("from 0 to 1000000", lambda value: 0 <= value <= 1e6),
    r"optimizer\.(learning_rate|final_fraction|weight_decay|clip_norm)": _FROM_0,
    r"optimizer\.epsilon": _ABOVE_0,
    r"optimizer\.warmup_steps": _whole(0),
    r"optimizer\.warmup_fraction": _SHARE,
    r"optimizer\.betas": _listed("two numbers from 0 to below 1", _BELOW_1.allows, 2),
    r"optimizer\.multipliers": _listed(
        "((regex, factor of 0 or more), ...)",
        lambda pair: isinstance(pair, list | tuple) and len(pair) == 2 and _FROM_0.allows(pair[1]),
    ),
    r"optimizer\.accumulate": _whole(1),
    r"ema\.decay": _BELOW_1,
    r"optimizer\.(no_decay|frozen)|initial_weights\.include": _REGEXES,
    r"initial_weights\.rename": _listed(
        "((regex, replacement), ...)",
        lambda pair: isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_is_text, pair)),
    ),
    r"mesh\.rules": _listed(
        "((regex, axes), ...), see docs/how-to/training.md",
        lambda pair: isinstance(pair, list | tuple) and len(pair) == 2 and _is_text(pair[0]),
    ),
    r"mesh\.data": _Rule(
        "a whole number above 0, or -1 for all that fsdp leaves",
        lambda value: value == -1 or _whole(1).allows(value),
    ),
    r"mesh\.fsdp": _whole(1),
    r"distributed\.process_count": _whole(0),
    r"distributed\.process_index": _whole(-1),
    r"checkpoint\.every_steps": _whole(1),
    r"checkpoint\.keep": _whole(2),
    r"log\.every_steps": _whole(1),
    r"log\.peak_tflops": _FROM_0,
    r"evaluation\.(every_steps|best\.patience)": _whole(0),
    r"evaluation\.batch_size": _whole(1),
    r"evaluation\.protocols": _listed(
        "names that `medclip evaluate --protocol list` shows, in a list",
        lambda name: _is_text(name) and name in protocols(),
    ),
    # Of any objective, by the last part of the name.
    r"objective\.(.+\.)?(width|heads|embedding_width|grid_features|max_positions|type_vocabulary)": _whole(1),
    r"objective\.(.+\.)?(depth|vocabulary|chunk_rows)": _whole(0),
    r"objective\.(.+\.)?(mlp_ratio|layer_norm_epsilon|target_temperature|logit_scale)": _ABOVE_0,
    r"objective\.(.+\.)?mask_fraction": _number("between 0 and 1", lambda value: 0 < value < 1),
    r"objective\.vision\.patch": _PATCH,
    r"objective\.vision\.cell": _THREE_FROM_1,
    r"objective\.vision\.projections": _listed(
        "'mean', 'max', 'min' or 'blob' for each channel, or ()",
        lambda value: value in ("mean", "max", "min", "blob"),
    ),
    r"objective\.(.+\.)?dtype": _Rule(
        "'float32', 'bfloat16' or 'float16'", lambda value: value in ("float32", "bfloat16", "float16")
    ),
    r"objective\.prompts\.weight": _FROM_0,
    r"objective\.head\.hidden": _whole(0),
    r"objective\.head\.dropout": _BELOW_1,
    r"objective\.crops\.shape": _THREE_OR_NONE,
    r"objective\.(crops\.count|feature_size)": _whole(1),
    r"objective\.crops\.(foreground|mirror)": _SHARE,
    r"objective\.weights\.(dice|cross_entropy)": _FROM_0,
    r"objective\.text\.adapters\.rank": _whole(0),
    r"objective\.text\.adapters\.alpha": _ABOVE_0,
    r"objective\.logit_bias": _Rule("a number", _is_number),
    r"objective\.vision\.windows": _WINDOWS,
    r"objective\.vision\.(standardize|channels)": _STANDARDIZE,
    r"objective\.vision\.augment\.shift_voxels": _listed(
        "three whole numbers of 0 or more", _whole(0).allows, 3
    ),
    r"objective\.vision\.augment\.(noise_hu|offset_hu|gain|noise)": _FROM_0,
    r"objective\.vision\.augment\.crop_area": _listed(
        "two shares of the frame, above 0 and up to 1, the smaller first", lambda share: 0 < share <= 1, 2
    ),
}
"""Pattern of a field's whole name to what it can be. Texts and switches are checked where they are used."""

_RULES_OF_FRAMES = _RULES | {
    r"objective\.vision\.patch": _listed("two whole numbers above 0, such as (16, 16)", _whole(1).allows, 2),
}
"""The same where the tower reads frames: their patches have no depth."""


def check_values(config: ConfigDict | Mapping[str, Any]) -> None:
    """Check that every number of a config is one that can be meant.

    Args:
        config: with the fields of `training.config.base_config`.

    Raises:
        ValueError: a number outside of its range, one that is not finite, or None; all of them are listed.
    """
    reads_frames = "frames" in config.get("objective", {}).get("vision", {})
    rules = _RULES_OF_FRAMES if reads_frames else _RULES
    wrong = [
        f"config.{name}={value!r}: it must be {rule.words}"
        for name, value in _leaves(config)
        for pattern, rule in rules.items()
        if re.fullmatch(pattern, name) and not rule.allows(value)
    ]
    optimizer = config.get("optimizer", {})
    if optimizer.get("warmup_steps", 0) and optimizer.get("warmup_fraction", 0):
        wrong.append("config.optimizer: set warmup_steps or warmup_fraction, not both (the other to 0)")
    if not any(line.startswith("config.data.subset") for line in wrong):
        try:
            Subset.of(config["data"])
        except ValueError as error:
            wrong.append(f"config.data.{error}")
    if wrong:
        raise ValueError("\n  ".join(wrong))


def _leaves(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
