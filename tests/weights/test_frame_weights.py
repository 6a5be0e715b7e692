"""2D vision transformers into the space-time ViT: at the start, the same vectors for each frame."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from medclip_jax.models.spacetime import SpaceTimeTransformer
from medclip_jax.parameters import flatten, unflatten
from medclip_jax.weights.frames import convert_frames, read_frame_weights
from medclip_jax.weights.vision_layouts import recognize
from tests.models.spacetime_twin import SpaceTime

WIDTH, HEADS, DEPTH, PATCH, SIDE = 24, 3, 2, 4, 3
SHAPE = (PATCH * SIDE, PATCH * SIDE)
IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))


@pytest.fixture(scope="module")
def vit():
    """A random ViT of transformers, whose every parameter is off its initial value."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        image_size=PATCH * SIDE,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
    )
    model = transformers.ViTModel(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def timm():
    """A 2D model under the names of timm and MAE: the twin on one frame, without attention over time."""
    torch.manual_seed(1)
    twin = SpaceTime(
        places=SIDE**2,
        patch=PATCH,
        channels=3,
        width=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        hidden=2 * WIDTH,
        frames=1,
    ).randomize()
    twin.temporal_embed.data.zero_()
    for block in twin.blocks:
        block.timeattn.proj.weight.data.zero_()
        block.timeattn.proj.bias.data.zero_()
    return twin.eval()


def of_pictures(model, pictures):
    """Class token's state after the final norm, of (B, 3, H, W)."""
    with torch.no_grad():
        if isinstance(model, SpaceTime):
            return model(pictures[:, None])[:, 0]
        return model(pictures).last_hidden_state[:, 0]


def arrays_of(model):
    """What a file of the 2D model holds."""
    of_time = re.compile(r"temporal_embed|.*(timeattn|norm3)\..*")
    return {name: x.numpy() for name, x in model.state_dict().items() if not of_time.fullmatch(name)}


def config_for(**changes):
    config = ConfigDict(SpaceTimeTransformer.defaults() | {"dtype": "float32", "remat": "none"})
    config.update(width=WIDTH, depth=DEPTH, heads=HEADS, mlp_ratio=2.0, patch=(PATCH, PATCH), frames=4)
    config.channels, config.motion = IMAGENET, 0.0
    config.update(changes)
    return config


def build(config, shape):
    channels = len(config.channels) + (config.motion > 0)
    return SpaceTimeTransformer.from_config(config, shape, channels, rngs=nnx.Rngs(0))


def params_of(model):
    params = flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    return {f"video/{name}": value for name, value in params.items()}


def filled(model, params):
    own = params_of(model)
    for name, value in params.items():
        assert value.shape == own[name].shape, name
        assert value.dtype == np.float32, name
    nnx.update(model, unflatten({name.removeprefix("video/"): jnp.asarray(x) for name, x in params.items()}))
    return model


def gray_frames(count=3):
    return np.random.default_rng(0).uniform(size=(2, count, *SHAPE)).astype(np.float32)


def normalized(gray, channels):
    mean, std = np.asarray(channels, np.float32).T
    return (gray[..., None] - mean) / std


def of_each_frame(model, frames):
    """Class token of each frame as if it were the only one, at its place in time."""
    encode = jax.jit(lambda valid: model.encode(frames, valid).summary)
    count = frames.shape[1]
    return jnp.stack([encode(jnp.arange(count)[None].repeat(2, 0) == time) for time in range(count)], axis=1)


@pytest.mark.parametrize("layout", ["vit", "timm"])
def test_frame_by_frame_as_the_2d_model(request, tmp_path, layout):
    """From a file, in either layout, with three channels that ImageNet's numbers normalize."""
    given = request.getfixturevalue(layout)
    save_file(arrays_of(given), tmp_path / "vit.safetensors")
    config = config_for()
    model = build(config, SHAPE)
    found = read_frame_weights(tmp_path / "vit.safetensors", config, SHAPE, params_of(model))
    frames = normalized(gray_frames(), IMAGENET)
    pictures = torch.tensor(frames).permute(0, 1, 4, 2, 3).flatten(0, 1)
    expected = of_pictures(given, pictures).reshape(2, 3, WIDTH)
    np.testing.assert_allclose(of_each_frame(filled(model, found), frames), expected, atol=2e-5)


def test_a_channel_of_motion_has_no_part_in_it(vit):
    """Whatever it holds, pictures are answered as the 2D model answers them."""
    config = config_for(motion=3.0)
    model = build(config, SHAPE)
    found = convert_frames(recognize(arrays_of(vit)), config, SHAPE, params_of(model)).params
    frames = normalized(gray_frames(), IMAGENET)
    moved = np.random.default_rng(1).normal(size=(*frames.shape[:-1], 1)).astype(np.float32)
    pictures = torch.tensor(frames).permute(0, 1, 4, 2, 3).flatten(0, 1)
    expected = of_pictures(vit, pictures).reshape(2, 3, WIDTH)
    seen = of_each_frame(filled(model, found), np.concatenate([frames, moved], axis=-1))
    np.testing.assert_allclose(seen, expected, atol=2e-5)


def test_one_channel_answers_as_three_equal_ones(vit):
    """Gray in [-1, 1], for models whose input is normalized by 0.5 and 0.5."""
    config = config_for(channels=((0.5, 0.5),))
    model = build(config, SHAPE)
    found = convert_frames(recognize(arrays_of(vit)), config, SHAPE, params_of(model))
    frames = normalized(gray_frames(), config.channels)
    pictures = torch.tensor(frames).permute(0, 1, 4, 2, 3).flatten(0, 1).expand(-1, 3, -1, -1)
    expected = of_pictures(vit, pictures).reshape(2, 3, WIDTH)
    np.testing.assert_allclose(of_each_frame(filled(model, found.params), frames), expected, atol=2e-5)
    assert found.resized == ["patch layer 4x4 of 3 channels -> 1x4x4 of 1"]


def test_what_time_needs_stays_fresh(vit):
    """And is all that stays so; frames of another size and shape get resized positions."""
    config = config_for()
    shape = (PATCH * 2, PATCH * 5)
    model = build(config, shape)
    found = convert_frames(recognize(arrays_of(vit)), config, shape, params_of(model))
    kept = set(params_of(model)) - set(found.params)
    assert kept == set(found.fresh)
    assert {name.split("/")[-1] for name in kept if "time_" not in name} == {
        "temporal_positions",
        "view_embedding",
    }
    assert len([name for name in kept if "time_" in name]) == 6 * DEPTH
    assert found.params["video/positions"].shape == (10, WIDTH)
    assert "positions 3x3 -> 1x2x5" in found.resized


def test_what_does_not_fit_names_the_setting(timm):
    config = config_for(depth=3)
    model = build(config, SHAPE)
    given = recognize(arrays_of(timm))
    with pytest.raises(ValueError, match=r"config\.objective\.vision\.depth is 3, and the checkpoint has 2"):
        convert_frames(given, config, SHAPE, params_of(model))
    given.weights["pre_norm/weight"] = np.ones(WIDTH, np.float32)
    with pytest.raises(ValueError, match="LayerNorm before its blocks, which a frame tower has not"):
        convert_frames(given, config, SHAPE, params_of(model))


def test_a_run_starts_from_them(vit, tmp_path):
    """Through `config.objective.vision.weights`, a folder as transformers saves it."""
    from medclip_jax import objectives
    from medclip_jax.objectives import cmr_clip
    from medclip_jax.objectives.base import DataSpec
    from medclip_jax.parameters import split
    from medclip_jax.weights.pretrained import load_pretrained

    vit.save_pretrained(tmp_path)
    config = cmr_clip.default_config()
    config.vision.update(width=WIDTH, depth=DEPTH, heads=HEADS, mlp_ratio=2.0, patch=(PATCH, PATCH), frames=4)
    config.vision.update(weights=str(tmp_path), channels=IMAGENET)
    config.text.update(width=12, depth=1, heads=2)
    spec = DataSpec((), (), vocabulary_size=20, views=("cine_sa",), frame_shape=SHAPE)
    shapes = split(nnx.eval_shape(lambda: objectives.create(config, spec, rngs=nnx.Rngs(0))))[1]
    loaded = flatten(load_pretrained(config, shapes, spec))
    given = vit.state_dict()["layernorm.weight"].numpy()
    np.testing.assert_array_equal(loaded["vision/video/norm/scale"], given)
    changed = {name for name, value in loaded.items() if isinstance(value, np.ndarray)}
    assert len(changed) == 12 * DEPTH + 2 + 2 + 2  # blocks, norm, patches, class token and positions
    assert all(name.startswith("vision/video/") and "time_" not in name for name in changed)
