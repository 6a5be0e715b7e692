"""The space-time ViT against a PyTorch twin, against the 2D ViT, and what padding and its beginning mean."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from medclip_jax.models.spacetime import SpaceTimeBlock, SpaceTimeTransformer
from medclip_jax.models.vit import VisionTransformer
from medclip_jax.parameters import flatten, unflatten
from tests.models.spacetime_twin import SpaceTime

SHAPE, PATCH, WIDTH, HEADS, DEPTH, FRAMES, VIEWS = (8, 15), (4, 5), 24, 3, 2, 5, 3
PLACES = 6
SIZES = {
    "frame_shape": SHAPE,
    "patch": PATCH,
    "channels": 2,
    "width": WIDTH,
    "depth": DEPTH,
    "heads": HEADS,
    "frames": FRAMES,
    "views": VIEWS,
}
VALID = np.array([[1, 1, 1, 1], [1, 0, 1, 0]], np.int8)
VIEW = np.array([[0, 0, 2, 2], [1, -1, 0, -1]], np.int32)


def build(**options):
    return SpaceTimeTransformer(**(SIZES | options), rngs=nnx.Rngs(0))


def frames(batch=2, count=4):
    return np.random.default_rng(0).normal(size=(batch, count, *SHAPE, 2)).astype(np.float32)


def perturb(module, amount=0.1):
    """Move every parameter, so that zeros and ones cannot hide a mistake."""
    draw = np.random.default_rng(1)
    graph, state = nnx.split(module)
    state = jax.tree.map(lambda x: x + amount * jnp.asarray(draw.normal(size=x.shape), x.dtype), state)
    return nnx.merge(graph, state)


def params_of(module):
    return flatten(nnx.to_pure_dict(nnx.state(module, nnx.Param)))


NAMES = {
    "attention_norm": "norm1",
    "attention/qkv": "attn.qkv",
    "attention/output": "attn.proj",
    "time_norm": "norm3",
    "time_attention/qkv": "timeattn.qkv",
    "time_attention/output": "timeattn.proj",
    "mlp_norm": "norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}


def twin_name(name):
    """Ours to the twin's: its module, and its parameter's kind."""
    module, _, kind = name.rpartition("/")
    if found := re.fullmatch(r"blocks/(\d+)/(.*)", module):
        module = f"blocks.{found[1]}.{NAMES[found[2]]}"
    return (
        f"{module.replace('embed/projection', 'patch_embed.proj')}.{'bias' if kind == 'bias' else 'weight'}"
    )


def twin_of(model, channels=2):
    """The twin with a model's weights, in float64."""
    twin = SpaceTime(
        places=PLACES,
        patch=PATCH,
        channels=channels,
        width=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        hidden=4 * WIDTH,
        frames=FRAMES,
    )
    params = {name: np.asarray(value) for name, value in params_of(model).items()}
    params.pop("view_embedding", None)
    class_token = params.pop("class_token")
    positions = params.pop("positions")
    found = {
        "cls_token": class_token,
        "pos_embed": np.concatenate([np.zeros_like(positions[:1]), positions])[None],
        "temporal_embed": params.pop("temporal_positions")[None],
    }
    for name, value in params.items():
        if name == "embed/projection/kernel":
            value = value.reshape(*PATCH, channels, -1).transpose(3, 2, 0, 1)
        found[twin_name(name)] = value.T if name.endswith("kernel") and value.ndim == 2 else value
    twin.load_state_dict({name: torch.tensor(np.ascontiguousarray(x)) for name, x in found.items()})
    return twin.double()


