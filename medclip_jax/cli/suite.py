"""`medclip evaluate --suite phantom`: train what is missing, run all tasks, write a page and a JSON file."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medclip_jax.cli.demo_stages import Size, Stages, defined, machine, make_shards, train_config
from medclip_jax.cli.suite_plan import (
    DATA_SECONDS,
    EVALUATION_SECONDS,
    NOT_HERE,
    PHANTOMS,
    SEGMENTATION_SECONDS,
    SEGMENTED,
    SYSTEMS,
    TASKS,
    System,
    Task,
)
from medclip_jax.evaluation import task_metrics
from medclip_jax.evaluation.bootstrap import draw_patients
from medclip_jax.evaluation.scored import Scored, from_json
from medclip_jax.pages.suite import Column, Score, Suite, write_suite_page

EVALUATION = "configs/evaluation/suite.py"

DRAWS = 500
"""Of the bootstrap, where the evaluator gives no interval of its own."""

SHORT = Size(
    phantoms=96,
    overrides=("--config.steps=2", "--config.optimizer.warmup_steps=0"),
)
"""Everything runs, nothing is learned."""


def run(args: argparse.Namespace) -> int:
    """Run the suite, or go on with it; 0 when the page is written, or a training was told to stop.

    Raises:
        ValueError: an unknown system, or `args.out` holds a suite of another size or seed.
    """
    chosen = chosen_systems(args.systems)
    args.out = Path(args.out or "medclip-suite")
    _check_folder(args)
    clock = Stages(args.out / "seconds.json", args.workers)
    shards = _make_data(args, clock)
    plan = _plan(args)
    for name in _with_starts(chosen):
        with clock.stage(f"train {name}"):
            finished = _train(name, args, shards)
        if finished and name in chosen:
            with clock.stage(f"evaluate {name}"):
                _evaluate(args, shards, "test", plan, name)
            with clock.stage(f"segment {name}"):
                finished = _segment(name, args, shards)
        if not finished:
            print(f"stopped: the same command goes on with {name}")
            return 0
        if name in chosen:
            write_outputs(args, clock)
    page, numbers = write_outputs(args, clock)
    print(f"\nopen {page}\nnumbers {numbers}")
    return 0


def chosen_systems(names: str | None) -> list[str]:
    """The systems that `--systems` means, in the order of the suite; all where it is not given.

    Raises:
        ValueError: an unknown one; the message names the nearest.
    """
    given = [name.strip() for name in (names or "").split(",") if name.strip()]
    for name in given:
        if name not in SYSTEMS:
            near = difflib.get_close_matches(name, SYSTEMS, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"--systems {name}: there are {', '.join(SYSTEMS)}.{hint}")
    return [name for name in SYSTEMS if name in given or not given]


def _with_starts(chosen: Sequence[str]) -> list[str]:
    """Those to train: the chosen ones and what they begin with, in the order of the suite."""
    wanted = {*chosen, *(SYSTEMS[name].begins_with for name in chosen)}
    return [name for name in SYSTEMS if name in wanted]


def _check_folder(args: argparse.Namespace) -> None:
    made = {"suite": args.suite, "short": args.short, "seed": args.seed}
    file = args.out / "suite.made.json"
    if file.exists():
        before = json.loads(file.read_text())
        if before != made:
            raise ValueError(
                f"{args.out} holds another suite ({_words(before)}, not {_words(made)}): give another --out, "
                "or delete that folder"
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(made))


def _words(made: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in made.items())


def _make_data(args: argparse.Namespace, clock: Stages) -> Path:
    from functools import partial

    from medclip_jax.corpora import phantom
    from medclip_jax.corpora.folder import folder

    count = SHORT.phantoms if args.short else PHANTOMS
    return make_shards("suite/data.py", partial(phantom.write, label_maps=True), folder, args, count, clock)


def _train(name: str, args: argparse.Namespace, shards: Path) -> bool:
    """Train a system, unless that is done; whether it is."""
    system = SYSTEMS[name]
    overrides = [f"--config.steps={system.steps}", *system.overrides]
    if args.short:
        overrides.append("--config.batch_size=8")
    return _trained(args, shards, system.config, name, system.begins_with, overrides)


def _trained(
    args: argparse.Namespace,
    shards: Path,
    config: str,
    name: str,
    begins_with: str,
    overrides: Sequence[str] = (),
) -> bool:
    """Whether a run is at its end, after training what is left of it."""
    from medclip_jax.training.status import read_status

    workdir = args.out / "runs" / name
    if workdir.is_dir() and read_status(workdir).state == "finished":
        return True
    words = [f"--config.data.shards={shards}", f"--config.seed={args.seed}", *overrides]
    if begins_with:
        words.append(f"--config.initial_weights.workdir={args.out / 'runs' / begins_with}")
    return train_config(config, workdir, [*words, *(SHORT.overrides if args.short else ())])


def _segment(name: str, args: argparse.Namespace, shards: Path) -> bool:
    """Fine-tune a system's tower to segment and score that; whether the training came to its end."""
    run = f"{name}.segmentation"
    if not _trained(args, shards, SYSTEMS[name].segmentation, run, name):
        return False
    settings = {"overlap": 0.0, "draws": 10 if args.short else 200, "pictures": 0}
    count = 4 if args.short else SEGMENTED
    # Few at once: a decoder holds many numbers for each voxel.
    _evaluate(args, shards, f"test[:{count}]", {"segmentation": settings}, run, batch_size=4)
    return True


