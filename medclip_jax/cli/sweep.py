"""`medclip sweep`: one config, many values of its fields."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medclip_jax.cli.overrides import accept_overrides

if TYPE_CHECKING:
    from medclip_jax.sweeps.units import Unit

HELP = """\
Train a config with every combination of some values of its fields, here or on a cluster, and compare.

The same command again resumes: finished units are skipped, failed and stopped ones are run again."""

EPILOG = """\
examples:
  # Here, two at a time: 2 x 2 settings with 3 seeds each.
  medclip sweep --config configs/demo/contrastive.py --workdir sweeps/temperature --jobs 2 \\
      --set data.shards=shards --grid optimizer.learning_rate=1e-3,2e-3 \\
      --grid objective.target_temperature=0.05,0.1 --seeds 0,1,2

  # 1, 10 and 100 % of the patients, three seeds that draw and begin each, five folds: 45 runs.
  medclip sweep ... --grid data.subset.share=0.01,0.1,1.0 --grid seed+data.subset.seed=0,1,2 \\
      --set data.subset.folds=5 --grid data.subset.fold=0,1,2,3,4 --set evaluation.split=fold

  # Values with commas of their own, whole sections.
  medclip sweep ... --grid "objective.vision.patch=(4,4,4),(8,8,8)"

  # The same units as a SLURM array, or as workloads for xpk.
  medclip sweep ... --emit slurm
  medclip sweep ... --emit xpk

  # What came out: OUT/results.csv, OUT/results.md, OUT/results.svg.
  medclip sweep --collect sweeps/temperature --metric zero_shot/auroc_mean

any field is set for all units by --set section.field=value or --config.section.field=value
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("--config", metavar="FILE", help="Python file with get_config()")
    parser.add_argument("--workdir", metavar="OUT", help="gets a folder for each unit")
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=V,V",
        help="values of a field; as often as you like. KEY+KEY=V,V gives two fields the same values",
    )
    parser.add_argument("--seeds", metavar="N,N", help="short for --grid seed=N,N")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=V", help="one value for all units; repeatable"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--run", choices=("local",), default="local", help="run here (default)")
    how.add_argument("--emit", choices=("slurm", "xpk"), help="write a script that runs them elsewhere")
    how.add_argument("--dry-run", action="store_true", help="check everything and list the units")
    parser.add_argument("--jobs", type=int, default=1, help="units that run here at once (%(default)s)")
    parser.add_argument("--collect", metavar="OUT", help="make table and plot of a sweep's results")
    parser.add_argument("--metric", help="with --collect: a name from metrics.jsonl, or from --results")
    parser.add_argument(
        "--results",
        metavar="NAME",
        help="with --collect: a file of `medclip evaluate --json` in each unit's folder, such as fold.json",
    )
    parser.add_argument(
        "--best", choices=("highest", "lowest"), help="with --collect (highest, for losses lowest)"
    )
    # As in `medclip train`, so that a command needs only another first word and a grid.
    accept_overrides(parser, "set")


def run(args: argparse.Namespace) -> int:
    """Sweep or collect; 0 when all units are finished, listed or emitted, 1 where some are not.

    Raises:
        ValueError: arguments that do not fit together, an unknown key, a value that does not fit.
        OSError: a file that is not there.
    """
    if args.collect:
        return _collect(args)
    if not args.config or not args.workdir:
        raise ValueError("give --config FILE and --workdir OUT, or --collect OUT --metric NAME")
    from medclip_jax.sweeps import local, units

    found = units.expand(args.config, args.workdir, args.grid, settings=args.set, seeds=_numbers(args.seeds))
    _check(found, elsewhere=bool(args.dry_run or args.emit))
    if args.dry_run:
        for unit in found:
            print(unit.name)
        return 0
    units.write(found, args.workdir)
    if args.emit:
        return _emit(found, args)
    unfinished = local.run_local(found, jobs=args.jobs)
    problems = local.failures(unfinished)
    if problems:
        print(problems, file=sys.stderr)
    print(f"{len(found) - len(unfinished)} of {len(found)} units are finished in {args.workdir}")
    return 1 if unfinished else 0


def _check(units: Sequence[Unit], *, elsewhere: bool) -> None:
    """Build every unit's model from shapes, so that what would stop a run is found before any begins.

    Args:
        units: resolved.
        elsewhere: they may run where other folders are: then shards that are not here are no error.

    Raises:
        ValueError: a unit that cannot work; the message names it.
    """
    from medclip_jax.cli.check_data import of_shards
    from medclip_jax.planning.shapes import build, terms_of
    from medclip_jax.shards.urls import is_url
    from medclip_jax.training.config import to_json
    from medclip_jax.training.start import check_evaluation

    checked, missing = set(), set()
    for unit in units:
        config = unit.config
        # Runs that differ in their seed alone are built alike.
        alike = json.dumps(to_json(config) | {"seed": 0}, sort_keys=True)
        if alike in checked:
            continue
        checked.add(alike)
        if elsewhere and not is_url(config.data.shards) and not Path(config.data.shards).is_dir():
            missing.add(config.data.shards)
            continue
        try:
            data = of_shards(config)
            check_evaluation(config)
            model = build(config, data.spec, samples=data.samples)
            terms_of(model)
            if config.microbatches and model.config.batch_size % config.microbatches:
                raise ValueError(
                    f"config.batch_size={model.config.batch_size} is no multiple of config.microbatches="
                    f"{config.microbatches}"
                )
        except ValueError as error:
            raise ValueError(f"{unit.name}: {error}") from None
    for folder in sorted(missing):
        print(f"no folder {folder} here: what depends on the shards was not checked", file=sys.stderr)


def _emit(units: Sequence[Unit], args: argparse.Namespace) -> int:
    from medclip_jax.sweeps.emit import emit_slurm, emit_xpk

    script = (emit_slurm if args.emit == "slurm" else emit_xpk)(units, args.workdir)
    if script is None:
        print(f"all {len(units)} units are finished")
    elif args.emit == "slurm":
        print(f"submit: sbatch {script}")
    else:
        print(f"submit: bash {script} --cluster CLUSTER --tpu-type TYPE --docker-image IMAGE")
    return 0


def _collect(args: argparse.Namespace) -> int:
    from medclip_jax.sweeps.collect import collect, to_markdown, write_results

    if not args.metric:
        raise ValueError("--collect needs --metric: a name from metrics.jsonl, such as zero_shot/auroc_mean")
    results = collect(args.collect, args.metric, best=args.best, results=args.results)
    paths = write_results(results, args.collect)
    print(to_markdown(results))
    best = results.settings[0]
    where = ", ".join(f"{key}={json.dumps(value)}" for key, value in best.values.items()) or "the one setting"
    spread = "" if best.count == 1 else f" ± {best.deviation:.3g} over {best.count} {results.runs}"
    print(f"{results.best} {results.metric}: {best.mean:.4g}{spread} with {where}")
    print(f"written: {', '.join(map(str, paths))}")
    return 0


def _numbers(text: str | None) -> list[int]:
    try:
        return [int(number) for number in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"--seeds {text}: write whole numbers, such as 0,1,2") from None