def test_equals_pytorch_in_value_and_gradient():
    """With padding in the middle and at the end, views, fewer frames than rows, oblong patches."""
    model = perturb(build())
    twin = twin_of(model)
    given = torch.tensor(frames()).double().requires_grad_()
    table = torch.tensor(np.asarray(model.view_embedding[...])).double().requires_grad_()
    view = torch.tensor(VIEW)
    added = table[view.clamp(min=0).long()] * (view >= 0)[..., None]
    valid = torch.tensor(VALID, dtype=torch.bool)
    expected = twin(given.permute(0, 1, 4, 2, 3), valid, added)
    (expected**3).sum().backward()

    graph, state = nnx.split(model)

    @jax.jit
    def run(state, given):
        def loss(state, given):
            encoded = nnx.merge(graph, state).encode(given, jnp.asarray(VALID), jnp.asarray(VIEW))
            return (encoded.sequence**3).sum(), encoded.sequence

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(state, given)

    (gradient, by_frames), tokens = run(state, frames())
    assert tokens.shape == (2, 1 + 4 * PLACES, WIDTH)
    np.testing.assert_allclose(tokens, expected.detach(), atol=2e-5)
    np.testing.assert_allclose(by_frames, given.grad, atol=2e-4)
    gradient = flatten(nnx.to_pure_dict(gradient))
    np.testing.assert_allclose(gradient.pop("view_embedding"), table.grad, atol=2e-3)
    np.testing.assert_allclose(gradient.pop("temporal_positions"), twin.temporal_embed.grad[0], atol=2e-3)
    np.testing.assert_allclose(gradient.pop("positions"), twin.pos_embed.grad[0, 1:], atol=2e-3)
    np.testing.assert_allclose(gradient.pop("class_token"), twin.cls_token.grad, atol=2e-3)
    theirs = dict(twin.named_parameters())
    for name, value in gradient.items():
        want = theirs[twin_name(name)].grad
        if name == "embed/projection/kernel":
            want = want.permute(2, 3, 1, 0).reshape(value.shape)
        elif name.endswith("kernel"):
            want = want.T
        np.testing.assert_allclose(value, want, atol=1e-4 * float(abs(want).max()) + 1e-4, err_msg=name)


def flat_vit(model):
    """A 2D ViT with the weights that it shares with a space-time ViT."""
    vit = VisionTransformer(
        shape=(1, *SHAPE),
        patch=(1, *PATCH),
        channels=2,
        width=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        position="learned",
        rngs=nnx.Rngs(1),
    )
    shared = params_of(model)
    nnx.update(vit, unflatten({name: shared[name] for name in params_of(vit)}))
    return vit


@pytest.mark.parametrize("time_init", ["zero_output", "released"])
def test_begins_as_the_2d_vit_on_each_frame(time_init):
    """Where one frame alone is valid, at whatever time, and of whatever series."""
    model = build(time_init=time_init)
    vit = flat_vit(model)
    encode = jax.jit(lambda valid: model.encode(frames(), valid, jnp.asarray(VIEW)))
    for time in range(4):
        ours = encode(jnp.arange(4)[None].repeat(2, 0) == time)
        theirs = vit.encode(frames()[:, time][:, None])
        np.testing.assert_allclose(ours.summary, theirs.summary, atol=1e-5)
        of_frame = ours.tokens.reshape(2, 4, PLACES, WIDTH)[:, time]
        np.testing.assert_allclose(of_frame, theirs.tokens, atol=1e-5)


def test_time_matters_once_it_is_learned():
    model = perturb(build())
    encode = jax.jit(lambda given, valid: model.encode(given, valid).summary)
    alone = encode(frames(), jnp.asarray([[0, 1, 0, 0]] * 2))
    among = encode(frames(), jnp.ones((2, 4)))
    backwards = encode(frames()[:, ::-1], jnp.ones((2, 4)))
    assert float(abs(alone - among).max()) > 0.01
    assert float(abs(among - backwards).max()) > 0.001


def test_padding_changes_nothing():
    """Neither its intensities nor its number, in value and gradient."""
    model = perturb(build())
    short, view = frames()[:, :3], jnp.asarray(VIEW[:, :3])
    garbage = 1e3 * frames(count=2) + 7.0
    valid = jnp.asarray([[1, 1, 1, 0, 0]] * 2)
    wide_view = jnp.pad(view, ((0, 0), (0, 2)), constant_values=-1)

    @jax.jit
    def run(padding):
        def loss(padding):
            given = jnp.concatenate([short, padding], axis=1)
            encoded = model.encode(given, valid, wide_view)
            return (encoded.summary**2).sum(), encoded

        return jax.grad(loss, has_aux=True)(padding)

    gradient, padded = run(garbage)
    plain = jax.jit(lambda given: model.encode(given, None, view))(short)
    np.testing.assert_allclose(padded.summary, plain.summary, atol=3e-6)
    np.testing.assert_allclose(padded.tokens[:, : 3 * PLACES], plain.tokens, atol=3e-6)
    np.testing.assert_array_equal(gradient, 0.0)


def test_a_study_without_a_frame_stays_finite():
    encoded = perturb(build()).encode(frames(), jnp.zeros((2, 4), bool))
    assert bool(jnp.isfinite(encoded.sequence).all())
    np.testing.assert_allclose(encoded.summary[0], encoded.summary[1], atol=1e-6)


