"""Residual networks against a PyTorch twin: same weights, same maps, statistics and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

from medclip_jax.models.resnet import ResNet
from medclip_jax.weights.resnet import from_torch, load_resnet_weights, to_torch

BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
WIDTH = 4
SHAPE = (33, 40, 37)
"""Odd maps at every stage: (17, 20, 19), (9, 10, 10), (5, 5, 5), (3, 3, 3), (2, 2, 2)."""


class Block(nn.Module):
    def __init__(self, dims, inputs, width, stride, deep, bias):
        super().__init__()
        conv, norm = (nn.Conv3d, nn.BatchNorm3d) if dims == 3 else (nn.Conv2d, nn.BatchNorm2d)
        outputs = width * 4 if deep else width
        sizes = [(inputs, width, 1), (width, width, 3), (width, outputs, 1)] if deep else [
            (inputs, width, 3), (width, width, 3)]  # fmt: skip
        for n, (a, b, size) in enumerate(sizes, 1):
            step = stride if n == (2 if deep else 1) else 1
            setattr(self, f"conv{n}", conv(a, b, size, step, size // 2, bias=False))
            setattr(self, f"bn{n}", norm(b))
        self.last = len(sizes)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride, bias=bias), norm(outputs))

    def forward(self, x):
        y = x
        for n in range(1, self.last + 1):
            y = getattr(self, f"bn{n}")(getattr(self, f"conv{n}")(y))
            y = torch.relu(y) if n < self.last else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Twin(nn.Module):
    """The names of published checkpoints, classifier included; MONAI's with `bias_downsample`."""

    def __init__(self, depth, channels=1, stem_stride=2, dims=3, stem_size=7, bias_downsample=False):
        super().__init__()
        conv, norm, pool = (
            (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d)
            if dims == 3
            else (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)
        )
        around = stem_size // 2 if isinstance(stem_size, int) else tuple(size // 2 for size in stem_size)
        self.conv1 = conv(channels, WIDTH, stem_size, stem_stride, around, bias=False)
        self.bn1 = norm(WIDTH)
        self.maxpool = pool(3, 2, 1)
        inputs, deep = WIDTH, depth >= 50
        for stage, count in enumerate(BLOCKS[depth]):
            blocks, width = [], WIDTH * 2**stage
            for index in range(count):
                stride = 2 if stage and not index else 1
                blocks.append(Block(dims, inputs, width, stride, deep, bias_downsample))
                inputs = width * 4 if deep else width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, 5)
        torch.manual_seed(depth)
        with torch.no_grad():
            for name, tensor in self.named_parameters():
                if "bn" in name or "downsample.1" in name:
                    tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.1)
                # As in a trained network, the sum changes little from block to block: without this the
                # last digits of 50 random layers grow to 1e-4 of the map.
                if name.endswith("bn3.weight" if deep else "bn2.weight"):
                    tensor *= 0.2
                if name.endswith("downsample.0.bias"):
                    tensor.normal_(0, 0.3)
            for name, tensor in self.named_buffers():
                if name.endswith("running_mean"):
                    tensor.normal_(0, 0.1)
                elif name.endswith("running_var"):
                    tensor.uniform_(0.5, 1.5)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def arrays(twin):
    return {name: tensor.detach().numpy().copy() for name, tensor in twin.state_dict().items()}


def pair(depth, channels=1, stem_stride=(2, 2, 2), stem_size=(7, 7, 7), bias_downsample=False, **options):
    twin = Twin(depth, channels, stem_stride, stem_size=stem_size, bias_downsample=bias_downsample)
    stem = {"stem_size": stem_size, "stem_stride": stem_stride}
    resnet = ResNet(depth, channels=channels, width=WIDTH, **stem, rngs=nnx.Rngs(0), **options)
    from_torch(arrays(twin), resnet)
    return twin, resnet


def volumes(count=2, channels=1, shape=SHAPE):
    return np.random.default_rng(1).normal(size=(count, *shape, channels)).astype(np.float32)


def to_theirs(x):
    return torch.tensor(np.moveaxis(x, -1, 1))


def to_ours(x):
    return np.moveaxis(x.detach().numpy(), 1, -1)


