"""``medclip demo``: masked autoencoder, then Cardiac-CLIP, on generated chest CTs."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medclip_jax.cli.demo_stages import Size, Stages, defined, machine, make_shards, nested, train_config

KEYWORD_FINDINGS = {
    "cardiomegaly": "SOFT_TISSUE_HU",
    "coronary_calcification": "SOFT_TISSUE_HU",
    "pericardial_effusion": "SOFT_TISSUE_HU",
    "pleural_effusion": "SOFT_TISSUE_HU",
    "consolidation": "LUNG_HU",
}
"""Findings whose prompts are explained by heat maps, and the window of `pages.figures` that shows them."""


FULL = Size(phantoms=1450)
SHORT = Size(
    phantoms=120,
    overrides=("--config.steps=12", "--config.batch_size=16", "--config.optimizer.warmup_steps=2"),
)


def run(args: argparse.Namespace, clock: Stages) -> int:
    """Run the demo, see `cli.demo.run`."""
    from medclip_jax.corpora import phantom
    from medclip_jax.corpora.folder import folder

    size = SHORT if args.short else FULL
    shards = make_shards("demo/data.py", phantom.write, folder, args, size.phantoms, clock)
    for stage in ("mae", "contrastive"):
        with clock.stage(f"train {stage}"):
            finished = _train(stage, args.out, shards, size)
        if not finished:
            return 0
    with clock.stage("evaluate"):
        results = _evaluate(args.out, shards)
    with clock.stage("pictures"):
        pictures = _pictures(args, shards, results)
    page, summary = _write(args, size, clock, results, pictures)
    scores = summary["zero_shot"]
    print(f"\nmean zero-shot AUROC on {results.count} unseen scans: {scores['auroc_mean']:.3f}")
    for name, value in scores["auroc"].items():
        print(f"  {name:34s} {value:.3f}")
    print(f"{summary['seconds']:.0f} s, {summary['peak_memory_gb']:.1f} GB\nopen {page}")
    return 0


def _train(stage: str, out: Path, shards: Path, size: Size) -> bool:
    overrides = [f"--config.data.shards={shards}", *size.overrides]
    if stage == "contrastive":
        overrides.append(f"--config.initial_weights.workdir={out / 'mae'}")
    return train_config(f"demo/{stage}.py", out / stage, overrides)


def _evaluate(out: Path, shards: Path) -> Any:
    import medclip_jax
    from medclip_jax.evaluation.run import evaluate_all

    model = medclip_jax.load(out / "contrastive", batch_size=32)
    evaluation = evaluate_all(
        model.embedder,
        {"zero_shot": {}, "retrieval": {"text": "impression"}, "ordinal": {}},
        shards=shards,
        split="test",
    )
    print(evaluation)
    return evaluation


@dataclass(frozen=True)
class _Pictures:
    reconstructions: list
    heat_maps: list
    gallery: list
    baseline: Mapping[str, float]
    real_scan: Any


def _pictures(args: argparse.Namespace, shards: Path, evaluation: Any) -> _Pictures:
    import jax
    import numpy as np

    import medclip_jax
    from medclip_jax.evaluation.baselines import statistics_baseline
    from medclip_jax.pages import demo as page
    from medclip_jax.pages import figures
    from medclip_jax.reports.prompts import pair
    from medclip_jax.shards.read import open_shards, open_split

    info = open_shards(shards)
    fields = ["volume", "labels", "report"]
    test, train = (open_split(info, split, fields=fields) for split in ("test", "train"))
    model = medclip_jax.load(args.out / "contrastive", batch_size=8)
    encode_texts = model.embedder.texts

    mae = medclip_jax.load(args.out / "mae").objective
    few = np.stack([test[index]["volume"] for index in range(min(2, len(test)))])
    rebuilt = jax.jit(mae.reconstruct)(few, jax.random.key(0))
    reconstructions = [
        page.ReconstructionView(
            *(np.asarray(part[index, ..., channel]) for part in rebuilt), f"{low:g} to {high:g} HU"
        )
        for index in range(len(few))
        for channel, (low, high) in enumerate(mae.decoder_windows)
    ]

    heat_maps = []
    for name, window in KEYWORD_FINDINGS.items():
        column = info.findings.index(name)
        positives = [index for index in range(len(test)) if test[index]["labels"][column] == 1]
        if not positives:
            continue
        volume = test[positives[0]]["volume"]
        prompt = pair(name)[0]
        heat = model.explain(volume, name)
        caption = f"A scan with {name.replace('_', ' ')}."
        heat_maps.append(
            page.HeatMapView(prompt, volume, heat.voxels, heat.score, caption, getattr(figures, window))
        )

    gallery = [
        page.gallery_query(evaluation.data, encode_texts, test, index, text="impression")
        for index in range(0, len(test), max(1, len(test) // 3))
    ][:3]
    baseline = statistics_baseline(
        (train[index] for index in range(len(train))), (test[i] for i in range(len(test))), info.findings
    )
    real = _real_scan(model, args.scan) if args.scan else None
    return _Pictures(reconstructions, heat_maps, gallery, baseline, real)


def _real_scan(model: Any, path: Path) -> Any:
    from medclip_jax.pages.demo import RealScan
    from medclip_jax.reports.prompts import pair
    from medclip_jax.volumes import read_volume

    began = time.perf_counter()
    scan = read_volume(path)
    volume = model.prepare(scan)
    findings = list(model.spec.findings)
    probabilities = model.zero_shot(volume, findings)
    seconds = time.perf_counter() - began
    first = max(probabilities, key=probabilities.get)
    heat = model.explain(volume, first)
    return RealScan(
        "the scan given by --scan", volume, probabilities, scan.notes, seconds, heat.voxels, pair(first)[0]
    )


def _write(
    args: argparse.Namespace, size: Size, clock: Stages, evaluation: Any, pictures: _Pictures
) -> tuple[Path, dict[str, Any]]:
    from medclip_jax.pages import demo as page
    from medclip_jax.pages.figures import read_metrics
    from medclip_jax.shards.read import open_shards

    info = open_shards(args.out / "shards")
    metrics = evaluation.metrics()
    seconds = clock.seconds()
    summary = {
        **nested(metrics),
        "seconds": sum(seconds.values()),
        "stages": seconds,
        "peak_memory_gb": clock.peak_memory_gb(),
        "phantoms": dict(info.splits),
        "short": args.short,
        "baseline_auroc": dict(pictures.baseline),
    }
    (args.out / "summary.json").write_text(json.dumps(defined(summary), indent=2, allow_nan=False))
    curves = [
        page.Curves(title, read_metrics(args.out / stage / "metrics.jsonl"), ("loss",))
        for stage, title in (("mae", "Stage 1: masked autoencoder"), ("contrastive", "Stage 2: Cardiac-CLIP"))
    ]
    path = page.write_demo_page(
        args.out / "report.html",
        page.DemoResults(
            spacing=info.spacing,
            evaluation=evaluation,
            seconds=seconds,
            peak_memory_gb=summary["peak_memory_gb"],
            summary={
                "phantoms": ", ".join(f"{count} {split}" for split, count in info.splits.items()),
                "volumes": f"{' x '.join(map(str, info.shape))} voxels of "
                f"{' x '.join(f'{s:g}' for s in info.spacing)} mm (depth, height, width)",
                "configs": "configs/demo/mae.py, configs/demo/contrastive.py",
                "machine": machine(),
            },
            curves=curves,
            reconstructions=pictures.reconstructions,
            heat_maps=pictures.heat_maps,
            gallery=pictures.gallery,
            baseline=pictures.baseline,
            baseline_name="ten intensity statistics, logistic regression",
            real_scan=pictures.real_scan,
            commands=f"medclip inspect {args.out / 'shards'} --out sheet.html\n"
            f"medclip evaluate --workdir {args.out / 'contrastive'} --split validation\n"
            f'medclip embed {args.out / "contrastive"} SCAN --text "There is cardiomegaly."',
        ),
    )
    return path, summary