def test_frames_in_another_order_with_their_positions():
    """The table is all that knows of time: shuffled along with the frames, the class token stays."""
    model = perturb(build())
    order = np.array([2, 0, 3, 1])
    graph, state = nnx.split(model)

    @jax.jit
    def summary(state, order):
        given = (jnp.asarray(x)[:, order] for x in (frames(), VALID, VIEW))
        return nnx.merge(graph, state).encode(*given).summary

    expected = summary(state, jnp.arange(4))
    table = model.temporal_positions[...]
    model.temporal_positions[...] = table.at[:4].set(table[order])
    np.testing.assert_allclose(summary(nnx.state(model), order), expected, atol=3e-6)


def trained(time_init, steps):
    """Gradients of the time attention's projection, at each of some steps of plain descent."""
    graph, state = nnx.split(build(time_init=time_init, depth=1))

    @jax.jit
    def step(state):
        def loss(state):
            return (nnx.merge(graph, state).encode(frames()).summary * jnp.arange(WIDTH)).sum()

        gradient = jax.grad(loss)(state)
        moved = jax.tree.map(lambda x, g: x - 1e-3 * g, state, gradient)
        return moved, gradient["blocks"]["0"]["time_attention"]["qkv"]["kernel"][...]

    found = []
    for _ in range(steps):
        state, gradient = step(state)
        found.append(np.asarray(gradient).reshape(WIDTH, 3, WIDTH))
    return found


def test_released_time_attention_never_learns_where_to_look():
    """Queries and keys stay exactly zero, values learn. By default, all learn from the second step on."""
    for gradient in trained("released", 4):
        assert not gradient[:, :2].any()
        assert gradient[:, 2].any()
    first, second, *_ = trained("zero_output", 2)
    assert not first.any()
    assert all(abs(second[:, part]).max() > 0 for part in range(3))


