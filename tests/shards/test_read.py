"""What is written must come back, through our reader and through TFDS's; damage must be named."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace

import blosc2
import numpy as np
import pytest

from medclip_jax.shards.arrays import ArraySpec
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.shards.record import Schema, ShardError, decode, encode
from medclip_jax.shards.series import SeriesSettings
from medclip_jax.shards.write import shard_name, write_shards

SCHEMA = Schema(
    shape=(8, 12, 16),
    spacing=(3.0, 1.5, 1.0),
    findings=("cardiomegaly", "pericardial_effusion"),
    organs=("heart", "aorta", "esophagus"),
    measurements=("agatston_score",),
    cell=4,
)


def make_record(index: int, organs: bool = True) -> dict:
    random = np.random.default_rng(index)
    return dict(
        id=f"id{index:03d}",
        study=-(2**62) + index // 2,
        patient=2**62 + index // 4,
        volume=random.integers(-1024, 3000, SCHEMA.shape).astype(np.int16),
        report=f"Report {index}: größe 5 × 3 mm.",
        findings_text="",
        impression=f"Impression {index}.",
        statements="There is cardiomegaly.",
        findings=np.array([1, -1], np.int8),
        labels=np.array([0, 1], np.int8),
        measurements=np.array([np.nan if index % 2 else index], np.float32),
        organs=random.integers(0, 255, SCHEMA.organ_shape).astype(np.uint8) if organs else None,
        organ_sentences={
            name: {"text": f"The {name} größe {index}.", "normal": index % 2 == 0}
            for name in ("heart", "aorta")[: index % 3]
        },
    )


@pytest.fixture(scope="module")
def records():
    return [make_record(index, organs=index != 3) for index in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("shards") / "set"
    write_shards(path, SCHEMA, {"train": records[:15], "test": records[15:]}, per_shard=4)
    return path


def test_everything_comes_back(folder, records):
    source = open_split(folder, "train")
    assert len(source) == 15
    for index in range(15):
        sample, record = source[index], records[index]
        for name in ("id", "report", "findings_text", "impression", "statements"):
            assert sample[name] == record[name]
        for name in ("volume", "findings", "labels", "measurements"):
            expected = record[name]
            assert sample[name].dtype == expected.dtype
            np.testing.assert_array_equal(sample[name], expected)
        assert sample["study"].dtype == np.int64
        assert (sample["study"], sample["patient"]) == (record["study"], record["patient"])
        assert sample["organ_sentences"] == record["organ_sentences"]
        assert ("organs" in sample) == (index != 3)
        if index != 3:
            np.testing.assert_array_equal(sample["organs"], record["organs"])


def test_info(folder):
    info = open_shards(folder)
    assert replace(info.schema, declared=()) == SCHEMA
    assert info.schema.arrays == SCHEMA.arrays
    assert info.splits == {"train": 15, "test": 5}
    assert info.tokenizer is None


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:20%]", range(3)),
        ("train[3:9]", range(3, 9)),
        ("train[-2:]", range(13, 15)),
        ("train+test", range(20)),
        ("test[50%:]", (17, 18, 19)),
    ],
)
def test_sub_splits_agree_with_tfds(folder, split, expected):
    import tensorflow_datasets as tfds

    source = open_split(folder, split, fields=["id"])
    assert [source[index] for index in range(len(source))] == [{"id": f"id{i:03d}"} for i in expected]
    theirs = tfds.builder_from_directory(folder).as_data_source(split)
    assert [sample["id"].decode() for sample in theirs] == [f"id{i:03d}" for i in expected]


def test_tfds_reads_the_folder_without_tensorflow(folder, records):
    code = f"""
import sys, numpy as np, blosc2, tensorflow_datasets as tfds
source = tfds.builder_from_directory({str(folder)!r}).as_data_source("train[:50%]")
sample = source[1]
volume = np.frombuffer(blosc2.decompress2(sample["volume"]), np.int16).reshape({SCHEMA.shape})
assert "tensorflow" not in sys.modules
print(len(source), int(volume.astype(int).sum()), sample["findings"].tolist(), sample["study"])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    total = int(records[1]["volume"].astype(int).sum())
    assert out.split() == ["8", str(total), "[1,", "-1]", str(records[1]["study"])]


def test_equal_records_make_equal_bytes(folder, records, tmp_path):
    write_shards(tmp_path, SCHEMA, {"train": records[:15], "test": records[15:]}, per_shard=4)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_pickled_source_reads_and_keeps_its_fields(folder):
    source = open_split(folder, "test", fields=["report", "findings"])
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert set(copy[4]) == {"report", "findings"}
    assert copy[4]["report"] == source[4]["report"]
    assert repr(copy) == repr(source)


