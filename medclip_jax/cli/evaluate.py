"""`medclip evaluate`: score a trained model on a split."""

from __future__ import annotations

import argparse
import ast
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medclip_jax.evaluation.training_set import TrainingSet
    from medclip_jax.shards.read import PreparedInfo

HELP = (
    "score a trained model on a split: zero-shot, retrieval, ordinal grades, uncertainty, token spectra, "
    "linear probe"
)

_EPILOG = """\
examples:
  medclip evaluate --workdir runs/clip --split test --page evaluation.html
  medclip evaluate --workdir runs/clip --config configs/evaluation/classification.py --json numbers.json
  medclip evaluate --model exported/ --shards shards --config mine.py
  medclip evaluate --suite phantom --out medclip-suite          all systems and tasks on generated scans
  medclip evaluate --protocol list                              named protocols, a line each
  medclip evaluate --workdir runs/clip --protocol ct_rate/mean7,ct_rate/retrieval --json numbers.json
  medclip evaluate --workdir runs/clip --protocol ct_rate/mean7 --set ct_rate/mean7.threshold=validation
  medclip evaluate --workdir runs/clip --shards theirs --train-shards ours --evaluators probe
  medclip compare a.json b.json                                 two such files, volume by volume

A file for --config, so that several models are scored alike; options change what it says. Those that came
with the package:
  configs/evaluation/{classification,pointing,prognosis,representation,retrieval,segmentation,subgroups,
  suite,vocabulary}.py.

  from medclip_jax.evaluation.config import evaluation_config

  def get_config():
      config = evaluation_config()                # its keys, each with a comment
      config.split = "test"
      config.evaluators = {                       # settings: docs/reference/metrics.md
          "zero_shot": {"threshold": "validation"},
          "probe": {"shares": (0.01, 0.1, 1.0), "baseline": "random"},
      }
      config.protocols = ()                       # or ("ct_rate/mean7",)
      return config
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EPILOG
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--workdir", metavar="FOLDER", help="of medclip train")
    model.add_argument(
        "--model",
        dest="workdir",
        metavar="FOLDER",
        help="of medclip export, or its hub id, instead of a workdir: give --shards with it",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="Python file with evaluators, their settings, split and shards; see below",
    )
    parser.add_argument("--shards", metavar="FOLDER", help="prepared folder (default: that of the run)")
    parser.add_argument(
        "--other-grid",
        action="store_true",
        default=None,
        help="score on volumes of another shape, spacing, crop or modality than the training's",
    )
    parser.add_argument("--split", help='e.g. test or "validation[:500]" (default: test)')
    parser.add_argument(
        "--fold",
        action="store_true",
        help="score on the fold that the run's config.data.subset holds out, or that of --subset",
    )
    parser.add_argument(
        "--subset",
        metavar="NAME=VALUE,...",
        help="what of the train split is learned from, instead of what the run did: share=0.1,seed=1 or "
        "folds=5,fold=0,by=cardiomegaly; none for all of it",
    )
    parser.add_argument(
        "--tables",
        metavar="NAMES",
        help="comma-separated: labels of your own that medclip label put beside the shards (default: those "
        "of the run, on its own shards; none for none)",
    )
    parser.add_argument(
        "--train-shards",
        metavar="FOLDER",
        help="external validation: another prepared folder, whose train and validation splits evaluators "
        "learn from and choose on, while those of --shards are scored",
    )
    parser.add_argument(
        "--label-map",
        metavar="FILE",
        help="with --train-shards: a .toml file that says which of its labels is which of the scored set's, "
        "or a label set such as rad_chest_standard for both (default: those of the same name)",
    )
    parser.add_argument(
        "--evaluators",
        metavar="NAMES",
        help="comma-separated: zero_shot,retrieval,ordinal,uncertainty,spectrum,grounding,masked_words,"
        "organs,reconstruction,views,segmentation,library,prediction,pointing,volume_retrieval,probe,"
        "class_probe,knn,few_shot,mlp_probe,vocabulary,prognosis,subgroups (default: those of --config or of "
        "the run's config, else all but pointing and what follows; the probes embed train, too)",
    )
    parser.add_argument(
        "--protocol",
        metavar="NAMES",
        help="comma-separated named protocols, such as ct_rate/mean7,ct_rate/retrieval, instead of "
        "evaluators with settings of your own; list shows all",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="EVALUATOR.SETTING=VALUE",
        help="change a setting, e.g. zero_shot.threshold=validation, probe.baseline=random. Of a protocol, "
        "ct_rate/mean7.threshold=validation, or zero_shot.threshold=validation for all of that kind; what "
        "was changed is stated beside the numbers",
    )
    parser.add_argument(
        "--findings",
        metavar="FILE",
        help="a findings file (.toml), whose prompts are used instead of those that the shards were prepared "
        "with",
    )
    parser.add_argument(
        "--step",
        type=int,
        help="which checkpoint (default: the best, where the run looked for it, else the newest)",
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="volumes at a time (default: 8)")
    parser.add_argument(
        "--cache",
        metavar="FOLDER",
        help="keep the features of volumes there: the next evaluation of the same model on the same split "
        "takes them from there, and one that was interrupted goes on where it stopped",
    )
    parser.add_argument("--page", metavar="FILE", help="write an HTML page with tables and curves")
    parser.add_argument("--json", metavar="FILE", help="write all numbers as JSON")
    suite = parser.add_argument_group(
        "a suite",
        "trains small models of all systems on generated scans, runs every task, and writes OUT/suite.html "
        "and OUT/suite.json; planned for half an hour on two CPU cores. Run again to resume after an "
        "interruption",
    )
    suite.add_argument("--suite", choices=("phantom",), help="which suite")
    suite.add_argument(
        "--systems", metavar="NAMES", help="comma-separated, such as random,cardiac_clip (default: all)"
    )
    suite.add_argument("--out", type=Path, metavar="FOLDER", help="to write (default: medclip-suite)")
    suite.add_argument("--short", action="store_true", help="two steps on few scans: everything runs")
    suite.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (one for each core)")
    suite.add_argument("--seed", type=int, default=0, help="of scans and trainings (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Evaluate; 0 when at least one evaluator ran, 1 when none could.

    Raises:
        ValueError: an evaluator, a setting or a split that is not there; found before anything is loaded.
        FileNotFoundError: no model, no shards.
    """
    if args.protocol == "list":
        from medclip_jax.evaluation.presets import listing

        print(listing())
        return 0
    if args.suite:
        from medclip_jax.cli import suite

        for name in ("workdir", "config", "evaluators", "protocol", "shards"):
            if getattr(args, name):
                raise ValueError(f"--suite has its own models, shards and tasks: leave out --{name}")
        return suite.run(args)
    if not args.workdir:
        raise ValueError(
            "which model? Give the folder of `medclip train` with --workdir, or an exported one with --model"
        )
    from medclip_jax.cli.evaluation_config import fill_options
    from medclip_jax.shards.subset import FOLD

    if args.fold and args.split:
        raise ValueError(f"--fold and --split {args.split}: the fold is a split itself, leave one out")
    args.split = FOLD if args.fold else args.split
    told = fill_options(args)
    if args.batch_size < 1:
        raise ValueError(f"--batch-size {args.batch_size}: give 1 or more")
    from medclip_jax.evaluation.presets import described, find_protocols, plan_of, published_table
    from medclip_jax.evaluation.settings import USUAL, check_evaluators
    from medclip_jax.inference.load import find_model

    folder = find_model(args.workdir)
    written = _written_config(folder)
    configured = told or written.get("evaluation", {}).get("evaluators", {})
    chosen = find_protocols(args.protocol) if args.protocol else ()
    usual = list(told) if chosen else list(configured) or USUAL
    names = args.evaluators.split(",") if args.evaluators else usual
    plan = {name.strip(): dict(configured.get(name.strip(), {})) for name in names} | plan_of(chosen)
    for override in args.set:
        _apply(plan, override)
    check_evaluators(plan)
    shards = args.shards or written.get("data", {}).get("shards", "")
    if not shards:
        raise ValueError(f"{args.workdir} names no shards: give a folder of `medclip prepare` with --shards")
    info = _open(args, folder, written, shards)
    definitions = _definitions(args, info)
    training_set = _training_set(args, info)
    _check_shards(info, args.split, plan, definitions, training_set)

    from medclip_jax.evaluation.feature_cache import FeatureCache
    from medclip_jax.evaluation.result_file import write_results
    from medclip_jax.evaluation.run import evaluate_all

    cache = FeatureCache(args.cache) if args.cache else None
    model = _load(args, folder, shards)
    evaluation = evaluate_all(
        model.embedder,
        plan,
        shards=info,
        split=args.split,
        definitions=definitions,
        protocols=described(chosen, plan),
        cache=cache,
        training_set=training_set,
    )
    learned = info if training_set is None else training_set.info
    if learned.subset is not None:
        print(f"learned from: {learned.subset}\n")
    print(evaluation)
    if cache is not None:
        print(f"\n{cache.described()}")
    if reason := _flattered(args, args.split, written):
        print(f"\n{reason}")
    if published := published_table(chosen):
        print(f"\n{published}")
    if args.json:
        write_results(args.json, evaluation, plan, chosen, subset=learned.subset)
    if args.page:
        from medclip_jax.pages.evaluation import write_evaluation_page

        write_evaluation_page(args.page, evaluation, model.config, published=published)
    return 0 if evaluation.results else 1


