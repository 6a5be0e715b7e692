"""The configuration schema, locked, and how a file and command-line overrides fill it.

A run is described by one Python file with `get_config()`, which starts from `base_config()`. Nothing here
touches a device.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from medclip_jax.reports.prompts import PAIRS
from medclip_jax.sections import (
    DEFAULT,
    OpenSection,
    Section,
    SectionError,
    set_field,
    shown_file,
    unknown_field,
)
from medclip_jax.training.config_module import PREFIX, config_module
from medclip_jax.training.ranges import check_values

OVERRIDE = "override"
"""Origin of a field that the command line sets."""

DEFAULT_NO_DECAY: tuple[str, ...] = (
    r"(^|/)(bias|scale)$",
    r"(^|/)[a-z_]*positions?(_embeddings?)?(/|$)",
    r"(^|/)[a-z_]*token$",
    r"(^|/)(log_scale|query)$",
)
"""Biases, norms, positions, class and mask tokens, temperature: pulled to zero they only lose."""

_EVALUATORS, _TEXT = "evaluation.evaluators", "data.text"


def base_config() -> Section:
    """Every key that a run can set, with its default, locked: an unknown key is an error.

    `objective` is empty; a config file puts `objectives.<name>.default_config()` there.
    """
    return Section(
        {
            "seed": 0,  # weights, order of the data, augmentation, text choice: all of it
            "data": {
                "shards": "",  # folder written by `medclip prepare`
                # ((folder, weight), ...) to train on several sets, each with its share of the samples;
                # evaluation stays with `shards`, which names one of them or another. () = `shards` alone
                "sets": (),
                # How `medclip prepare` made the volumes that this config is meant for: shards of another
                # shape, spacing or fit are refused, another crop or organ cell is warned of; (), "" and 0
                # expect nothing. `medclip check` takes these for the data where there are no shards.
                "prepare": {
                    "shape": (),  # voxels, (depth, height, width)
                    "spacing": (),  # mm of a voxel, (depth, height, width)
                    "fit": "",  # "crop", or "resize": scans resized to the shape, each with its own spacing
                    "crop": "",  # "center", "box" or an organ
                    "views": (),  # names of the series of frames
                    "frame_shape": (),  # pixels of a frame, (height, width)
                    "organ_cell": 0,  # voxels of a cell of organ maps along each axis
                    "organs": (),  # their channels; for `medclip check` alone, as are those below
                    "findings": (),  # columns
                    "label_classes": (),  # of label maps
                    "vocabulary_size": 0,  # entries of the tokenizer that the shards bring
                },
                "train_split": "train",  # TFDS split, sub-splits such as "train[:10%]" included
                # Labels that came after the set was prepared, by the names that `medclip label` gave them
                "tables": (),
                # Of the patients of train_split, to learn from: a share, and without the fold `fold` where
                # there are folds, which then is the split "fold" to evaluate on. `by` names a finding,
                # measurement or group that each share and fold have alike.
                "subset": {"share": 1.0, "folds": 0, "fold": 0, "seed": 0, "by": ""},
                # Which text a sample shows is drawn anew each time it is seen, with these weights.
                # "some_statements" is a random part of the statements in random order.
                "text": {
                    "report": 1.0,
                    "statements": 0.0,
                    "some_statements": 0.0,
                    "findings_text": 0.0,
                    "impression": 0.0,
                },
                "most_statements": 0,  # that "some_statements" takes at a time; 0 = up to all
                "text_length": 128,  # tokens; longer texts are cut, and the cuts counted
                # For objectives with cached_texts: what `medclip cache-text` wrote of a frozen text encoder,
                # and how wide its vectors are.
                "text_vectors": {"folder": "", "width": 768},
                # For objectives that ask for findings by prompts (clip with prompts.weight): tokens of a
                # prompt, and wordings for presence and absence, of which a finding's is drawn each step.
                "prompt_length": 24,
                "prompt_wordings": PAIRS,
                # Tokens of the sentences about one organ, drawn anew each time, for objectives that read them
                # (hipro_ct). Needs shards prepared with --organ-cell.
                "organ_text_length": 0,
                # Frames of a study that a model sees at a time, for objectives that read frames (cmr_clip).
                "frames": 64,
                "views": (),  # series that they are of, by name; () = all
                "tokenizer": "",  # local Hugging Face folder; "" = the shards' own
                "workers": 0,  # 0 = threads; n = processes that read ahead
                "prefetch": 2,  # batches assembled at once and kept ready, each by its own thread
            },
            "objective": {"name": ""},
            "batch_size": 64,  # global, over all devices and hosts; 0 = 8 to 32, as the volumes fill it
            "steps": 0,  # batches to train on; 0 = from epochs
            "epochs": 0.0,
            "optimizer": {
                "learning_rate": 1e-4,  # peak
                "schedule": "cosine",  # "cosine" | "linear" | "constant", after a linear warm-up
                "warmup_steps": 0,
                "warmup_fraction": 0.0,  # of the run, instead of warmup_steps
                "final_fraction": 0.0,  # of the peak, at the end of the run
                "betas": (0.9, 0.999),
                "epsilon": 1e-8,
                "weight_decay": 0.01,
                "no_decay": DEFAULT_NO_DECAY,  # regexes, searched in "path/to/parameter"
                "clip_norm": 0.0,  # global norm of the gradient; 0 = off
                "multipliers": (),  # ((regex, factor of the learning rate), ...); the first match counts
                "frozen": (),  # regexes; no gradient, no optimizer state
                "accumulate": 1,  # batches averaged into one update
            },
            "ema": {"decay": 0.0},  # moving average of weights and statistics, used by evaluators; 0 = off
            # Encode the batch in this many slices: less memory, the same gradient. 0 = as few as the memory
            # allows, found by `medclip train` when it starts.
            "microbatches": 1,
            "mesh": {
                "data": -1,  # devices that share a batch; -1 = all that `fsdp` leaves
                "fsdp": 1,  # devices that also share parameters, optimizer state and average
                # ((regex, (axis or None, ...)), ...), before the default rules; see training.partition
                "rules": (),
            },
            "distributed": {  # the defaults are read from SLURM, a TPU, Kubernetes, or mean one process
                "coordinator": "",  # "host:port" of process 0
                "process_count": 0,
                "process_index": -1,
            },
            "checkpoint": {
                "every_steps": 1000,  # the last step is always saved
                "keep": 2,  # at least 2, so that one damaged checkpoint costs no run
                "asynchronous": True,
                "resume": "",  # workdir or checkpoint to go on from while this workdir has none of its own
            },
            "initial_weights": {
                "workdir": "",  # an earlier stage, an exported folder or its hub id; for fresh runs
                "include": (r".*",),  # regexes on the names there
                "rename": (),  # ((regex, replacement), ...) from names there to names here
                "ema": False,  # take the averaged weights
            },
            "log": {
                "every_steps": 10,
                "tensorboard": True,
                "wandb": "",  # project name; "" = off
                "progress": True,
                "peak_tflops": 0.0,  # of one device, for utilization; 0 = leave it out
            },
            "evaluation": {
                "every_steps": 0,  # 0 = only after the last step
                "split": "validation",
                "batch_size": 16,
                "evaluators": OpenSection(),  # name to settings; see docs/reference/metrics.md. {} = none
                "protocols": (),  # such as ("ct_rate/mean7",); see docs/reference/protocols.md
                # The checkpoint that scores best on `split` is kept and used: "prediction/auroc_mean", or any
                # other key of the evaluators; "" = the last. The run ends after `patience` evaluations
                # without a better one; 0 = never.
                "best": {"metric": "", "patience": 0, "higher": True},
            },
            "stop_on_nan": True,  # False: skip the update of such a step and go on
        },
        name="config",
    )


def shipped_configs() -> Path:
    """The folder of the configs that came with this package: inside it, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Section:
    """Read a config file and apply `--config.a.b=value` overrides.

    Args:
        path: Python file that defines `get_config()`. Where there is no file "configs/...", the one of that
            name that came with the package is taken. It may import its siblings: `from .mae import vision`.
        overrides: "--config.optimizer.learning_rate=3e-4" and the like; the type is the field's.

    Returns:
        The resolved config, locked throughout. `sections.leaves` tells where each value is from.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no `get_config` in it, no objective, a key that the schema does not have (the message
            names the nearest), or a value that its field cannot have.
    """
    file = find_config(path)
    shown = shown_file(file)
    try:
        with config_module(file) as module:
            if not hasattr(module, "get_config"):
                raise ValueError(f"{path} must define get_config(); start from base_config()")
            given = module.get_config()
    except (AttributeError, KeyError, TypeError) as error:
        cause = error.args[0] if error.args else error
        raise ValueError(f"{_line_of(error, shown)}: {cause}") from error
    try:
        config = _resolved(given, shown)
    except SectionError:
        raise
    except ValueError as error:
        raise ValueError(f"{shown}: {error}") from None
    for override in overrides:
        apply_override(config, override)
    check_values(config)
    return config


