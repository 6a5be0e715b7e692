"""Compile a config's train step for devices that are not here: simulated CPUs, or a TPU by its compiler.

The work is done in a process of its own, because the number of devices is fixed once JAX has started:
`python -m medclip_jax.planning.ahead` reads a request from its standard input and answers on the output.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medclip_jax.objectives.base import DataSpec
from medclip_jax.planning.collectives import Collective
from medclip_jax.planning.cycles import Kernel, Operation, ProgramCycles, read_cycles

MARK = "medclip-ahead:"
"""Stands before the answer, because compilers talk too."""

NO_LIBTPU = (
    "compiling for a TPU takes its compiler, libtpu, which is not installed here: "
    'pip install "medclip_jax[tpu]" (700 MB; best into an environment of its own), and run medclip from there'
)


@dataclass(frozen=True)
class Compiled:
    """What a compiler says of the step; bytes of one device.

    Attributes:
        platform: "cpu" or "tpu".
        device_kind: as the platform names it.
        devices: of the mesh.
        seconds: tracing and compiling.
        arguments: state and batch.
        temporary: held between.
        output: what is returned and does not take the place of an argument.
        peak: all of it at its highest.
        collectives: of the program; empty where `unreadable` says why they cannot be told.
        overflow: what the compiler says where the program does not fit; "" where it does.
        cycles: what takes how long by the compiler's estimate; None on CPUs and where it does not fit.
    """

    platform: str
    device_kind: str
    devices: int
    seconds: float
    arguments: float
    temporary: float
    output: float
    peak: float
    collectives: tuple[Collective, ...] = ()
    unreadable: str = ""
    overflow: str = ""
    cycles: ProgramCycles | None = None


def compile_step(
    config_file: str,
    overrides: Sequence[str],
    spec: DataSpec,
    *,
    devices: int = 0,
    topology: str = "",
    keep: str = "",
    timeout: float = 3600.0,
) -> Compiled:
    """Compile in a process of its own.

    Args:
        config_file: Python file with `get_config()`.
        overrides: as `training.config.load_config` takes them.
        spec: what the data fix.
        devices: simulated CPUs; or
        topology: of a TPU, such as "v5e:8x8".
        keep: file for the optimized program's text; "" to keep none.
        timeout: seconds.

    Raises:
        ValueError: libtpu is missing, the topology is unknown, or the config cannot work.
        RuntimeError: the compiler failed in another way.
    """
    request = {
        "config": str(config_file),
        "overrides": list(overrides),
        "spec": dataclasses.asdict(spec),
        "devices": devices,
        "topology": topology,
        "keep": os.path.abspath(keep) if keep else "",
    }
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if topology:
        environment |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_STDERR_LOG_LEVEL": "3"}
    else:
        flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", ""))
        environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
    answer = subprocess.run(
        [sys.executable, "-m", "medclip_jax.planning.ahead"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout,
        check=False,
    )
    line = next((line for line in answer.stdout.splitlines() if line.startswith(MARK)), None)
    if line is None:
        raise RuntimeError(f"compiling failed (exit code {answer.returncode}): {answer.stderr[-2000:]}")
    found = json.loads(line.removeprefix(MARK))
    if "error" in found:
        raise ValueError(found["error"])
    found["collectives"] = tuple(Collective(**item) for item in found.get("collectives", ()))
    if found.get("cycles"):
        found["cycles"] = _cycles_of(found["cycles"])
    return Compiled(**found)


def _cycles_of(found: dict[str, Any]) -> ProgramCycles:
    """What `dataclasses.asdict` made of it, put together again."""
    return ProgramCycles(
        tuple(Operation(**item) for item in found["operations"]),
        tuple(Kernel(**item) for item in found["kernels"]),
        tuple(found["unknown"]),
        tuple(found["once"]),
    )


def _devices(topology: str, count: int) -> list[Any]:
    import jax

    if not topology:
        return jax.devices()[:count]
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise ValueError(NO_LIBTPU) from None
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # whatever libtpu raises
        reason = str(error).splitlines()[0][:300]
        raise ValueError(
            f"--tpu {topology}: {reason}. Write chip:shape with the chips along each axis, for example "
            "v5e:8x8, v6e:4x4, v5p:4x4x8"
        ) from None


def _compile(request: dict[str, Any]) -> dict[str, Any]:
    import jax

    from medclip_jax.planning.shapes import build
    from medclip_jax.training.config import load_config
    from medclip_jax.training.mesh import check_batch_size, make_mesh
    from medclip_jax.training.partition import state_shardings
    from medclip_jax.training.step import make_train_step

    spec = DataSpec(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in request["spec"].items()
        }
    )
    config = load_config(request["config"], request["overrides"])
    devices = _devices(request["topology"], request["devices"])
    mesh = make_mesh(config.mesh, devices)
    check_batch_size(config.batch_size, mesh, config.microbatches)
    # Steps only shape the schedule.
    model = build(config, spec, samples=10**6)
    step = make_train_step(
        model.graphdef,
        model.optimizer,
        mesh,
        shardings=state_shardings(model.state, mesh, config.mesh.rules),
        microbatches=config.microbatches,
        ema_decay=config.ema.decay,
        skip_nonfinite=not config.stop_on_nan,
    )
    platform = devices[0].platform
    begin = time.perf_counter()
    answer = {
        "platform": platform,
        "device_kind": devices[0].device_kind,
        "devices": mesh.size,
        "arguments": 0.0,
        "temporary": 0.0,
        "output": 0.0,
        "peak": 0.0,
    }
    try:
        traced = step.trace(model.state, dict(model.batch), jax.eval_shape(jax.random.key, 0))
        compiled = traced.lower(lowering_platforms=(platform,)).compile()
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" not in message:
            raise
        used = re.search(r"[Uu]sed ([\d.]+)([GM]) of ([\d.]+)([GM])", message)
        scale = {"G": 2.0**30, "M": 2.0**20}
        return answer | {
            "seconds": time.perf_counter() - begin,
            "peak": float(used[1]) * scale[used[2]] if used else 0.0,
            "overflow": used[0] if used else message.splitlines()[0][:300],
        }
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    if request["keep"]:
        Path(request["keep"]).write_text(text)
    collectives, unreadable = _collectives(text)
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return answer | {
        "seconds": time.perf_counter() - begin,
        "arguments": float(memory.argument_size_in_bytes),
        "temporary": float(memory.temp_size_in_bytes),
        "output": float(fresh),
        "peak": float(memory.argument_size_in_bytes + memory.temp_size_in_bytes + fresh),
        "collectives": collectives,
        "unreadable": unreadable,
        "cycles": dataclasses.asdict(read_cycles(text)) if platform == "tpu" else None,
    }


def _collectives(text: str) -> tuple[list[dict[str, Any]], str]:
    """Those of a program, or why they cannot be read."""
    from medclip_jax.planning.collectives import Unreadable, read_collectives

    try:
        return [dataclasses.asdict(item) for item in read_collectives(text)], ""
    except Unreadable as error:
        return [], str(error)


def main() -> None:
    """Answer one request."""
    try:
        answer = _compile(json.loads(sys.stdin.read()))
    except (ValueError, OSError) as error:
        answer = {"error": str(error)}
    print(MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
