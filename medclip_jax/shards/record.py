"""One record of a prepared set: named arrays, and how they become bytes and arrays again.

A record is a ``tf.train.Example``, so that TFDS reads the folder as any other dataset, without TensorFlow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypedDict

from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from medclip_jax.corpora.study import VOLUME
from medclip_jax.shards.arrays import ArraySpec, ShardError
from medclip_jax.shards.wire import split_example

TEXTS = ("report", "findings_text", "impression", "statements")
"""The text arrays of a record."""

LABEL_MAP = "label_map"
"""Class of each voxel of `volume`; see `shards.label_maps`."""

GROUPS = "groups"
"""Name to the group that a study belongs to (scanner, band of ages): JSON, a dict once decoded."""

ORGAN_SENTENCES = "organ_sentences"
"""Organ to `OrganText`: JSON in the shards, a dict once decoded."""


class OrganText(TypedDict):
    """What a report says of one organ.

    Attributes:
        text: the sentences about it.
        normal: whether they state nothing abnormal; see `medclip_jax.reports.anatomy.states_normal`.
    """

    text: str
    normal: bool


@dataclass(frozen=True)
class Schema:
    """What is the same for every record of a prepared set.

    Attributes:
        shape: (D, H, W) voxels of the array `volume`; () where there is none.
        spacing: mm per voxel along depth, height, width; () likewise; None where each record has its own.
        findings: names of the columns of `findings` and `labels`.
        organs: names of the channels of `organs`.
        measurements: names of the columns of `measurements`.
        cell: voxels per organ cell along each axis; 0 where no organs are prepared.
        declared: the arrays of a record; () for those of one volume a record, see `volume_arrays`.
    """

    shape: tuple[int, ...]
    spacing: tuple[float | None, ...]
    findings: tuple[str, ...] = ()
    organs: tuple[str, ...] = ()
    measurements: tuple[str, ...] = ()
    cell: int = 0
    declared: tuple[ArraySpec, ...] = ()

    @property
    def has_organs(self) -> bool:
        """Whether organ maps, and the sentences about organs, are prepared."""
        return bool(self.cell and self.organs)

    @property
    def organ_shape(self) -> tuple[int, int, int, int]:
        """(O, d, h, w) of `organs`; all 0 where none are prepared."""
        if not self.has_organs:
            return (0, 0, 0, 0)
        depth, height, width = (size // self.cell for size in self.shape)
        return (len(self.organs), depth, height, width)

    @cached_property
    def arrays(self) -> Mapping[str, ArraySpec]:
        """Name to declaration of every array of a record."""
        return {spec.name: spec for spec in self.declared or volume_arrays(self)}

    def features(self) -> dict[str, Any]:
        """The TFDS features of a record, for `features.json`."""
        return {name: found for spec in self.arrays.values() for name, found in spec.features().items()}


def common_arrays(schema: Schema, scans: Collection[ArraySpec]) -> tuple[ArraySpec, ...]:
    """Declarations of the arrays of a record: of its scans, and of what every record says beside them.

    Args:
        schema: names the findings, organs and measurements.
        scans: declarations of the arrays that hold scans.
    """
    count = (len(schema.findings),)
    shape = schema.organ_shape
    return (
        ArraySpec("id", "text", doc="keyed hash of the volume's name"),
        ArraySpec("study", "list", dtype="int64", doc="keyed hash: volumes of one study share a report"),
        ArraySpec("patient", "list", dtype="int64", doc="keyed hash"),
        *scans,
        *(ArraySpec(name, "text") for name in TEXTS),
        ArraySpec("findings", "list", count, "int8"),
        ArraySpec("labels", "list", count, "int8"),
        ArraySpec("measurements", "list", (len(schema.measurements),), "float32"),
        ArraySpec("organs", "blosc2", shape, "uint8", optional=True),
        *([ArraySpec(ORGAN_SENTENCES, "json", optional=True)] if schema.has_organs else []),
    )


def volume_arrays(schema: Schema) -> tuple[ArraySpec, ...]:
    """Declarations of the arrays of a record with one CT volume.

    Sets that were prepared before `prepare.json` listed arrays hold these, and the fingerprint of a set
    leaves them out: they stay as they are. New arrays are declared in `PrepareSettings.schema`.

    Args:
        schema: names the findings, organs and measurements, and the volume's shape.
    """
    return common_arrays(schema, [ArraySpec(VOLUME, "blosc2", schema.shape, "int16", doc="Hounsfield units")])


def checksum(data: bytes | memoryview) -> str:
    """BLAKE2b of `data`, 128 bits, in hex: what the manifest holds for every record and volume."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def encode(record: Mapping[str, Any], schema: Schema) -> tuple[bytes, dict[str, str]]:
    """Serialize a record.

    Args:
        record: name to value of every array of the schema; see `ArraySpec.encode`. What is optional may be
            absent or None.
        schema: of the prepared set.

    Returns:
        The bytes, the same on every run for the same record; and by name the checksum of every compressed
        array.

    Raises:
        ValueError: a value is missing, unknown, or not what the schema declares.
    """
    if unknown := sorted(set(record) - set(schema.arrays)):
        raise ValueError(f"the schema has no {', '.join(unknown)}; it has {', '.join(schema.arrays)}")
    feature: dict[str, tf_feature_pb2.Feature] = {}
    for name, spec in schema.arrays.items():
        feature |= spec.encode(record.get(name))
    example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=feature))
    # A protobuf map has no order of its own: without this, equal records can become unequal shards.
    return example.SerializeToString(deterministic=True), {
        name: checksum(feature[name].bytes_list.value[0])
        for name, spec in schema.arrays.items()
        if spec.codec == "blosc2"
    }


def decode(data: bytes, schema: Schema, fields: Collection[str] | None = None) -> dict[str, Any]:
    """Turn a record's bytes into arrays, strings and numbers.

    Args:
        data: what `encode` returned.
        schema: of the prepared set.
        fields: names of the arrays that are wanted; None for all. Leaving out scans saves time.

    Returns:
        Name to value, as the schema declares it: of a set of volumes, `volume` (D, H, W) int16 HU; `organs`
        (O, d, h, w) uint8; `organ_sentences` a dict (see `OrganText`); `groups` a dict of str;
        `findings`, `labels` (F,) int8; `measurements` (M,) float32; `study`, `patient` int64; the texts and
        `id` as str. An optional array that the record lacks is absent; optional JSON is {}.

    Raises:
        ShardError: the record is damaged.
    """
    try:
        features = split_example(data)
    except ValueError as error:
        raise ShardError(f"a record cannot be parsed ({error}): prepare this set again") from None
    arrays = schema.arrays
    values = {name: arrays[name].decode(features) for name in (arrays if fields is None else fields)}
    return {name: value for name, value in values.items() if value is not None}