def _written_config(folder: Path) -> dict[str, Any]:
    """What `config.json` of a workdir or an exported folder says; {} where there is none."""
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}


def _open(args: argparse.Namespace, folder: Path, written: dict[str, Any], shards: str) -> PreparedInfo:
    """The set, with the rows that evaluators learn from, and the tables that are laid over it.

    Both are what the run had, if it learned from this set and no other is asked for.
    """
    from medclip_jax.cli.overrides import named_values
    from medclip_jax.shards.read import SETTINGS_FILE, open_shards
    from medclip_jax.shards.subset import Subset

    info, data = open_shards(shards), written.get("data", {})
    kept = (folder / SETTINGS_FILE).is_file()
    own = kept and open_shards(folder).fingerprint == info.fingerprint
    given = dict(data.get("subset", {})) if own else {}
    if args.subset == "none":
        given = {}
    elif args.subset:
        given |= named_values(args.subset, Subset, "--subset")
    split = data.get("train_split", "train") if own else "train"
    tables = data.get("tables", ()) if own else ()
    if args.tables:
        tables = [] if args.tables == "none" else [name.strip() for name in args.tables.split(",")]
    subset = Subset.of({"train_split": split, "subset": given})
    return open_shards(shards, subset=subset, tables=tables)


def _training_set(args: argparse.Namespace, info: PreparedInfo) -> TrainingSet | None:
    """The other set that evaluators learn from, if there is one; checked against the scored one.

    Raises:
        ValueError: both do not go together, or there is a label map for none.
    """
    from medclip_jax.cli.overrides import named_values
    from medclip_jax.evaluation.training_set import LabelMap, TrainingSet, read_label_map
    from medclip_jax.shards.read import open_shards
    from medclip_jax.shards.subset import Subset

    if not args.train_shards:
        if args.label_map:
            raise ValueError("--label-map goes with --train-shards: the set whose labels it names")
        return None
    given = {}
    if args.subset and args.subset != "none":
        given = named_values(args.subset, Subset, "--subset")
    subset = Subset.of({"train_split": "train", "subset": given})
    labels = read_label_map(args.label_map) if args.label_map else LabelMap()
    found = TrainingSet(open_shards(args.train_shards, subset=subset), labels)
    if found.info.fingerprint == info.fingerprint:
        raise ValueError(f"--train-shards {args.train_shards} is the scored set itself: leave it out")
    found.check(info, other_grid=args.other_grid)
    return found