def scaled(found, expected):
    """Largest difference over the largest value."""
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def buffers(twin):
    held = {name: buffer.numpy() for name, buffer in twin.named_buffers()}
    return {name: buffer for name, buffer in held.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    ("depth", "channels", "stem_stride"), [(18, 2, (1, 2, 2)), (34, 1, (2, 2, 2)), (50, 1, (2, 2, 2))]
)
def test_maps_and_statistics_equal_pytorch(depth, channels, stem_stride):
    twin, resnet = pair(depth, channels, stem_stride)
    x = volumes(3, channels)
    with torch.no_grad():
        expected = to_ours(twin.eval()(to_theirs(x)))
        assert expected.shape[1:4] == resnet.grid_of(SHAPE)
        assert expected.shape[4] == resnet.width
        assert scaled(nnx.jit(resnet)(x), expected) <= 1e-5
        for name, buffer in buffers(twin).items():
            np.testing.assert_array_equal(to_torch(resnet)[name], buffer)  # evaluating moves nothing
        expected = to_ours(twin.train()(to_theirs(x)))
    assert scaled(nnx.jit(lambda resnet, x: resnet(x, train=True))(resnet, x), expected) <= 1e-5
    moved = to_torch(resnet)
    for name, buffer in buffers(twin).items():
        assert np.abs(moved[name] - buffer).max() <= 1e-5, name


@pytest.mark.parametrize("depth", [101, 152])
def test_deep_networks_with_a_flat_stem_equal_pytorch(depth):
    """As published backbones of 117 million parameters, inflated from 2D: 3 x 7 x 7, full depth."""
    twin, resnet = pair(depth, stem_stride=(1, 2, 2), stem_size=(3, 7, 7))
    x = volumes(1, shape=(17, 40, 37))
    with torch.no_grad():
        expected = to_ours(twin.eval()(to_theirs(x)))
    assert expected.shape[1:4] == resnet.grid_of(x.shape[1:4])
    assert scaled(resnet(x), expected) <= 1e-5  # not compiled: 50 blocks take longer to compile than to run
    assert to_torch(resnet)["conv1.weight"].shape == (WIDTH, 1, 3, 7, 7)


@pytest.mark.parametrize(("depth", "remat"), [(18, "none"), (34, "stage"), (50, "none")])
def test_gradients_equal_pytorch(depth, remat):
    """In double precision: in float32 a ReLU on the edge may open in one program and not in the other."""
    with jax.enable_x64(True):
        twin, resnet = pair(depth, dtype=jnp.float64, remat=remat)
        twin.double().train()
        nnx.update(resnet, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), nnx.state(resnet)))
        x = volumes().astype(np.float64)
        given = to_theirs(x).requires_grad_()
        theirs = twin(given)
        weights = np.random.default_rng(2).normal(size=to_ours(theirs).shape)
        (theirs * to_theirs(weights)).sum().backward()

        def loss(resnet, x):
            return (resnet(x, train=True) * weights).sum()

        gradients, by_volume = nnx.jit(nnx.grad(loss, argnums=(0, 1)))(resnet, x)
        assert scaled(by_volume, to_ours(given.grad)) <= 1e-9
        for name, buffer in buffers(twin).items():
            assert np.abs(to_torch(resnet)[name] - buffer).max() <= 1e-6, name
        nnx.update(resnet, gradients)  # so that they get PyTorch's names
        found = to_torch(resnet)
        for name, parameter in twin.named_parameters():
            if not name.startswith("fc."):
                assert scaled(found[name], parameter.grad.numpy()) <= 1e-6, name


def without_bias(twin):
    """Running statistics, those behind a biased convolution as without its bias."""
    held = buffers(twin)
    for name, parameter in twin.named_parameters():
        if name.endswith("downsample.0.bias"):
            mean = name.replace("0.bias", "1.running_mean")
            held[mean] = held[mean] - parameter.detach().numpy()
    return held


MONAI = [(18, 1), (18, 2), (50, 1), (50, 2)]
"""Depth, and stride of the first convolution (1 by default in MONAI)."""


