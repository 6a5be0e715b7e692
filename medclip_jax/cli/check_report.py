"""What `medclip check` prints, and the same as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from medclip_jax.cli.check_data import AssumedData
from medclip_jax.objectives import resolve
from medclip_jax.planning.ahead import Compiled
from medclip_jax.planning.collectives import bytes_by_kind
from medclip_jax.planning.estimate import (
    BANDWIDTH_EFFICIENCY,
    LINK_EFFICIENCY,
    PRODUCT_EFFICIENCY,
    SCANNED_ON_TPU,
    Estimate,
)
from medclip_jax.planning.remedies import Remedy, chips_that_hold
from medclip_jax.planning.shapes import Model, compute_dtype, features_of, terms_of, towers

GIB = 2.0**30

READER_BYTES_PER_CORE = 110 * 224 * 224 * 112 * 2
"""Decoded bytes a second that one core reads from shards: the lower figure in `docs/performance.md`."""

STORED_SHARE = 1 / 2.15
"""Of a volume's bytes on disk, from `docs/performance.md`, "Shards"."""

PREALLOCATED = 0.75
"""Share of a GPU's memory that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."""


def report(model: Model, data: AssumedData, found: Estimate) -> str:
    """The report for a terminal.

    Args:
        model: from `planning.shapes.build`.
        data: that it was built for.
        found: from `planning.estimate.estimate`.
    """
    parts = [
        _shapes(model, data),
        _parameters(model),
        _memory(found),
        _exchanges(found),
        _speed(model, found),
        _input(model, found),
        _verdict(found),
    ]
    return "\n\n".join(part for part in parts if part)


def chosen(config: Any, model: Model) -> str:
    """What the config leaves open and what it comes to, "" where it leaves nothing open.

    Args:
        config: as it was read.
        model: built from it.
    """
    lines = []
    if not config.batch_size:
        lines.append(f"batch_size={model.config.batch_size}, by the number of training volumes")
    if not config.microbatches:
        lines.append(f"microbatches={model.config.microbatches}, by the memory; the gradient is the same")
    if not config.objective.get("vision", {}).get("patch", True):
        shape = " x ".join(map(str, model.spec.shape))
        lines.append(
            f"objective.vision.patch={tuple(model.config.objective.vision.patch)}, which divides {shape}"
        )
    if not lines:
        return ""
    return "CHOSEN by `medclip train` as here, unless you say otherwise\n" + "\n".join(
        f"  --config.{line}" for line in lines
    )


def figures(model: Model, data: AssumedData, found: Estimate) -> dict[str, Any]:
    """The same figures as JSON types; bytes of one device, seconds of one step."""
    return {
        "objective": model.config.objective.name,
        "batch_size": found.batch_size,
        "data": {"shape": list(data.spec.shape), "samples": data.samples, "source": data.source},
        "chip": dataclasses.asdict(found.chip),
        "mesh": {"data": found.data, "fsdp": found.fsdp},
        "microbatches": found.microbatches,
        "remat": dict(found.remat),
        "attention": list(found.attention),
        "batch": {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in model.batch.items()},
        "features": {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in features_of(model).items()},
        "terms": terms_of(model),
        "towers": [dataclasses.asdict(tower) for tower in towers(model)],
        "memory": {**dataclasses.asdict(found.memory), "total": found.memory.total},
        "usable_bytes": found.chip.usable_bytes,
        "fits": found.fits,
        "flops": found.flops,
        "executed_flops": found.executed,
        "seconds": {**dataclasses.asdict(found.speed), "step": found.speed.step},
        "volumes_per_second": found.volumes_per_second,
        "utilization": found.utilization(compute_dtype(model)),
        "exchanges": [dataclasses.asdict(item) for item in found.exchanges],
        "steps": model.steps,
        "hours": model.steps and model.steps * found.speed.step / 3600,
    }


def compiled_report(compiled: Compiled, found: Estimate) -> str:
    """What the compiler said, beside the estimate.

    Args:
        compiled: from `planning.ahead.compile_step`.
        found: the estimate for the same mesh.
    """
    where = f"{compiled.devices} x {compiled.device_kind}"
    title = f"COMPILED for {where} in {compiled.seconds:.0f} s"
    if compiled.overflow:
        needs = f", needs {compiled.peak / GIB:.2f} GiB" if compiled.peak else ""
        return f"{title}\n  DOES NOT FIT by the compiler's own count{needs}: {compiled.overflow}"
    memory = found.memory
    held = memory.parameters + memory.optimizer + memory.ema + memory.batch / 2
    between = memory.gradients + memory.activations + memory.loss
    rows = [
        ("state and batch", _gib(compiled.arguments), _gib(held)),
        ("held between", _gib(compiled.temporary), _gib(between)),
        ("together", _gib(compiled.peak), _gib(held + between)),
    ]
    lines = [title, _table(rows, ("GiB of a device", "compiler", "estimate"))]
    if compiled.platform == "cpu":
        lines.append(
            f"  The CPU attends in its own way and computes bfloat16 through float32: for {found.chip.name}\n"
            "  the first column is right about state and batch only; it shows that the batch stays split."
        )
    if compiled.unreadable:
        lines.append(f"  Collectives are not shown: {compiled.unreadable}.")
    elif compiled.collectives:
        sent = bytes_by_kind(list(compiled.collectives))
        count = sum(item.bytes for item in found.exchanges)
        lines.append(
            _table([(kind, _mib(size)) for kind, size in sent.items()], ("collective", "MiB a step"))
        )
        lines.append(f"  together {_mib(sum(sent.values()))} MiB; counted on paper {_mib(count)} MiB")
    return "\n".join(lines)


