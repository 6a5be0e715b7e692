"""`medclip compare`: results on the same volumes, with intervals of the differences and tests."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medclip_jax.evaluation.compared_files import System

HELP = "compare results of `medclip evaluate --json`, two or more, on the volumes that they share"

_EPILOG = """\
examples:
  medclip evaluate --workdir runs/a --protocol ct_rate/mean7 --json a.json
  medclip evaluate --workdir runs/b --protocol ct_rate/mean7 --json b.json
  medclip compare a.json b.json --page difference.html
  medclip compare a.json b.json c.json --reference c --metric average_precision --json differences.json
  medclip compare --group clip=clip0.json,clip1.json,clip2.json --group mae=mae0.json,mae1.json,mae2.json
  medclip compare a.json a.json --evaluator zero_shot ct_rate/mean7      two wordings for one model

All systems are compared with the reference. Intervals: patients are drawn with replacement, the same for all.
p: patients' scores are exchanged between both, which would change nothing if the models were alike. "p,
patients" (tasks, runs): Wilcoxon's signed ranks. Holm: the p before it, corrected for all tests of its kind.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EPILOG
    parser.add_argument(
        "files", nargs="*", metavar="FILE.json", help="of medclip evaluate --json, each a system of its own"
    )
    parser.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="NAME=FILES",
        help="comma-separated files of the runs of one system, such as other seeds; their mean is compared, "
        "and runs are paired in this order. Repeat for each system",
    )
    parser.add_argument(
        "--reference",
        metavar="NAME",
        help="the system that the others are compared with (default: the first)",
    )
    parser.add_argument(
        "--metric",
        default="auroc",
        metavar="NAMES",
        help="comma-separated, of findings: auroc, average_precision, accuracy, balanced_accuracy, "
        "sensitivity, specificity, precision, f1, weighted_f1 (default: auroc)",
    )
    parser.add_argument(
        "--evaluator",
        nargs="+",
        default=[],
        metavar="NAME",
        help="which of the files' evaluators, by one name for all systems or one for each, such as "
        "probe/100%% (default: all that all have)",
    )
    parser.add_argument("--draws", type=int, default=10_000, help="of the bootstrap (default: 10000)")
    parser.add_argument(
        "--permutations", type=int, default=2_000, help="exchanges of patients (default: 2000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of both (default: 0)")
    parser.add_argument("--json", metavar="FILE", help="write all differences as JSON")
    parser.add_argument("--page", metavar="FILE", help="write an HTML page with tables and forest plots")
    parser.add_argument("--picture", metavar="FILE.svg", help="write the forest plots alone, as SVG")


def run(args: argparse.Namespace) -> int:
    """Compare; 0.

    Raises:
        ValueError: files that do not go together, or an unknown metric; the message says what to do.
        OSError: a file cannot be read.
    """
    from medclip_jax.evaluation.compared_files import match, read_systems, shared_evaluators
    from medclip_jax.evaluation.compared_tables import compare_systems, tasks_table
    from medclip_jax.evaluation.task_metrics import OF_FINDINGS

    wanted = [name.strip() for name in args.metric.split(",") if name.strip()]
    if not wanted or set(wanted) - set(OF_FINDINGS):
        raise ValueError(f"--metric {args.metric}: use some of {', '.join(OF_FINDINGS)}")
    systems = read_systems(args.files, args.group)
    names = [system.name for system in systems]
    reference = args.reference or names[0]
    if reference not in names:
        raise ValueError(f"--reference {reference}: the systems are {', '.join(names)}")
    how = {
        "systems": "; ".join(f"{one.name}: {_files(one)}" for one in systems),
        "reference": f"{reference}; a difference is a system's value less the reference's",
        "interval": f"95 % bootstrap of the difference over patients, {args.draws} draws, seed {args.seed}",
        "p": f"two-sided, {args.permutations} exchanges of patients between both, or all if those are fewer",
        "p, patients": "two-sided signed ranks of what each patient adds to the metric",
    }
    compared = []
    for evaluators in shared_evaluators(systems, args.evaluator):
        compared += compare_systems(
            " | ".join(dict.fromkeys(evaluators)),
            match(systems, evaluators),
            names,
            reference,
            wanted,
            draws=args.draws,
            permutations=args.permutations,
            seed=args.seed,
            progress=True,
        )
    tables = [one.table(how) for one in compared]
    over = tasks_table(
        compared,
        {
            "mean difference": "interval of patients and tasks drawn",
            "p, tasks": "two-sided signed ranks of the tasks' differences; tasks share their patients, so "
            "that they are less independent than the test takes them to be",
        },
    )
    tables += [over] if over else []
    print("\n\n".join(map(str, tables)))
    if args.json:
        written = {one.title: one.plain() for one in compared}
        path = Path(args.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"conditions": how, "differences": written}, indent=1) + "\n")
    if args.page or args.picture:
        from medclip_jax.pages.comparison import forest_plot, write_comparison_page
        from medclip_jax.pages.html import to_svg

        if args.page:
            write_comparison_page(args.page, compared, tables, over)
        if args.picture:
            path = Path(args.picture)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(to_svg(forest_plot(compared)))
    return 0


def _files(system: System) -> str:
    return ", ".join(str(file.path) for file in system.files)