@pytest.mark.parametrize(("depth", "stride"), MONAI)
def test_monai_names_with_a_bias_before_batch_norm(depth, stride):
    """Largest difference over the largest value.

    1e-5 in float32 by running statistics; by the batch, where float32 loses digits in each of 50 layers, 1e-9
    in double precision.
    """
    twin, resnet = pair(depth, stem_stride=(stride,) * 3, bias_downsample=True)
    assert sum("downsample.0.bias" in name for name in arrays(twin)) == (4 if depth == 50 else 3)
    x = volumes(shape=(17 * stride, 11 * stride, 19))
    still = nnx.jit(lambda resnet, x: resnet(x))(resnet, x)
    with torch.no_grad():
        assert scaled(still, to_ours(twin.eval()(to_theirs(x)))) <= 1e-5
    with jax.enable_x64(True):
        twin, resnet = pair(depth, stem_stride=(stride,) * 3, bias_downsample=True, dtype=jnp.float64)
        nnx.update(resnet, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), nnx.state(resnet)))
        training = nnx.jit(lambda resnet, x: resnet(x, train=True))(resnet, x.astype(np.float64))
        twin.double().train()
        with torch.no_grad():
            assert scaled(training, to_ours(twin(to_theirs(x.astype(np.float64))))) <= 1e-9
        moved = to_torch(resnet)
    assert scaled(training, still) > 0.1
    for name, buffer in without_bias(twin).items():
        assert np.abs(moved[name] - buffer).max() <= 1e-5, name


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("depth", "stride"), [(18, 2), pytest.param(50, 1, marks=pytest.mark.slow)])
def test_gradients_of_monai_networks(depth, stride, train):
    """1e-6 of the largest value, in double precision: see `test_gradients_equal_pytorch`."""
    with jax.enable_x64(True):
        twin, resnet = pair(depth, stem_stride=(stride,) * 3, bias_downsample=True, dtype=jnp.float64)
        twin.double().train(train)
        nnx.update(resnet, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), nnx.state(resnet)))
        x = volumes(shape=(17, 11, 19)).astype(np.float64)
        given = to_theirs(x).requires_grad_()
        theirs = twin(given)
        weights = np.random.default_rng(2).normal(size=to_ours(theirs).shape)
        (theirs * to_theirs(weights)).sum().backward()
        gradients, by_volume = nnx.jit(
            nnx.grad(lambda resnet, x: (resnet(x, train=train) * weights).sum(), argnums=(0, 1))
        )(resnet, x)
        assert scaled(by_volume, to_ours(given.grad)) <= 1e-6
        nnx.update(resnet, gradients)
        found = to_torch(resnet)
        for name, parameter in twin.named_parameters():
            theirs = None if parameter.grad is None else parameter.grad.numpy()
            if name.endswith("downsample.0.bias"):
                # The mean of the batch takes a constant away; running statistics do not.
                assert (np.abs(theirs).max() < 1e-9) == train
            elif theirs is not None:
                # The 1e-10 for gradients of zero: where nothing is clipped, norms take bn1.bias away.
                assert np.abs(found[name] - theirs).max() <= 1e-6 * np.abs(theirs).max() + 1e-10, name


def test_shortcuts_without_weights_are_refused():
    given = {name: array for name, array in arrays(Twin(18)).items() if ".downsample." not in name}
    with pytest.raises(
        ValueError, match=r"shortcuts without weights \(type A.* such as MedicalNet's ResNet-50"
    ):
        from_torch(given, ResNet(18, width=WIDTH, rngs=nnx.Rngs(0)))


def test_a_checkpoint_of_group_norm():
    network = ResNet(18, width=WIDTH, norm="group", rngs=nnx.Rngs(3))
    given = to_torch(network)
    assert not any("running" in name for name in given)
    fresh = ResNet(18, width=WIDTH, norm="group", rngs=nnx.Rngs(0))
    from_torch(given, fresh)
    for name, array in to_torch(fresh).items():
        np.testing.assert_array_equal(array, given[name])
    with pytest.raises(
        ValueError, match="is of group norm, the network of batch norm: set its norm to 'group'"
    ):
        from_torch(given, ResNet(18, width=WIDTH, rngs=nnx.Rngs(0)))
    with pytest.raises(
        ValueError, match="is of batch norm, the network of group norm: set its norm to 'batch'"
    ):
        from_torch(arrays(Twin(18)), fresh)


@pytest.mark.parametrize("depth", [18, 50])
def test_round_trip_is_the_identity(depth):
    twin, resnet = pair(depth)
    back = to_torch(resnet)
    given = {n: a for n, a in arrays(twin).items() if "fc." not in n and "num_batches_tracked" not in n}
    assert back.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(back[name], array)
    missing, unexpected = twin.load_state_dict({n: torch.tensor(a) for n, a in back.items()}, strict=False)
    assert not unexpected
    assert all("fc." in name or "num_batches_tracked" in name for name in missing)


