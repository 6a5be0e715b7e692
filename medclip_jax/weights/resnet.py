"""Residual networks between PyTorch checkpoints, 3D or 2D, and `medclip_jax.models.resnet.ResNet`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from medclip_jax.models.resnet import LAYERS, STAGES, Bottleneck, ResNet
from medclip_jax.parameters import combine, flatten, split
from medclip_jax.weights.files import listed, read_weights

_LOG = logging.getLogger(__name__)

HEADS = ("fc.", "avgpool.", "conv_seg.")
"""What checkpoints hold beside the network: classifiers and the segmentation head of MedicalNet."""

ANCHOR = "layer1.0.conv1.weight"
"""A name that every ResNet has; what stands before it is the checkpoint's prefix."""


def load_resnet_weights(path: str | Path, resnet: ResNet, *, prefix: str | None = None) -> None:
    """Overwrite parameters and running statistics with those of a checkpoint.

    Args:
        path: see `weight_files.read_weights`.
        resnet: overwritten in place.
        prefix: see `from_torch`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read safely, or does not fit; see `from_torch`.
    """
    from_torch(read_weights(path), resnet, prefix=prefix)


def read_resnet_weights(
    path: str | Path, vision_config: Any, shape: Sequence[int], params_of_tower: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Read a checkpoint of a residual network for a vision tower: parameters and running statistics.

    Args:
        path: see `weight_files.read_weights`.
        vision_config: `config.objective.vision`, of kind "resnet".
        shape: (D, H, W) of the volumes, in cells of the tower; any will do.
        params_of_tower: the tower's arrays (or shapes), by "resnet/...".

    Returns:
        What to replace: name within the tower ("resnet/conv1/kernel") to float32 array.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read safely, or does not fit; see `from_torch`.
    """
    channels = len(vision_config.windows)
    resnet = nnx.eval_shape(
        lambda: ResNet.from_config(vision_config, tuple(shape), channels, rngs=nnx.Rngs(0))
    )
    try:
        from_torch(read_weights(Path(path).expanduser()), resnet)
    except ValueError as error:
        raise ValueError(f"config.objective.vision.weights={str(path)!r}: {error}") from error
    _, params, variables = split(resnet)
    found = {
        f"{ResNet.part}/{name}": np.asarray(x) for name, x in flatten(combine(params, variables)).items()
    }
    _LOG.info("vision tower from config.objective.vision.weights, %s: %d arrays", path, len(found))
    return {name: value for name, value in found.items() if name in params_of_tower}


def from_torch(state_dict: Mapping[str, np.ndarray], resnet: ResNet, *, prefix: str | None = None) -> None:
    """Overwrite parameters and running statistics in place with weights under PyTorch's names.

    Understood: names conv1, bn1, layer{1..4}.{i}.{conv,bn}{1..3}, downsample.{0,1}, behind any prefix
    (`module.`, `encoder.`, `backbone.`); what lies outside the prefix, `HEADS` and `num_batches_tracked` are
    left out. With group norm there are no running statistics, and the names are the same.

    MONAI's networks have a `downsample.0.bias` before batch norm, which is folded into its running mean: the
    same output with running statistics, and in training, where the batch's mean takes any constant away.

    Kernels with four axes are of a 2D network: they are repeated along depth and divided by their
    new depth, so that a volume which is the same in every slice gives, away from its first and last slices,
    what the 2D network gives for a slice. A first convolution with another number of channels gets the mean
    over its own in each, scaled so that equal channels give what they gave.

    Args:
        state_dict: name to array, PyTorch layout (out, in, [depth,] height, width).
        resnet: overwritten in place.
        prefix: of the names, where a checkpoint holds several networks; None finds the only one.

    Raises:
        ValueError: no or several networks, another depth or norm, shortcuts without weights (type A);
            missing, unexpected or ill-shaped weights by name. Nothing was overwritten then.
    """
    given = _folded(_canonical(state_dict, prefix))
    places = _places(resnet)
    _check_names(given, places, resnet)
    fitted = {}
    for name, place in places.items():
        array = np.asarray(given[name], np.float32)
        if place.ndim == 5:
            array = _fit_kernel(name, array, place.shape)
        elif array.shape != place.shape:
            raise _ill_shaped(name, array.shape, place.shape)
        fitted[name] = array
    for name, place in places.items():
        place.set_value(jnp.asarray(fitted[name]))


def to_torch(resnet: ResNet) -> dict[str, np.ndarray]:
    """Parameters and running statistics under PyTorch's names, float32; the inverse of `from_torch`.

    Args:
        resnet: the network.

    Returns:
        Name to array; kernels (out, in, depth, height, width). No `num_batches_tracked`.
    """
    found = {}
    for name, place in _places(resnet).items():
        array = np.asarray(place[...], np.float32)
        found[name] = np.ascontiguousarray(np.moveaxis(array, (4, 3), (0, 1)) if array.ndim == 5 else array)
    return found


def _places(resnet: ResNet) -> dict[str, nnx.Variable]:
    """PyTorch's name to the variable here: the path, with its last part renamed."""
    names = {"kernel": "weight", "scale": "weight"}
    found = {}
    for path, node in nnx.iter_graph(resnet):
        if isinstance(node, nnx.Param | nnx.BatchStat) and path[0] != "extremes":
            *parents, last = path
            found[".".join([*parents, names.get(last, last)])] = node
    return found


def _canonical(state_dict: Mapping[str, np.ndarray], prefix: str | None) -> dict[str, np.ndarray]:
    prefixes = sorted(name.removesuffix(ANCHOR) for name in state_dict if name.endswith(ANCHOR))
    if prefix is None:
        if len(prefixes) != 1:
            held = (
                f"{len(prefixes)} networks, behind {prefixes}: name one with prefix=..."
                if prefixes
                else "none"
            )
            raise ValueError(f"a checkpoint of one ResNet has one weight {ANCHOR!r}, this one holds {held}")
        prefix = prefixes[0]
    elif prefix not in prefixes:
        raise ValueError(f"the checkpoint has no {prefix + ANCHOR!r}: its networks lie behind {prefixes}")
    given = {name.removeprefix(prefix): name for name in state_dict if name.startswith(prefix)}
    return {
        name: state_dict[whole]
        for name, whole in given.items()
        if not name.startswith(HEADS) and not name.endswith("num_batches_tracked")
    }


def _folded(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the bias of convolutions that a batch norm follows: (Wx + b) - m is Wx - (m - b)."""
    folded = dict(given)
    for name in given:
        mean = f"{name.removesuffix('0.bias')}1.running_mean"
        if name.endswith(".downsample.0.bias") and mean in given:
            folded[mean] = np.asarray(given[mean], np.float32) - np.asarray(folded.pop(name), np.float32)
    return folded


def _check_names(given: Mapping[str, np.ndarray], places: Mapping[str, nnx.Variable], resnet: ResNet) -> None:
    missing = [name for name in places if name not in given]
    unexpected = [name for name in given if name not in places]
    if not (missing or unexpected):
        return
    bottleneck = "layer1.0.conv3.weight" in given
    counts = tuple(len({m[1] for n in given if (m := re.match(rf"{s}\.(\d+)\.", n))}) for s in STAGES)
    kinds = {(kind is Bottleneck, blocks): layers for layers, (kind, blocks) in LAYERS.items()}
    found = kinds.get((bottleneck, counts))
    if found is None:
        kind = "bottleneck" if bottleneck else "basic"
        message = f"the checkpoint has {counts} {kind} blocks in its stages, which no depth here has. "
    elif found != resnet.depth:
        message = (
            f"the checkpoint is a ResNet-{found}, the network a ResNet-{resnet.depth}: "
            f"set its depth to {found}. "
        )
    elif not unexpected and all(".downsample." in name for name in missing):
        message = (
            "the checkpoint has shortcuts without weights (type A: subsampling and zero channels), as "
            "MedicalNet's ResNet-18 and 34 have, and this network projects (type B): take a checkpoint of "
            "type B, such as MedicalNet's ResNet-50. "
        )
    elif all(".running_" in name for name in [*missing, *unexpected]):
        norm = "batch" if unexpected else "group"
        message = (
            f"the checkpoint is of {norm} norm, the network of {resnet.norm} norm: set its norm to {norm!r}. "
        )
    else:
        message = f"the checkpoint does not fit a ResNet-{resnet.depth}. "
    raise ValueError(
        f"{message}Missing: {listed(missing, unexpected)}. Unexpected: {listed(unexpected, missing)}"
    )


def _fit_kernel(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A kernel (out, in, [depth,] height, width) in the place of one of `shape`, (d, h, w, in, out)."""
    depth, height, width, channels, outputs = shape
    if array.ndim == 4:
        array = np.repeat(array[:, :, None] / depth, depth, axis=2)
    if name == "conv1.weight" and array.ndim == 5 and array.shape[1] != channels:
        array = np.repeat(array.mean(1, keepdims=True) * (array.shape[1] / channels), channels, axis=1)
    if array.shape != (outputs, channels, depth, height, width):
        raise _ill_shaped(name, array.shape, (outputs, channels, depth, height, width))
    return np.moveaxis(array, (0, 1), (4, 3))


def _ill_shaped(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> ValueError:
    if name == "conv1.weight" and found[2:] != expected[2:] and len(found) == 5:
        remedy = f"with stem_size={found[2:]}"
    else:
        remedy = "with the width of the checkpoint (64 in published ones)"
    return ValueError(
        f"{name} has shape {found} in the checkpoint and {expected} in the network: build the ResNet {remedy}"
    )
