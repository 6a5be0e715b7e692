import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medclip_jax.parameters import flatten, select
from medclip_jax.training.config import base_config
from medclip_jax.training.optimizer import make_optimizer, make_schedule

RNG = np.random.default_rng(0)
PARAMS = {
    "vision": {
        "cls_token": RNG.normal(size=(1, 4)),
        "positions": RNG.normal(size=(3, 4)),
        "norm": {"scale": RNG.normal(size=4), "bias": RNG.normal(size=4)},
        "out": {"kernel": RNG.normal(size=(4, 4)), "bias": RNG.normal(size=4)},
    },
    "text": {"word_embedding": RNG.normal(size=(6, 4)), "out": {"kernel": RNG.normal(size=(4, 4))}},
    "logit_scale": {"log_scale": RNG.normal(size=())},
}
PARAMS = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)
DECAYED = {"vision/out/kernel", "text/word_embedding", "text/out/kernel"}


def settings(**changes):
    config = base_config().optimizer
    config.update({"learning_rate": 1e-2, "schedule": "constant", "weight_decay": 0.1, **changes})
    return config


def run(config, gradients, steps=10):
    """Parameters after the gradients of each step."""
    optimizer = make_optimizer(config, PARAMS, steps)
    params = select(PARAMS, optimizer.trained)
    state = optimizer.transformation.init(params)
    for step in gradients:
        updates, state = optimizer.transformation.update(select(step, optimizer.trained), state, params)
        params = optax.apply_updates(params, updates)
    return flatten(params), state, optimizer


def gradients(steps):
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), PARAMS)
        for _ in range(steps)
    ]


def reference(config, gradients, rates, factors=None, clip=0.0):
    """AdamW, algorithm 2 of Loshchilov and Hutter, in float64."""
    b1, b2 = config.betas
    params = {name: np.asarray(leaf, np.float64) for name, leaf in flatten(PARAMS).items()}
    first = {name: 0.0 for name in params}
    second = {name: 0.0 for name in params}
    for t, (step, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        step = {name: np.asarray(leaf, np.float64) for name, leaf in flatten(step).items()}
        norm = np.sqrt(sum((g**2).sum() for g in step.values()))
        for name, g in step.items():
            g = g * min(1.0, clip / norm) if clip else g
            first[name] = b1 * first[name] + (1 - b1) * g
            second[name] = b2 * second[name] + (1 - b2) * g**2
            direction = (first[name] / (1 - b1**t)) / (np.sqrt(second[name] / (1 - b2**t)) + config.epsilon)
            if name in DECAYED:
                direction = direction + config.weight_decay * params[name]
            params[name] = params[name] - rate * (factors or {}).get(name, 1.0) * direction
    return params


def assert_close(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=2e-6, atol=2e-6, err_msg=name)


def test_adamw_decays_kernels_and_embeddings_only():
    config = settings()
    assert_close(run(config, gradients(5))[0], reference(config, gradients(5), [1e-2] * 5))


def test_multipliers_scale_step_and_decay_and_the_first_match_counts():
    config = settings(multipliers=((r"^text/out", 5.0), (r"^text", 0.5)))
    factors = {"text/word_embedding": 0.5, "text/out/kernel": 5.0}
    assert_close(run(config, gradients(4))[0], reference(config, gradients(4), [1e-2] * 4, factors))


def test_gradients_are_clipped_by_their_global_norm():
    # Adam's direction ignores a common factor, so only a norm that changes over steps shows clipping.
    steps = [
        jax.tree.map(lambda g, f=factor: g * f, g) for g, factor in zip(gradients(3), (1, 50, 3), strict=True)
    ]
    config = settings(clip_norm=2.0)
    assert_close(run(config, steps)[0], reference(config, steps, [1e-2] * 3, clip=2.0))


def test_frozen_parameters_have_no_state():
    params, state, optimizer = run(settings(frozen=(r"^text/",)), gradients(2))
    assert not any(name.startswith("text") for name in params)
    assert optimizer.trained == {name for name in flatten(PARAMS) if not name.startswith("text")}
    shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
    assert (6, 4) not in shapes  # the embedding


def test_accumulation_equals_averaged_gradients():
    config = settings(accumulate=2, schedule="linear", warmup_steps=4)
    steps = gradients(6)
    averaged = [jax.tree.map(lambda a, b: (a + b) / 2, steps[i], steps[i + 1]) for i in (0, 2, 4)]
    once = settings(schedule="linear", warmup_steps=2)
    rates = [float(make_schedule(once, 3)(n)) for n in range(3)]
    got, _, optimizer = run(config, steps, steps=6)
    assert_close(got, reference(config, averaged, rates))
    assert [float(optimizer.learning_rate(n)) for n in range(6)] == [rate for rate in rates for _ in range(2)]


def test_schedules_rise_linearly_and_run_out_at_the_final_fraction():
    for kind, middle in (("cosine", 0.1 + 0.9 * 0.5), ("linear", 0.1 + 0.9 * 0.5), ("constant", 1.0)):
        schedule = make_schedule(
            settings(schedule=kind, warmup_steps=4, final_fraction=0.1, learning_rate=2.0), 14
        )
        rise = [float(schedule(n)) for n in range(4)]
        np.testing.assert_allclose(rise, [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
        np.testing.assert_allclose(float(schedule(9)), 2.0 * middle, rtol=1e-6)
        np.testing.assert_allclose(float(schedule(14)), 0.2 if kind != "constant" else 2.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frozen": (r"^txt/",)}, r"config\.optimizer\.frozen: '\^txt/' matches no parameter\. Near: .*text"),
        ({"multipliers": ((r"projection", 2.0),)}, "multipliers: 'projection' matches no parameter"),
        ({"no_decay": (r"nothing_like_it",)}, "no_decay: 'nothing_like_it'"),
        ({"frozen": (r"(",)}, "no regular expression"),
        ({"frozen": (r".",)}, "nothing is left to train"),
        ({"schedule": "cosin"}, "'cosine'"),
        ({"warmup_steps": 11}, "longer than the run .*warmup_fraction"),
        ({"accumulate": 0}, "at least 1"),
    ],
)
def test_rules_that_cannot_work_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(settings(**changes), PARAMS, 10)
