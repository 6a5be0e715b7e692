"""What `medclip check --tpu` and `tools/estimate_tpu.py` print of a TPU compiler's estimated cycles."""

from __future__ import annotations

from medclip_jax.planning.chips import Chip
from medclip_jax.planning.cycles import ProgramCycles, step_time

LABELS = {
    "products": "matrix products",
    "loops": "element-wise loops and reductions",
    "copies": "copies, transposes, pads",
    "slices": "slices and gathers",
    "collectives": "collectives with an estimate",
}


def cycles_report(program: ProgramCycles, chip: Chip, flops: float, samples: float) -> str:
    """Time by kind, utilization, and the ten dearest operations.

    Args:
        program: from `planning.cycles.read_cycles`.
        chip: that it was compiled for.
        flops: of the model on one device in a step: 3 x forward, recomputation not counted.
        samples: of one device in a step.
    """
    cycles = program.by_kind()
    try:
        time = step_time(program, chip)
    except ValueError as error:
        lines = [f"  {LABELS[kind]:36}{count / 1e6:9.2f} million cycles" for kind, count in cycles.items()]
        return "\n".join(["CYCLES by the compiler's estimate, not measured", *lines, f"  {error}"])
    rows = [
        (LABELS[kind], seconds, f"{cycles[kind] / 1e6:.2f} million cycles")
        for kind, seconds in time.by_kind.items()
    ]
    work = sum(item.flops * item.times for item in program.kernels)
    if program.kernels:
        shares = sorted({item.efficiency for item in program.kernels})
        at = ", ".join(f"{share:.0%}" for share in shares)
        rows.append(
            ("attention's kernels", time.attention, f"{work / 1e12:.2f} TFLOPs at {at} of the peak, assumed")
        )
    rows.append(("together", time.step, f"{samples / time.step:.4g} volumes/s a device"))
    lines = [f"CYCLES of one {chip.name} in a step by the compiler's estimate, not measured"]
    lines += [f"  {name:36}{seconds * 1e3:9.2f} ms  {note}" for name, seconds, note in rows]
    if program.once:
        lines.append(f"  TOO LITTLE: how often these loops turn is not known: {', '.join(program.once)}")
    else:
        lines.append(
            f"  utilization {time.utilization(flops, chip):.1%} = {flops / 1e12:.3g} model TFLOPs / time / "
            f"{chip.bf16_tflops:.0f} TFLOP/s"
        )
    if program.unknown:
        lines.append(f"  NOT COUNTED, kernels without an estimate: {', '.join(program.unknown)}")
    clock = sum(cycles.values()) / sum(time.by_kind.values())
    lines.append("  the dearest, all blocks together:")
    for item in program.dearest():
        what = f"{item.times:4.0f} x  {item.kind:11} {item.source or '?'}  {_short(item.path)}"
        lines.append(f"  {item.total / clock * 1e3:9.2f} ms  {what}")
    return "\n".join(lines)


def _short(path: str) -> str:
    """The end of what JAX names an operation."""
    return path if len(path) <= 60 else "..." + path[-57:]
