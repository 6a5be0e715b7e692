"""``medclip demo --system cmr_clip``: CMR-CLIP on generated cardiac MR, and a model that sees no motion."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medclip_jax.cli.demo_stages import Size, Stages, defined, machine, make_shards, nested, train_config
from medclip_jax.reports.findings import CARDIAC_MR_DIAGNOSES

FULL = Size(phantoms=1500)
SHORT = Size(
    phantoms=96,
    overrides=("--config.steps=8", "--config.batch_size=16", "--config.optimizer.warmup_steps=2"),
)

STAGES = {"cmr_clip": "cmr_clip/demo.py", "one_frame": "cmr_clip/demo_still.py"}
"""Model to its config: the demo's, and its control."""

MOTION = (
    "left_ventricular_dysfunction",
    "right_ventricular_dysfunction",
    "regional_wall_motion_abnormality",
)
"""Findings that only motion shows, in studies whose findings tell nothing of each other."""

# One finding beside the diagnoses: each is a classifier of its own.
GROUP = {"classes": CARDIAC_MR_DIAGNOSES, "findings": MOTION[:1]}


def run(args: argparse.Namespace, clock: Stages) -> int:
    """Run the demo, see `cli.demo.run`."""
    from medclip_jax.corpora import cine
    from medclip_jax.corpora.cmr import cmr

    size = SHORT if args.short else FULL
    shards = make_shards("cmr_clip/demo_data.py", cine.write, cmr, args, size.phantoms, clock)
    overrides = [f"--config.data.shards={shards}", *size.overrides]
    for name, config in STAGES.items():
        with clock.stage(f"train {name}"):
            finished = train_config(config, args.out / name, overrides)
        if not finished:
            return 0
    with clock.stage("evaluate"):
        evaluation = _evaluate(args.out, shards)
        control = _control(args.out, shards, evaluation)
    with clock.stage("pictures"):
        beats = _beats(args.out / "cmr_clip", shards)
    page, summary = _write(args, clock, evaluation, control, beats)
    scores = summary["zero_shot"]
    print(f"\nmean zero-shot AUROC on {evaluation.count} unseen studies: {scores['auroc_mean']:.3f}")
    for name, value in scores["auroc"].items():
        print(f"  {name:34s} {value:.3f}")
    print("without a diagnosis, where findings tell nothing of each other: all frames, one frame")
    for name, (moving, still) in control["motion"].items():
        print(f"  {name:34s} {moving:.3f} {still:.3f}")
    print("accuracy of four diagnoses by examples of each: all frames, one frame")
    for shots, (moving, still) in control["shots"].items():
        print(f"  {shots:<34d} {moving:.3f} {still:.3f}")
    print(f"{summary['seconds']:.0f} s, {summary['peak_memory_gb']:.1f} GB\nopen {page}")
    return 0


def _evaluate(out: Path, shards: Path) -> Any:
    import medclip_jax
    from medclip_jax.evaluation.run import evaluate_all

    model = medclip_jax.load(out / "cmr_clip", batch_size=32)
    evaluation = evaluate_all(
        model.embedder,
        {
            "zero_shot": {"score": "positive_only", "threshold": "train", "criterion": "equal"},
            "retrieval": {"text": "impression", "ks": (1, 5, 10, 50)},
            "few_shot": GROUP,
            "mlp_probe": GROUP,
            "library": GROUP,
        },
        shards=shards,
        split="test",
    )
    print(evaluation)
    return evaluation


def _control(out: Path, shards: Path, evaluation: Any) -> dict[str, Any]:
    """AUROC of the model that sees one frame: of all findings, and of motion where nothing comes along."""
    import medclip_jax
    from medclip_jax.evaluation.run import evaluate_all
    from medclip_jax.evaluation.zero_shot import evaluate_zero_shot

    prompts = {"score": "positive_only", "draws": 0}
    moving = medclip_jax.load(out / "cmr_clip", batch_size=32).embedder
    still = medclip_jax.load(out / "one_frame", batch_size=32).embedder
    of_still = evaluate_all(still, {"zero_shot": prompts, "few_shot": GROUP}, shards=shards, split="test")
    rows = np.flatnonzero(
        np.all([evaluation.data.labels[name] != 1 for name in CARDIAC_MR_DIAGNOSES], axis=0)
    )
    alone = [
        evaluate_zero_shot(data.take(rows), embedder.texts, findings=MOTION, **prompts).findings
        for data, embedder in ((evaluation.data, moving), (of_still.data, still))
    ]
    return {
        "auroc": {name: one.values["auroc"] for name, one in of_still.results["zero_shot"].findings.items()},
        "studies": len(rows),
        "motion": {name: [found[name].values["auroc"] for found in alone] for name in MOTION},
        "shots": {
            shots: [_accuracy(one.results.get("few_shot"), shots) for one in (evaluation, of_still)]
            for shots in (1, 8, 32)
        },
    }