@pytest.mark.parametrize(
    "prefix", ["module.", "encoder.", "backbone.", "module.encoder.backbone.", "visual."]
)
def test_prefixes_and_training_checkpoints(tmp_path, prefix):
    twin = Twin(18)
    held = {prefix + name: tensor for name, tensor in twin.state_dict().items()}
    held |= {"head.weight": torch.zeros(3), prefix + "conv_seg.0.weight": torch.zeros(3)}
    torch.save({"epoch": 4, "state_dict": held}, tmp_path / "resnet.pth")
    resnet = ResNet(18, width=WIDTH, rngs=nnx.Rngs(0))
    load_resnet_weights(tmp_path / "resnet.pth", resnet)
    for name, array in to_torch(resnet).items():
        np.testing.assert_array_equal(array, arrays(twin)[name])


def test_one_of_several_networks_is_named():
    one, two = arrays(Twin(18)), {name: array + 1 for name, array in arrays(Twin(18)).items()}
    both = {f"query.{n}": a for n, a in one.items()} | {f"key.{n}": a for n, a in two.items()}
    resnet = ResNet(18, width=WIDTH, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"2 networks, behind \['key\.', 'query\.'\]: name one with prefix"):
        from_torch(both, resnet)
    with pytest.raises(ValueError, match="its networks lie behind"):
        from_torch(both, resnet, prefix="momentum.")
    from_torch(both, resnet, prefix="key.")
    np.testing.assert_array_equal(to_torch(resnet)["conv1.weight"], two["conv1.weight"])
    with pytest.raises(ValueError, match="this one holds none"):
        from_torch({"patch_embed.weight": np.zeros(3)}, resnet)


def test_a_2d_network_answers_alike_in_every_slice_of_a_constant_depth():
    flat = Twin(50, channels=3, dims=2).eval()
    resnet = ResNet(50, channels=2, width=WIDTH, rngs=nnx.Rngs(0))
    from_torch(arrays(flat), resnet)
    image = np.random.default_rng(0).normal(size=(1, 33, 40, 1)).astype(np.float32)
    with torch.no_grad():
        x = flat.layer1(flat.maxpool(torch.relu(flat.bn1(flat.conv1(to_theirs(image.repeat(3, -1)))))))
    volume = jnp.asarray(image)[:, None].repeat(48, 1).repeat(2, -1)

    @nnx.jit
    def first_stage(resnet, volume):
        y = jax.nn.relu(resnet.bn1(resnet.conv1(volume), train=False))
        y = nnx.max_pool(y, (3, 3, 3), strides=(2, 2, 2), padding=[(1, 1)] * 3)
        for index in range(3):
            y = resnet.layer1[str(index)](y, train=False)
        return y

    # Twelve slices; padding reaches the outer ones.
    for slice_ in np.asarray(first_stage(resnet, volume))[:, 5:7].swapaxes(0, 1):
        assert np.abs(slice_ - to_ours(x)).max() <= 1e-5


def test_what_does_not_fit_is_named():
    given = arrays(Twin(34))
    resnet = ResNet(18, width=WIDTH, rngs=nnx.Rngs(0))
    before = to_torch(resnet)
    with pytest.raises(
        ValueError, match=r"is a ResNet-34, the network a ResNet-18: set its depth to 34.* more"
    ):
        from_torch(given, resnet)
    given = arrays(Twin(18))
    del given["layer2.0.downsample.0.weight"]
    given["layer2.0.downsample.0.kernel"] = np.zeros(1)
    with pytest.raises(
        ValueError, match=r"Missing: layer2\.0\.downsample\.0\.weight \(like .*\.kernel\?\)\."
    ):
        from_torch(given, resnet)
    given = arrays(Twin(18))
    with pytest.raises(ValueError, match=r"bn1\.bias has shape \(4,\) .* and \(6,\) .* with the width"):
        from_torch(given, ResNet(18, width=6, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"conv1\.weight .*: build the ResNet with stem_size=\(3, 7, 7\)"):
        from_torch(arrays(Twin(18, stem_size=(3, 7, 7))), resnet)
    for name, array in to_torch(resnet).items():
        np.testing.assert_array_equal(array, before[name])  # nothing was written
    with pytest.raises(ValueError, match=r"stem_size=\(4, 7, 7\): three odd numbers"):
        ResNet(18, width=WIDTH, stem_size=(4, 7, 7), rngs=nnx.Rngs(0))
