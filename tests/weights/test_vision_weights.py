"""2D and 3D vision transformers into the 3D tower, against a PyTorch twin with the published names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from ml_collections import ConfigDict
from safetensors.torch import save_file
from torch.nn import functional

from medclip_jax.objectives import mae
from medclip_jax.objectives.base import DataSpec
from medclip_jax.objectives.towers import VisionTower, vision_defaults
from medclip_jax.parameters import flatten, split
from medclip_jax.weights.names import to_torch
from medclip_jax.weights.pretrained import load_pretrained
from medclip_jax.weights.resizing import inflate, resize_positions
from medclip_jax.weights.vision import convert, read_vision_weights
from medclip_jax.weights.vision_checkpoint import read_checkpoint
from medclip_jax.weights.vision_layouts import recognize

WIDTH, HEADS, DEPTH, HIDDEN, PATCH, SIDE = 24, 3, 2, 48, 4, 3
"""Of the 2D model: patches of 4 x 4, a grid of 3 x 3."""


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        batch, count, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, count, WIDTH))


class TwinBlock(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = torch.nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = Attention()
        self.norm2 = torch.nn.LayerNorm(WIDTH, eps=1e-6)
        self.mlp = torch.nn.ModuleDict(
            {"fc1": torch.nn.Linear(WIDTH, HIDDEN), "fc2": torch.nn.Linear(HIDDEN, WIDTH)}
        )

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](functional.gelu(self.mlp["fc1"](self.norm2(x))))


class Twin(torch.nn.Module):
    """The encoder of an ImageNet MAE, from its description, under its released names."""

    def __init__(self):
        super().__init__()
        self.patch_embed = torch.nn.ModuleDict({"proj": torch.nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.cls_token = torch.nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = torch.nn.Parameter(torch.randn(1, SIDE * SIDE + 1, WIDTH))
        self.blocks = torch.nn.ModuleList(TwinBlock() for _ in range(DEPTH))
        self.norm = torch.nn.LayerNorm(WIDTH, eps=1e-6)
        for parameter in self.parameters():
            # So that zero biases and unit scales cannot hide a mistake.
            parameter.data += 0.1 * torch.randn_like(parameter)

    def patches(self, image):
        return self.patch_embed["proj"](image).flatten(2).transpose(1, 2)

    def forward(self, image):
        x = self.patches(image) + self.pos_embed[:, 1:]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([first, x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@pytest.fixture(scope="module")
def twin():
    torch.manual_seed(0)
    return Twin().eval()


def config_for(**changes):
    config = ConfigDict(vision_defaults())
    config.update(width=WIDTH, depth=DEPTH, heads=HEADS, mlp_ratio=HIDDEN / WIDTH, dtype="float32")
    config.update(patch=(2, PATCH, PATCH), position="learned")
    config.update(changes)
    return config


def tower_for(config, shape):
    return VisionTower(config, DataSpec(shape, (1.0, 1.0, 1.0)), rngs=nnx.Rngs(0))


def params_of(tower):
    return flatten(nnx.to_pure_dict(nnx.state(tower, nnx.Param)))


def filled(tower, params):
    graphdef, state = nnx.split(tower)
    flat = params_of(tower)
    assert params.keys() <= flat.keys()
    for name, value in params.items():
        assert value.shape == flat[name].shape, name
        assert value.dtype == np.float32, name
        node = state
        for part in name.split("/"):
            node = node[part]
        node.set_value(jnp.asarray(value))
    return nnx.merge(graphdef, state)


def started(model, shape, state_dict=None, **changes):
    """A tower with the weights of a torch model."""
    config = config_for(**changes)
    tower = tower_for(config, shape)
    given = {name: x.detach().numpy() for name, x in (state_dict or model.state_dict()).items()}
    found = convert(recognize(given), config, tower.transformer.grid, params_of(tower))
    return filled(tower, found.params), found


def repeated(image, depth):
    """(B, C, H, W) to (B, D, H, W, C), constant along depth."""
    return jnp.asarray(image.numpy())[:, None].transpose(0, 1, 3, 4, 2).repeat(depth, axis=1)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_volume_that_is_constant_along_depth_gives_the_2d_response(twin, depth):
    gray = torch.randn(2, 1, 8, 12)
    tower, _ = started(twin, (2 * depth, 8, 12), patch=(depth, PATCH, PATCH))
    ours = tower.transformer.embed(repeated(gray, 2 * depth))
    theirs = twin.patches(gray.expand(-1, 3, -1, -1)).detach().numpy()
    np.testing.assert_allclose(ours.reshape(2, 2, 6, WIDTH)[:, 0], theirs, atol=1e-5)
    np.testing.assert_allclose(ours.reshape(2, 2, 6, WIDTH)[:, 1], theirs, atol=1e-5)


def test_channels(twin):
    """Three windows are the three colors; any other number answers together as to gray."""
    windows = ((-1000.0, 1000.0),) * 3
    colors = torch.randn(1, 3, 8, 12)
    tower, _ = started(twin, (2, 8, 12), windows=windows)
    theirs = twin.patches(colors).detach().numpy()
    np.testing.assert_allclose(tower.transformer.embed(repeated(colors, 2)), theirs, atol=1e-5)
    gray = colors[:, :1]
    tower, _ = started(twin, (2, 8, 12), windows=windows[:2])
    theirs = twin.patches(gray.expand(-1, 3, -1, -1)).detach().numpy()
    ours = tower.transformer.embed(repeated(gray.expand(-1, 2, -1, -1), 2))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_peaks_say_nothing_at_first(twin):
    gray = torch.randn(1, 1, 8, 12)
    tower, _ = started(twin, (2, 8, 12), peaks=True)
    theirs = twin.patches(gray.expand(-1, 3, -1, -1)).detach().numpy()
    np.testing.assert_allclose(tower.transformer.embed(repeated(gray, 2)), theirs, atol=1e-5)


def test_one_layer_of_patches_is_the_2d_model(twin):
    """Blocks, norm, class token with its position and positions: all tokens equal."""
    gray = torch.randn(2, 1, SIDE * PATCH, SIDE * PATCH)
    tower, found = started(twin, (2, SIDE * PATCH, SIDE * PATCH))
    theirs = twin(gray.expand(-1, 3, -1, -1)).detach().numpy()
    np.testing.assert_allclose(tower.transformer.encode(repeated(gray, 2)).sequence, theirs, atol=1e-5)
    assert found.fresh == []
    assert found.left_out == []
    # Class token, norm, blocks, bias of the patch layer, positions.
    assert len(found.taken) == 1 + 2 + 12 * DEPTH + 1 + 1
    assert found.resized == ["patch layer 4x4 of 3 channels -> 2x4x4 of 1"]


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (7, 3)])
def test_another_patch_answers_as_the_original_to_the_patch_resized(twin, size):
    height, width = size
    gray = torch.randn(3, 1, height, width)
    tower, _ = started(twin, (2, height, width), patch=(2, height, width))
    as_theirs = functional.interpolate(gray, (PATCH, PATCH), mode="bilinear", antialias=True)
    theirs = twin.patches(as_theirs.expand(-1, 3, -1, -1)).detach().numpy()
    np.testing.assert_allclose(tower.transformer.embed(repeated(gray, 2)), theirs, atol=1e-5)


def test_3d_kernel_for_another_patch():
    """The same for three axes: torch's trilinear interpolation of the patch is the oracle."""
    kernel, patches = torch.randn(WIDTH, 1, 4, 6, 5), torch.randn(2, 1, 2, 3, 5)
    resized = functional.interpolate(patches, (4, 6, 5), mode="trilinear")
    theirs = functional.conv3d(resized, kernel).flatten(1).numpy()
    rows = inflate(kernel.numpy(), (2, 3, 5), 1)
    np.testing.assert_allclose(patches.flatten(1).numpy() @ rows, theirs, atol=1e-4)
    np.testing.assert_array_equal(inflate(kernel.numpy(), (4, 6, 5), 1), kernel.flatten(1).numpy().T)


