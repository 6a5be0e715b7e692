"""Time a masked-autoencoder train step, beside plain PyTorch of the same model, in one run.

    python tools/bench_step.py                                   # 26M parameters, float32, batch 4, CPU
    python tools/bench_step.py --torch none --dtype bfloat16 --batch 64 --shape 112 224 224 --patch 8 16 16 \\
        --width 768 --heads 12 --decoder 768 4 16 --peak-tflops 989   # ASAP's shape on one H100
    python tools/bench_step.py --torch none --batch 256 --mesh 2 4 --microbatches 8   # eight devices

The JAX side goes through `training.microbatches`, as a run does. Also given is `temporary_mib`, what the
compiled step needs on each device beside its inputs and outputs.

One JSON line a result. Both sides start from the same weights, and their first losses must agree. Each has
a process of its own (PyTorch's threads spin for a while after each step), and their steps alternate, so that
a busy machine slows both alike; given are the median, the fastest, and
`cpu_ms`, the processor time that all threads of the process took, which other programs change least.

Model FLOPs of a step = 3 x forward (forward, and twice that for the backward pass), recomputation never
counted; forward of a stack of L blocks on T tokens, width W, with MLP hidden 4 W:
L x (24 T W^2 + 4 T^2 W), plus 2 x in x out for every other linear map and token.
MFU = model FLOPs / seconds / (--peak-tflops x 10^12).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from taking_turns import ratios, take_turns

from medclip_jax.losses.masked import reconstruction_sums
from medclip_jax.models.mae import MaskedDecoder, random_keep
from medclip_jax.models.patches import patchify
from medclip_jax.models.positions import sincos_3d
from medclip_jax.models.vit import VisionTransformer
from medclip_jax.objectives.base import Objective, Term
from medclip_jax.parameters import split
from medclip_jax.training import mesh as meshes
from medclip_jax.training.microbatches import loss_and_gradients
from medclip_jax.training.partition import state_shardings

LEARNING_RATE, BETAS, WEIGHT_DECAY = 1e-4, (0.9, 0.95), 0.05


class MaskedAutoencoder(Objective):
    """Encoder and decoder with the loss, nothing else."""

    def __init__(self, options: argparse.Namespace):
        rngs = nnx.Rngs(0)
        dtype = jnp.dtype(options.dtype)
        width, depth, heads = options.decoder
        shared = {"dtype": dtype, "remat": options.remat, "scan": options.scan, "rngs": rngs}
        self.patch = tuple(options.patch)
        self.encoder = VisionTransformer(
            shape=tuple(options.shape),
            patch=self.patch,
            channels=1,
            width=options.width,
            depth=options.depth,
            heads=options.heads,
            **shared,
        )
        self.decoder = MaskedDecoder(
            grid=self.encoder.grid,
            patch=self.patch,
            channels=1,
            encoder_width=options.width,
            width=width,
            depth=depth,
            heads=heads,
            **shared,
        )
        self.tokens = math.prod(self.encoder.grid)
        self.keep = round(self.tokens * (1 - options.mask_fraction))

    def encode(self, batch, key: jax.Array, *, train: bool):
        """Error of each sample's hidden patches; masks from `batch["keys"]`, which the other side has too."""
        keep, restore, mask = random_keep(jax.random.wrap_key_data(batch["keys"]), self.tokens, self.keep)
        prediction = self.decoder(self.encoder.encode(batch["volume"], keep), restore)
        error, count = reconstruction_sums(prediction, patchify(batch["volume"], self.patch), mask)
        return {"error": error, "count": count}

    def couple(self, features, batch):
        """Mean over all hidden patches."""
        return {"reconstruction": Term(features["error"].sum(), features["count"].sum())}


def step_flops(options: argparse.Namespace, tokens: int, kept: int) -> float:
    """Model FLOPs of one step of the full batch; the formula stands at the top of this file."""

    def stack(count: int, width: int, depth: int) -> float:
        return depth * (24 * count * width**2 + 4 * count**2 * width)

    voxels = math.prod(options.patch)
    width, depth, _ = options.decoder
    forward = stack(kept + 1, options.width, options.depth) + 2 * kept * voxels * options.width
    forward += 2 * (kept + 1) * options.width * width
    forward += stack(tokens + 1, width, depth) + 2 * tokens * width * voxels
    return 3.0 * options.batch * forward


