"""What `medclip check` takes for the data where there are none: flags, else what stands beside the config."""

from __future__ import annotations

import argparse
import re
import runpy
from pathlib import Path
from typing import Any, NamedTuple

from medclip_jax.objectives.base import DataSpec

VOCABULARY = 30522
"""Entries of BERT's and PubMedBERT's tokenizers."""

ORGAN_CELL = 8
"""Voxels of a cell of organ maps along each axis, as `docs/how-to/data.md` recommends."""


class AssumedData(NamedTuple):
    """A stand-in for shards.

    Attributes:
        spec: what the model needs to know.
        organ_shape: (O, d, h, w), () without organs.
        samples: volumes of the training split, 0 where that is not known.
        source: where shape and vocabulary are from, for the reader.
    """

    spec: DataSpec
    organ_shape: tuple[int, ...]
    samples: int
    source: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that stand in for shards."""
    group = parser.add_argument_group(
        "data", "only needed while config.data.shards is empty; what is not given is read beside the config"
    )
    group.add_argument("--shape", metavar="D,H,W", help="voxels of a prepared volume")
    group.add_argument("--spacing", metavar="D,H,W", help="mm of a voxel (changes no cost; default 1,1,1)")
    group.add_argument("--findings", type=int, metavar="N", help="columns of findings")
    group.add_argument("--vocabulary", type=int, metavar="N", help=f"entries of the tokenizer ({VOCABULARY})")
    group.add_argument("--organs", type=int, default=0, metavar="N", help="organ maps, cells of 8 voxels")
    group.add_argument("--samples", type=int, default=0, metavar="N", help="volumes of the training split")


def assume(config: Any, config_file: str | Path, args: argparse.Namespace) -> AssumedData:
    """The data that a check is made for.

    In this order: flags; the shards of `config.data.shards`; `SETTINGS` of a `data.py` beside the config;
    `--shape D H W`, `--spacing`, `--organ-cell` and `--organs` in the config's docstring (the command that
    prepares its shards).

    Args:
        config: a full config.
        config_file: that it was read from.
        args: with the flags of `add_arguments`.

    Raises:
        ValueError: the shape is nowhere, or a flag cannot be read.
    """
    if config.data.shards:
        found = of_shards(config)
    else:
        found = _beside(Path(config_file)) or _of_docstring(Path(config_file))
    shape = _triple(args.shape, "--shape", int) if args.shape else found and found.spec.shape
    if not shape:
        raise ValueError(
            "which volumes? config.data.shards is empty and the config file names no shape: give "
            "--shape D,H,W in voxels, for example --shape 224,224,112, or --config.data.shards=FOLDER"
        )
    spec = found.spec if found else DataSpec(shape, (1.0, 1.0, 1.0))
    names = spec.findings or tuple(config.objective.get("findings", ()))
    if args.findings is not None:
        wanted = tuple(config.objective.get("findings", ()))[: args.findings]
        names = wanted + tuple(f"finding_{n}" for n in range(len(wanted), args.findings))
    vocabulary = args.vocabulary or spec.vocabulary_size or VOCABULARY
    organs = tuple(f"organ_{n}" for n in range(args.organs)) or spec.organs
    organ_shape = found.organ_shape if found else ()
    if args.organs:
        organ_shape = (args.organs, *(-(-size // ORGAN_CELL) for size in shape))
    spec = DataSpec(
        shape=tuple(shape),
        spacing=_triple(args.spacing, "--spacing", float) if args.spacing else spec.spacing,
        findings=names,
        organs=organs,
        vocabulary_size=vocabulary if "text" in config.objective else 0,
        mask_token=spec.mask_token,
        pad_token=spec.pad_token,
    )
    source = "flags" if args.shape else found.source
    return AssumedData(spec, organ_shape, args.samples or (found.samples if found else 0), source)


def of_shards(config: Any) -> AssumedData:
    """The data of the shards that a config names.

    Raises:
        ValueError: no such folder, split or tokenizer.
    """
    if not config.data.shards:
        raise ValueError("config.data.shards is empty: give a folder written by `medclip prepare`")
    from medclip_jax.shards.read import open_shards, open_split

    info = open_shards(config.data.shards)
    tokenizer = None
    folder = config.data.tokenizer or info.tokenizer
    if folder:
        from medclip_jax.reports.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(folder)
    samples = len(open_split(info, config.data.train_split, fields=()))
    organ_shape = tuple(info.schema.organ_shape) if info.organs else ()
    return AssumedData(DataSpec.of(info, tokenizer), organ_shape, samples, str(config.data.shards))


def _beside(config_file: Path) -> AssumedData | None:
    file = config_file.with_name("data.py")
    settings = runpy.run_path(str(file)).get("SETTINGS") if file.is_file() else None
    if settings is None:
        return None
    spec = DataSpec(
        tuple(settings.shape),
        tuple(settings.spacing),
        findings=tuple(settings.findings),
        organs=tuple(settings.organs or ()) if settings.cell else (),
        vocabulary_size=settings.vocabulary_size,
    )
    return AssumedData(spec, _organ_shape(spec, settings.cell), 0, str(file))


def _of_docstring(config_file: Path) -> AssumedData | None:
    text = runpy.run_path(str(config_file)).get("__doc__") or ""
    number = r"\s+([\d.]+)[\s,]+([\d.]+)[\s,]+([\d.]+)"
    shape = re.search("--shape" + number, text)
    if not shape:
        others = [file for file in sorted(config_file.parent.glob("*.py")) if file != config_file]
        found = [file for file in others if re.search("--shape" + number, file.read_text())]
        return _of_docstring(found[0]) if found else None
    spacing = re.search("--spacing" + number, text)
    cell, organs = re.search(r"--organ-cell\s+(\d+)", text), re.search(r"--organs[\s\\]+([\w,]+)", text)
    spec = DataSpec(
        tuple(int(size) for size in shape.groups()),
        tuple(float(size) for size in spacing.groups()) if spacing else (1.0, 1.0, 1.0),
        organs=tuple(organs[1].split(",")) if cell and organs else (),
    )
    organ_shape = _organ_shape(spec, int(cell[1]) if cell else 0)
    return AssumedData(spec, organ_shape, 0, f"the docstring of {config_file}")


def _organ_shape(spec: DataSpec, cell: int) -> tuple[int, ...]:
    return (len(spec.organs), *(size // cell for size in spec.shape)) if spec.organs else ()


def _triple(text: str, flag: str, kind: type) -> tuple[Any, ...]:
    parts = text.replace(",", " ").split()
    try:
        values = tuple(kind(part) for part in parts)
    except ValueError:
        values = ()
    if len(values) != 3 or min(values) <= 0:
        raise ValueError(
            f"{flag} {text}: give three numbers above 0, depth,height,width, such as 224,224,112"
        )
    return values