def test_grain_takes_it_as_a_source(folder):
    import grain

    dataset = grain.MapDataset.source(open_split(folder, "train")).shuffle(seed=1).map(lambda s: s["volume"])
    assert dataset.batch(3)[0].shape == (3, *SCHEMA.shape)


def test_samples_keep_their_values_while_others_are_read(tmp_path):
    # Large enough for the buffer pool: memory must not be handed out again while a view of it lives.
    schema = Schema(shape=(32, 64, 64), spacing=(1.0, 1.0, 1.0))
    empty = np.zeros(0, np.int8)
    common = dict.fromkeys(("report", "findings_text", "impression", "statements"), "")
    common |= {"findings": empty, "labels": empty, "measurements": empty.astype(np.float32)}
    records = [
        {"id": f"{i}", "study": i, "patient": i, "volume": np.full(schema.shape, i, np.int16), **common}
        for i in range(6)
    ]
    write_shards(tmp_path, schema, {"train": records})
    source = open_split(tmp_path, "train")
    kept = [source[i]["volume"][1:, ::2] for i in range(6)]
    addresses = {view.__array_interface__["data"][0] for view in kept}
    assert len(addresses) == 6
    for index, view in enumerate(kept):
        assert (view == index).all()
    del kept, view
    assert source[2]["volume"].__array_interface__["data"][0] in {a - 64 * 64 * 2 for a in addresses}


def test_indexing_errors(folder):
    source = open_split(folder, "test")
    assert source[-1]["id"] == source[4]["id"]
    with pytest.raises(IndexError, match="5"):
        source[5]


def test_missing_folder(tmp_path):
    with pytest.raises(ShardError, match=r"no folder .*medclip prepare --out"):
        open_shards(tmp_path / "absent")


def test_not_a_prepared_folder(tmp_path):
    with pytest.raises(ShardError, match="not a prepared folder"):
        open_shards(tmp_path)


def test_unfinished_folder(tmp_path):
    (tmp_path / ".parts").mkdir()
    with pytest.raises(ShardError, match=r"has not finished.*again"):
        open_shards(tmp_path)


def test_unknown_split_lists_the_splits(folder):
    with pytest.raises(ShardError, match=r"no split 'valid'.*train \(15\), test \(5\)"):
        open_split(folder, "valid")
    with pytest.raises(ShardError, match="cannot read the split"):
        open_split(folder, "train[:10 percent]")
    with pytest.raises(ShardError, match="holds no volume"):
        open_split(folder, "train[5:5]")


def test_unknown_field(folder):
    with pytest.raises(ShardError, match="hold no array image; they hold id, study"):
        open_split(folder, "train", fields=["image"])


@pytest.fixture
def copy(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_truncated_shard(copy):
    path = copy / shard_name("train", 1, 4)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ShardError, match=rf"{path.name}.*bytes instead of {len(data)}.*truncated"):
        open_split(copy, "train")
    assert len(open_split(copy, "test")) == 5


def test_missing_shard(copy):
    (copy / shard_name("test", 0, 2)).unlink()
    with pytest.raises(ShardError, match="missing"):
        open_split(copy, "test")


def test_flipped_bits(copy):
    path = copy / shard_name("train", 0, 4)
    data = bytearray(path.read_bytes())
    for place in range(2000, len(data), 997):
        data[place] ^= 0xFF
    path.write_bytes(bytes(data))
    source = open_split(copy, "train")
    with pytest.raises(ShardError, match=r"damaged|parsed"):
        [source[index] for index in range(4)]


def test_damaged_settings(copy):
    (copy / "prepare.json").write_text("{")
    with pytest.raises(ShardError, match="damaged"):
        open_shards(copy)