def jax_side(options: argparse.Namespace, model: MaskedAutoencoder, volume: np.ndarray):
    """Return a function that runs one step with new masks and gives the loss, and details to print."""
    data, fsdp = options.mesh
    mesh = meshes.make_mesh(argparse.Namespace(data=data, fsdp=fsdp))
    meshes.check_batch_size(options.batch, mesh, options.microbatches)
    graph, parameters, variables = split(model)
    optimizer = optax.adamw(LEARNING_RATE, *BETAS, weight_decay=WEIGHT_DECAY)
    state = {"params": parameters, "variables": variables, "optimizer": optimizer.init(parameters)}
    shardings = state_shardings(state | {"ema": {}, "step": np.zeros(())}, mesh)
    places = (shardings["params"], shardings["optimizer"])

    def constrain(tree):
        return jax.lax.with_sharding_constraint(tree, shardings["params"])

    def step(parameters, moments, batch):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            found = loss_and_gradients(
                graph,
                parameters,
                {},
                variables,
                batch,
                jax.random.key(0),
                mesh=mesh,
                microbatches=options.microbatches,
                constrain=constrain,
            )
        updates, moments = optimizer.update(found.gradients, moments, parameters)
        return optax.apply_updates(parameters, updates), moments, found.loss

    def place(key: jax.Array) -> dict[str, jax.Array]:
        keys = np.asarray(jax.random.key_data(jax.random.split(key, options.batch)))
        return {"volume": on_devices["volume"], **meshes.put_batch({"keys": keys}, mesh)}

    on_devices = meshes.put_batch({"volume": volume}, mesh)
    # In buffers of our own: the step gives its inputs' memory back.
    held = list(meshes.put_state((parameters, state["optimizer"]), places))
    jitted = jax.jit(
        step,
        donate_argnums=(0, 1),
        in_shardings=(*places, meshes.batch_sharding(mesh)),
        out_shardings=(*places, meshes.replicated(mesh)),
    )
    compiled = jitted.lower(*held, place(jax.random.key(0))).compile()

    def run(key: jax.Array) -> float:
        held[0], held[1], value = compiled(*held, place(key))
        return float(value)

    memory = compiled.memory_analysis()
    details = {"mesh": dict(mesh.shape), "microbatches": options.microbatches}
    return run, details | {"temporary_mib": round(memory.temp_size_in_bytes / 2**20, 1)}