def compiled_figures(compiled: Compiled) -> dict[str, Any]:
    """The same as JSON types, collectives and cycles by kind."""
    plain = dataclasses.asdict(compiled)
    plain["collectives"] = bytes_by_kind(list(compiled.collectives))
    if compiled.cycles:
        dearest = compiled.cycles.dearest()
        plain["cycles"]["by_kind"] = compiled.cycles.by_kind()
        plain["cycles"]["operations"] = [dataclasses.asdict(item) for item in dearest]
    return plain


def remedies_report(tried: Sequence[Remedy], found: Estimate) -> str:
    """What to change, with what each change costs.

    Args:
        tried: from `planning.remedies.remedies`.
        found: the estimate without.
    """
    if any(remedy.estimate.fits for remedy in tried):
        lines = ["WHAT TO CHANGE: one of these makes it fit (each estimated anew)"]
    else:
        lines = ["WHAT TO CHANGE: nothing that was tried makes it fit; the most thrifty attempt"]
    for remedy in tried:
        memory = remedy.estimate.memory.total
        slower = remedy.estimate.speed.step / found.speed.step
        lines.append(
            f"  {' '.join(remedy.overrides)}\n    {_gib(memory)} of {_gib(found.chip.usable_bytes)} GiB, "
            f"step {remedy.estimate.speed.step * 1e3:.0f} ms ({slower:.2f} times)"
        )
    if not any(remedy.estimate.fits for remedy in tried):
        lines.append(
            "  Beyond that: a smaller config.batch_size, more devices, larger patches, or\n"
            "  config.objective.vision.dtype=bfloat16."
        )
    holding = chips_that_hold(found)
    if holding:
        lines.append(f"  Without any change it would fit on: {', '.join(holding)}")
    return "\n".join(lines)


def remedies_figures(tried: Sequence[Remedy]) -> list[dict[str, Any]]:
    """The same as JSON types."""
    return [
        {
            "overrides": list(remedy.overrides),
            "fits": remedy.estimate.fits,
            "memory": remedy.estimate.memory.total,
            "step_seconds": remedy.estimate.speed.step,
        }
        for remedy in tried
    ]


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size >= GIB / 10 or not size else f"{size / GIB:.4f}"


def _mib(size: float) -> str:
    return f"{size / 2**20:.2f}"


def _table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> str:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def _shapes(model: Model, data: AssumedData) -> str:
    def row(name: str, leaf: Any) -> tuple[str, str, str]:
        return name, "(" + ", ".join(map(str, leaf.shape)) + ")", str(leaf.dtype)

    header = ("array", "shape", "type")
    batch = _table([row(name, leaf) for name, leaf in model.batch.items()], header)
    features = _table([row(name, leaf) for name, leaf in features_of(model).items()], header)
    known = f"{data.samples} training volumes" if data.samples else "number of training volumes not known"
    return (
        f"BATCH, by {data.source}; {known}\n{batch}\n\n"
        f"FEATURES that `encode` hands to `couple`\n{features}\n  terms: {', '.join(terms_of(model))}"
    )


def _parameters(model: Model) -> str:
    found = towers(model)

    def row(name: str, parts: Sequence[Any]) -> tuple[str, ...]:
        return (
            name,
            f"{sum(part.parameters for part in parts) / 1e6:.2f}",
            f"{sum(part.trained for part in parts) / 1e6:.2f}",
            *(
                _mib(sum(getattr(part, field) for part in parts))
                for field in ("parameter_bytes", "optimizer_bytes", "ema_bytes")
            ),
        )

    header = ("tower", "million", "trained", "MiB", "optimizer MiB", "average MiB")
    return "PARAMETERS, in total\n" + _table(
        [*(row(part.name, [part]) for part in found), row("all", found)], header
    )


