"""One record of a prepared set: what it holds, and how it becomes bytes and arrays again.

A record is a ``tf.train.Example``, so that TFDS reads the folder as any other dataset, without TensorFlow.
Volumes and organ maps travel in it as blosc2 frames: byte-shuffled, because the high bytes of neighboring
Hounsfield values are nearly all equal.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypedDict

import blosc2
import numpy as np
from jaxtyping import Float32, Int8, Int16, UInt8
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from medclip_jax.shards.buffers import borrow

TEXTS = ("report", "findings_text", "impression", "statements")
"""The text fields of a record."""

ORGAN_SENTENCES = "organ_sentences"
"""Organ to {"text": str, "normal": bool}: JSON in the shards, a dict once decoded."""

FIELDS = (
    *("id", "study", "patient", "volume", *TEXTS, "findings", "labels", "measurements", "organs"),
    ORGAN_SENTENCES,
)
"""Every field of a record; `organs` is absent from the decoded dict where none were prepared."""

_COMPRESSION = {"codec": blosc2.Codec.LZ4HC, "clevel": 3, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}


class ShardError(ValueError):
    """A prepared folder that cannot be used as it is; the message says what to do."""


@dataclass(frozen=True)
class Schema:
    """What is the same for every record of a prepared set.

    Attributes:
        shape: (D, H, W) voxels of a volume.
        spacing: mm per voxel along depth, height, width.
        findings: names of the columns of `findings` and `labels`.
        organs: names of the channels of `organs`.
        measurements: names of the columns of `measurements`.
        cell: voxels per organ cell along each axis; 0 where no organs are prepared.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    findings: tuple[str, ...] = ()
    organs: tuple[str, ...] = ()
    measurements: tuple[str, ...] = ()
    cell: int = 0

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

    def features(self) -> dict:
        """The TFDS feature of each field, for `features.json`."""
        import tensorflow_datasets as tfds

        return {
            "id": tfds.features.Text(doc="keyed hash of the volume's name"),
            "study": tfds.features.Scalar(np.int64, doc="keyed hash: volumes of one study share a report"),
            "patient": tfds.features.Scalar(np.int64, doc="keyed hash"),
            "volume": tfds.features.Text(doc=f"blosc2 frame of {self.shape} int16 Hounsfield units"),
            **{name: tfds.features.Text() for name in TEXTS},
            "findings": tfds.features.Tensor(shape=(len(self.findings),), dtype=np.int8),
            "labels": tfds.features.Tensor(shape=(len(self.findings),), dtype=np.int8),
            "measurements": tfds.features.Tensor(shape=(len(self.measurements),), dtype=np.float32),
            "organs": tfds.features.Text(doc=f"blosc2 frame of {self.organ_shape} uint8, or empty"),
            **({ORGAN_SENTENCES: tfds.features.Text(doc="JSON")} if self.has_organs else {}),
        }


def compress(array: Int16[np.ndarray, "D H W"] | UInt8[np.ndarray, "O d h w"]) -> bytes:
    """Compress an array, the same bytes for the same values on every run (one thread)."""
    array = np.ascontiguousarray(array)
    return blosc2.compress2(array, typesize=array.itemsize, **_COMPRESSION)