def test_positions_follow_torch_interpolation():
    table = torch.randn(6, 5)  # a 2 x 3 grid
    image = table.T.reshape(1, 5, 2, 3)
    for target in ((4, 5, 7), (1, 4, 3)):
        theirs = functional.interpolate(image, target[1:], mode="bilinear").flatten(2)[0].T.numpy()
        ours = resize_positions(table.numpy(), (2, 3), target).reshape(target[0], -1, 5)
        for layer in ours:
            np.testing.assert_allclose(layer, theirs, atol=1e-6)
    table = torch.randn(24, 5)  # 2 x 3 x 4
    theirs = functional.interpolate(table.T.reshape(1, 5, 2, 3, 4), (3, 3, 9), mode="trilinear")
    ours = resize_positions(table.numpy(), (2, 3, 4), (3, 3, 9))
    np.testing.assert_allclose(ours, theirs.flatten(2)[0].T.numpy(), atol=1e-6)
    theirs = functional.interpolate(image, (2, 2), mode="bilinear", antialias=True)
    ours = resize_positions(image[0].flatten(1).T.numpy(), (2, 3), (1, 2, 2))
    np.testing.assert_allclose(ours, theirs.flatten(2)[0].T.numpy(), atol=1e-6)


def test_fixed_positions_leave_the_table_out(twin):
    tower, found = started(twin, (4, 8, 12), position="sincos")
    assert found.left_out == ["positions (config.objective.vision.position is 'sincos')"]
    token = (twin.cls_token + twin.pos_embed[:, :1]).detach().numpy()
    np.testing.assert_allclose(tower.transformer.class_token[...], token, atol=1e-6)