def _accuracy(result: Any, shots: int) -> float:
    """Mean over the draws of the share of diagnoses that so many examples of each tell; NaN without."""
    group = None if result is None else result.group
    return float("nan") if group is None else float(group.accuracy[shots].mean())


def _beats(workdir: Path, shards: Path) -> list[tuple[str, dict[str, Any]]]:
    """For one study of each diagnosis, the impression and the frames of each series with attention."""
    import jax

    import medclip_jax
    from medclip_jax.pages.beating import Beat
    from medclip_jax.shards.read import open_shards, open_split

    info = open_shards(shards)
    model = medclip_jax.load(workdir, batch_size=1)
    test = open_split(info, "test")
    attend = jax.jit(lambda inputs: model.objective.vision.attention(inputs))
    found = []
    for name in CARDIAC_MR_DIAGNOSES:
        column = info.findings.index(name)
        row = next((i for i in range(len(test)) if test[i]["labels"][column] == 1), None)
        if row is None:
            continue
        record = test[row]
        inputs = model.embedder.inputs(record, row)
        attention = np.asarray(attend({key: np.asarray(value)[None] for key, value in inputs.items()}))[0]
        series = {}
        for place, view in enumerate(model.spec.views):
            shown = inputs["view"] == place
            if shown.any():
                series[view] = Beat(inputs["frames"][shown], attention[shown])
        found.append((str(record["impression"]), series))
    return found


def _by_evaluator(metrics: Mapping[str, float]) -> dict[str, Any]:
    """``{"zero_shot/auroc/x": 1}`` as a tree; of the others, whose names are no tree, a table each."""
    found: dict[str, Any] = {}
    for path, value in metrics.items():
        evaluator, _, name = path.partition("/")
        found.setdefault(evaluator, {})[name] = value
    return found | {"zero_shot": nested(found["zero_shot"])}


def _write(
    args: argparse.Namespace,
    clock: Stages,
    evaluation: Any,
    control: Mapping[str, Any],
    beats: list[tuple[str, dict[str, Any]]],
) -> tuple[Path, dict[str, Any]]:
    from medclip_jax.pages.figures import read_metrics
    from medclip_jax.pages.heart import HeartResults, write_heart_page
    from medclip_jax.shards.read import open_shards

    splits = open_shards(args.out / "shards").splits
    seconds = clock.seconds()
    summary = {
        **_by_evaluator(evaluation.metrics()),
        "seconds": sum(seconds.values()),
        "stages": seconds,
        "peak_memory_gb": clock.peak_memory_gb(),
        "phantoms": dict(splits),
        "short": args.short,
        "one_frame": dict(control),
    }
    (args.out / "summary.json").write_text(json.dumps(defined(summary), indent=2, allow_nan=False))
    path = write_heart_page(
        args.out / "report.html",
        HeartResults(
            evaluation=evaluation,
            seconds=seconds,
            peak_memory_gb=summary["peak_memory_gb"],
            summary={
                "studies": ", ".join(f"{count} {split}" for split, count in splits.items()),
                "configs": ", ".join(f"configs/{config}" for config in STAGES.values()),
                "machine": machine(),
            },
            curves={name: read_metrics(args.out / name / "metrics.jsonl") for name in STAGES},
            one_frame=control["auroc"],
            motion=control["motion"],
            shots=control["shots"],
            without_diagnosis=control["studies"],
            beats=beats,
            commands=f"medclip inspect {args.out / 'shards'} --out sheet.html\n"
            f"medclip evaluate --workdir {args.out / 'cmr_clip'} --split validation --page page.html",
        ),
    )
    return path, summary
