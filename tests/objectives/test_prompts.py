"""Findings by prompts beside the contrast: which pairs of volume and finding count, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from medclip_jax import objectives
from medclip_jax.objectives import base, clip
from tests.objectives.made_batches import SPEC, make_batch, prompted, small

pytest.importorskip("ml_collections")


def asked(batch, columns, status_of="findings", absent=False):
    """The term of prompts from its definition, for the model `prompted`, finding by finding."""
    model = objectives.create(small(prompted()), SPEC, rngs=nnx.Rngs(0))
    volumes = np.asarray(model.embed_volumes(batch).mean, np.float64)
    losses = []
    for column in columns:
        pair = np.asarray(model.embed_texts(batch["prompts"][0, column]).mean, np.float64)
        for volume, said in zip(volumes, np.asarray(batch[status_of])[:, column], strict=True):
            if said or absent:
                logit = 10.0 * (volume @ pair[0] - volume @ pair[1])
                losses.append(np.log1p(np.exp(-logit if said > 0 else logit)))
    return np.mean(losses) if losses else 0.0, len(losses)


@pytest.mark.parametrize(
    ("changes", "reading"),
    [
        ({}, {}),
        (
            {"labels": "labels", "findings": ("pericardial_effusion", "pleural_effusion")},
            {"status_of": "labels"},
        ),
        ({"unknown": "absent"}, {"absent": True}),
    ],
)
def test_prompts_ask_for_what_is_known(changes, reading):
    config, batch = small(prompted()), make_batch()
    config.prompts.update(changes)
    batch["labels"] = jnp.roll(batch["findings"], 1, axis=0)
    model = objectives.create(config, SPEC, rngs=nnx.Rngs(0))
    terms = jax.jit(lambda b: model.couple(model.encode(b, jax.random.key(0), train=False), b))(batch)
    names = config.prompts.findings or SPEC.findings
    value, known = asked(batch, [SPEC.findings.index(name) for name in names], **reading)
    assert terms["prompts"].weight == 0.5
    assert float(terms["prompts"].count) == known
    np.testing.assert_allclose(terms["prompts"].sum / known, value, rtol=1e-4)
    assert 0 <= float(terms["prompt_accuracy"].sum) <= known


def test_prompts_of_nobody_known_leave_the_other_terms():
    model = objectives.create(small(prompted()), SPEC, rngs=nnx.Rngs(0))
    batch = make_batch()
    features = jax.jit(lambda b: model.encode(b, jax.random.key(0), train=False))(batch)
    silent = batch | {"findings": jnp.zeros_like(batch["findings"])}
    terms = model.couple(features, silent)
    assert float(terms["prompts"].sum) == float(terms["prompts"].count) == 0.0
    config = small(clip.default_config())
    config.loss = "sigmoid"
    plain = objectives.create(config, SPEC, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(base.total(terms), base.total(plain.couple(features, batch)), rtol=1e-6)


def test_prompts_that_cannot_be_are_refused():
    bare = base.DataSpec(shape=SPEC.shape, spacing=SPEC.spacing, vocabulary_size=50)
    with pytest.raises(ValueError, match="prepare with --findings"):
        objectives.create(small(prompted()), bare, rngs=nnx.Rngs(0))
    for key, value, message in (
        ("labels", "report", "choose 'findings' or 'labels'"),
        ("unknown", "present", "choose 'ignore' or 'absent'"),
        ("findings", ("emphysema",), r"shorten config\.objective\.prompts\.findings"),
    ):
        config = small(prompted())
        config.prompts[key] = value
        with pytest.raises(ValueError, match=message):
            objectives.create(config, SPEC, rngs=nnx.Rngs(0))