def test_fresh_patch_layer(twin):
    _, found = started(twin, (4, 8, 12), weights_patch="fresh")
    assert found.fresh == ["transformer/embed/projection/bias", "transformer/embed/projection/kernel"]
    assert not any("embed" in name for name in found.params)
    assert "fresh: transformer/embed" in found.report()


def test_other_parts_of_a_tower_start_afresh(twin):
    _, found = started(twin, (4, 8, 12), pooling="grid", skip=True, extremes=True)
    modules = {name.split("/")[1] for name in found.fresh}
    extremes = {"extreme_scale", "extreme_shift", "extreme_embed"}
    assert modules == extremes | {"grid_pool", "grid_scale", "grid_shift", "skip_norm"}


def with_decoder(twin):
    held = {name: x.detach().clone() for name, x in twin.state_dict().items()}
    return held | {"mask_token": torch.ones(1, 1, 8), "decoder_blocks.0.attn.qkv.weight": torch.ones(24, 8)}


@pytest.mark.parametrize("kind", ["pth under model", "pth", "ckpt", "safetensors", "bfloat16"])
def test_files(twin, tmp_path, kind):
    held = with_decoder(twin)
    file = tmp_path / f"vit.{'safetensors' if kind in ('safetensors', 'bfloat16') else kind[:4].strip()}"
    if kind == "ckpt":
        held = {f"module.{name}": x for name, x in held.items()}
        torch.save({"state_dict": held, "epoch": 3}, file)
    elif kind.startswith("pth"):
        torch.save({"model": held} if "model" in kind else held, file)
    else:
        held = {name: x.bfloat16() for name, x in held.items()} if kind == "bfloat16" else held
        save_file(held, file)
    config = config_for()
    tower = tower_for(config, (2, SIDE * PATCH, SIDE * PATCH))
    tower = filled(tower, read_vision_weights(file, config, tower.shape, params_of(tower)))
    gray = torch.randn(1, 1, SIDE * PATCH, SIDE * PATCH)
    theirs = twin(gray.expand(-1, 3, -1, -1)).detach().numpy()
    tolerance = 0.1 if kind == "bfloat16" else 1e-5
    np.testing.assert_allclose(tower.transformer.encode(repeated(gray, 2)).sequence, theirs, atol=tolerance)