def test_class_attention():
    """The last block's, as probabilities over the valid patches, from a dense attention of the twin."""
    model = perturb(build())
    found = model.class_attention(frames(), jnp.asarray(VALID), jnp.asarray(VIEW))
    assert found.shape == (2, 4, 2, 3)
    assert not found[1, jnp.array([1, 3])].any()
    assert (found[0] > 0).all()
    assert float(found.sum((1, 2, 3)).max()) < 1

    twin = twin_of(model)
    kept = {}
    attention = twin.blocks[-1].attn
    attention.register_forward_pre_hook(lambda _, inputs: kept.update(x=inputs[0], allowed=inputs[1]))
    view = torch.tensor(VIEW)
    table = torch.tensor(np.asarray(model.view_embedding[...])).double()
    added = table[view.clamp(min=0).long()] * (view >= 0)[..., None]
    given = torch.tensor(frames()).double().permute(0, 1, 4, 2, 3)
    twin(given, torch.tensor(VALID, dtype=torch.bool), added)
    query, key, _ = (x.unflatten(-1, (HEADS, -1)) for x in attention.qkv(kept["x"]).chunk(3, dim=-1))
    scores = torch.einsum("bhk,bjhk->bhj", query[:, 0], key) / (WIDTH // HEADS) ** 0.5
    weights = scores.masked_fill(~kept["allowed"][:, None, 0], float("-inf")).softmax(-1).mean(1)[:, 1:]
    np.testing.assert_allclose(found.reshape(2, -1), weights.detach(), atol=1e-6)


def graded(model):
    graph, state = nnx.split(model)

    def loss(state):
        encoded = nnx.merge(graph, state).encode(frames(), jnp.asarray(VALID))
        return (encoded.sequence**2).sum()

    return jax.jit(jax.value_and_grad(loss))(state)


@pytest.fixture(scope="module")
def plain_gradient():
    return graded(perturb(build()))


@pytest.mark.parametrize(("remat", "scan"), [("none", True), ("block", True), ("attention", False)])
def test_remat_and_scan_change_nothing(plain_gradient, remat, scan):
    (value, gradient), (same, same_gradient) = (
        plain_gradient,
        graded(perturb(build(remat=remat, scan=scan))),
    )
    np.testing.assert_allclose(value, same, rtol=1e-5)
    for got, want in zip(jax.tree.leaves(same_gradient), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * float(abs(want).max()) + 1e-5)


def test_bfloat16_is_near():
    """Compute type alone: parameters stay float32."""
    model, half = perturb(build()), perturb(build(dtype=jnp.bfloat16))
    assert {x.dtype for x in params_of(half).values()} == {jnp.dtype(jnp.float32)}
    expected, found = (one.encode(frames(), jnp.asarray(VALID)).summary for one in (model, half))
    assert found.dtype == jnp.bfloat16
    assert float(abs(found - expected).max()) < 0.1


def test_eight_devices_equal_one():
    """The batch split over a mesh, in value and gradient."""
    graph, state = nnx.split(perturb(build(depth=1)))
    given, valid = frames(8), np.tile(VALID, (4, 1))
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    def loss(state, given, valid):
        return (nnx.merge(graph, state).encode(given, valid).summary ** 2).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(state, given, valid)
    with jax.set_mesh(mesh):
        placed = jax.device_put((given, valid), rows)
        found, same = jax.jit(jax.value_and_grad(loss))(
            jax.device_put(state, NamedSharding(mesh, PartitionSpec())), *placed
        )
    np.testing.assert_allclose(found, value, rtol=1e-5)
    for got, want in zip(jax.tree.leaves(same), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * float(abs(want).max()) + 1e-5)


def largest_array(jaxpr):
    """Elements of the largest array that any equation makes, inner programs included."""
    most = 0
    for equation in jaxpr.eqns:
        most = max([most, *(int(np.prod(v.aval.shape)) for v in equation.outvars)])
        for inner in jax.core.jaxprs_in_params(equation.params):
            most = max(most, largest_array(inner))
    return most


def step_of(**sizes):
    """A gradient and the shapes of its inputs, from shapes alone."""
    count = sizes["frames"]
    model = nnx.eval_shape(lambda: SpaceTimeTransformer(channels=1, **sizes, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)
    given = jax.ShapeDtypeStruct((1, count, *sizes["frame_shape"], 1), jnp.float32)
    valid = jax.ShapeDtypeStruct((1, count), bool)

    def loss(state, given, valid):
        return (nnx.merge(graph, state).encode(given, valid).summary ** 2).sum()

    return jax.grad(loss), (state, given, valid)


def test_no_map_of_all_tokens_at_the_published_size():
    """64 frames of 224 x 224: no array near (64 x 196)^2, forward and backward."""
    step, shapes = step_of(
        frame_shape=(224, 224), patch=(16, 16), width=768, depth=1, heads=12, frames=64, views=6
    )
    tokens = 64 * 196
    hidden = 4 * 768 * (1 + tokens)
    assert hidden <= largest_array(jax.make_jaxpr(step)(*shapes).jaxpr) < tokens**2 / 2


def test_compiled_memory_is_far_below_a_map_of_all_tokens():
    """1536 tokens of small width: every shape in the optimized program, and its memory."""
    step, shapes = step_of(frame_shape=(16, 16), patch=(2, 2), width=8, depth=1, heads=1, frames=24, views=0)
    tokens = 24 * 64
    compiled = jax.jit(step).lower(*shapes).compile()
    sizes = [
        int(np.prod([int(side) for side in shape.split(",")]))
        for shape in re.findall(r"\b(?:f|bf|s|u|pred)\d*\[([\d,]+)\]", compiled.as_text())
    ]
    assert tokens <= max(sizes) < tokens**2 / 8
    assert compiled.memory_analysis().temp_size_in_bytes < tokens**2 * 4


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"5 rows: set\s+config\.objective\.vision\.frames to 6 or more"):
        build().encode(frames(count=6))
    with pytest.raises(ValueError, match="does not divide"):
        build(frame_shape=(8, 16))
    with pytest.raises(ValueError, match="time_init='zeros' is unknown: use one of zero_output, released"):
        SpaceTimeBlock(8, 2, 4, time_init="zeros", rngs=nnx.Rngs(0))


def test_from_config():
    """All keys of the defaults are read; a config needs nothing but those, `dtype` and `remat`."""
    from ml_collections import ConfigDict

    config = ConfigDict(SpaceTimeTransformer.defaults() | {"dtype": "bfloat16", "remat": "block"})
    config.update(width=WIDTH, heads=HEADS, depth=1, patch=PATCH, frames=7, views=0)
    model = SpaceTimeTransformer.from_config(config, SHAPE, 1, rngs=nnx.Rngs(0))
    assert model.grid == model.grid_of(SHAPE) == (2, 3)
    assert (model.width, model.pooled_width, model.frames) == (WIDTH, WIDTH, 7)
    assert model.view_embedding is None
    assert (
        model.describe() == "space-time ViT, width 24, depth 1, 3 heads, patches of 4 × 5, at most 7 frames"
    )