def _line_of(error: Exception, shown: str) -> str:
    """The line of the config file, or of one that it imports, that an error comes from."""
    lines = [
        f"{shown_file(frame.f_code.co_filename)}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").startswith(PREFIX)
    ]
    return lines[-1] if lines else shown


def find_config(path: str | Path) -> Path:
    """The file that a name means: where there is none "configs/...", the one that came with the package.

    Raises:
        FileNotFoundError: there is no such file; the message names the nearest.
    """
    path = Path(path)
    shipped = shipped_configs()
    file = shipped.parent / path if path.parts[:1] == ("configs",) and not path.is_file() else path
    if not file.is_file():
        names = [str(p.relative_to(shipped.parent)) for p in shipped.rglob("*.py")]
        near = difflib.get_close_matches(str(path), names, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise FileNotFoundError(f"no config file {path}.{hint}")
    return file


def _resolved(given: Any, shown: str) -> Section:
    """A config with every field of the schema, and no other.

    A file may set a section to a dict of some of its fields; the others then have their defaults. Weights of
    texts that such a dict does not name are 0.

    Args:
        given: what `get_config` returned.
        shown: origin of values that differ from the default without telling where they are from.

    Raises:
        ValueError: a field that the schema does not have (the message names the nearest), or a value that is
            not of its field's type.
    """
    if not isinstance(given, Mapping | ConfigDict):
        raise ValueError(f"get_config() must return a config that starts from base_config(), not {given!r}")
    from medclip_jax.objectives import default_config

    name = (given.get("objective") or {}).get("name")
    if not name:
        raise ValueError(
            "config.objective is not set: config.objective = medclip_jax.objectives.mae.default_config(), "
            "or another one's"
        )
    config = base_config()
    set_field(config, "objective", default_config(name, given["objective"]), DEFAULT)
    _fill(config, given, "", shown)
    return config


def _fill(section: Section, given: Mapping[str, Any] | ConfigDict, prefix: str, shown: str) -> None:
    """Set the fields of a section to those given."""
    origins = given._origins if isinstance(given, Section) else {}
    if prefix == f"{_TEXT}.":
        given = _weights(given, section)
    for name, value in given.items():
        path = f"{prefix}{name}"
        if path == _EVALUATORS:
            _check_evaluators(value)
            set_field(section, name, value, shown)
        elif isinstance(section.get(name), ConfigDict) and isinstance(value, Mapping | ConfigDict):
            _fill(section[name], value, f"{path}.", shown)
        else:
            same = name in section and section[name] == value
            set_field(section, name, value, origins.get(name, DEFAULT if same else shown))


def _weights(given: Mapping[str, float], known: Iterable[str]) -> dict[str, float]:
    """Weights of texts: 0 where none is given, whatever the default is."""
    return {**dict.fromkeys(known, 0.0), **given}


def apply_override(config: ConfigDict, override: str) -> None:
    """Set one field in place from "--config.a.b=value" (the prefix may be left out).

    Several fields of a section are set by a dict of them: `--config.mesh={'data': 2, 'fsdp': 4}`.

    Evaluators are no fixed fields: `--config.evaluation.evaluators={}` replaces all of them,
    `--config.evaluation.evaluators.retrieval={}` one, and `--config.evaluation.evaluators.zero_shot.draws=0`
    sets one setting; an evaluator that was not there is added.

    Raises:
        ValueError: no "=", an unknown key (the message names the nearest), a section without its fields, or a
            value that is not of the field's type.
    """
    name, separator, text = override.partition("=")
    name = name.removeprefix("--").removeprefix("config.")
    if not separator or not name:
        raise ValueError(f"cannot read {override!r}: write --config.section.field=value")
    if f"{name}.".startswith(f"{_EVALUATORS}."):
        _override_evaluators(config, name, text)
        return
    *parents, last = name.split(".")
    section = config
    for parent in parents:
        if not isinstance(section.get(parent), ConfigDict):
            raise ValueError(unknown_field(config, name))
        section = section[parent]
    if last not in section:
        raise ValueError(unknown_field(config, name))
    current = section[last]
    if isinstance(current, ConfigDict):
        if not text.startswith("{"):
            raise ValueError(
                f"config.{name} is a section: override one of its fields ({', '.join(current)}), or several "
                f"as {{'{next(iter(current), 'field')}': value, ...}}"
            )
        for field, value in _parse(text, {}, name).items():
            apply_override(config, f"{name}.{field}={value}")
        return
    if name == "objective.name" and text != current:
        raise ValueError(
            f"config.objective.name cannot be overridden: the fields of config.objective are those of "
            f"{current!r}; write a config file for {text!r}"
        )
    if name.startswith("objective.") and last == "kind" and text != current:
        raise ValueError(
            f"config.{name} cannot be overridden: the fields beside it are those of {current!r}; in a config "
            f"file, write config.{'.'.join(parents)} = vision_defaults({text!r}), from "
            "medclip_jax.objectives.towers"
        )
    set_field(section, last, _parse(text, current, name), OVERRIDE)


def _override_evaluators(config: Section, name: str, text: str) -> None:
    from medclip_jax.evaluation.settings import default_evaluators

    known = config.evaluation.evaluators
    evaluator, _, setting = name.removeprefix(_EVALUATORS).removeprefix(".").partition(".")
    settings = known.to_dict().get(evaluator, {})
    if setting:
        defaults = default_evaluators().get(settings.get("kind", evaluator), {})
        # An unknown setting is refused below.
        value = _parse(text, defaults[setting], name) if setting in defaults else text
        changed = {evaluator: settings | {setting: value}}
    else:
        value = _parse(text, {}, name)
        changed = {evaluator: value} if evaluator else value
    _check_evaluators(known.to_dict() | changed if evaluator else changed)
    if not evaluator:
        set_field(config.evaluation, "evaluators", value, OVERRIDE)
    elif setting and evaluator in known:
        set_field(known[evaluator], setting, value, OVERRIDE)
    else:
        set_field(known, evaluator, changed[evaluator], OVERRIDE)


def _check_evaluators(chosen: Mapping[str, Any]) -> None:
    if chosen:
        from medclip_jax.evaluation.settings import check_evaluators

        check_evaluators(chosen, where=f"config.{_EVALUATORS}.")


def _parse(text: str, current: Any, name: str) -> Any:
    kind = type(current)
    try:
        if kind is str:
            return text
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is int:
            number = float(text) if "e" in text.lower() else int(text)
            if not math.isfinite(number) or number != int(number):
                raise ValueError(text)
            return int(number)
        if kind is float:
            return float(text)
        value = ast.literal_eval(text)
    except (ValueError, KeyError, SyntaxError):
        raise ValueError(
            f"config.{name} is a {kind.__name__} (now {current!r}) and cannot be set to {text!r}"
        ) from None
    if kind is dict and not isinstance(value, dict):
        raise ValueError(f"config.{name} is a section: write {{'name': value, ...}}, not {text!r}")
    if kind in (tuple, list):
        if not isinstance(value, tuple | list):
            raise ValueError(f"config.{name} is a {kind.__name__}: write for example ('a','b'), not {text!r}")
        return kind(value)
    return value


def to_json(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """The config as JSON types (tuples become lists), as `config.json` holds it."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    return json.loads(json.dumps(plain))


def complete(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A config that was saved, with the keys that the schema got since then at their defaults.

    So a run of an earlier version can still be resumed and loaded: a new key's default keeps what was
    before it.

    Args:
        saved: `config.json` of a run.

    Raises:
        ValueError: its objective is from outside the package and cannot be imported.
    """
    from medclip_jax import objectives

    completed = _over(to_json(base_config()), saved)
    if "objective" in saved:
        completed["objective"] = objectives.complete(saved["objective"])
    return completed


def _over(defaults: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    merged = {**defaults, **given}
    for name, value in given.items():
        before, path = defaults.get(name), f"{prefix}{name}"
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            merged[name] = _weights(value, before) if path == _TEXT else _over(before, value, f"{path}.")
    return merged


def total_steps(config: ConfigDict, samples: int) -> int:
    """Batches to train on: `steps`, or `epochs` over `samples` samples, rounded up.

    Where `batch_size` is 0, it follows from the samples, see `training.settle`.

    Raises:
        ValueError: neither is set, or both.
    """
    if config.steps > 0 and config.epochs > 0:
        raise ValueError("set config.steps or config.epochs, not both (the other to 0)")
    if config.steps > 0:
        return config.steps
    if config.epochs > 0:
        from medclip_jax.training.settle import settle_batch_size

        return max(1, -(-int(config.epochs * samples) // settle_batch_size(config.batch_size, samples)))
    raise ValueError("how long to train? Set config.steps or config.epochs above 0")
