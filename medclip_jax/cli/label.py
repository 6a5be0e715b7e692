"""`medclip label`: a table of your own beside a prepared set."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medclip_jax.shards.labeling import Labeling

HELP = """\
Add labels, measurements and groups of your own to a prepared set, without preparing it again.

The table has a column of ids and columns label:FINDING, measurement:NAME, group:NAME. Its rows are joined by
the hashes of their ids, checked and counted; what comes of it lies beside the shards, and changes none."""

_EPILOG = """\
examples:
  medclip label shards --table outcomes.csv --name outcomes
  medclip label shards --table labels.csv --name chexpert --absent 0        -1 is unknown there
  medclip train --config ... --config.data.tables="('outcomes',)"
  medclip evaluate --workdir runs/clip --tables outcomes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = _EPILOG
    parser.add_argument("folder", metavar="SHARDS", help="of medclip prepare")
    parser.add_argument("--table", type=Path, required=True, metavar="FILE", help="CSV, TSV or .xlsx")
    parser.add_argument("--name", required=True, help="by which configs and --tables name it")
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help="that the set was prepared with (default: SHARDS.key)"
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="FOLDER",
        help="that paths of volumes start from, as it was given to prepare",
    )
    parser.add_argument(
        "--absent",
        choices=("0", "-1"),
        help="how the table writes that a finding is absent, where it holds 0 and -1; the other is unknown",
    )
    parser.add_argument(
        "--findings", metavar="FILE", help="findings file (.toml) that defines labels of your own"
    )
    parser.add_argument("--encoding", help="of the table (default: UTF-8, or what its first bytes tell)")
    parser.add_argument("--sheet", help="of an .xlsx (default: its first)")
    parser.add_argument("--replace", action="store_true", help="in place of a table of that name")
    parser.add_argument(
        "--list-unmatched",
        type=Path,
        metavar="FILE",
        help="write every row without a volume, with its id, and every volume without a row (private)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would come of it, write nothing")


def run(args: argparse.Namespace) -> int:
    """Label.

    Raises:
        ValueError: a table, key or set that cannot be used; the message says what to do.
    """
    from medclip_jax.reports.findings_file import read_findings
    from medclip_jax.shards.keys import default_key, read_key
    from medclip_jax.shards.label_rows import read_rows
    from medclip_jax.shards.label_tables import check_name, table_file, write_label_table
    from medclip_jax.shards.labeling import count_changes, join_rows
    from medclip_jax.shards.manifest import read_manifest
    from medclip_jax.shards.read import open_shards, with_tables
    from medclip_jax.shards.record import ShardError
    from medclip_jax.shards.urls import is_url

    check_name(args.name)
    if is_url(args.folder):
        raise ShardError(
            f"'{args.folder}' lies in a store: label the folder on this machine, and publish it again"
        )
    info = open_shards(args.folder)
    if table_file(info.folder, args.name).exists() and not (args.replace or args.dry_run):
        raise ShardError(
            f"'{info.folder}' has a table {args.name!r} already: give --replace, or another --name"
        )
    key = args.key or default_key(info.folder)
    if not key.is_file():
        raise ShardError(
            f"no key file '{key}': give --key the key that the set was prepared with. Ids are hashed by it, "
            "and without it no row can be joined (a set of phantoms has a file if prepare was given --key)"
        )
    definitions = info.definitions
    if args.findings:
        definitions = definitions.updated(read_findings(args.findings))
    rows = read_rows(args.table, definitions, absent=args.absent, encoding=args.encoding, sheet=args.sheet)
    labeling = join_rows(
        rows,
        read_manifest(info.folder),
        read_key(key),
        args.name,
        root=args.root,
        definitions=definitions,
        id_rule=int(info.settings.get("id_rule", 1)),
    )
    with_tables(info, [labeling.table])  # what it refuses is refused now
    print(f"'{args.table}' on '{info.folder}'")
    for remark in (*labeling.remarks, *count_changes(info, labeling.table)):
        print(f"  {remark}")
    print(_counts(labeling))
    if args.list_unmatched:
        _list_unmatched(args.list_unmatched, labeling)
        print(
            f"{len(labeling.unmatched)} without a partner are listed in '{args.list_unmatched}'",
            file=sys.stderr,
        )
    if args.dry_run:
        print("nothing is written (--dry-run)")
        return 0
    print(f"written: {write_label_table(info.folder, labeling.table)}")
    return 0


def _counts(labeling: Labeling) -> str:
    """Of each column and split, how many volumes have a value."""
    from medclip_jax.cli.inspect import aligned

    rows = [["column", "split", "volumes with a value", "", "unknown"]]
    for name, splits in labeling.counts.items():
        for split, (known, told, unknown) in splits.items():
            rows.append([name, split, str(known), _told(name, known, told), str(unknown)])
    return aligned(rows)


def _told(name: str, known: int, told: int) -> str:
    if name.startswith("label:"):
        return f"{told} present, {known - told} absent"
    return f"{told} different"


def _list_unmatched(path: Path, labeling: Labeling) -> None:
    from medclip_jax.shards.record import ShardError

    try:
        with path.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened)
            writer.writerow(("missing", "row", "id"))
            for kind, row, one in labeling.unmatched:
                writer.writerow(("volume" if kind == "row" else "row", row, one))
    except OSError as error:
        raise ShardError(
            f"'{path}' cannot be written ({error.strerror}): give --list-unmatched a file in a folder that "
            "exists"
        ) from None