@pytest.mark.parametrize("kind", ["vit", "mae"])
def test_hugging_face_folders(tmp_path, kind):
    torch.manual_seed(1)
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": HIDDEN,
        "image_size": SIDE * PATCH,
        "patch_size": PATCH,
        "attn_implementation": "eager",
    }
    if kind == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**sizes)).eval()
    else:
        decoder = {
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
        }
        model = transformers.ViTMAEForPreTraining(
            transformers.ViTMAEConfig(**sizes, **decoder, decoder_intermediate_size=16, mask_ratio=0.0)
        ).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    config = config_for(layer_norm_epsilon=1e-12)
    tower = tower_for(config, (2, SIDE * PATCH, SIDE * PATCH))
    tower = filled(tower, read_vision_weights(tmp_path, config, tower.shape, params_of(tower)))
    gray = torch.randn(1, 1, SIDE * PATCH, SIDE * PATCH)
    with torch.no_grad():
        if kind == "vit":
            theirs = model(gray.expand(-1, 3, -1, -1)).last_hidden_state
        else:
            # Nothing is masked, yet patches are shuffled: noise in order keeps them in place.
            noise = torch.linspace(0.0, 1.0, SIDE * SIDE)[None]
            theirs = model.vit(gray.expand(-1, 3, -1, -1), noise=noise).last_hidden_state
    np.testing.assert_allclose(
        tower.transformer.encode(repeated(gray, 2)).sequence, theirs.numpy(), atol=1e-5
    )


def test_exported_folder_at_another_grid_and_patch(tmp_path):
    config = config_for(pre_norm=True, skip=True, peaks=True)
    source = tower_for(config, (4, 8, 12))
    flat = {f"vision/{name}": np.asarray(x) for name, x in params_of(source).items()}
    save_file({name: torch.tensor(x) for name, x in to_torch(flat).items()}, tmp_path / "model.safetensors")
    content = {"objective": {"vision": config.to_dict()}, "data": {"shape": [4, 8, 12]}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    same = read_vision_weights(tmp_path, config, source.shape, params_of(source))
    for name, value in same.items():
        if not name.endswith("embed/projection/kernel"):
            np.testing.assert_array_equal(value, flat[f"vision/{name}"])
    assert same.keys() == params_of(source).keys()
    voxels = np.prod(config.patch)
    kernel = "transformer/embed/projection/kernel"
    np.testing.assert_allclose(same[kernel][:voxels], flat[f"vision/{kernel}"][:voxels], atol=1e-7)
    larger = config_for(pre_norm=True, skip=True, patch=(4, 2, 4))
    tower = tower_for(larger, (12, 8, 12))
    found = read_vision_weights(tmp_path, larger, tower.shape, params_of(tower))
    filled(tower, found)
    expected = resize_positions(flat["vision/transformer/positions"], (2, 2, 3), (3, 4, 3))
    np.testing.assert_array_equal(found["transformer/positions"], expected)


PREFIX = "config.objective.vision"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 48}, rf"{PREFIX}\.width is 48, and the checkpoint has 24"),
        ({"depth": 3}, rf"{PREFIX}\.depth is 3, and the checkpoint has 2"),
        ({"mlp_ratio": 4.0}, rf"{PREFIX}\.mlp_ratio is 4.*set it to 2"),
        ({"pre_norm": True}, rf"{PREFIX}\.pre_norm is True.*set it to False"),
        ({"weights_patch": "inflated"}, rf"{PREFIX}\.weights_patch='inflated' is unknown"),
    ],
)
def test_config_that_does_not_fit(twin, changes, message):
    with pytest.raises(ValueError, match=message):
        started(twin, (4, 8, 12), **changes)


def test_heads_of_a_checkpoint(twin, tmp_path):
    """Known for the published widths, or from a config.json."""
    save_file(with_decoder(twin), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 6}))
    config = config_for()
    tower = tower_for(config, (4, 8, 12))
    with pytest.raises(ValueError, match=r"vision\.heads is 3, and the checkpoint has 6"):
        read_vision_weights(tmp_path, config, tower.shape, params_of(tower))


