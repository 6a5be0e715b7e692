"""A record taken apart by hand is what a parser of protocol buffers makes of it; damage never passes."""

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from medclip_jax.shards.wire import only_bytes, split_example


def example(**values: bytes) -> bytes:
    feature = {
        name: tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value]))
        for name, value in values.items()
    }
    feature["numbers"] = tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[-1, 2**62]))
    features = tf_feature_pb2.Features(feature=feature)
    return tf_example_pb2.Example(features=features).SerializeToString(deterministic=True)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, 2_097_152])
def test_lengths_of_one_to_four_bytes(size):
    value = np.random.default_rng(size).bytes(size)
    record = example(volume=value, größe=b"x")
    features = split_example(record)
    assert only_bytes(features["volume"]) == value
    assert only_bytes(features["größe"]) == b"x"
    parsed = tf_example_pb2.Example.FromString(record).features.feature
    assert {name: tf_feature_pb2.Feature.FromString(bytes(view)) for name, view in features.items()} == dict(
        parsed
    )


def test_nothing_is_copied():
    record = example(volume=bytes(1000))
    view = only_bytes(split_example(record)["volume"])
    assert view.obj is record


def test_an_empty_record_has_no_features():
    assert split_example(b"") == {}
    assert split_example(tf_example_pb2.Example().SerializeToString()) == {}


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_record_that_is_cut_is_damaged_or_the_same_up_to_there(cut):
    record = example(a=b"123", b=bytes(40))
    try:
        found = split_example(record[:-cut])
    except ValueError:
        return
    pytest.fail(f"taken for {sorted(found)}")


def test_a_changed_byte_never_raises_anything_else():
    record = example(a=b"123", b=bytes(9))
    for place in range(len(record)):
        for value in (0, 1, 0x0A, 0x7F, 0x80, 0xFF):
            damaged = record[:place] + bytes([value]) + record[place + 1 :]
            try:
                for view in split_example(damaged).values():
                    only_bytes(view)
            except ValueError:
                pass


@pytest.mark.parametrize(
    "record", [b"\x12\x00", b"\x08\x01", b"\x0a\x05", b"\x0a" + b"\xff" * 12, b"\x0a"],
    ids=["another field", "a number", "too short", "an endless length", "no length"],
)  # fmt: skip
def test_what_is_no_example(record):
    with pytest.raises(ValueError, match=r"field|number"):
        split_example(record)


def test_one_value_is_meant():
    feature = tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[b"a", b"b"]))
    with pytest.raises(ValueError, match="too many"):
        only_bytes(memoryview(feature.SerializeToString()))
