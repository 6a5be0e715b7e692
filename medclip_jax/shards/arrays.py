"""Arrays of a record: each declared once, encoded and decoded by its declaration alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import blosc2
import numpy as np
from jaxtyping import Shaped
from tensorflow_datasets.proto import tf_feature_pb2

from medclip_jax.shards.buffers import borrow
from medclip_jax.shards.wire import only_bytes

CODECS = ("blosc2", "list", "text", "json")
"""How an array is stored: as a blosc2 frame (large arrays: byte-shuffled, because the high bytes of
neighboring voxels are nearly all equal); as a plain list of integers or floats; as text; as JSON."""

SHAPE_SUFFIX = "_shape"
"""Beside a ragged blosc2 frame stands the shape of what it holds, under its name with this suffix."""

_COMPRESSION = {"codec": blosc2.Codec.LZ4HC, "clevel": 3, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}

Features = Mapping[str, memoryview]
"""Name to serialized feature, from `wire.split_example`."""


class ShardError(ValueError):
    """A prepared folder that cannot be used as it is; the message says what to do."""


@dataclass(frozen=True)
class ArraySpec:
    """The declaration of one array of a record; `prepare.json` holds those of a set.

    Attributes:
        name: in the record.
        codec: one of `CODECS`.
        shape: of the array, None along axes whose size differs between records; () for a number. Of texts
            and JSON, ().
        dtype: NumPy's name of its type, such as "int16"; "" for texts and JSON.
        optional: whether a record may lack it. A decoded record then lacks the name; JSON becomes {}.
        doc: what it holds, in words, for `features.json`; makes no difference between declarations.
    """

    name: str
    codec: str
    shape: tuple[int | None, ...] = ()
    dtype: str = ""
    optional: bool = False
    doc: str = field(default="", compare=False)

    def __post_init__(self):
        if self.codec not in CODECS:
            raise ValueError(f"array '{self.name}': codec '{self.codec}' is none of {', '.join(CODECS)}")
        if (self.codec in ("blosc2", "list")) != bool(self.dtype):
            raise ValueError(f"array '{self.name}': blosc2 and list need a dtype, text and json have none")
        if self.codec == "list" and self.ragged and len(self.shape) > 1:
            raise ValueError(f"array '{self.name}': a ragged list has one axis; take blosc2 for more")

    @property
    def ragged(self) -> bool:
        """Whether its shape differs between records."""
        return None in self.shape

    def to_json(self) -> dict[str, Any]:
        """As `prepare.json` holds it; what is empty is left out."""
        fields = vars(self) | {"shape": list(self.shape)}
        return {name: value for name, value in fields.items() if value or name in ("name", "codec")}

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> ArraySpec:
        """Undo `to_json`.

        Raises:
            TypeError, ValueError: it is none.
        """
        return cls(**{**written, "shape": tuple(written.get("shape", ()))})

    def features(self) -> dict[str, Any]:
        """The TFDS features of what `encode` writes."""
        import tensorflow_datasets as tfds

        doc = self.doc or None
        if self.codec == "blosc2":
            shape = str(self.shape).replace("None", "ragged")
            words = " ".join(filter(None, (f"blosc2 frame of {shape} {self.dtype}", self.doc)))
            found = {self.name: tfds.features.Text(doc=words + ", or empty" * self.optional)}
            if self.ragged:
                axes = (len(self.shape),)
                found[self.name + SHAPE_SUFFIX] = tfds.features.Tensor(shape=axes, dtype=np.int64)
            return found
        if self.codec == "list":
            dtype = np.dtype(self.dtype).type
            if not self.shape:
                return {self.name: tfds.features.Scalar(dtype, doc=doc)}
            return {self.name: tfds.features.Tensor(shape=self.shape, dtype=dtype, doc=doc)}
        return {self.name: tfds.features.Text(doc="JSON" if self.codec == "json" else doc)}

    def encode(self, value: Any) -> dict[str, tf_feature_pb2.Feature]:
        """Serialize a value.

        Args:
            value: an array of the declared type and shape (for shape () a number), a str, or what JSON holds;
                None where the record lacks it.

        Raises:
            ValueError: it is not what the declaration says.
        """
        if value is None:
            if not self.optional:
                raise ValueError(f"{self.name} is missing, and the schema does not call it optional")
            # An empty frame, so that TFDS finds the feature in every record; JSON is absent.
            return {self.name: _bytes(b"")} if self.codec == "blosc2" else {}
        if self.codec == "text":
            return {self.name: _bytes(value.encode())}
        if self.codec == "json":
            return {self.name: _bytes(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())}
        array = value if self.shape else np.asarray(value, self.dtype)
        self._check(array)
        if self.codec == "list":
            return {self.name: _numbers(array)}
        found = {self.name: _bytes(compress(array))}
        if self.ragged:
            found[self.name + SHAPE_SUFFIX] = _numbers(np.array(array.shape))
        return found

    def _check(self, array: np.ndarray) -> None:
        if not self._fits(array.shape) or array.dtype != self.dtype:
            shape = str(self.shape).replace("None", "any")
            raise ValueError(
                f"{self.name} is {array.dtype} {array.shape}, the schema says {self.dtype} {shape}"
            )

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == len(self.shape) and all(
            wanted in (None, size) for size, wanted in zip(shape, self.shape, strict=True)
        )

    def decode(self, features: Features) -> Any:
        """Undo `encode`.

        Args:
            features: of the full record.

        Returns:
            The value; None where the record lacks it ({} for JSON).

        Raises:
            ShardError: it is missing or damaged.
        """
        if self.name not in features:
            if self.optional:
                return {} if self.codec == "json" else None
            raise ShardError(
                f"a record has no array '{self.name}': it was written by another version, prepare again"
            )
        try:
            if self.codec != "blosc2":
                return self._plain(_parsed(features[self.name]))
            frame = only_bytes(features[self.name])
            if self.optional and not frame:
                return None
            shape = self.shape
            if self.ragged:
                shape = tuple(_parsed(features[self.name + SHAPE_SUFFIX]).int64_list.value)
                if not self._fits(shape):
                    raise ValueError(f"its shape is {shape}")
        except (IndexError, KeyError, ValueError, RecursionError) as error:
            raise ShardError(
                f"'{self.name}' of a record is damaged ({error}): prepare this set again"
            ) from None
        return decompress(frame, shape, self.dtype, pooled=not self.ragged)

    def _plain(self, feature: tf_feature_pb2.Feature) -> Any:
        """The value of what is not compressed."""
        if self.codec == "list":
            values = feature.int64_list.value or feature.float_list.value
            if not self.shape:
                return np.dtype(self.dtype).type(values[0])
            return np.array(values, self.dtype).reshape([-1 if n is None else n for n in self.shape])
        data = feature.bytes_list.value[0]
        return data.decode() if self.codec == "text" else json.loads(data)


def compress(array: Shaped[np.ndarray, ...]) -> bytes:
    """Compress an array, the same bytes for the same values on every run (one thread)."""
    array = np.ascontiguousarray(array)
    return blosc2.compress2(array, typesize=array.itemsize, **_COMPRESSION)


def decompress(
    frame: bytes | memoryview, shape: tuple[int, ...], dtype: Any, *, pooled: bool = True
) -> np.ndarray:
    """Undo `compress`.

    Args:
        frame: what `compress` returned.
        shape: of the array that went in.
        dtype: of the array that went in.
        pooled: take memory that goes back to a pool once nobody holds the array (see `shards.buffers`);
            for sizes that come again and again.

    Raises:
        ShardError: the frame is damaged or holds an array of another size.
    """
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        size = blosc2.get_cbuffer_sizes(frame)[0]
        if size == expected:  # before memory is taken that a damaged number asks for
            array = borrow(shape, dtype) if pooled else np.empty(shape, dtype)
            if size:
                blosc2.decompress2(frame, dst=array, nthreads=1)
            return array
    except (RuntimeError, ValueError) as error:
        raise ShardError(f"a compressed array is damaged ({error}): prepare this set again") from None
    raise ShardError(
        f"a compressed array holds {size} bytes where {shape} {np.dtype(dtype)} needs {expected}: "
        "prepare.json does not belong to these shards; prepare the set again"
    )


def _parsed(feature: memoryview) -> tf_feature_pb2.Feature:
    """A feature that is small.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return tf_feature_pb2.Feature.FromString(bytes(feature))
    except Exception as error:  # protobuf's DecodeError differs between its implementations
        raise ValueError(f"it cannot be parsed, {type(error).__name__}") from None


def _bytes(value: bytes) -> tf_feature_pb2.Feature:
    return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value]))


def _numbers(array: np.ndarray) -> tf_feature_pb2.Feature:
    values = array.ravel().tolist()
    if array.dtype.kind == "f":
        return tf_feature_pb2.Feature(float_list=tf_feature_pb2.FloatList(value=values))
    return tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=values))