@pytest.mark.parametrize(
    ("without", "added", "message"),
    [
        ("blocks.1.norm2.weight", {}, "lacks blocks/1/mlp_norm"),
        ("blocks.0.mlp.fc1.weight", {}, "lacks blocks/0/mlp_in"),
        (None, {"blocks.0.ls1.gamma": torch.ones(24)}, r"no place.*blocks\.0\.ls1\.gamma"),
        ("patch_embed.proj.weight", {}, "no vision transformer that is known"),
        (None, {"pos_embed": torch.ones(1, 8, 24)}, "8 positions, whose grid is not known"),
        (None, {"blocks.0.attn.proj.bias": torch.ones(23)}, r"output/bias has shape \(23,\)"),
        ("cls_token", {}, "no class token"),
    ],
)
def test_checkpoint_that_does_not_fit(twin, without, added, message):
    held = with_decoder(twin) | added
    held.pop(without, None)
    with pytest.raises(ValueError, match=message):
        started(twin, (4, 8, 12), state_dict=held)


class Trap:
    """Opening a pickle of this would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_not_opened(tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": Trap(tmp_path / "sprung")}, tmp_path / "vit.ckpt")
    with pytest.raises(ValueError, match="cannot be read safely") as caught:
        read_checkpoint(tmp_path / "vit.ckpt")
    assert "weights_only=False" in str(caught.value)
    assert 'save_file(state, "vit.safetensors")' in str(caught.value)
    assert not (tmp_path / "sprung").exists()


def test_what_the_error_advises_works(tmp_path):
    held = {"a.weight": torch.ones(2, 3)}
    torch.save({"state_dict": held, "hyper_parameters": Trap(tmp_path / "sprung")}, tmp_path / "vit.ckpt")
    with pytest.raises(ValueError, match="cannot be read safely") as caught:
        read_checkpoint(tmp_path / "vit.ckpt")
    lines = [line.strip() for line in str(caught.value).splitlines()[1:]]
    code = "\n".join(lines).replace("vit.", f"{tmp_path}/vit.")
    exec(code, {})  # the file is the test's own
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "vit.safetensors")["a.weight"], np.ones((2, 3)))


def test_published_vit_b_by_name_and_shape():
    """Every name and shape of the released ImageNet ViT-B finds its place in the default tower."""
    width = 768
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 197, width), "norm.weight": (width,)}
    shapes |= {"norm.bias": (width,), "patch_embed.proj.weight": (width, 3, 16, 16)}
    shapes |= {"patch_embed.proj.bias": (width,)}
    for index in range(12):
        block = f"blocks.{index}."
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
        for name, out, into in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            shapes |= {f"{block}{name}.weight": (out, into), f"{block}{name}.bias": (out,)}
    encoder = recognize({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    config = ConfigDict(vision_defaults())
    tower = nnx.eval_shape(lambda: tower_for(config, (128, 144, 144)))
    found = convert(encoder, config, tower.transformer.grid, params_of(tower))
    assert {name: value.shape for name, value in found.params.items()} == {
        name: leaf.shape for name, leaf in params_of(tower).items()
    }
    config.heads = 8
    with pytest.raises(ValueError, match=r"vision\.heads is 8, and the checkpoint has 12"):
        convert(encoder, config, tower.transformer.grid, params_of(tower))


def test_start_of_a_run(twin, tmp_path):
    """The config's field reaches the parameters of an objective."""
    torch.save({"model": with_decoder(twin)}, tmp_path / "mae.pth")
    config = mae.default_config()
    config.vision = config_for(weights=str(tmp_path / "mae.pth"))
    config.decoder.update(width=24, depth=1, heads=2)
    spec = DataSpec((4, 8, 12), (1.0, 1.0, 1.0))
    params = split(mae.MaskedAutoencoder(config, spec, rngs=nnx.Rngs(0)))[1]
    found = flatten(load_pretrained(config, params, spec))
    before = flatten(params)
    taken = twin.blocks[1].mlp["fc2"].weight.detach().numpy().T
    np.testing.assert_array_equal(found["vision/transformer/blocks/1/mlp_out/kernel"], taken)
    decoder = [name for name in found if name.startswith("decoder/")]
    assert decoder
    assert all(found[name] is before[name] for name in decoder)
    assert jax.tree.structure(params) == jax.tree.structure(load_pretrained(config, params, spec))
