"""A sweep's work units: one folder, one resolved config and one command for each point of the grid.

A unit's folder is the workdir of its run, and its name follows from its values alone, so that a sweep
that is expanded again, also with a larger grid, finds what was done before.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from medclip_jax.training.checkpoints import latest_step
from medclip_jax.training.config import load_config, to_json, total_steps
from medclip_jax.training.workdir import Workdir

SWEEP_FILE = "sweep.json"
COMMAND_FILE = "command.txt"
LOG_FILE = "log.txt"
EXIT_CODE_FILE = "exit_code"
"""What a launcher leaves in a unit's folder: everything printed, and how the last start ended."""

SEED = "seed"

REPEATED = (SEED, "data.subset.seed", "data.subset.fold")
"""Keys whose values are repetitions of one setting: they go into its mean and spread."""


@dataclass(frozen=True)
class Unit:
    """One run of a sweep.

    Attributes:
        name: of its folder; follows from `values`.
        folder: its workdir.
        values: swept key to its value, as JSON types.
        config: resolved.
        command: `medclip train ...`, as a list of arguments.
    """

    name: str
    folder: Path
    values: Mapping[str, Any]
    config: ConfigDict
    command: tuple[str, ...]


def parse_grid(text: str) -> tuple[str, list[str]]:
    """Split "a.b=1,2" into the key and the texts of its values.

    Commas inside of brackets and quotes do not separate, so tuples and dicts are values too:
    ``objective.vision.patch=(4,4,4),(8,8,8)``.

    Raises:
        ValueError: no "=", no value, an empty value, or brackets that do not close.
    """
    key, separator, rest = text.partition("=")
    key = key.removeprefix("--").removeprefix("config.")
    if not separator or not key or not rest:
        raise ValueError(f"cannot read --grid {text!r}: write --grid section.field=value,value")
    values, start, closing, quote = [], 0, [], ""
    for place, letter in enumerate(rest):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            closing.append(")]}"["([{".index(letter)])
        elif closing and letter == closing[-1]:
            closing.pop()
        elif letter == "," and not closing:
            values.append(rest[start:place])
            start = place + 1
    values.append(rest[start:])
    if closing or quote:
        raise ValueError(f"--grid {text!r}: {''.join(closing) or quote} is missing at the end")
    if not all(key.split("+")):
        raise ValueError(f"--grid {text!r}: write --grid first.field+second.field=value,value")
    if not all(value.strip() for value in values):
        raise ValueError(f"--grid {text!r}: a value is empty; write '' for an empty text")
    return key, ["" if value in ("''", '""') else value for value in values]


def expand(
    config_file: str | Path,
    workdir: str | Path,
    grid: Sequence[str],
    *,
    settings: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> list[Unit]:
    """Every combination of the grid's values as a unit, resolved and checked. Writes nothing.

    Args:
        config_file: Python file with `get_config()`.
        workdir: of the sweep; the units' folders lie in it.
        grid: "section.field=value,value", each key once; "seed+data.subset.seed=0,1" gives two keys the same
            values together.
        settings: "section.field=value", the same for all units.
        seeds: short for "seed=0,1,..." in the grid.

    Returns:
        The units, the last key of the grid varying fastest, seeds after all others.

    Raises:
        FileNotFoundError: no such config file.
        ValueError: nothing to sweep, a key that the config does not have (the message names the nearest),
            a value that does not fit its field, a key or a combination given twice, no length of
            training, or no shards.
    """
    parsed = [parse_grid(text) for text in grid]
    axes = [(key.replace("+config.", "+").split("+"), values) for key, values in parsed]
    if seeds:
        axes.append(([SEED], [str(seed) for seed in seeds]))
    if not axes:
        raise ValueError("nothing to sweep: give --grid section.field=value,value or --seeds 0,1,2")
    keys = [key for together, _ in axes for key in together]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"config.{twice[0]} is swept twice: give all its values in one --grid")
    fixed = [f"--config.{text.removeprefix('--').removeprefix('config.')}" for text in settings]
    both = [text for text in fixed if text.removeprefix("--config.").partition("=")[0] in keys]
    if both:
        raise ValueError(f"{both[0]} is set and swept: leave one of the two out")
    short = _short_names(keys)
    units: dict[str, Unit] = {}
    for texts in itertools.product(*(values for _, values in axes)):
        given = zip((together for together, _ in axes), texts, strict=True)
        swept = [f"--config.{key}={text}" for together, text in given for key in together]
        overrides = [*fixed, *swept]
        config = load_config(config_file, overrides)
        total_steps(config, samples=1)  # says so where neither steps nor epochs are set
        if not config.data.shards:
            raise ValueError("config.data.shards is empty: add --set data.shards=FOLDER")
        values = {key: _value(config, key) for key in keys}
        name = _name({short[key]: values[key] for key in keys})
        if name in units:
            raise ValueError(f"{name} stands twice in the grid")
        folder = Path(workdir) / name
        command = ("medclip", "train", "--config", str(config_file), "--workdir", str(folder), *overrides)
        units[name] = Unit(name, folder, values, config, command)
    return list(units.values())


def write(units: Sequence[Unit], workdir: str | Path) -> None:
    """Make the units' folders with `config.json` and `command.txt`, and list them in `sweep.json`.

    Units of an earlier, smaller grid stay listed.

    Raises:
        ValueError: a unit's folder holds a run that was begun with another config.
    """
    for unit in units:
        if unit.folder.exists():
            Workdir(unit.folder).check_config(unit.config, resuming=latest_step(unit.folder) is not None)
    for unit in units:
        Workdir(unit.folder).write_config(unit.config)
        (unit.folder / COMMAND_FILE).write_text(shlex.join(unit.command) + "\n")
    file = Path(workdir) / SWEEP_FILE
    known = json.loads(file.read_text()) if file.exists() else {}
    known |= {unit.name: unit.values for unit in units}
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(known, indent=2) + "\n")
    partial.replace(file)


def _value(config: ConfigDict, key: str) -> Any:
    value = config
    for name in key.split("."):
        value = value[name]
    return to_json({key: value.to_dict() if isinstance(value, ConfigDict) else value})[key]


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key's shortest end that no other key shares."""
    short = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        short[key] = next(
            end
            for end in ends
            # "seed" itself is "seed", whatever else ends so.
            if end == key or sum(other == end or other.endswith(f".{end}") for other in keys) == 1
        )
    return short


def _name(values: Mapping[str, Any]) -> str:
    """A folder's name: "learning_rate=0.001,width=64,seed=0", independent of the order of the grid."""
    parts = []
    for key in sorted(values, key=lambda key: (key == SEED, key)):
        exact = _text(values[key])
        text = re.sub(r"[^A-Za-z0-9._+-]+", "-", exact).strip("-")
        if not re.fullmatch(r"[A-Za-z0-9._+-]{1,32}", exact):
            # What was cut or replaced still tells units apart.
            text = f"{text[:24]}-{hashlib.sha256(exact.encode()).hexdigest()[:6]}".lstrip("-")
        parts.append(f"{key}={text}")
    return ",".join(parts)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(type(item) in (int, float) for item in value):
        return "x".join(map(json.dumps, value))
    return json.dumps(value)
