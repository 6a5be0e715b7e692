"""Names in PyTorch: there and back is the identity, and what does not fit is told by name."""

import jax
import numpy as np
import pytest

from medclip_jax.parameters import flatten, split
from medclip_jax.weights.names import from_torch, to_torch, torch_name, torch_shape
from tests.export.twins import make_objective, small, spec_of, twins

OBJECTIVES = {
    "mae": ("mae", {}),
    "mae, learned positions": ("mae", {"vision": {"position": "learned", "pre_norm": True}}),
    "clip": ("clip", {}),
    "clip, sigmoid": ("clip", {"loss": "sigmoid", "centered": True}),
    "cardiac_clip, grid": ("cardiac_clip", {"vision": {"pooling": "grid", "skip": True, "peaks": True}}),
    "cardiac_clip, scanned": ("cardiac_clip", {"vision": {"scan": True}, "projection_bias": True}),
}
# Square matrices would hide a transpose.
PARAMS = {
    "tower/norm/scale": np.arange(3, dtype=np.float32),
    "tower/linear/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "tower/linear/bias": np.arange(3, dtype=np.float32),
    "scale/log_scale": np.array(2.0, np.float32),
}


def flat_params(objective):
    return {name: np.asarray(value) for name, value in flatten(jax.device_get(split(objective)[1])).items()}


@pytest.mark.parametrize(("name", "changes"), OBJECTIVES.values(), ids=OBJECTIVES)
def test_there_and_back_is_the_identity(name, changes):
    params = flat_params(make_objective(small(name, **changes), spec_of()))
    state = to_torch(params)
    back = from_torch(state, {path: value.shape for path, value in params.items()})
    assert list(back) == list(params)
    for path, value in params.items():
        assert back[path].dtype == np.float32
        np.testing.assert_array_equal(back[path], value)
    again = to_torch(back)
    assert list(again) == list(state)
    for torch_path, value in state.items():
        np.testing.assert_array_equal(again[torch_path], value)


@pytest.mark.parametrize(("name", "changes"), OBJECTIVES.values(), ids=OBJECTIVES)
def test_every_name_and_shape_is_the_torch_models(name, changes):
    objective, twin = twins(name, **changes)
    given = {key: value.shape for key, value in to_torch(flat_params(objective)).items()}
    assert given == {key: tuple(value.shape) for key, value in twin.state_dict().items()}


def test_names_of_the_contract():
    for path, name in (
        (
            "vision/transformer/blocks/3/attention/qkv/kernel",
            "vision.transformer.blocks.3.attention.qkv.weight",
        ),
        ("text/encoder/words/embedding", "text.encoder.words.weight"),
        ("vision/transformer/norm/scale", "vision.transformer.norm.weight"),
        ("logit_scale/log_scale", "logit_scale.log_scale"),
        ("vision/transformer/class_token", "vision.transformer.class_token"),
    ):
        assert torch_name(path) == name


def test_kernels_are_transposed_and_written_densely():
    state = to_torch(PARAMS)
    np.testing.assert_array_equal(state["tower.linear.weight"], [[0, 3], [1, 4], [2, 5]])
    assert all(value.flags.c_contiguous for value in state.values())
    assert state["scale.log_scale"].shape == ()


def test_kernels_of_convolutions():
    kernel = np.random.default_rng(0).normal(size=(1, 2, 3, 4, 5)).astype(np.float32)
    state = to_torch({"stem/conv1/kernel": kernel})
    assert (
        state["stem.conv1.weight"].shape == torch_shape("stem/conv1/kernel", kernel.shape) == (5, 4, 1, 2, 3)
    )
    assert state["stem.conv1.weight"][4, 3, 0, 1, 2] == kernel[0, 1, 2, 3, 4]
    back = from_torch(state, {"stem/conv1/kernel": kernel.shape})
    np.testing.assert_array_equal(back["stem/conv1/kernel"], kernel)


def test_other_types_become_float32():
    assert to_torch({"a/bias": np.ones(2, np.float16)})["a.bias"].dtype == np.float32


def test_what_does_not_fit_is_told_by_name():
    shapes = {path: value.shape for path, value in PARAMS.items()}
    state = to_torch(PARAMS)
    state["tower.nrom.weight"] = state.pop("tower.norm.weight")
    state["tower.linear.weight"] = state["tower.linear.weight"].T
    with pytest.raises(ValueError, match="the weights in F do not fit") as raised:
        from_torch(state, shapes, source="the weights in F")
    message = str(raised.value)
    assert "1 missing: tower.norm.weight" in message
    assert "1 unexpected: tower.nrom.weight (nearest: tower.norm.weight)" in message
    assert "tower.linear.weight has shape (2, 3), the model's is (3, 2)" in message


def test_long_lists_are_cut():
    shapes = {f"block{i}/bias": (1,) for i in range(20)}
    with pytest.raises(ValueError, match=r"20 missing: .* and 12 more"):
        from_torch({}, shapes)


def test_two_parameters_of_one_name():
    with pytest.raises(ValueError, match=r"a/kernel and a/scale would both be a\.weight"):
        to_torch({"a/kernel": np.ones((1, 1)), "a/scale": np.ones(1)})