def decompress(frame: bytes | memoryview, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Undo `compress`.

    Args:
        frame: what `compress` returned.
        shape: of the array that went in.
        dtype: of the array that went in.

    Returns:
        The array, in memory that goes back to a pool once nobody holds it (see `shards.buffers`).

    Raises:
        ShardError: the frame is damaged or holds an array of another size.
    """
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        size = blosc2.get_cbuffer_sizes(frame)[0]
        if size == expected:  # before memory is taken that a damaged number asks for
            array = borrow(shape, dtype)
            blosc2.decompress2(frame, dst=array, nthreads=1)
            return array
    except (RuntimeError, ValueError) as error:
        raise ShardError(f"a compressed array is damaged ({error}): prepare this set again") from None
    raise ShardError(
        f"a compressed array holds {size} bytes where {shape} {np.dtype(dtype)} needs {expected}: "
        "prepare.json does not belong to these shards; prepare the set again"
    )


def checksum(data: bytes | memoryview) -> str:
    """BLAKE2b of `data`, 128 bits, in hex: what the manifest holds for every record and volume."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class OrganText(TypedDict):
    """What a report says of one organ.

    Attributes:
        text: the sentences about it.
        normal: whether they state nothing abnormal; see `medclip_jax.reports.anatomy.states_normal`.
    """

    text: str
    normal: bool


@dataclass(frozen=True)
class Record:
    """A volume with all that is prepared of it; the fields are those of `docs/architecture.md`."""

    id: str
    study: int
    patient: int
    volume: Int16[np.ndarray, "D H W"]
    report: str
    findings_text: str
    impression: str
    statements: str
    findings: Int8[np.ndarray, " F"]
    labels: Int8[np.ndarray, " F"]
    measurements: Float32[np.ndarray, " M"]
    organs: UInt8[np.ndarray, "O d h w"] | None = None
    organ_sentences: Mapping[str, OrganText] = field(default_factory=dict)


def encode(record: Record, schema: Schema) -> tuple[bytes, str]:
    """Serialize a record.

    Args:
        record: what to write.
        schema: of the prepared set.

    Returns:
        The bytes, the same on every run for the same record, and the checksum of the compressed volume.

    Raises:
        ValueError: an array does not have the shape that the schema fixes.
    """
    expected = {
        "volume": (schema.shape, np.int16),
        "findings": ((len(schema.findings),), np.int8),
        "labels": ((len(schema.findings),), np.int8),
        "measurements": ((len(schema.measurements),), np.float32),
    }
    if record.organs is not None:
        expected["organs"] = (schema.organ_shape, np.uint8)
    for name, (shape, dtype) in expected.items():
        array = getattr(record, name)
        if array.shape != tuple(shape) or array.dtype != dtype:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, the schema says {dtype} {shape}")
    volume = compress(record.volume)
    organs = b"" if record.organs is None else compress(record.organs)
    feature = {
        "id": _bytes(record.id.encode()),
        "study": _integers([record.study]),
        "patient": _integers([record.patient]),
        "volume": _bytes(volume),
        **{name: _bytes(getattr(record, name).encode()) for name in TEXTS},
        "findings": _integers(record.findings.tolist()),
        "labels": _integers(record.labels.tolist()),
        "measurements": tf_feature_pb2.Feature(
            float_list=tf_feature_pb2.FloatList(value=record.measurements.tolist())
        ),
        "organs": _bytes(organs),
    }
    if schema.has_organs:  # sets without organs keep the bytes that they always had
        feature[ORGAN_SENTENCES] = _bytes(_organ_json(record.organ_sentences, schema).encode())
    example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=feature))
    # A protobuf map has no order of its own: without this, equal records can become unequal shards.
    return example.SerializeToString(deterministic=True), checksum(volume)


def decode(data: bytes, schema: Schema, fields: Collection[str] = FIELDS) -> Mapping[str, object]:
    """Turn a record's bytes into arrays, strings and integers.

    Args:
        data: what `encode` returned.
        schema: of the prepared set.
        fields: which fields are wanted; leaving `volume` out saves its decompression.

    Returns:
        `volume` (D, H, W) int16 HU; `organs` (O, d, h, w) uint8, absent where none were prepared for
        this volume; `organ_sentences` a dict (see `OrganText`), {} where there are none; `findings`,
        `labels` (F,) int8; `measurements` (M,) float32; `study`, `patient` int64; the texts and `id` as
        str.

    Raises:
        ShardError: the record is damaged.
    """
    try:
        feature = tf_example_pb2.Example.FromString(data).features.feature
    except Exception as error:  # protobuf's DecodeError differs between its implementations
        raise ShardError(
            f"a record cannot be parsed ({type(error).__name__}): prepare this set again"
        ) from None
    sample: dict[str, object] = {}
    for name in fields:
        if name == ORGAN_SENTENCES:
            # Absent from sets without organs, and from those that were prepared before there were any.
            sample[name] = json.loads(feature[name].bytes_list.value[0]) if name in feature else {}
            continue
        if name not in feature:
            raise ShardError(
                f"a record has no field '{name}': it was written by another version, prepare again"
            )
        value = feature[name]
        if name == "volume":
            sample[name] = decompress(value.bytes_list.value[0], schema.shape, np.int16)
        elif name == "organs":
            frame = value.bytes_list.value[0]
            if frame:
                sample[name] = decompress(frame, schema.organ_shape, np.uint8)
        elif name in ("findings", "labels"):
            sample[name] = np.array(value.int64_list.value, np.int8)
        elif name == "measurements":
            sample[name] = np.array(value.float_list.value, np.float32)
        elif name in ("study", "patient"):
            sample[name] = np.int64(value.int64_list.value[0])
        else:
            sample[name] = value.bytes_list.value[0].decode()
    return sample


def _organ_json(sentences: Mapping[str, OrganText], schema: Schema) -> str:
    if unknown := sorted(set(sentences) - set(schema.organs)):
        raise ValueError(f"sentences about {', '.join(unknown)}, the schema's organs are {schema.organs}")
    # In the schema's order, whatever the mapping's own.
    written = {
        name: {"text": str(sentences[name]["text"]), "normal": bool(sentences[name]["normal"])}
        for name in schema.organs
        if name in sentences
    }
    return json.dumps(written, ensure_ascii=False, separators=(",", ":"))


def _bytes(value: bytes) -> tf_feature_pb2.Feature:
    return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value]))


def _integers(values: list[int]) -> tf_feature_pb2.Feature:
    return tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=values))
