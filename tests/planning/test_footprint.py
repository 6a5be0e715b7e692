import dataclasses
import subprocess

import jax
import jax.numpy as jnp
import pytest

from medclip_jax.models import attention
from medclip_jax.planning import here
from medclip_jax.planning.attention_cost import attention_of
from medclip_jax.planning.chips import CHIPS, find_chip, find_topology
from medclip_jax.planning.footprint import footprint


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def test_products_lie_in_memory_and_elementwise_work_costs_nothing():
    def two(x, a, b):
        hidden = x @ a
        return (jnp.tanh(hidden) * 2.0 + 1.0) @ b

    found = footprint(two, shape(8, 16), shape(16, 64), shape(64, 4))
    # The product, and what is made of it for the next one.
    assert found.peak == 2 * 8 * 64 * 4
    assert found.flops == 2 * 8 * 16 * 64 + 2 * 8 * 64 * 4


def test_a_backward_pass_keeps_what_it_needs_again():
    def loss(x, weights):
        for weight in weights:
            x = jnp.sin(x @ weight)
        return x.sum()

    def peak(layers):
        return footprint(jax.grad(loss, argnums=1), shape(32, 64), [shape(64, 64)] * layers).peak

    # Each further layer keeps its product and the sine of it.
    assert peak(7) - peak(6) == 2 * 32 * 64 * 4


def test_remat_holds_less_and_computes_more():
    def loss(x, weights, wrap):
        def layer(x, weight):
            return jnp.sin(jnp.sin(x @ weight) @ weight.T) @ weight

        for weight in weights:
            x = wrap(layer)(x, weight)
        return x.sum()

    def found(wrap):
        return footprint(
            lambda x, weights: jax.grad(lambda w: loss(x, w, wrap))(weights),
            shape(32, 64),
            [shape(64, 64)] * 6,
        )

    plain, again = found(lambda f: f), found(jax.checkpoint)
    assert again.peak < 0.5 * plain.peak
    assert again.flops > 1.2 * plain.flops


def test_a_scan_counts_each_turn_and_holds_one():
    def looped(x, weights):
        return jax.lax.scan(lambda x, weight: (jnp.sin(x @ weight) @ weight, None), x, weights)[0]

    short, long = (footprint(looped, shape(8, 16), shape(count, 16, 16)) for count in (2, 20))
    assert long.flops == 10 * short.flops == 20 * 2 * 2 * 8 * 16 * 16
    assert long.peak == short.peak


def test_split_parameters_count_while_they_are_needed():
    def product(x, weight):
        return x @ weight

    arguments = shape(4, 32), shape(32, 8)
    assert footprint(product, *arguments).peak == 0
    assert footprint(product, *arguments, resident=(0,)).peak == 32 * 8 * 4


def test_a_roofline_takes_the_slower_of_arithmetic_and_traffic():
    found = footprint(lambda a, b: a @ b, shape(64, 64), shape(64, 64))
    flops, moved = 2 * 64**3, 3 * 64 * 64 * 4
    assert found.seconds(lambda _: 1.0, 1e30) == pytest.approx(flops)
    assert found.seconds(lambda _: 1e30, 1.0) == pytest.approx(moved)


@pytest.mark.parametrize("chip", ["h100", "v5e"])
def test_fused_attention_is_linear_in_tokens_and_costs_its_products(chip):
    own = attention.attend

    def found(tokens):
        query = shape(1, tokens, 2, 64, dtype=jnp.bfloat16)

        def loss(q, k, v):
            return attention.attend(q, k, v).astype(jnp.float32).sum()

        with attention_of(CHIPS[chip]):
            return footprint(jax.grad(loss, argnums=(0, 1, 2)), query, query, query)

    short, long = found(1024), found(4096)
    assert long.peak == pytest.approx(4 * short.peak, rel=0.05)
    # Two products forward; the backward kernel makes the scores again, and four gradients' products.
    assert short.flops == 7 * 2 * 1024 * 1024 * 2 * 64
    assert attention.attend is own


