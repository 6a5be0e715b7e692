"""The phantom study: Cardiac-CLIP, its three ablations and a control, on generated scans.

Rows: full; without the masked autoencoder; without statements (the impression alone); one-hot targets; and
shuffled pairs, where each volume gets the report of another patient, which must fall to chance.

    python tools/phantom_study.py --out runs/phantom_study [--rows full,one_hot] [--seeds 0] [--steps 700]

Run it again to continue: phantoms, shards and trainings that are complete are kept. Prints one JSON line for
each row and writes OUT/study.json and OUT/study.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

import medclip_jax
from medclip_jax.corpora import phantom
from medclip_jax.corpora.folder import folder
from medclip_jax.evaluation.baselines import statistics_baseline
from medclip_jax.evaluation.run import evaluate_all
from medclip_jax.objectives import resolve
from medclip_jax.shards.prepare import default_key, prepare
from medclip_jax.shards.read import open_shards, open_split
from medclip_jax.training.checkpoints import latest_step
from medclip_jax.training.config import load_config
from medclip_jax.training.config_module import config_module
from medclip_jax.training.loop import open_data, train

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "phantom"

ROWS: dict[str, tuple[str, ...]] = {
    "full": (),
    "no_mae": ("--config.initial_weights.workdir=",),
    "no_statements": ("--config.data.text.some_statements=0.0", "--config.data.text.impression=1.0"),
    "one_hot": ("--config.objective.soft_target=onehot",),
    "shuffled": (),
}
"""Row to what it changes in configs/phantom/contrastive.py."""


class ShuffledPairs:
    """A source in which every record carries texts and findings of another one, always the same."""

    def __init__(self, source: Any, seed: int):
        self.source = source
        self.info = source.info
        # A cyclic shift of a random order leaves no record its own.
        order = np.random.default_rng(seed).permutation(len(source))
        self.other = np.empty_like(order)
        self.other[order] = np.roll(order, 1)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: SupportsIndex) -> Mapping[str, Any]:
        other = dict(self.source[int(self.other[int(index)])])
        return {**other, "volume": self.source[index]["volume"]}

    def raw(self, index: SupportsIndex) -> bytes:
        """The stored record that texts and findings come from: a run's fingerprint of its samples."""
        return self.source.raw(int(self.other[int(index)]))


def make_shards(out: Path, workers: int) -> Path:
    """Generate and prepare the study's phantoms, once."""
    with config_module(CONFIGS / "data.py") as recipe:
        count, seed, scans, settings = recipe.COUNT, recipe.SEED, recipe.PHANTOMS, recipe.SETTINGS
    table = out / "phantoms" / "studies.csv"
    if not table.exists():
        phantom.write(table.parent, count, seed=seed, settings=scans, workers=workers)
    shards = out / "shards"
    prepare(folder(table), shards, settings, workers=workers, key=default_key(shards))
    return shards


def train_to_the_end(config: Any, workdir: Path, data: Any = None) -> None:
    """Train; end the study where SIGTERM stopped the run, for a half-trained row is no result."""
    train(config, workdir, data=data)
    if (latest_step(workdir) or 0) < config.steps:
        raise SystemExit(f"stopped in {workdir}; the same command resumes from there")


def run_row(
    row: str, seed: int, out: Path, shards: Path, pretrained: Path, overrides: Sequence[str]
) -> dict[str, Any]:
    """Train one row and score it on the test split."""
    workdir = out / f"{row}_{seed}"
    overrides = [
        *overrides,
        f"--config.data.shards={shards}",
        f"--config.seed={seed}",
        f"--config.initial_weights.workdir={pretrained}",
        *ROWS[row],
    ]
    config = load_config(CONFIGS / "contrastive.py", overrides)
    data = open_data(config.data, resolve(config.objective.name)[1].batch_fields(config.objective))
    if row == "shuffled":
        data = data._replace(source=ShuffledPairs(data.source, seed))
    began = time.perf_counter()
    train_to_the_end(config, workdir, data)
    seconds = time.perf_counter() - began
    model = medclip_jax.load(workdir, batch_size=32)
    evaluation = evaluate_all(
        model.embedder,
        {"zero_shot": {}, "retrieval": {}, "ordinal": {}},
        shards=shards,
        split="test",
    )
    metrics = evaluation.metrics()
    prefix = "zero_shot/auroc/"
    return {
        "row": row,
        "seed": seed,
        "seconds": round(seconds, 1),
        "n": evaluation.count,
        "auroc_mean": metrics["zero_shot/auroc_mean"],
        "auroc": {k.removeprefix(prefix): v for k, v in metrics.items() if k.startswith(prefix)},
        "cac_ordinal": metrics.get("ordinal/cac/auroc_mean"),
        "text_to_image_R@10": metrics.get("retrieval/text_to_image/R@10"),
    }


def write_table(out: Path, results: list[dict[str, Any]], baseline: Mapping[str, float]) -> None:
    """Findings down, rows across, mean and spread over seeds."""
    rows = list(dict.fromkeys(result["row"] for result in results))
    lines = [
        "| finding | ten statistics | " + " | ".join(rows) + " |",
        "|---|---|" + "---|" * len(rows),
    ]
    for finding in [*baseline, "mean"]:
        cells = []
        for row in rows:
            of_row = [r for r in results if r["row"] == row]
            values = [r["auroc_mean"] if finding == "mean" else r["auroc"][finding] for r in of_row]
            spread = f" ± {np.std(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        reference = np.nanmean(list(baseline.values())) if finding == "mean" else baseline[finding]
        lines.append(f"| {finding} | {reference:.3f} | " + " | ".join(cells) + " |")
    (out / "study.md").write_text("\n".join(lines) + "\n")
    (out / "study.json").write_text(json.dumps({"baseline": baseline, "results": results}, indent=2))


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, help="of every row, instead of the config's")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    shards = make_shards(args.out, args.workers)
    info = open_shards(shards)
    fields = ["volume", "labels"]
    baseline = statistics_baseline(
        *(open_split(info, split, fields=fields) for split in ("train", "test")), info.findings
    )
    print(json.dumps({"row": "ten statistics", "auroc": baseline}), flush=True)
    pretrained = args.out / "mae"
    train_to_the_end(load_config(CONFIGS / "mae.py", [f"--config.data.shards={shards}"]), pretrained)
    overrides = [f"--config.steps={args.steps}"] if args.steps else []
    results = []
    for seed in map(int, args.seeds.split(",")):
        for row in args.rows.split(","):
            results.append(run_row(row, seed, args.out, shards, pretrained, overrides))
            print(json.dumps(results[-1]), flush=True)
            write_table(args.out, results, baseline)


if __name__ == "__main__":
    main()
