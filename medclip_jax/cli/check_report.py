"""What `medclip check` prints, and the same as JSON."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from medclip_jax.cli.check_data import AssumedData
from medclip_jax.training.estimate import Estimate, Model, compute_dtype, towers

GIB = 2.0**30


def text(model: Model, data: AssumedData, found: Estimate) -> str:
    """The report for a terminal.

    Args:
        model: from `training.estimate.build`.
        data: that it was built for.
        found: from `training.estimate.estimate`.
    """
    parts = [_shapes(model, data), _parameters(model), _memory(found), _speed(model, found), _verdict(found)]
    return "\n\n".join(parts)


def figures(model: Model, data: AssumedData, found: Estimate) -> dict[str, Any]:
    """The same figures as JSON types; bytes and seconds."""
    return {
        "config": {"objective": model.config.objective.name, "batch_size": found.batch_size},
        "data": {"shape": list(data.spec.shape), "samples": data.samples, "source": data.source},
        "chip": dataclasses.asdict(found.chip),
        "mesh": {"data": found.data, "fsdp": found.fsdp},
        "microbatches": found.microbatches,
        "remat": dict(found.remat),
        "towers": [dataclasses.asdict(tower) for tower in towers(model)],
        "memory": {**dataclasses.asdict(found.memory), "total": found.memory.total},
        "usable_bytes": found.chip.usable_bytes,
        "fits": found.fits,
        "flops": found.flops,
        "executed_flops": found.executed,
        "seconds": {**dataclasses.asdict(found.speed), "step": found.speed.step},
        "volumes_per_second": found.volumes_per_second,
        "utilization": found.utilization(compute_dtype(model)),
        "traffic": [dataclasses.asdict(item) for item in found.traffic],
        "steps": model.steps,
    }


def _table(rows: list[tuple[str, ...]], header: tuple[str, ...]) -> str:
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
    rows = [
        (name, "(" + ", ".join(map(str, leaf.shape)) + ")", str(leaf.dtype))
        for name, leaf in model.batch.items()
    ]
    return f"BATCH ({data.source})\n" + _table(rows, ("array", "shape", "type"))


def _parameters(model: Model) -> str:
    rows = [
        (
            tower.name,
            f"{tower.parameters / 1e6:.2f}",
            f"{tower.trained / 1e6:.2f}",
            f"{tower.parameter_bytes / 2**20:.1f}",
            f"{tower.optimizer_bytes / 2**20:.1f}",
            f"{tower.ema_bytes / 2**20:.1f}",
        )
        for tower in towers(model)
    ]
    total = tuple(f"{sum(float(row[column]) for row in rows):.1f}" for column in range(1, 6))
    header = ("tower", "million", "trained", "MiB", "optimizer", "average")
    return "PARAMETERS\n" + _table([*rows, ("all", *total)], header)


def _memory(found: Estimate) -> str:
    rows = [
        (field.name, f"{getattr(found.memory, field.name) / GIB:.3f}")
        for field in dataclasses.fields(found.memory)
    ]
    rows.append(("total", f"{found.memory.total / GIB:.3f}"))
    rows.append((f"usable on {found.chip.name}", f"{found.chip.usable_bytes / GIB:.3f}"))
    layout = (
        f"{found.devices} x {found.chip.name}, data={found.data} fsdp={found.fsdp}, "
        f"batch {found.batch_size} in {found.microbatches} microbatches"
    )
    return f"MEMORY OF A DEVICE ({layout})\n" + _table(rows, ("what", "GiB"))


def _speed(model: Model, found: Estimate) -> str:
    dtype = compute_dtype(model)
    lines = [
        f"FLOPs a step   {found.flops / 1e12:.2f} T (forward x 3; attention counted, recomputation not)",
        f"step           {found.speed.step * 1e3:.1f} ms: computing {found.speed.compute * 1e3:.1f}, "
        f"update {found.speed.update * 1e3:.1f}, communication {found.speed.communication * 1e3:.1f}",
        f"volumes/s      {found.volumes_per_second:.1f}, utilization {found.utilization(dtype):.0%}",
    ]
    if model.steps:
        hours = model.steps * found.speed.step / 3600
        lines.append(f"run            {model.steps} steps, {hours:.2g} hours without evaluation")
    size = math.prod(model.spec.shape) * 2
    hosts = math.ceil(found.devices / found.chip.per_host)
    rate = found.volumes_per_second / hosts
    lines.append(f"input          {rate:.0f} volumes/s and {rate * size / 1e6:.0f} MB/s for each host")
    return "SPEED, expected\n" + "\n".join("  " + line for line in lines)


def _verdict(found: Estimate) -> str:
    share = found.memory.total / found.chip.usable_bytes
    return f"VERDICT  {'fits' if found.fits else 'DOES NOT FIT'}: {share:.0%} of the usable memory"