def _plan(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Evaluator to settings, of the file that came with the package; fewer draws with `--short`."""
    from medclip_jax.cli.evaluation_config import load_evaluation
    from medclip_jax.evaluation.settings import default_evaluators

    plan = load_evaluation(EVALUATION).evaluators.to_dict()
    if args.short:
        for name, settings in plan.items():
            known = default_evaluators()[settings.get("kind", name)]
            few = {"draws": 10, "seeds": 1, "repeats": 2, "samples": 8}
            settings.update({key: value for key, value in few.items() if key in known})
    return plan


def _evaluate(
    args: argparse.Namespace,
    shards: Path,
    split: str,
    plan: Mapping[str, Mapping[str, Any]],
    run: str,
    *,
    batch_size: int = 32,
) -> None:
    """Score a run, unless the file of its results is there."""
    import jax

    import medclip_jax
    from medclip_jax.evaluation.result_file import write_results
    from medclip_jax.evaluation.run import evaluate_all

    file = results_file(args.out, run)
    if file.exists() and json.loads(file.read_text())["settings"] == json.loads(json.dumps(plan)):
        return
    model = medclip_jax.load(args.out / "runs" / run, batch_size=batch_size, progress=False)
    evaluation = evaluate_all(model.embedder, plan, shards=shards, split=split)
    print(evaluation)
    partial = file.with_suffix(".partial")
    write_results(partial, evaluation, plan)
    partial.replace(file)
    jax.clear_caches()  # of this run's programs; those of all systems add up


def results_file(out: Path, run: str) -> Path:
    """Where the results of a run lie."""
    return out / "results" / f"{run}.json"


def score_of(task: Task, results: Mapping[str, Any]) -> Score:
    """What a file of results says of a task.

    Args:
        task: of the suite.
        results: content of a file that `evaluation.result_file.write_results` wrote.
    """
    if task.evaluator in results["skipped"]:
        return Score(math.nan, reason=results["skipped"][task.evaluator])
    metrics = results["metrics"]
    key = task.key
    if key.endswith("/"):  # of layers, the last one's
        key = next((name for name in reversed(metrics) if name.startswith(key)), key)
    if metrics.get(key) is None:
        return Score(math.nan, reason="undefined on these scans" if key in metrics else "not measured")
    low, high = (math.nan if end is None else end for end in _interval(key, results))
    return Score(metrics[key], low, high)


def _interval(key: str, results: Mapping[str, Any]) -> Sequence[float | None]:
    """The interval that the evaluator gives, else one by the scores of every volume; NaN without either."""
    if key in results.get("intervals", {}):
        return results["intervals"][key]
    head, _, leaf = key.rpartition("/")
    stem, mean, _ = leaf.partition("_mean")
    metrics, scores = results["metrics"], results.get("scores", {})
    if f"{head}/{stem}_low{mean}" in metrics:
        return [metrics[f"{head}/{stem}_{end}{mean}"] for end in ("low", "high")]
    if head not in scores:
        return math.nan, math.nan
    return drawn_interval(from_json(scores[head]), stem, mean=bool(mean))


def drawn_interval(scored: Scored, metric: str, *, mean: bool) -> tuple[float, float]:
    """95 % bootstrap interval over patients; NaN where a task has no such metric.

    Args:
        scored: of every volume.
        metric: of findings, such as "auroc"; or the name of a task of values.
        mean: over all tasks that have this metric, and in which it is defined; else of the task of that name.
    """
    tasks = {
        name: one
        for name, one in scored.tasks.items()
        if (task_metrics.metric_of(one, metric) if mean else name) == metric
    }
    weights = draw_patients(scored.patients, DRAWS, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # draws in which no task is defined
        drawn = [
            task_metrics.drawn(task, task_metrics.metric_of(task, metric), weights[:, task.rows])
            for task in tasks.values()
            if not math.isnan(task_metrics.value(task, task_metrics.metric_of(task, metric)))
        ]
        means = np.nanmean(drawn, axis=0) if drawn else np.full(DRAWS, np.nan)
        low, high = np.nanpercentile(means, [2.5, 97.5])
    return float(low), float(high)


def read_scores(out: Path) -> dict[str, dict[str, Score]]:
    """System to key of a task to score, of all systems with results."""
    found = {}
    for name in SYSTEMS:
        if not results_file(out, name).exists():
            continue
        own = json.loads(results_file(out, name).read_text())
        tuned = results_file(out, f"{name}.segmentation")
        segmented = json.loads(tuned.read_text()) if tuned.exists() else {"skipped": {}, "metrics": {}}
        found[name] = {task.key: score_of(task, segmented if task.fine_tuned else own) for task in TASKS}
    return found


def task_seconds(out: Path) -> dict[str, float]:
    """Evaluator to its mean seconds over the systems that it ran for."""
    found: dict[str, list[float]] = {}
    for file in sorted((out / "results").glob("*.json")):
        results = json.loads(file.read_text())
        for name, seconds in results.get("seconds_of", {}).items():
            if name not in results["skipped"]:
                found.setdefault(name, []).append(seconds)
    return {name: float(np.mean(seconds)) for name, seconds in found.items()}


def write_outputs(args: argparse.Namespace, clock: Stages) -> tuple[Path, Path]:
    """Write `OUT/suite.html` and `OUT/suite.json` from the results of all systems that have some.

    Returns:
        The paths of both.
    """
    from medclip_jax.shards.read import open_shards

    scores = read_scores(args.out)
    found = list(scores)
    splits = open_shards(args.out / "shards").splits
    seconds = _seconds(found, clock)
    command = f"medclip evaluate --suite {args.suite} --out {args.out}"
    command += " --short" if args.short else ""
    suite = Suite(
        systems={name: SYSTEMS[name].title for name in found},
        tasks={
            task.key: Column(task.title, task.about, task.chance, task.best, task.digits) for task in TASKS
        },
        scores=scores,
        about={SYSTEMS[name].title: _about(SYSTEMS[name], args.short) for name in found},
        seconds=seconds,
        facts={
            "scans to learn from": str(splits.get("train", 0)),
            "scans to test on": str(splits.get("test", 0)),
            "minutes, all stages": f"{sum(took for _, took in seconds.values()) / 60:.0f}",
            "seconds of a system": ", ".join(
                f"{name} {seconds:.1f}" for name, seconds in task_seconds(args.out).items()
            ),
            "peak memory": f"{clock.peak_memory_gb():.1f} GB",
            "machine": machine(),
        },
        commands=f"{command}\nmedclip evaluate --workdir {args.out}/runs/SYSTEM --config {EVALUATION}",
        notes=[
            NOT_HERE,
            "One seed, few steps, generated scans: the order of systems here says nothing of real scans or "
            "full trainings.",
            *(["--short: everything ran, nothing was learned."] if args.short else []),
        ],
    )
    content = {
        "suite": args.suite,
        "short": args.short,
        "seed": args.seed,
        "facts": suite.facts,
        "systems": {name: {"title": SYSTEMS[name].title, "config": SYSTEMS[name].config} for name in found},
        "tasks": {task.key: {"title": task.title, "about": task.about, "best": task.best} for task in TASKS},
        "scores": {
            name: {
                task: {"value": one.value, "low": one.low, "high": one.high, "reason": one.reason}
                for task, one in of.items()
            }
            for name, of in scores.items()
        },
        "seconds_of_tasks": task_seconds(args.out),
        "best": {
            task.key: [name for name, mark in suite.marks(task.key).items() if mark == "best"]
            for task in TASKS
        },
        "seconds": {name: {"planned": plan, "measured": took} for name, (plan, took) in seconds.items()},
    }
    numbers = args.out / "suite.json"
    numbers.write_text(json.dumps(defined(content), indent=1, allow_nan=False) + "\n")
    return write_suite_page(args.out / "suite.html", suite), numbers


def _about(system: System, short: bool) -> str:
    steps = "2 steps" if short else f"{system.steps} steps" if system.steps > 1 else "not trained"
    return f"{system.about}. {steps}; configs/{system.config}"


def _seconds(found: Sequence[str], clock: Stages) -> dict[str, tuple[float, float]]:
    """Stage to planned and measured seconds."""
    measured = clock.seconds()
    stages = {"phantoms and shards": (DATA_SECONDS, measured.get("phantoms", 0) + measured.get("prepare", 0))}
    for name in _with_starts(found):
        planned = {"train": SYSTEMS[name].seconds}
        if name in found:
            planned |= {"evaluate": EVALUATION_SECONDS, "segment": SEGMENTATION_SECONDS}
        for kind, seconds in planned.items():
            stages[f"{kind} {name}"] = (seconds, measured.get(f"{kind} {name}", 0))
    return stages