def _flattered(args: argparse.Namespace, split: str, written: dict[str, Any]) -> str:
    """Why numbers of this split are better than those of any other would be; "" where they are not."""
    evaluation = written.get("evaluation", {})
    metric = evaluation.get("best", {}).get("metric", "")
    if not metric or args.step is not None or split.partition("[")[0] != evaluation.get("split"):
        return ""
    return (
        f"The checkpoint was chosen by {metric} on {evaluation['split']!r}, the split that is scored: these "
        "numbers are flattered. Quote those of another split."
    )


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


def _definitions(args: argparse.Namespace, info: PreparedInfo) -> Any:
    """The findings that are known: the shards', and those of the file that is given."""
    from medclip_jax.reports.findings_file import read_findings

    known = info.definitions
    return known.updated(read_findings(args.findings)) if args.findings else known


def _check_shards(
    info: PreparedInfo,
    split: str,
    plan: dict[str, dict[str, Any]],
    definitions: Any,
    training_set: TrainingSet | None,
) -> None:
    from medclip_jax.evaluation.settings import check_shards
    from medclip_jax.shards.read import check_split

    check_split(info, split)
    learned = None if training_set is None else training_set.info
    check_shards(plan, info, split, definitions, learned)


def _apply(plan: dict[str, dict[str, Any]], override: str) -> None:
    name, _, value = override.partition("=")
    evaluator, _, setting = name.partition(".")
    meant = [one for one in plan if one == evaluator]
    # A kind stands for all of it, unless an evaluator goes by that name.
    meant = meant or [one for one, settings in plan.items() if settings.get("kind", one) == evaluator]
    if not setting or not value or not meant:
        raise ValueError(
            f"--set {override}: write EVALUATOR.SETTING=VALUE with one of {', '.join(plan)} as EVALUATOR"
        )
    for one in meant:
        try:
            plan[one][setting] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            plan[one][setting] = value
