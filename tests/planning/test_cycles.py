import dataclasses
from pathlib import Path

import pytest

from medclip_jax.cli.cycles_report import cycles_report
from medclip_jax.planning.ahead import _cycles_of
from medclip_jax.planning.chips import find_chip
from medclip_jax.planning.cycles import KINDS, read_cycles, step_time

PROGRAM = Path(__file__).with_name("tpu_program.txt").read_text()
"""Written by hand, in the form in which libtpu 0.0.42 writes programs."""


def test_cycles_by_kind_with_loops_branches_and_sources():
    found = read_cycles(PROGRAM)
    assert found.by_kind() == {
        "products": 12 * 1000,
        "loops": 400 + 50,
        "copies": 300,
        "slices": 200,
        "collectives": 600,
    }
    assert list(found.by_kind()) == list(KINDS)
    dearest = found.dearest(2)
    assert [(item.name, item.times, item.total) for item in dearest] == [
        ("fusion.1", 12, 12000),
        ("all-reduce.1", 1, 600),
    ]
    # The innermost frame is flax's; what is told is the line of ours that called it.
    assert dearest[0].source == "medclip_jax/models/blocks.py:68"
    by_name = {item.name: item for item in found.operations}
    assert by_name["fusion.2"].source == "medclip_jax/models/attention.py:207"
    assert by_name["fusion.4"].source == "medclip_jax/models/blocks.py:68"


def test_turns_of_a_loop_by_its_counter():
    """Where the compiler says nothing; a loop that ends by anything else counts once, and it is said."""
    known = '"known_trip_count":{"n":"12"},"known_init_step":{"init":"0","step":"1"}'
    assert known in PROGRAM
    counter = "  %limit = s32[] constant(7)\n  ROOT %below = pred[] compare(%at, %limit), direction=LT\n"
    head, _, rest = PROGRAM.replace(known, "").partition("-> pred[] {\n")
    body, _, rest = rest.partition("}\n")
    counted, other = (read_cycles(f"{head}-> pred[] {{\n{text}}}\n{rest}") for text in (counter, body))
    assert counted.by_kind()["products"] == 7 * 1000
    assert counted.once == read_cycles(PROGRAM).once == ()
    assert other.by_kind()["products"] == 1000
    assert other.once == ("loop",)
    text = cycles_report(other, find_chip("v5e")[0], flops=1e6, samples=8)
    assert "TOO LITTLE: how often these loops turn is not known: loop" in text
    assert "utilization" not in text


def test_kernels_of_attention_are_counted_by_their_products():
    found = read_cycles(PROGRAM)
    pair = 2.0 * 2 * 3 * 256 * 128 * 64
    assert [(item.flops, item.features, item.times) for item in found.kernels] == [
        (2 * pair, 64, 1),
        (4 * pair, 64, 1),
        (5 * pair, 64, 1),
    ]
    assert found.unknown == ("other.1",)


def test_time_and_utilization():
    chip, _ = find_chip("v5e")
    found = read_cycles(PROGRAM)
    time = step_time(found, chip)
    # 4 units of 128 x 128 at 197 TFLOP/s: 1.503 GHz.
    assert time.by_kind["products"] == pytest.approx(12000 / 1.503e9, rel=1e-3)
    flops = sum(item.flops for item in found.kernels)
    assert time.attention == pytest.approx(flops / (197e12 * 0.5))
    assert time.step == pytest.approx(sum(time.by_kind.values()) + time.attention)
    assert time.utilization(1e6, chip) == pytest.approx(1e6 / time.step / 197e12)
    with pytest.raises(ValueError, match="clock is not known"):
        step_time(found, find_chip("v6e")[0])


def test_equal_operations_of_several_blocks_are_shown_together():
    start = "  %fusion.2 ="
    lines = [
        f"  %f.{n} = f32[8,64]{{1,0}} fusion(%p), kind=kLoop, calls=%added, metadata="
        f'{{op_name="a/blocks/{n}/b"}}, backend_config={{"estimated_cycles":"{300 + n}"}}\n'
        for n in (4, 5, 16)
    ]
    _, first = read_cycles(PROGRAM.replace(start, "".join(lines) + start)).dearest(2)
    assert (first.times, first.total) == (3, 925)


def test_a_text_without_estimates_is_refused():
    with pytest.raises(ValueError, match="no estimated cycles"):
        read_cycles(PROGRAM.replace("estimated_cycles", "cycles"))
    with pytest.raises(ValueError, match="no entry"):
        read_cycles("")


def test_the_report_and_the_way_between_processes():
    chip, _ = find_chip("v5e")
    found = read_cycles(PROGRAM)
    assert _cycles_of(dataclasses.asdict(found)) == found
    text = cycles_report(found, chip, flops=1e6, samples=8)
    assert "12 x  products    medclip_jax/models/blocks.py:68" in text
    assert "NOT COUNTED, kernels without an estimate: other.1" in text
    assert "50% of the peak, assumed" in text
    assert "clock is not known" in cycles_report(found, find_chip("v6e")[0], 1e6, 8)
