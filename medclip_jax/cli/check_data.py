"""What `medclip check` takes for the data: flags, the shards, or what the config expects of them."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

from medclip_jax.objectives.base import DataSpec
from medclip_jax.training.data import check_expectation

VOCABULARY = 30522
"""Entries of BERT's and PubMedBERT's tokenizers."""

ORGAN_CELL = 8
"""Voxels of a cell of organ maps along each axis, as `docs/how-to/data.md` recommends."""


class AssumedData(NamedTuple):
    """A stand-in for shards.

    Attributes:
        spec: what the model needs to know.
        samples: volumes of the training split, 0 where that is not known.
        source: where shape and vocabulary are from, for the reader.
    """

    spec: DataSpec
    samples: int
    source: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that stand in for shards."""
    group = parser.add_argument_group(
        "data", "while config.data.shards is empty; what is not given is read from config.data.prepare"
    )
    group.add_argument("--shape", metavar="D,H,W", help="voxels of a prepared volume")
    group.add_argument("--spacing", metavar="D,H,W", help="mm of a voxel (changes no cost; default 1,1,1)")
    group.add_argument("--findings", type=int, metavar="N", help="columns of findings")
    group.add_argument("--vocabulary", type=int, metavar="N", help=f"entries of the tokenizer ({VOCABULARY})")
    group.add_argument("--organs", type=int, default=0, metavar="N", help="organ maps, cells of 8 voxels")
    group.add_argument("--samples", type=int, default=0, metavar="N", help="volumes of the training split")


def assume(config: Any, args: argparse.Namespace) -> AssumedData:
    """The data that a check is made for: flags, else the shards, else what `config.data.prepare` expects.

    What that leaves open is as `medclip prepare` does it by default.

    Args:
        config: a full config.
        args: with the flags of `add_arguments`.

    Raises:
        ValueError: a flag cannot be read, or the shards are not what the config expects.
    """
    found = of_shards(config) if config.data.shards else of_expectation(config)
    if config.data.shards:
        check_expectation(config.data, found.spec)
    spec = found.spec
    shape = _triple(args.shape, "--shape", int) if args.shape else spec.shape
    target = config.objective.get("target", {})
    named = tuple(config.objective.get("findings", ()) or target.get("findings", ()))
    names = spec.findings or named
    if args.findings is not None:
        wanted = named[: args.findings]
        names = wanted + tuple(f"finding_{n}" for n in range(len(wanted), args.findings))
    vocabulary = args.vocabulary or spec.vocabulary_size or VOCABULARY
    organs = tuple(f"organ_{n}" for n in range(args.organs)) or spec.organs
    organ_shape = spec.organ_shape
    if args.organs:
        organ_shape = (args.organs, *(-(-size // ORGAN_CELL) for size in shape))
    spec = DataSpec(
        shape=tuple(shape),
        spacing=_triple(args.spacing, "--spacing", float) if args.spacing else spec.spacing,
        findings=names,
        organs=organs,
        organ_shape=organ_shape,
        vocabulary_size=vocabulary,
        mask_token=spec.mask_token,
        pad_token=spec.pad_token,
        views=spec.views,
        frame_shape=spec.frame_shape,
        label_classes=spec.label_classes,
        measurements=spec.measurements or _named_measurements(target),
    )
    source = "flags" if args.shape else found.source
    return AssumedData(spec, args.samples or found.samples, source)


def of_shards(config: Any) -> AssumedData:
    """The data of the shards that a config names.

    Raises:
        ValueError: no such folder, split or tokenizer, or shards that hold not all that the objective reads.
    """
    from medclip_jax.objectives import resolve
    from medclip_jax.training.data import open_data

    fields = resolve(config.objective.name)[1].batch_fields(config.objective)
    data = open_data(config.data, fields)
    return AssumedData(data.spec, len(data.source), str(config.data.shards))


def of_expectation(config: Any) -> AssumedData:
    """The data that `config.data.prepare` expects, the rest as `medclip prepare` does it by default."""
    from medclip_jax.shards.settings import PrepareSettings

    expected, default = config.data.prepare, PrepareSettings(fit=config.data.prepare.fit or "crop")
    vocabulary, findings = expected.vocabulary_size, tuple(expected.findings)
    if expected.views:
        frames = {"views": tuple(expected.views), "frame_shape": tuple(expected.frame_shape)}
        spec = DataSpec((), (), findings=findings, vocabulary_size=vocabulary, **frames)
        return AssumedData(spec, 0, "config.data.prepare")
    shape = tuple(expected.shape or default.shape)
    cell, organs = expected.organ_cell, tuple(expected.organs) if expected.organ_cell else ()
    spec = DataSpec(
        shape,
        tuple(expected.spacing or default.all_series[0].spacing),
        findings=findings,
        organs=organs,
        organ_shape=(len(organs), *(size // cell for size in shape)) if organs else (),
        vocabulary_size=vocabulary,
        label_classes=tuple(expected.label_classes),
    )
    source = "config.data.prepare" if expected.shape else "the defaults of medclip prepare"
    return AssumedData(spec, 0, source)


def _named_measurements(target: Any) -> tuple[str, ...]:
    """Measurements that `config.objective.target` names: what shards that are not there yet would hold."""
    return tuple(filter(None, (target.get(key, "") for key in ("measurement", "time", "event"))))


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
