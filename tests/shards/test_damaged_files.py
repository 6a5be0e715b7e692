"""What lies beside the shards can be damaged, too: one line names the file."""

import json
import shutil

import numpy as np
import pytest

from medclip_jax.shards.manifest import read_manifest
from medclip_jax.shards.read import DATASET_FILES, open_shards, open_split
from medclip_jax.shards.record import ShardError
from medclip_jax.shards.scan import ACCEPTED, REJECTED
from tests.tiny_run import make_shards


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "shards"
    make_shards(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "shards")


@pytest.mark.parametrize("name", DATASET_FILES)
@pytest.mark.parametrize("content", [None, b"", b"{", b"{}", b"[]", b"null", b"\xff\xfe"])
def test_the_damaged_file_is_named(folder, name, content):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ShardError, match=f"{name} is (damaged|missing)"):
        open_split(open_shards(folder), "train")


@pytest.mark.parametrize("name", DATASET_FILES)
def test_a_flipped_bit_is_named_or_does_no_harm(folder, name):
    content, random = (folder / name).read_bytes(), np.random.default_rng(0)
    for _ in range(20):
        flipped = bytearray(content)
        flipped[random.integers(len(content))] ^= 1 << int(random.integers(8))
        (folder / name).write_bytes(flipped)
        try:
            assert len(open_split(open_shards(folder), "train")) == 16
        except ShardError as error:
            if not any(f"{name} {what}" in str(error) for what in ("is damaged", "tells of")):
                pytest.fail(str(error))


def test_other_counts_than_those_of_the_set_are_damage(folder):
    file = folder / "dataset_info.json"
    file.write_text(file.read_text().replace('"16"', '"3"'))
    with pytest.raises(ShardError, match=r"dataset_info\.json tells of .*'train': 3.* prepare\.json of .*16"):
        open_split(open_shards(folder), "train")


GOOD = {"class": REJECTED, "reason": "unreadable", "row": 3}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"class": "rej', "Unterminated string"),
        ("[]", "list indices"),
        ("3", "not subscriptable"),
        (json.dumps({"row": 1}), "'class'"),
        (json.dumps({"class": REJECTED, "row": 1}), "no reason"),
        (json.dumps({**GOOD, "class": ACCEPTED}), "no checksum, index, notes, shard, split"),
    ],
)
def test_a_damaged_line_of_the_manifest_is_named_by_its_number(tmp_path, line, why):
    (tmp_path / "manifest.jsonl").write_text(f"{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(ShardError, match=rf"manifest\.jsonl, line 2, is damaged \(.*{why}"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_no_text(tmp_path):
    (tmp_path / "manifest.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ShardError, match=r"manifest\.jsonl cannot be read"):
        read_manifest(tmp_path)


def test_a_set_is_known_wherever_it_lies_and_by_what_it_holds(whole, folder):
    copied, first = open_shards(folder), open_shards(whole)
    assert copied.fingerprint == first.fingerprint
    settings = json.loads((folder / "prepare.json").read_text())
    for change in ({"spacing": [1.0, 1.0, 1.0]}, {"findings": ["a", "b", "c"]}, {"splits": {"train": 28}}):
        (folder / "prepare.json").write_text(json.dumps(settings | change))
        assert open_shards(folder).fingerprint != first.fingerprint