def test_blosc2_frame_of_another_size():
    from medclip_jax.shards.arrays import compress, decompress

    frame = compress(np.zeros((2, 3, 4), np.int16))
    with pytest.raises(ShardError, match="48 bytes"):
        decompress(frame, (2, 3, 5), np.int16)
    with pytest.raises(ShardError, match="damaged"):
        decompress(frame[: len(frame) // 2], (2, 3, 4), np.int16)
    assert blosc2.decompress2(frame) == bytes(48)


def test_organ_sentences_are_absent_without_organs():
    record = make_record(0)
    without = replace(SCHEMA, organs=(), cell=0)
    assert set(SCHEMA.arrays) - set(without.arrays) == {"organ_sentences"}
    assert "organ_sentences" in SCHEMA.features()
    with pytest.raises(ValueError, match="the schema has no organ_sentences"):
        encode(record | {"organs": None}, without)
    # A set with organs that was prepared before there were sentences.
    del record["organ_sentences"]
    data, _ = encode(record, SCHEMA)
    assert b"organ_sentences" not in data
    assert decode(data, SCHEMA, ["organ_sentences", "report"]) == {
        "organ_sentences": {},
        "report": record["report"],
    }


RAGGED = Schema(
    (),
    (),
    declared=(
        ArraySpec("id", "text"),
        ArraySpec("frames", "blosc2", (None, 4, None), "uint8"),
        ArraySpec("view", "list", (None,), "int8"),
        ArraySpec("scar", "blosc2", (None, 4, 4), "int16", optional=True),
        ArraySpec("spacing", "list", (3,), "float32", optional=True),
        ArraySpec("said", "json", optional=True),
    ),
)


def test_any_declared_arrays_come_back_and_the_set_says_itself_what_it_holds(tmp_path):
    random = np.random.default_rng(0)
    records = [
        {
            "id": "a",
            "frames": random.integers(0, 255, (3, 4, 5)).astype(np.uint8),
            "view": np.array([0, 0, 1], np.int8),
            "scar": random.integers(0, 4095, (2, 4, 4)).astype(np.int16),
            "spacing": np.array([8, 1.5, 1.25], np.float32),
            "said": {"größe": [1, 2]},
        },
        {"id": "b", "frames": np.zeros((0, 4, 2), np.uint8), "view": np.zeros(0, np.int8)},
    ]
    write_shards(tmp_path, RAGGED, {"train": records})
    info = open_shards(tmp_path)
    assert (info.shape, info.series, info.schema.arrays) == ((), (), RAGGED.arrays)
    source = open_split(info, "train")
    for found, record in zip((source[0], source[1]), (records[0], records[1] | {"said": {}}), strict=True):
        assert found.keys() == record.keys()
        for name, value in record.items():
            np.testing.assert_array_equal(found[name], value)
            assert getattr(found[name], "dtype", None) == getattr(value, "dtype", None)
    import tensorflow_datasets as tfds

    theirs = tfds.builder_from_directory(tmp_path).as_data_source("train")
    assert theirs[0]["frames_shape"].tolist() == [3, 4, 5]
    assert theirs[1]["view"].tolist() == []
    other = json.loads((tmp_path / "prepare.json").read_text())
    other["arrays"][1]["dtype"] = "int8"
    (tmp_path / "prepare.json").write_text(json.dumps(other))
    assert open_shards(tmp_path).fingerprint != info.fingerprint


def test_a_set_without_a_list_of_arrays_is_read_as_before(copy, records):
    now = open_shards(copy)
    written = json.loads((copy / "prepare.json").read_text())
    assert [spec["name"] for spec in written.pop("arrays")] == list(SCHEMA.arrays)
    (copy / "prepare.json").write_text(json.dumps(written))
    before = open_shards(copy)
    assert before.arrays == ()
    assert (before.schema.arrays, before.fingerprint) == (now.schema.arrays, now.fingerprint)
    assert before.series == now.series == (SeriesSettings("volume", SCHEMA.shape, SCHEMA.spacing),)
    np.testing.assert_array_equal(open_split(before, "test")[2]["volume"], records[17]["volume"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"view": None}, "view is missing"),
        ({"frames": np.zeros((2, 5, 5), np.uint8)}, r"frames is uint8 \(2, 5, 5\), the schema says uint8"),
        ({"view": np.zeros((2, 2), np.int8)}, r"view is int8 \(2, 2\)"),
        ({"volume": 0}, "the schema has no volume; it has id, frames"),
    ],
)
def test_what_is_not_as_declared_is_refused(change, message):
    record = {"id": "a", "frames": np.zeros((2, 4, 5), np.uint8), "view": np.zeros(2, np.int8)}
    encode(record, RAGGED)
    with pytest.raises(ValueError, match=message):
        encode(record | change, RAGGED)


def test_declarations_that_make_no_sense():
    for wrong, message in (
        (("a", "zip", (), "int8"), "codec 'zip'"),
        (("a", "list"), "need a dtype"),
        (("a", "text", (), "int8"), "have none"),
        (("a", "list", (None, 3), "int8"), "a ragged list has one axis"),
    ):
        with pytest.raises(ValueError, match=message):
            ArraySpec(*wrong)
