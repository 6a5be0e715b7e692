"""`medclip evaluate`: score a trained model on a split."""

from __future__ import annotations

import argparse
import ast
import json
import math
from pathlib import Path
from typing import Any

HELP = (
    "score a trained model on a split: zero-shot, retrieval, ordinal grades, uncertainty, token spectra, "
    "linear probe"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--workdir", required=True, metavar="FOLDER", help="of medclip train")
    parser.add_argument("--shards", metavar="FOLDER", help="prepared folder (default: that of the run)")
    parser.add_argument(
        "--other-grid",
        action="store_true",
        help="score on volumes of another shape, spacing, crop or modality than the training's",
    )
    parser.add_argument("--split", default="test", help='e.g. test or "validation[:500]" (default: test)')
    parser.add_argument(
        "--evaluators",
        metavar="NAMES",
        help="comma-separated: zero_shot,retrieval,ordinal,uncertainty,spectrum,grounding,masked_words,"
        "organs,reconstruction,views,library,probe,few_shot,mlp_probe "
        "(default: those of the run's config, else all but the last three, which embed train, too)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="EVALUATOR.SETTING=VALUE",
        help="change a setting, e.g. zero_shot.threshold=validation, probe.baseline=random",
    )
    parser.add_argument(
        "--findings",
        metavar="FILE",
        help="a findings file (.toml), whose prompts are used instead of those that the shards were prepared "
        "with",
    )
    parser.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="volumes at a time (default: 8)"
    )
    parser.add_argument("--page", metavar="FILE", help="write an HTML page with tables and curves")
    parser.add_argument("--json", metavar="FILE", help="write all numbers as JSON")


def run(args: argparse.Namespace) -> int:
    """Evaluate; 0 when at least one evaluator ran, 1 when none could.

    Raises:
        ValueError: an evaluator, a setting or a split that is not there; found before anything is loaded.
        FileNotFoundError: no model, no shards.
    """
    if args.batch_size < 1:
        raise ValueError(f"--batch-size {args.batch_size}: give 1 or more")
    from medclip_jax.evaluation.settings import USUAL, check_evaluators
    from medclip_jax.inference.load import find_model

    folder = find_model(args.workdir)
    written = _written_config(folder)
    configured = written.get("evaluation", {}).get("evaluators", {})
    names = args.evaluators.split(",") if args.evaluators else list(configured) or USUAL
    plan = {name.strip(): dict(configured.get(name.strip(), {})) for name in names}
    for override in args.set:
        _apply(plan, override)
    check_evaluators(plan)
    shards = args.shards or written.get("data", {}).get("shards", "")
    if not shards:
        raise ValueError(f"{args.workdir} names no shards: give a folder of `medclip prepare` with --shards")
    definitions = _definitions(args, shards)
    _check_shards(shards, args.split, plan, definitions)

    from medclip_jax.evaluation.run import evaluate_all

    model = _load(args, folder, shards)
    evaluation = evaluate_all(
        model.embedder,
        plan,
        shards=shards,
        split=args.split,
        definitions=definitions,
    )
    print(evaluation)
    if args.json:
        _write_json(Path(args.json), evaluation)
    if args.page:
        from medclip_jax.pages.evaluation import write_evaluation_page

        write_evaluation_page(args.page, evaluation, model.config)
    return 0 if evaluation.results else 1


def _written_config(folder: Path) -> dict[str, Any]:
    """What `config.json` of a workdir or an exported folder says; {} where there is none."""
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}


def _load(args: argparse.Namespace, folder: Path, shards: str) -> Any:
    """The model, refused where the shards hold volumes of another kind than its training's."""
    import medclip_jax
    from medclip_jax.shards.grid import refuse_other_kind, volume_kind
    from medclip_jax.shards.read import open_shards
    from medclip_jax.weights.exported import is_export

    if not is_export(folder):
        return medclip_jax.load(
            folder, step=args.step, shards=shards, other_grid=args.other_grid, batch_size=args.batch_size
        )
    model = medclip_jax.load(folder, step=args.step, batch_size=args.batch_size)
    kind = volume_kind(open_shards(shards))
    if not args.other_grid:
        refuse_other_kind(model.volume_kind, kind, f"the volumes in {shards}")
    if kind["shape"] != model.spec.shape:
        raise ValueError(
            f"an exported model is built for {model.spec.shape} voxels: give its workdir instead"
        )
    return model


def _definitions(args: argparse.Namespace, shards: str) -> Any:
    """The findings that are known: the shards', and those of the file that is given."""
    from medclip_jax.reports.findings_file import read_findings
    from medclip_jax.shards.read import open_shards

    known = open_shards(shards).definitions
    return known.updated(read_findings(args.findings)) if args.findings else known


def _check_shards(shards: str, split: str, plan: dict[str, dict[str, Any]], definitions: Any) -> None:
    from medclip_jax.evaluation.settings import check_shards
    from medclip_jax.shards.read import check_split, open_shards

    info = open_shards(shards)
    check_split(info, split)
    check_shards(plan, info, split, definitions)


def _apply(plan: dict[str, dict[str, Any]], override: str) -> None:
    name, _, value = override.partition("=")
    evaluator, _, setting = name.partition(".")
    if not setting or not value or evaluator not in plan:
        raise ValueError(
            f"--set {override}: write EVALUATOR.SETTING=VALUE with one of {', '.join(plan)} as EVALUATOR"
        )
    try:
        plan[evaluator][setting] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        plan[evaluator][setting] = value


def _write_json(path: Path, evaluation: Any) -> None:
    # JSON has no NaN: what is undefined becomes null.
    values = {k: v if math.isfinite(v) else None for k, v in evaluation.metrics().items()}
    content = {
        "split": evaluation.split,
        "volumes": evaluation.count,
        "seconds": round(evaluation.seconds, 3),
        "metrics": values,
        "conditions": {name: dict(result.conditions) for name, result in evaluation.results.items()},
        "skipped": dict(evaluation.skipped),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
