"""Sample ids of each step on 1, 2, 4 and 8 data hosts, and with their number changed twice along the way.

    python tools/bench_hosts.py

Hosts are simulated one after the other on phantoms that it generates and prepares. Prints one JSON line for
each course of host counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from bench_faults import make_data

STEPS = 40
"""Steps for which a number of hosts is kept."""


def ids(folder: Path, counts: list[int]) -> list[list[int]]:
    """Sample ids of each step, where `counts` hosts share the batches one count after the other."""
    from medclip_jax.fields import Layout
    from medclip_jax.objectives import resolve
    from medclip_jax.pipeline import train_batches
    from medclip_jax.training.config import load_config
    from medclip_jax.training.data import open_data

    config = load_config(folder / "config.py", [f"--config.data.shards={folder / 'shards'}"])
    fields = resolve(config.objective.name)[1].batch_fields(config.objective)
    data = open_data(config.data, fields)
    layout = Layout(fields, data.spec, config.data, data.tokenizer)
    steps = []
    for part, count in enumerate(counts):
        hosts = [
            train_batches(
                data.source,
                layout,
                seed=config.seed,
                batch_size=config.batch_size,
                start_step=part * STEPS,
                process_index=host,
                process_count=count,
            )
            for host in range(count)
        ]
        for _ in range(STEPS):
            # Every n-th sample belongs to the n-th host.
            rows = [next(host)["sample"].tolist() for host in hosts]
            steps.append([number for column in zip(*rows, strict=True) for number in column])
        for host in hosts:
            host.close()
    return steps


def main() -> int:
    """0 where all courses saw the same samples."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="for the data (a temporary one)")
    folder = (parser.parse_args().folder or Path(tempfile.mkdtemp(prefix="medclip-hosts-"))).absolute()
    make_data(folder)
    expected = ids(folder, [1, 1, 1])
    wrong = 0
    for counts in ([2, 2, 2], [4, 4, 4], [8, 8, 8], [1, 2, 4], [8, 4, 1], [2, 8, 1]):
        equal = ids(folder, counts) == expected
        wrong += not equal
        print(json.dumps({"hosts": counts, "steps": len(expected), "samples": equal}), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