def _memory(found: Estimate) -> str:
    local = found.batch_size // (found.devices * found.microbatches)
    notes = {
        "parameters": "float32",
        "optimizer": "two moments of what is trained",
        "ema": "moving average",
        "gradients": "of a slice and their sum" if found.microbatches > 1 else "",
        "batch": "one in use, one on its way",
        "activations": f"encoders, {local} samples at a time",
        "loss": "across the full batch, split by rows",
    }
    rows = [(name, _gib(getattr(found.memory, name)), note) for name, note in notes.items()]
    rows += [
        ("together", _gib(found.memory.total), ""),
        (f"usable on {found.chip.name}", _gib(found.chip.usable_bytes), f"of {found.chip.memory_gb:.0f} GB"),
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    table = "\n".join(f"  {a.ljust(widths[0])}  {b.rjust(widths[1])}  {c}".rstrip() for a, b, c in rows)
    slices = f" in {found.microbatches} microbatches" if found.microbatches > 1 else ""
    policies = ", ".join(f"{name} {policy}" for name, policy in found.remat.items())
    scan = ""
    if found.scanned and found.chip.kind == "tpu":
        scan = f"  scan: {', '.join(found.scanned)}; {SCANNED_ON_TPU:g} times the activations on a TPU\n"
    return (
        f"MEMORY of one device, GiB: {found.devices} x {found.chip.name}, data={found.data} "
        f"fsdp={found.fsdp}, batch {found.batch_size}{slices}\n{table}\n"
        f"  remat: {policies or 'not in this config'}\n{scan}"
        + "\n".join(f"  attention: {line}" for line in found.attention)
    )


def _exchanges(found: Estimate) -> str:
    if not found.exchanges:
        return ""
    rows = [
        (
            item.name,
            _mib(item.bytes),
            f"over {item.axis}",
            "summed" if item.reduces else "gathered or scattered",
        )
        for item in found.exchanges
    ]
    return "COLLECTIVES, counted on paper\n" + _table(rows, ("what", "MiB a step", "mesh axis", "how"))


def _speed(model: Model, found: Estimate) -> str:
    dtype, speed = compute_dtype(model), found.speed
    rate, peak = found.volumes_per_second, found.chip.peak_tflops(dtype)
    again = found.executed / found.flops
    lines = [
        f"model FLOPs     {found.flops / 1e12:.3g} T a step = 3 x forward; recomputation not counted",
        f"executed        {found.executed / 1e12:.3g} T, {again:.2f} times that",
        f"step            {_duration(speed.step)} = max(computing {_duration(speed.compute)}, "
        f"communication {_duration(speed.communication)}) + update {_duration(speed.update)}",
        f"volumes/s       {rate:.4g}, {rate / found.devices:.4g} a device",
        f"utilization     {found.utilization(dtype):.0%} of {peak:.0f} TFLOP/s {dtype}",
    ]
    if model.steps:
        lines.append(f"run             {model.steps} steps, {model.steps * speed.step / 3600:.2g} hours")
    else:
        hours = model.config.epochs * 1000 / rate / 3600
        lines.append(
            f"run             {model.config.epochs:g} epochs: {hours:.2g} hours per 1000 volumes (--samples)"
        )
    lines.append(
        f"assumed         {PRODUCT_EFFICIENCY:.0%} of the peak in products, {BANDWIDTH_EFFICIENCY:.0%} of "
        f"the memory's and {LINK_EFFICIENCY:.0%} of the links' bandwidth; no waiting"
    )
    return "SPEED, expected and not measured\n" + "\n".join("  " + line for line in lines)


def _input(model: Model, found: Estimate) -> str:
    inputs = resolve(model.config.objective.name)[1].volume_inputs
    size = sum(model.batch[name].size * model.batch[name].dtype.itemsize for name in inputs)
    size /= found.batch_size
    hosts = math.ceil(found.devices / found.chip.per_host)
    rate = found.volumes_per_second / hosts
    cores = rate * size / READER_BYTES_PER_CORE
    per_core = READER_BYTES_PER_CORE / size
    return (
        f"INPUT for each of {hosts} host{'s' if hosts > 1 else ''}\n"
        f"  {rate:.4g} volumes/s = {rate * size / 1e6:.4g} MB/s decoded, about "
        f"{rate * size * STORED_SHARE / 1e6:.4g} MB/s from disk\n"
        f"  {cores:.2g} cores busy reading, at {per_core:.4g} volumes/s a core "
        "(docs/performance.md, scaled by size)"
    )


def _verdict(found: Estimate) -> str:
    share = found.memory.total / found.chip.usable_bytes
    text = f"VERDICT  {'fits' if found.fits else 'DOES NOT FIT'}: {share:.1%} of the usable memory, estimated"
    if (
        found.fits
        and found.chip.kind != "tpu"
        and found.memory.total > PREALLOCATED * found.chip.memory_gb * 1e9
    ):
        text += (
            f"\n  JAX takes {PREALLOCATED:.0%} of a GPU's memory unless told otherwise: "
            f"export XLA_PYTHON_CLIENT_MEM_FRACTION={found.chip.usable}"
        )
    return text


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 10 else f"{seconds:.3g} s"
