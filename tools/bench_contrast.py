"""Time a contrastive training step, or HiPro-CT's, beside plain PyTorch of the same model, in one run.

    python tools/bench_contrast.py                       # CLIP, 1152 tokens, 29M parameters, batch 4, CPU
    python tools/bench_contrast.py --system hipro_ct     # Gaussians: contrast, cross inclusion, bottleneck
    python tools/bench_contrast.py --shape 64 64 64      # 512 tokens

The JAX side is the step of `medclip train` (`training.step.make_train_step`), with all that it logs; the
other the towers of an exported folder (fused attention) with the same loss, and PyTorch's AdamW. Both start
from the same weights, see the same volumes and texts, and their first losses must agree. HiPro-CT runs
without organs, which are pooled outside of the towers. One JSON line a result; each side has a process of its
own, and their steps alternate (`tools/taking_turns.py`).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial

import jax
import numpy as np
import optax
from flax import nnx
from taking_turns import ratios, take_turns

from medclip_jax.objectives import clip, hipro_ct
from medclip_jax.objectives.base import DataSpec
from medclip_jax.parameters import combine, flatten, split
from medclip_jax.training import mesh as meshes
from medclip_jax.training.optimizer import Optimizer
from medclip_jax.training.state import initial_state
from medclip_jax.training.step import make_train_step
from medclip_jax.weights.names import to_torch

LEARNING_RATE, BETAS, WEIGHT_DECAY = 1e-4, (0.9, 0.95), 0.05
SYSTEMS = {"clip": (clip, clip.Clip), "hipro_ct": (hipro_ct, hipro_ct.HiProCt)}


def make(options: argparse.Namespace):
    """The objective, its config, what fixes its sizes, and one batch of noise."""
    module, kind = SYSTEMS[options.system]
    spec = DataSpec(shape=tuple(options.shape), spacing=(3.0, 1.5, 1.5), vocabulary_size=8192)
    config = module.default_config()
    tower = {"width": options.width, "heads": options.width // 64, "dtype": "float32", "remat": "none"}
    config.vision.update(**tower, depth=options.depth, patch=tuple(options.patch))
    config.text.update(**tower, depth=options.text_depth)
    if options.system == "hipro_ct":
        config.weights.update(local=0.0, hierarchy=0.0)
    rng = np.random.default_rng(0)
    batch = {
        "volume": rng.integers(-1000, 1000, (options.batch, *spec.shape), dtype=np.int16),
        "tokens": rng.integers(1, spec.vocabulary_size, (options.batch, options.text_length), dtype=np.int32),
        "study": np.arange(options.batch, dtype=np.int32)[:, None],
        "sample": np.arange(options.batch, dtype=np.int32),
    }
    return kind(config, spec, rngs=nnx.Rngs(0)), config, spec, batch


def jax_side(options: argparse.Namespace):
    """One step of training, and details to print."""
    objective, _, _, batch = make(options)
    graph, parameters, variables = split(objective)
    optimizer = Optimizer(
        optax.adamw(LEARNING_RATE, *BETAS, weight_decay=WEIGHT_DECAY),
        lambda step: LEARNING_RATE,
        frozenset(flatten(parameters)),
    )
    mesh = meshes.make_mesh(argparse.Namespace(data=1, fsdp=1))
    step = make_train_step(graph, optimizer, mesh)
    held = [meshes.put_state(initial_state(parameters, variables, optimizer, ema=False), mesh)]
    there = meshes.put_batch(batch, mesh)

    def run(index: int) -> float:
        held[0], metrics = step(held[0], there, jax.random.key(0))
        return float(metrics["loss"])

    count = sum(leaf.size for leaf in jax.tree.leaves(parameters))
    return run, {"batch": options.batch, "parameters_million": round(count / 1e6, 1)}


def torch_side(options: argparse.Namespace):
    """The same with the towers of an export."""
    import torch
    import torch.nn.functional as F

    from medclip_jax.export.torch.contrastive import ContrastiveModel
    from medclip_jax.export.torch.gaussian import GaussianModel
    from medclip_jax.export.torch.loading import MedclipConfig
    from medclip_jax.export.torch.vit import VisionTransformer

    objective, config, spec, batch = make(options)
    base = GaussianModel if options.system == "hipro_ct" else ContrastiveModel
    twin_class = type("Twin", (base,), {"vision_encoder": VisionTransformer})
    written = json.loads(config.to_json())
    twin = twin_class(MedclipConfig(objective=written, data=asdict(spec), text_length=options.text_length))
    weights = to_torch(jax.device_get(flatten(combine(*split(objective)[1:]))))
    twin.load_state_dict({name: torch.tensor(np.array(x)) for name, x in weights.items()})

    def pairs(logits):
        """CLIP's loss, or that of sigmoid pairs."""
        targets = torch.arange(len(logits))
        if options.system == "clip":
            return 0.5 * (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets))
        signs = 2.0 * torch.eye(len(logits)) - 1.0
        return -F.logsigmoid(signs * logits).sum() / len(logits)

    def loss_of(volumes, tokens):
        found = twin(volumes, tokens)
        loss = pairs(found.logits)
        if options.system == "hipro_ct":
            loss = loss + config.weights.cross * inclusion(found.volumes, found.texts)
            both = [divergence(one) for one in (found.volumes, found.texts)]
            loss = loss + config.weights.bottleneck * sum(both) / 2
        return loss

    def inclusion(inside, around):
        wider = around.log_variance - inside.log_variance
        widths = 0.5 * wider - 0.5 * torch.log((1 + 2 * wider.exp()) / (2 + wider.exp()))
        share = 2 * torch.sinh(0.5 * wider) / (5 + 4 * torch.cosh(wider))
        scaled = (inside.mean - around.mean) * torch.exp(-0.25 * (inside.log_variance + around.log_variance))
        scores = widths + scaled**2 * share
        limit = -np.log(config.inclusion.eps)
        beyond = scores.sign() * limit * (1 + torch.log(scores.abs().clamp(min=limit) / limit))
        return -F.logsigmoid(torch.where(scores.abs() > limit, beyond, scores)).mean()

    def divergence(one):
        return 0.5 * (one.mean**2 + one.log_variance.exp() - 1 - one.log_variance).mean()

    optimizer = torch.optim.AdamW(twin.parameters(), LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY)
    run_loss = torch.compile(loss_of) if options.torch == "compile" else loss_of
    volumes, tokens = torch.tensor(batch["volume"]), torch.tensor(batch["tokens"]).long()

    def run(index: int) -> float:
        loss = run_loss(volumes, tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run, {"batch": options.batch}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--system", choices=sorted(SYSTEMS), default="clip")
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 96, 96), help="voxels: depth height width")
    parser.add_argument("--patch", type=int, nargs=3, default=(8, 8, 8))
    parser.add_argument("--width", type=int, default=384, help="of both towers, in heads of 64")
    parser.add_argument("--depth", type=int, default=12, help="blocks of the volume tower")
    parser.add_argument("--text-depth", type=int, default=4)
    parser.add_argument("--text-length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--torch", choices=("eager", "compile"), default="eager")
    return parser.parse_args()


def main() -> None:
    """Build both sides, compare their first loss, time their steps in turn."""
    options = parse()
    sides = {"jax": partial(jax_side, options), f"torch-{options.torch}": partial(torch_side, options)}
    taken = take_turns(sides, options.steps, tolerance=1e-4)
    for name, side in taken.items():
        print(json.dumps({"side": name, "system": options.system, **side.result()}))
    for ratio in ratios(taken, "jax"):
        print(json.dumps(ratio))


if __name__ == "__main__":
    main()