def test_fused_attention_inside_a_scan():
    query = shape(1, 64, 2, 64, dtype=jnp.bfloat16)

    def loss(q):
        def turn(q, _):
            return attention.attend(q, q, q), None

        return jax.lax.scan(turn, q, None, length=5)[0].astype(jnp.float32).sum()

    with attention_of(CHIPS["h100"]):
        found = footprint(jax.grad(loss), query)
    assert found.flops == 5 * 7 * 2 * 64 * 64 * 2 * 64


def test_where_no_kernel_fits_the_map_of_scores_is_held():
    query = shape(1, 512, 2, 64)  # float32: cuDNN has no kernel for it
    chosen = set()
    with attention_of(CHIPS["h100"], chosen):
        found = footprint(lambda q, k, v: attention.attend(q, k, v), query, query, query)
    assert found.peak >= 2 * 512 * 512 * 4
    assert chosen == {"plain at 512 tokens, 2 heads of 64, float32"}


def test_slices_and_topologies_name_their_chips():
    assert find_chip("v5p-256") == (CHIPS["v5p"], 128)
    assert find_chip("v5e-64") == (CHIPS["v5e"], 64)
    assert find_topology("v5p:4x4x8") == (CHIPS["v5p"], 128)
    with pytest.raises(ValueError, match="Did you mean h100"):
        find_chip("h10")
    with pytest.raises(ValueError, match="v5e:8x8"):
        find_topology("h100:8")
    assert find_chip("RTX 4090")[0] is CHIPS["rtx4090"]
    given = find_chip("24GB:165TF")[0]
    assert (given.memory_gb, given.bf16_tflops, given.usable_bytes) == (24.0, 165.0, 24e9 * 0.92)
    assert find_chip("11gb:13.4tf:616GB/s")[0].memory_bandwidth == 616
    for wrong in ("24GB", "24:165", "0GB:165TF", "24GB:TF"):
        with pytest.raises(ValueError, match="such as 24GB:165TF"):
            find_chip(wrong)
    assert all(dataclasses.asdict(chip)["memory_bandwidth"] > 100 for chip in CHIPS.values())


def test_a_gpu_before_ampere_holds_its_scores():
    chosen = {}
    query = jax.ShapeDtypeStruct((1, 512, 2, 64), jnp.bfloat16)
    for chip in ("t4", "a6000"):
        with attention_of(CHIPS[chip], chosen.setdefault(chip, set())):
            footprint(lambda q, k, v: attention.attend(q, k, v), query, query, query)
    assert [next(iter(chosen[chip])).split()[0] for chip in ("t4", "a6000")] == ["plain", "cudnn"]


class TestHere:
    def test_gpus_as_nvidia_smi_lists_them(self, monkeypatch):
        listed = "NVIDIA GeForce RTX 4090, 24564\nNVIDIA GeForce RTX 4090, 24564\n"
        answer = subprocess.CompletedProcess([], 0, listed, "")
        monkeypatch.setattr(here.shutil, "which", lambda name: name)
        monkeypatch.setattr(here.subprocess, "run", lambda *_, **__: answer)
        assert here.chip_here() == (CHIPS["rtx4090"], 2)
        answer.stdout = "NVIDIA A100-SXM4-40GB, 40960\n"
        assert here.chip_here() == (CHIPS["a100-40gb"], 1)
        answer.stdout = "NVIDIA TITAN RTX, 24576\n"
        assert here.chip_here()[0].memory_gb == pytest.approx(25.8, abs=0.1)

    def test_the_processor_where_there_is_none(self, monkeypatch):
        monkeypatch.setattr(here.shutil, "which", lambda name: None)
        monkeypatch.setattr(here, "free_memory", lambda: 8e9)
        chip, count = here.chip_here()
        assert (chip.kind, count) == ("cpu", 1)
        assert chip.usable_bytes == 8e9 * here.CPU_SHARE
        assert here.chip_of(jax.devices()[0]) == chip
