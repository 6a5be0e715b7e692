"""A run continues with the data it was begun on, and a text tower's weights meet the words they know."""

import hashlib
import json
import logging
import shutil
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from medclip_jax.objectives.base import DataSpec
from medclip_jax.reports.tokenizer import load_tokenizer, train_wordpiece
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.shards.record import Schema
from medclip_jax.shards.write import write_shards
from medclip_jax.training.checksums import CHECKSUMS, seal
from medclip_jax.training.config import base_config, complete
from medclip_jax.training.data import Data, check_expectation, check_vocabulary, identify
from medclip_jax.training.loop import train
from tests.tiny_run import FINDINGS, SHAPE, SPACING, made_records, make_shards


def again(folder, **data):
    """Start the finished run in `folder` by its own config, with other data where named."""
    config = ConfigDict(complete(json.loads((folder / "config.json").read_text())))
    config.data.update({name: str(value) for name, value in data.items()})
    return train(config, folder)


def contents(folder):
    """A hash of each file, but for the lock's."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("lock-")
    }


@pytest.fixture
def workdir(tiny_run, tmp_path):
    return shutil.copytree(tiny_run / "workdir", tmp_path / "run")


def test_moved_shards_are_the_same(tiny_run, workdir, tmp_path):
    shutil.copytree(tiny_run / "shards", tmp_path / "elsewhere")
    assert again(workdir, shards=tmp_path / "elsewhere")["loss"] > 0


def others(folder, *, spacing=SPACING, seed=0, train=16):
    """A set as `make_shards` writes it, changed in one thing."""
    splits = {"train": list(made_records(train, seed)), "test": list(made_records(12, 1))}
    write_shards(folder, Schema(SHAPE, spacing, FINDINGS, (), ("cac_grade",)), splits)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 7}, "the records are others"),
        ({"spacing": (4.0, 6.0, 6.0)}, r"spacing: \(8\.0, 6\.0, 6\.0\) there, \(4\.0, 6\.0, 6\.0\) now"),
        ({"train": 17}, "16 training samples there, 17 now"),
    ],
)
def test_others_are_refused_and_the_workdir_is_left_as_it_is(tiny_run, workdir, tmp_path, change, said):
    others(tmp_path / "shards", **change)
    shutil.copytree(tiny_run / "shards" / "tokenizer", tmp_path / "shards" / "tokenizer")
    before = contents(workdir)
    with pytest.raises(ValueError, match=f"(?s)was begun on other data.*{said}.*Give it the same shards"):
        again(workdir, shards=tmp_path / "shards")
    assert contents(workdir) == before


def mixed(tokenizer, folder):
    """A vocabulary of the same size in which two words have changed their places."""
    shutil.copytree(tokenizer, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def test_another_tokenizer_is_refused(tiny_run, workdir, tmp_path):
    shutil.copytree(tiny_run / "shards", tmp_path / "shards")
    shutil.rmtree(tmp_path / "shards" / "tokenizer")
    mixed(tiny_run / "shards" / "tokenizer", tmp_path / "shards" / "tokenizer")
    before = contents(workdir)
    with pytest.raises(ValueError, match="the tokenizer is another one"):
        again(workdir, shards=tmp_path / "shards")
    assert contents(workdir) == before


def test_a_run_of_an_earlier_version_resumes_with_what_its_copies_tell(tiny_run, workdir, tmp_path, caplog):
    checkpoint = workdir / "checkpoints" / "2"
    run = json.loads((checkpoint / "run" / "metadata").read_text())
    for name in ("shards", "records", "tokenizer"):
        assert run.pop(name)
    (checkpoint / "run" / "metadata").write_text(json.dumps(run))
    (checkpoint / CHECKSUMS).unlink()
    seal(checkpoint)
    with caplog.at_level(logging.WARNING):
        again(workdir)
    assert "of an earlier version and do not say which data" in caplog.text
    make_shards(tmp_path / "shards")
    settings = tmp_path / "shards" / "prepare.json"
    settings.write_text(settings.read_text().replace("8.0", "9.0"))
    with pytest.raises(ValueError, match=r"spacing: \(8\.0, .* there, \(9\.0, "):
        again(workdir, shards=tmp_path / "shards")


def test_what_tells_data_apart(tiny_run):
    info = open_shards(tiny_run / "shards")
    whole = identify(Data(open_split(info, "train"), None, load_tokenizer(info.tokenizer)))
    assert whole["samples"] == 16
    assert all(len(whole[name]) == 64 for name in ("shards", "records", "tokenizer"))
    part = identify(Data(open_split(info, "train[:8]"), None))
    assert part["records"] != whole["records"]
    assert identify(Data([{}, {}], None)) == {
        "samples": 2, "shards": None, "records": None, "tokenizer": None
    }  # fmt: skip


TABLE = ("text/encoder/words/embedding", "vision/patch/kernel")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two tokenizers of one size, as of two models."""
    folder = tmp_path_factory.mktemp("tokenizers")
    train_wordpiece(["there is no pleural effusion in the left lung"] * 3, folder / "own", 60)
    mixed(folder / "own", folder / "other")
    (folder / "bare").mkdir()
    return folder


