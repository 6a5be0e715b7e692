"""Where a config's training step would spend its time on a TPU, by the TPU's compiler, without a TPU.

    python tools/estimate_tpu.py --config configs/cardiac_clip/mae.py --tpu v5e:2x2 --config.batch_size=32
    python tools/estimate_tpu.py ... --keep step.txt      # keeps the optimized program's text
    python tools/estimate_tpu.py ... --read step.txt      # reads it again instead of compiling

It takes libtpu, best in an environment of its own: pip install -e ".[tpu]". The step is the one that
`medclip train` runs: the same shardings, microbatches and donated state. The topology gives the number of
chips; the batch is of all together. On stdout the report, and one JSON line at its end. Compiling takes
minutes of one core. docs/performance.md, "TPU", says what the figures are.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import jax

from medclip_jax.cli import check_data, check_report
from medclip_jax.cli.cycles_report import cycles_report
from medclip_jax.planning.ahead import compile_step
from medclip_jax.planning.chips import find_topology
from medclip_jax.planning.cycles import read_cycles, step_time
from medclip_jax.planning.remedies import settled
from medclip_jax.planning.shapes import build
from medclip_jax.training.config import load_config


def main() -> int:
    """Compile, report; 1 where the program does not fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--tpu", required=True, metavar="CHIP:SHAPE", help="v5e:2x2, v5p:2x2x1, ...")
    parser.add_argument("--keep", default="", metavar="FILE", help="for the optimized program's text")
    parser.add_argument("--read", default="", metavar="FILE", help="such a text, instead of compiling")
    check_data.add_arguments(parser)
    options, overrides = parser.parse_known_args()
    jax.config.update("jax_platforms", "cpu")
    chip, devices = find_topology(options.tpu)
    config = load_config(options.config, overrides)
    data = check_data.assume(config, options)
    model, found = settled(build(config, data.spec, samples=10**6), chip, devices)
    # The same for the process that compiles, which reads the config anew.
    overrides += [f"--config.{name}={model.config[name]}" for name in ("batch_size", "microbatches")]
    if options.read:
        cycles, peak = read_cycles(Path(options.read).read_text()), None
    else:
        compiled = compile_step(options.config, overrides, data.spec, topology=options.tpu, keep=options.keep)
        print(check_report.compiled_report(compiled, found) + "\n", flush=True)
        cycles, peak = compiled.cycles, compiled.peak
        if cycles is None:
            return 1
    flops, samples = found.flops / devices, found.batch_size / devices
    print(cycles_report(cycles, chip, flops, samples))
    time = step_time(cycles, chip)
    line = {
        "config": options.config,
        "overrides": overrides,
        "tpu": options.tpu,
        "ms": {kind: 1e3 * seconds for kind, seconds in time.by_kind.items()},
        "attention_ms": 1e3 * time.attention,
        "step_ms": 1e3 * time.step,
        "utilization": time.utilization(flops, chip),
        "planned_ms": 1e3 * found.speed.step,
        "gib": None if peak is None else peak / 2**30,
    }
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
