"""Model cards: what they say, what they never say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from medclip_jax.export.model_card import (
    CINE_MEASUREMENTS,
    PHANTOM_MEASUREMENTS,
    last_evaluation,
    model_card,
)
from medclip_jax.shards.read import PreparedInfo
from tests.export.twins import NAMES, SHAPE, make_model, small, spec_of

MANIFEST = [
    *({"split": "train", "class": "accepted", "id": "a1b2", "row": 0, "notes": ["from /data"]},) * 3,
    {"split": "train", "class": "accepted-with-note", "id": "c3", "row": 3, "notes": ["padding:3%"]},
    {"split": "test", "class": "accepted", "id": "d4", "row": 4, "notes": []},
    {"class": "rejected-with-reason", "reason": "empty", "row": 5},
]


def info_of(measurements=("cac_grade",)):
    return PreparedInfo(
        folder="/secret/shards",
        shape=SHAPE,
        spacing=(4.0, 3.0, 2.5),
        findings=NAMES,
        organs=(),
        measurements=tuple(measurements),
        tokenizer=None,
        splits={"train": 4, "test": 1},
    )


@pytest.fixture(scope="module")
def model():
    return make_model(small("cardiac_clip"), spec_of())


def test_front_matter_is_yaml_that_the_hub_knows(model):
    card = model_card(model, name="a: model")
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "zero-shot-image-classification"
    assert "custom_code" in front["tags"]
    assert "# a: model\n" in card


@pytest.mark.parametrize(
    ("name", "task", "call"),
    [
        ("mae", "image-feature-extraction", "model.embed_volumes("),
        ("supervised", "image-classification", "model.predict("),
        ("segment", "image-segmentation", "model.segment("),
    ],
)
def test_the_first_call_is_what_the_model_is_for(name, task, call):
    config = small(name)
    if name == "segment":
        config.crops.shape = ()
    card = model_card(make_model(config, replace(spec_of(), label_classes=("liver",))), name="m")
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == task
    assert card.count(call) >= 2  # in PyTorch and in JAX


def test_counts_by_split_and_class_and_nothing_of_a_study(model):
    card = model_card(
        model, name="m", info=info_of(), manifest=MANIFEST, metrics=(7, {"zero_shot/auroc": 0.81})
    )
    assert "| split | accepted | accepted-with-note |" in card
    assert "| train | 3 | 1 |" in card
    assert "| test | 1 | 0 |" in card
    assert "6 studies were given, 1 of them rejected" in card
    assert "4 × 3 × 2.5 mm" in card
    assert "pericardial_effusion" in card
    assert "at step 7" in card
    assert "| zero_shot/auroc | 0.81 |" in card
    assert "Not a medical device" in card
    for secret in ("a1b2", "c3", "d4", "/data", "/secret", "empty"):
        assert secret not in card


def test_without_shards_the_kept_settings_are_told(model):
    assert "Volumes: 4 train, 1 test." in model_card(model, name="m", info=info_of())
    assert "Nothing is recorded." in model_card(model, name="m")


def test_phantoms_are_called_phantoms(model):
    from medclip_jax.corpora.phantom import generate

    assert set(generate(0, 0).measurements) >= PHANTOM_MEASUREMENTS
    real = model_card(model, name="m", info=info_of())
    made_up = model_card(model, name="m", info=info_of(PHANTOM_MEASUREMENTS))
    assert "phantom" not in real
    assert "Generated phantoms, no patients" in made_up
    assert "what it says of a real scan means nothing" in made_up


def test_beating_hearts_are_called_phantoms(model):
    from medclip_jax.corpora.cine import PRESETS, generate

    assert set(generate(0, 0, settings=PRESETS["demo"]).measurements) == CINE_MEASUREMENTS
    made_up = model_card(model, name="m", info=info_of(CINE_MEASUREMENTS))
    assert "**Generated phantoms, no patients**: beating hearts in cardiac MR" in made_up
    patients = model_card(model, name="m", info=info_of(CINE_MEASUREMENTS - {"scar_percent"}))
    assert "phantom" not in patients


def test_a_masked_autoencoder_reads_no_text():
    card = model_card(make_model(small("mae"), spec_of()), name="m")
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "image-feature-extraction"
    assert "model.embed_volumes((voxels, affine)).mean" in card
    assert "zero_shot" not in card
    assert "tokens" not in card


def test_what_comes_out():
    point = model_card(make_model(small("mae"), spec_of()), name="m")
    assert "Of a volume, a point: 24 numbers" in point
    assert "log_variance" not in point
    gaussian = model_card(make_model(small("hipro_ct"), spec_of()), name="m")
    assert "Of a volume, and of a text, a Gaussian: `mean`, 10 numbers" in gaussian
    assert "`log_variance`" in gaussian


def test_last_evaluation(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert last_evaluation(file, ["zero_shot"]) is None
    lines = [
        {"step": 1, "loss": 3.0},
        {"step": 2, "zero_shot/auroc": 0.6, "loss": 2.0},
        {"step": 4, "zero_shot/auroc": 0.7, "zero_shot/auroc/x": None},
        {"step": 5, "loss": 1.0},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 6, "zero')
    assert last_evaluation(file, ["zero_shot"]) == (4, {"zero_shot/auroc": 0.7, "zero_shot/auroc/x": None})
    assert last_evaluation(file, ["zero_shot"], step=3) == (2, {"zero_shot/auroc": 0.6})
    assert last_evaluation(file, ["retrieval"]) is None


def test_what_is_undefined_is_left_out(model):
    card = model_card(model, name="m", metrics=(1, {"a/b": None, "a/c": np.nan, "a/d": 0.25}))
    assert "| a/d | 0.25 |" in card
    assert "a/b" not in card
    assert "a/c" not in card


def test_scores_of_few_volumes_are_not_shown():
    from medclip_jax.export.model_card import _evaluation

    numbers = {
        "zero_shot/auroc/cardiomegaly": 1.0, "zero_shot/present/cardiomegaly": 2,
        "zero_shot/absent/cardiomegaly": 58,
        "zero_shot/auroc/emphysema": 0.8125, "zero_shot/present/emphysema": 10,
        "zero_shot/absent/emphysema": 50,
        "zero_shot/auroc/atelectasis": float("nan"), "retrieval/image_to_text/R@5": 0.25,
    }  # fmt: skip
    card = _evaluation((100, numbers))
    assert "| zero_shot/auroc/cardiomegaly | too few (2 present, 58 absent) |" in card
    assert "| zero_shot/auroc/emphysema | 0.8125 |" in card
    assert "| retrieval/image_to_text/R@5 | 0.25 |" in card
    assert "atelectasis" not in card
    assert "/present/" not in card