def vocabulary_checked(folders, own, *, text="", initial="", given="", prepared="train", settled=()):
    config = base_config()
    with config.unlocked():
        config.objective = ConfigDict({"name": "clip", "text": {"folder": str(text)}})
    config.initial_weights.workdir, config.data.tokenizer = str(initial), str(given)
    info = SimpleNamespace(settings={"tokenizer": prepared}, fingerprint="")
    data = Data(SimpleNamespace(info=info), None, load_tokenizer(folders / own))
    check_vocabulary(config, data, settled, TABLE)


def test_a_text_encoder_is_given_the_ids_of_its_own_words(folders):
    vocabulary_checked(folders, "own", text=folders / "own")
    with pytest.raises(
        ValueError, match=r"text\.folder=.*another vocabulary than that of the tokenizer of the"
    ):
        vocabulary_checked(folders, "own", text=folders / "other")
    with pytest.raises(ValueError, match=r"Set config\.data\.tokenizer=.*other', or prepare the shards with"):
        vocabulary_checked(folders, "own", text=folders / "other")
    with pytest.raises(ValueError, match=r"that of config\.data\.tokenizer=.*: the word '.*' has id \d+"):
        vocabulary_checked(folders, "own", text=folders / "other", given=folders / "own")


def test_one_without_a_tokenizer_is_trusted_but_not_with_a_vocabulary_of_these_reports(folders, caplog):
    with pytest.raises(ValueError, match="to the folder of the tokenizer that the text encoder"):
        vocabulary_checked(folders, "own", text=folders / "bare")
    vocabulary_checked(folders, "own", text=folders / "bare", given=folders / "own")
    vocabulary_checked(folders, "own", text=folders / "bare", prepared="copied")
    assert caplog.text.count("is taken for granted") == 2


def test_a_second_stage_resumes_with_the_words_of_the_first(folders, tmp_path):
    for name in ("own", "other"):
        shutil.copytree(folders / name, tmp_path / name / "tokenizer")
    vocabulary_checked(folders, "own", initial=tmp_path / "own", settled=TABLE)
    with pytest.raises(ValueError, match=r"initial_weights\.workdir=.* or leave the text tower out of"):
        vocabulary_checked(folders, "own", initial=tmp_path / "other", settled=TABLE)
    # The vision tower alone brings no words.
    vocabulary_checked(folders, "own", initial=tmp_path / "other", settled=TABLE[1:])


def test_shards_are_compared_with_what_the_config_expects(caplog):
    """A wrong shape or spacing is refused with the fix, another crop or cell logged; () expects nothing."""
    config = base_config().data
    config.shards = "somewhere"
    info = SimpleNamespace(settings={"crop": "center"}, cell=4)
    spec = DataSpec((4, 6, 8), (2.0, 1.5, 1.5))
    check_expectation(config, spec, info)
    config.prepare.update(shape=(4, 6, 8), spacing=(2.0, 1.5, 1.5), crop="center", organ_cell=4)
    check_expectation(config, spec, info)
    assert not caplog.records
    config.prepare.crop, config.prepare.organ_cell = "heart", 8
    check_expectation(config, spec, info)
    assert "crop 'center', and this config is meant for 'heart'" in caplog.text
    assert "organ_cell 4, and this config is meant for 8" in caplog.text
    config.prepare.spacing = (2.0, 1.5, 1.6)
    with pytest.raises(ValueError, match=r"--spacing 2 1\.5 1\.6, or use .*--config\.data\.prepare\.spacing"):
        check_expectation(config, spec, info)
    config.prepare.update(spacing=(), shape=(4, 6, 9))
    with pytest.raises(ValueError, match=r"holds volumes of shape \(4, 6, 8\), .* \(4, 6, 9\)"):
        check_expectation(config, spec)
