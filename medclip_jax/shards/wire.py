"""The outer layers of a serialized ``tf.train.Example``, taken apart without copying what lies in them.

A parser of protocol buffers copies the compressed volume twice. Here a feature is a view of the record; what
is small is left to such a parser.

The format (protobuf.dev, "Encoding"): a message is a row of fields, each a tag (number x 8 + type) and, for
type 2, a length and so many bytes. An Example holds Features in field 1; Features hold a map in field 1,
whose entries have the key in field 1 and the Feature in field 2; a Feature of bytes holds a BytesList in
field 1, and that its values in field 1.
"""

from __future__ import annotations

from collections.abc import Iterator

_FIRST, _SECOND = 1 << 3 | 2, 2 << 3 | 2
"""Tags of fields 1 and 2 that say their length."""


def split_example(record: bytes) -> dict[str, memoryview]:
    """The features of an Example.

    Args:
        record: as `shards.record.encode` made it.

    Returns:
        Name to the serialized Feature, a view of `record`.

    Raises:
        ValueError: it is no Example, or holds what `encode` does not write.
    """
    found = {}
    for features in _fields(memoryview(record), _FIRST):
        for entry in _fields(features, _FIRST):
            key, feature = _fields(entry, _FIRST, _SECOND)
            found[str(key, "utf-8")] = feature
    return found


def only_bytes(feature: memoryview) -> memoryview:
    """The one value of a Feature of bytes.

    Args:
        feature: from `split_example`.

    Raises:
        ValueError: it is another Feature, or has another number of values.
    """
    (values,) = _fields(feature, _FIRST)
    (value,) = _fields(values, _FIRST)
    return value


def _fields(message: memoryview, *tags: int) -> Iterator[memoryview]:
    """Contents of a message's fields, whose tags must be these, in this order and again from the first."""
    place, number = 0, 0
    while place < len(message):
        if message[place] != tags[number % len(tags)]:
            raise ValueError(f"field {number} has tag {message[place]}")
        size, start = _varint(message, place + 1)
        place = start + size
        if place > len(message):
            raise ValueError(f"field {number} ends beyond its message")
        yield message[start:place]
        number += 1


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, least first, and where it ends."""
    value = shift = 0
    for end, byte in enumerate(message[place : place + 10], place + 1):
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, end
        shift += 7
    raise ValueError("a number has no end")