def torch_side(options: argparse.Namespace, model: MaskedAutoencoder, volume: np.ndarray):
    """The same in plain PyTorch: its own modules, attention and AdamW."""
    import torch
    from torch import nn
    from torch.nn import functional

    def tensor(parameter: nnx.Param) -> torch.Tensor:
        return torch.tensor(np.array(parameter[...]))

    def linear(layer: nnx.Linear) -> nn.Linear:
        made = nn.Linear(*layer.kernel[...].shape)
        made.load_state_dict({"weight": tensor(layer.kernel).T, "bias": tensor(layer.bias)})
        return made

    class Block(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.heads = block.attention.heads
            self.norms = nn.ModuleList(nn.LayerNorm(block.attention.output.out_features, 1e-6) for _ in "12")
            self.qkv, self.output = linear(block.attention.qkv), linear(block.attention.output)
            self.mlp_in, self.mlp_out = linear(block.mlp_in), linear(block.mlp_out)

        def forward(self, x):
            batch, count, width = x.shape
            fused = self.qkv(self.norms[0](x)).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(*fused.unbind(0))
            x = x + self.output(mixed.transpose(1, 2).reshape(batch, count, width))
            return x + self.mlp_out(functional.gelu(self.mlp_in(self.norms[1](x))))

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            encoder, decoder = model.encoder, model.decoder
            self.embed = linear(encoder.embed.projection)
            self.class_token = nn.Parameter(tensor(encoder.class_token))
            self.encoder = nn.ModuleList(Block(encoder.blocks[str(i)]) for i in range(options.depth))
            self.encoder_norm = nn.LayerNorm(options.width, 1e-6)
            self.project = linear(decoder.embed)
            self.mask_token = nn.Parameter(tensor(decoder.mask_token))
            self.decoder = nn.ModuleList(Block(decoder.blocks[str(i)]) for i in range(options.decoder[1]))
            self.decoder_norm = nn.LayerNorm(options.decoder[0], 1e-6)
            self.predict = linear(decoder.predict)
            for name, width in (("seen_at", options.width), ("painted_at", options.decoder[0])):
                table = torch.tensor(np.array(sincos_3d(encoder.grid, width)))
                self.register_buffer(name, table)

        def forward(self, volume, keep, restore, mask):
            (d, h, w), (pd, ph, pw) = model.encoder.grid, model.patch
            batch = len(volume)
            rows = (
                volume.reshape(batch, d, pd, h, ph, w, pw)
                .permute(0, 1, 3, 5, 2, 4, 6)
                .flatten(4)
                .flatten(1, 3)
            )
            x = self.embed(rows.gather(1, keep[..., None].expand(-1, -1, rows.shape[2]))) + self.seen_at[keep]
            x = torch.cat([self.class_token.expand(batch, -1, -1), x], dim=1)
            for block in self.encoder:
                x = block(x)
            x = self.project(self.encoder_norm(x))
            blank = self.mask_token.expand(batch, restore.shape[1] - keep.shape[1], -1)
            shuffled = torch.cat([x[:, 1:], blank], dim=1)
            placed = shuffled.gather(1, restore[..., None].expand(-1, -1, x.shape[2])) + self.painted_at
            x = torch.cat([x[:, :1], placed], dim=1)
            for block in self.decoder:
                x = block(x)
            x = self.predict(self.decoder_norm(x)[:, 1:])
            variance, mean = torch.var_mean(rows, dim=-1, keepdim=True, correction=0)
            error = ((x - (rows - mean) / torch.sqrt(variance + 1e-6)) ** 2).mean(dim=-1)
            return (error * mask).sum() / mask.sum()

    twin = Twin()
    optimizer = torch.optim.AdamW(twin.parameters(), LEARNING_RATE, BETAS, weight_decay=WEIGHT_DECAY)
    run_twin = torch.compile(twin) if options.torch == "compile" else twin
    on_device = torch.tensor(volume[..., 0])

    def run(key: jax.Array) -> float:
        # The masks of the other side, so that the losses can be compared; a fraction of a percent of a step.
        keys = jax.random.split(key, options.batch)
        keep, restore, mask = (torch.tensor(np.array(x)) for x in random_keep(keys, model.tokens, model.keep))
        loss = run_twin(on_device, keep.long(), restore.long(), mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 96, 96), help="voxels: depth height width")
    parser.add_argument("--patch", type=int, nargs=3, default=(8, 8, 8))
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--decoder", type=int, nargs=3, default=(256, 5, 8), help="width depth heads")
    parser.add_argument("--mask-fraction", type=float, default=0.75)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--dtype", default="float32", help="compute type of the JAX side")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--scan", action="store_true")
    parser.add_argument("--microbatches", type=int, default=1, help="slices that are encoded in turn")
    parser.add_argument(
        "--mesh",
        type=int,
        nargs=2,
        default=(-1, 1),
        metavar=("DATA", "FSDP"),
        help="-1: all that fsdp leaves",
    )
    parser.add_argument("--torch", choices=("eager", "compile", "none"), default="eager")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for the utilization")
    return parser.parse_args()


def build(name: str, options: argparse.Namespace):
    """One side's step and what is to be printed of it."""
    model = MaskedAutoencoder(options)
    shape = (options.batch, *options.shape, 1)
    volume = np.random.default_rng(0).uniform(-1, 1, size=shape).astype(np.float32)
    details = {
        "tokens": [model.keep, model.tokens],
        "parameters_million": round(
            sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) / 1e6, 1
        ),
        "device": jax.devices()[0].device_kind,
        "batch": options.batch,
    }
    start = time.perf_counter()
    if name == "jax":
        run, more = jax_side(options, model, volume)
        details |= more | {"compile_s": round(time.perf_counter() - start, 2)}
    else:
        run = torch_side(options, model, volume)
    return lambda index: run(jax.random.key(index)), details


def main() -> None:
    """Build both sides, compare their first loss, time their steps in turn."""
    options = parse()
    names = ["jax", *([] if options.torch == "none" else [f"torch-{options.torch}"])]
    taken = take_turns(
        {name: partial(build, name, options) for name in names},
        options.steps,
        tolerance=1e-4 if options.dtype == "float32" else 1e-2,
    )
    kept, tokens = taken["jax"].details["tokens"]
    flops = step_flops(options, tokens, kept)
    for name, side in taken.items():
        median = statistics.median(side.seconds)
        result = {
            "side": name,
            **side.result(),
            "volumes_per_second": round(options.batch / median, 2),
            "model_gflop": round(flops / 1e9, 1),
            "gflop_per_second": round(flops / median / 1e9, 1),
        }
        if options.peak_tflops:
            result["mfu"] = round(flops / median / (options.peak_tflops * 1e12), 4)
        print(json.dumps(result))
    for ratio in ratios(taken, "jax"):
        print(json.dumps(ratio))


if __name__ == "__main__":
    main()
