"""Text vectors that are computed once: the run is the one that encodes, and stale ones are refused."""

import json

import numpy as np
import pytest

from medclip_jax.cli.main import main
from medclip_jax.draws import choose_text, possible_texts
from medclip_jax.objectives import clip
from medclip_jax.text_vectors import KEYS, SETTINGS, VECTORS, TextVectors, text_key, write_text_vectors
from medclip_jax.training.config import base_config
from medclip_jax.training.loop import train
from medclip_jax.training.text_cache import cache_texts
from tests.tiny_run import make_shards


def config_of(folder, *, cached, **changes):
    config = base_config()
    config.objective = clip.default_config()
    config.objective.vision.update(
        patch=(4, 8, 8), width=24, depth=1, heads=2, pooling="mean", dtype="float32"
    )
    config.objective.text.update(width=16, depth=1, heads=2, max_positions=64, dtype="float32")
    config.objective.embedding_width = 16
    config.objective.prompts.weight = 1.0
    config.objective.cached_texts = cached
    config.optimizer.frozen = (r"^text/encoder/",)
    config.data.shards = str(folder / "shards")
    config.data.text.update(report=0.5, some_statements=0.5)
    config.data.most_statements = 2
    config.data.text_length = 24
    config.data.text_vectors.update(folder=str(folder / "vectors") if cached else "", width=16)
    config.batch_size, config.microbatches, config.steps = 16, 2, 3
    config.evaluation.evaluators = {}
    config.log.every_steps = 1
    config.log.tensorboard = config.log.progress = False
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached")
    make_shards(folder / "shards")
    found = cache_texts(config_of(folder, cached=True), folder / "vectors", progress=False)
    assert found.records == 16
    assert found.width == 16
    return folder


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def test_a_run_that_looks_vectors_up_is_the_one_that_encodes(folder):
    for cached in (False, True):
        train(config_of(folder, cached=cached), folder / f"run {cached}")
    looked_up, encoded = (losses(folder / f"run {cached}") for cached in (True, False))
    assert len(encoded) == 3
    np.testing.assert_allclose(looked_up, encoded, rtol=2e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer.frozen": (r"^vision/",)}, "text/encoder/.* learns, .* freeze the encoder"),
        ({"seed": 1}, "of another encoder, pooling or compute type"),
        ({"objective.text.pooling": "mean"}, "of another encoder, pooling or compute type"),
        ({"data.text_length": 20}, "have text_length 24, this run 20"),
        ({"data.text_vectors.width": 8}, r"have width 16, this run 8.*set config\.data\.text_vectors\.width"),
        ({"data.text_vectors.folder": ""}, "is empty: write it with `medclip cache-text`"),
        ({"data.text_vectors.folder": "nowhere"}, "'nowhere' holds no text vectors"),
    ],
)
def test_vectors_that_are_not_this_runs_are_refused(folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(config_of(folder, cached=True, **changes), tmp_path / "run")


def test_a_text_without_a_vector_is_an_error_and_not_another_text(folder):
    from medclip_jax.fields import Layout
    from medclip_jax.training.data import open_data

    config = config_of(folder, cached=True).data
    data = open_data(config, ("text_vector",))
    layout = Layout(("text_vector",), data.spec, config, data.tokenizer)
    record = {"study": 1, "report": "Something that nobody wrote.", "statements": ""}
    with pytest.raises(ValueError, match="record 7 shows a text without a vector"):
        layout.sample(record, 7)


def test_the_command_writes_what_the_function_does(folder, tmp_path, capsys):
    file = tmp_path / "run.py"
    file.write_text(
        "from tests.training.test_text_cache import config_of\n"
        "from pathlib import Path\n"
        f"def get_config():\n    return config_of(Path({str(folder)!r}), cached=True)\n"
    )
    assert main(["cache-text", "--config", str(file), "--out", str(tmp_path / "again")]) == 0
    assert "train with --config.data.text_vectors.folder" in capsys.readouterr().out
    for name in (KEYS, VECTORS):
        np.testing.assert_array_equal(np.load(folder / "vectors" / name), np.load(tmp_path / "again" / name))
    assert main(["cache-text", "--config", "configs/own/contrastive.py", "--out", str(tmp_path / "no")]) == 2


RECORD = {
    "report": " A report. ",
    "findings_text": "",
    "impression": "An impression.",
    "statements": "There is a. There is no b. There is c.",
}


@pytest.mark.parametrize("most", [1, 2])
def test_possible_texts_are_those_that_are_drawn(most):
    weights = {"report": 0.2, "findings_text": 0.2, "impression": 0.1, "some_statements": 0.5}
    drawn = {choose_text(RECORD, weights, np.random.default_rng(seed), most) for seed in range(600)}
    assert possible_texts(RECORD, weights, most) == drawn
    assert len(drawn) == 2 + (3 if most == 1 else 9)


def test_texts_without_end_are_refused_and_empty_records_have_one():
    with pytest.raises(ValueError, match="most_statements=0 draws from too many texts"):
        possible_texts(RECORD, {"some_statements": 1.0}, 0)
    assert possible_texts({}, {"some_statements": 1.0}, 0) == {""}
    assert possible_texts({"impression": "x"}, {"some_statements": 1.0}, 0) == {"x"}


def test_vectors_are_found_by_all_ids(tmp_path):
    tokens = np.array([[1, 2, 0], [2, 1, 0], [1, 2, 3]], np.int32)
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    write_text_vectors(tmp_path, [text_key(row) for row in tokens], vectors, {"text_length": 3})
    found = TextVectors(tmp_path)
    for row, vector in zip(tokens, vectors, strict=True):
        np.testing.assert_array_equal(found.find(row), vector)
    assert found.find(np.array([3, 2, 1], np.int32)) is None
    assert found.find(np.array([1, 2], np.int32)) is None
    for name in (SETTINGS, KEYS, VECTORS):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="medclip cache-text"):
            TextVectors(tmp_path)
        (tmp_path / name).write_bytes(whole)
