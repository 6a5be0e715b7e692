"""Write the tables of docs/reference/scaling.md: what `medclip check` computes for four machines.

    python tools/scaling_table.py docs/reference/scaling.md    # replaces what stands between the two marks
    python tools/scaling_table.py                              # prints

Where a machine's memory does not hold a config, the fastest remedy that `medclip check` finds is given.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from medclip_jax.cli import check_data
from medclip_jax.planning.chips import find_chip
from medclip_jax.planning.estimate import Estimate, estimate
from medclip_jax.planning.remedies import remedies
from medclip_jax.planning.shapes import Model, build, compute_dtype, towers
from medclip_jax.training.config import load_config

MACHINES = (
    ("1 H100", "h100", 1),
    ("8 H100", "h100", 8),
    ("v5e-64", "v5e-64", 64),
    ("v5p-256", "v5p-256", 128),
)
"""Title, chip or slice, chips. A v5p-256 has 128 chips of two cores."""

SYSTEMS = (
    ("Cardiac-CLIP stage 1 (MAE), batch 128", "configs/cardiac_clip/mae.py", 128),
    ("Cardiac-CLIP stage 2 (contrast), batch 128", "configs/cardiac_clip/contrastive.py", 128),
    ("HiPro-CT, batch 128", "configs/hipro_ct/pretrain.py", 128),
    ("Demo stage 1 (MAE), batch 128", "configs/demo/mae.py", 128),
    ("Demo stage 2 (contrast), batch 128", "configs/demo/contrastive.py", 128),
)
"""Title, config, batch: the smallest that all four machines can share; the papers used 64 and 16."""

BEGIN, END = "<!-- scaling_table: begin -->", "<!-- scaling_table: end -->"


def rows(title: str, file: str, batch: int) -> list[str]:
    """A Markdown table for one system."""
    config = load_config(file, [f"--config.batch_size={batch}"])
    parser = argparse.ArgumentParser()
    check_data.add_arguments(parser)
    data = check_data.assume(config, parser.parse_args([]))
    model = build(config, data.spec, samples=10**6)
    parameters = sum(tower.parameters for tower in towers(model)) / 1e6
    shape = "×".join(map(str, data.spec.shape))
    lines = [
        f"### {title}",
        f"{parameters:.1f}M parameters, volumes of {shape}, {compute_dtype(model)}.",
        "",
        "| machine | GiB a device | of | as it stands | with the remedy | model TFLOPs a step | ms a step "
        "| volumes/s | utilization | MB/s a host |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for machine, name, devices in tqdm(MACHINES, desc=title, leave=False):
        chip, _ = find_chip(name)
        if batch % devices:
            lines.append(f"| {machine} | | | the batch does not divide by {devices} | | | | | | |")
            continue
        found = estimate(model, chip, devices)
        remedy, shown = "", found
        if not found.fits:
            fitting = [item for item in remedies(model, chip, found) if item.estimate.fits]
            best = min(fitting, key=lambda item: item.estimate.speed.step, default=None)
            remedy = "none found"
            if best:
                shown = best.estimate
                changes = " ".join(part.removeprefix("--config.") for part in best.overrides)
                remedy = f"`{changes}`: {shown.memory.total / 2**30:.1f} GiB"
        lines.append(_line(machine, found, shown, remedy, model))
    return [*lines, ""]


def _line(machine: str, found: Estimate, shown: Estimate, remedy: str, model: Model) -> str:
    volume = 2
    for size in model.spec.shape:
        volume *= size
    hosts = -(-shown.devices // shown.chip.per_host)
    rate = shown.volumes_per_second
    return (
        f"| {machine} | {found.memory.total / 2**30:.2f} | {found.chip.usable_bytes / 2**30:.1f} | "
        f"{'fits' if found.fits else 'does not fit'} | {remedy} | {shown.flops / 1e12:.3g} | "
        f"{shown.speed.step * 1e3:.3g} | {rate:.3g} | {shown.utilization(compute_dtype(model)):.0%} | "
        f"{rate / hosts * volume / 1e6:.3g} |"
    )


def main() -> None:
    """Print the tables, or put them into a document, which is written anew after each system."""
    text = ""
    for system in tqdm(SYSTEMS):
        text += "\n".join(rows(*system)) + "\n"
        if len(sys.argv) > 1:
            document = Path(sys.argv[1])
            before, _, rest = document.read_text().partition(BEGIN)
            _, _, after = rest.partition(END)
            document.write_text(f"{before}{BEGIN}\n{text}{END}{after}")
    if len(sys.argv) < 2:
        print(text)


if __name__ == "__main__":
    main()
