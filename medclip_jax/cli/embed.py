"""`medclip embed`: put scans and texts into the space of a trained model and compare them."""

from __future__ import annotations

import argparse
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from medclip_jax.inference.model import Model
    from medclip_jax.inference.scans import Entry
    from medclip_jax.inference.table import Failure, Row

HELP = "embed scans with a trained model, compare them with texts, classify them zero-shot"

EPILOG = """\
examples:
  medclip embed runs/clip scan.nii.gz --text "There is cardiomegaly."
  medclip embed runs/clip archive/ "more/**/*.nrrd" --out embeddings.parquet
  medclip embed runs/clip --list scans.csv --out embeddings.parquet
  medclip embed runs/cmr_clip studies/ --out embeddings.parquet   # folders with cine_sa.nii.gz, lge_sa/, ...

With --out, the same command resumes where an earlier one was stopped, and tries the files again that could
not be read. Read the result with pandas.read_parquet("embeddings.parquet").
Exit code: 0 all scans were read, 1 some were not, 2 none was, or the arguments are wrong.
"""

PRINTED = 16
"""Scans that are shown as a table where the vectors go to a file."""

UNWRITTEN = 64
"""Scans that may be embedded without a file to write to."""

LISTED = 20
"""Failures that are listed where all of them go to a file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = EPILOG
    _allow_any_order(parser)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="--workdir of medclip train, folder of medclip export, or hf://owner/name on the hub",
    )
    parser.add_argument(
        "scans",
        nargs="*",
        metavar="FILES",
        help="NIfTI, NRRD, MHA files, DICOM folders, folders to search for them, patterns in quotes; for a "
        "model of frames, folders of studies, whose files or folders are named as series",
    )
    parser.add_argument(
        "--list",
        metavar="FILE",
        help="scans to embed as well: text with one path a line, or CSV with the column volume and, if "
        "wanted, id and center_x, center_y, center_z; for a model of frames, a table with a row for each "
        "series (docs/how-to/cardiac-mr.md)",
    )
    parser.add_argument(
        "--root", metavar="FOLDER", help="where relative paths of --list start (default: the list's folder)"
    )
    parser.add_argument(
        "--text", action="append", default=[], metavar="TEXT", help="a sentence to compare with; repeatable"
    )
    parser.add_argument(
        "--findings",
        metavar="LIST",
        help="comma-separated findings to classify: names, and findings files of your own (.toml) (default: "
        "those of the shards; none = skip)",
    )
    parser.add_argument(
        "--center",
        nargs=3,
        type=float,
        metavar=("X", "Y", "Z"),
        help="middle of the crop in RAS mm, for scans without one in --list (default: the scan's middle)",
    )
    parser.add_argument(
        "--kernel",
        metavar="NAME",
        help="of DICOM, one series an examination, of this kernel: soft, medium, sharp, or a name as 'B3*'",
    )
    parser.add_argument(
        "--series-rule",
        choices=("all", "best", "largest", "thinnest", "original"),
        default="all",
        help="of DICOM, which series of an examination are scans: docs/reference/volumes.md (%(default)s)",
    )
    parser.add_argument("--out", metavar="FILE.parquet", help="write the vectors; needed for many scans")
    parser.add_argument("--restart", action="store_true", help="discard what an earlier run left at --out")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that read and decode (default: one for each core)"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="volumes at a time (default: 1 on a CPU, else 4)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="compute in this precision")
    parser.add_argument(
        "--step", type=int, help="which checkpoint of a workdir (default: the best or newest)"
    )
    parser.add_argument(
        "--shards", metavar="FOLDER", help="prepared folder, for a run that kept no copy of its settings"
    )


def run(args: argparse.Namespace) -> int:
    """Embed; 0 when every scan could be read, 1 when some could not, 2 when none could."""
    from medclip_jax.inference.load import load
    from medclip_jax.pool import available_cores

    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers {args.workers}: it must be 1 or more")
    args.workers = available_cores() if args.workers is None else args.workers
    if not args.scans and args.list is None:
        raise ValueError("no scan was given: name files or folders, or a --list")
    model = load(
        args.model,
        step=args.step,
        shards=args.shards,
        batch_size=args.batch_size,
        dtype=args.dtype,
    )
    entries = (_studies if model.reads_studies else _scans)(model, args)
    if not entries:
        raise ValueError("no scan was given: name files or folders, or a --list")
    if not args.out and len(entries) > UNWRITTEN:
        raise ValueError(f"{len(entries)} scans: write their vectors to a file, --out embeddings.parquet")
    model.batch_size = min(model.batch_size, len(entries))
    columns = _Columns(model, args)
    rows, failures = (_to_file if args.out else _in_memory)(model, entries, columns, args)
    embedded = len(entries) - len(failures)
    if rows:
        columns.show(rows)
        print(f"{embedded} of {len(entries)} scans embedded, {len(rows[0].vector)} numbers each")
    elif embedded:
        print(f"{embedded} of {len(entries)} scans embedded")
    _list(failures, args.out)
    if not embedded:
        return 2
    return 1 if failures else 0


def _scans(model: Model, args: argparse.Namespace) -> list[Entry]:
    from medclip_jax.inference.scans import Selection, find_scans

    left_out: Counter[str] = Counter()
    rule = None if args.series_rule == "all" else args.series_rule
    entries = find_scans(
        args.scans,
        list_file=args.list,
        root=args.root,
        selection=Selection(args.kernel, rule),
        workers=args.workers,
        left_out=left_out,
    )
    if left_out:
        told = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common())
        print(f"left out, because it is no volume or was not requested: {told}", file=sys.stderr)
    return entries


def _studies(model: Model, args: argparse.Namespace) -> list[Entry]:
    from medclip_jax.inference.studies import find_studies

    for name, given in (("center", args.center), ("kernel", args.kernel)):
        if given is not None:
            raise ValueError(f"--{name} is of scans, and this model reads studies of several series")
    names = [series.name for series in model.preparation.wanted]
    return find_studies(args.scans, names=names, list_file=args.list, root=args.root)


def _allow_any_order(parser: argparse.ArgumentParser) -> None:
    """Let files stand after options, too: argparse takes an optional list of them only in one place."""
    plain = parser.parse_known_args

    def parse(args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        parser.parse_known_args = plain
        return parser.parse_known_intermixed_args(args, namespace)

    parser.parse_known_args = parse


class _Columns:
    """What follows from vectors: probabilities and cosines.

    Raises:
        ValueError: an unknown finding, or texts for a model that has none.
    """

    def __init__(self, model: Model, args: argparse.Namespace):
        from medclip_jax.evaluation.results import NotEvaluable
        from medclip_jax.evaluation.similarity import means

        self.model, self.sentences = model, args.text
        self.texts, self.pairs = None, {}
        try:
            self.texts = means(model.embed_texts(args.text)) if args.text else None
            self.pairs = {name: model.embed_pair(name) for name in _findings(args.findings, model)}
        except KeyError as error:
            raise ValueError(error.args[0]) from None
        except NotEvaluable:
            # A masked autoencoder embeds volumes all the same; only what was requested must not be dropped.
            if args.text or args.findings:
                raise

    def cosines(self, vectors: np.ndarray) -> np.ndarray:
        """(N, texts) float64."""
        return vectors.astype(float) @ self.texts.astype(float).T

    def __call__(self, vectors: np.ndarray) -> Mapping[str, Sequence[float]]:
        """Columns of the file."""
        scores = self.model.scores(vectors, self.pairs)
        columns = {f"probability:{name}": [score[name] for score in scores] for name in self.pairs}
        if self.texts is not None:
            columns |= dict(
                zip((f"cosine:{text}" for text in self.sentences), self.cosines(vectors).T, strict=True)
            )
        return columns

    def show(self, rows: Sequence[Row]) -> None:
        """Print tables for a few scans."""
        import numpy as np

        from medclip_jax.evaluation.results import Table

        found = np.stack([row.vector for row in rows])
        names = [row.entry.scan for row in rows]
        if self.texts is not None:
            cells = [
                (name, *(f"{cosine:+.4f}" for cosine in cosines))
                for name, cosines in zip(names, self.cosines(found), strict=True)
            ]
            legend = {f"text {i + 1}": text for i, text in enumerate(self.sentences)}
            print(Table("Cosine to each text", ("scan", *legend), tuple(cells), legend), end="\n\n")
        if self.pairs:
            scores = self.model.scores(found, self.pairs)
            cells = [(name, *(f"{score[name]:.3f}" for score in scores)) for name in self.pairs]
            legend = {f"scan {i + 1}": name for i, name in enumerate(names)}
            legend["score"] = f"softmax over the prompt pair, logit scale {self.model.logit_scale:.4g}"
            header = ("finding", *(f"scan {i + 1}" for i in range(len(rows))))
            print(Table("Zero-shot probability", header, tuple(cells), legend), end="\n\n")


def _in_memory(
    model: Model, entries: Sequence[Entry], columns: _Columns, args: argparse.Namespace
) -> tuple[list[Row], list[Failure]]:
    from medclip_jax.inference.table import Row

    rows: list[Row] = []
    failures: list[Failure] = []
    for outcome in _outcomes(model, entries, range(len(entries)), args):
        (rows if isinstance(outcome, Row) else failures).append(outcome)
    return rows, failures


def _to_file(
    model: Model, entries: Sequence[Entry], columns: _Columns, args: argparse.Namespace
) -> tuple[list[Row], list[Failure]]:
    """The rows only where they are few enough to be printed."""
    from medclip_jax.inference.archive import describe_origin
    from medclip_jax.inference.table import Row, Table

    rows: list[Row] = []
    failures: list[Failure] = []
    with (
        Table(
            args.out, describe_origin(model, args.center, args.kernel, _rule(args)), restart=args.restart
        ) as table,
        _stoppable(),
    ):
        table.check_all_wanted(entries)
        todo = [index for index, entry in enumerate(entries) if not table.is_done(entry)]
        if len(todo) < len(entries):
            print(f"{len(entries) - len(todo)} of {len(entries)} scans were embedded before")
        try:
            for outcome in _outcomes(model, entries, todo, args):
                if isinstance(outcome, Row):
                    table.add(outcome)
                    rows += [outcome] if len(entries) <= PRINTED else []
                else:
                    failures.append(outcome)
            written = table.merge(entries, columns)
            table.write_failures(failures)
        except KeyboardInterrupt:
            print(f"\nstopped: the same command resumes from what {table.parts} holds", file=sys.stderr)
            raise
    if written:
        print(f"written: {table.out}, {written} rows")
    return rows if len(rows) == len(entries) - len(failures) else [], failures


def _outcomes(
    model: Model, entries: Sequence[Entry], todo: Sequence[int], args: argparse.Namespace
) -> Iterator[Row | Failure]:
    """Embed, with a bar."""
    from medclip_jax.inference.archive import embed_scans
    from medclip_jax.inference.table import Failure
    from medclip_jax.progress import track

    outcomes = embed_scans(
        model, entries, todo, center=args.center, kernel=args.kernel, rule=_rule(args), workers=args.workers
    )
    failed = 0
    with track(total=len(entries), initial=len(entries) - len(todo), label="embed", unit="scan") as bar:
        try:
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    failed += 1
                    bar.note(f"{failed} failed")
                bar.update()
                yield outcome
        finally:
            outcomes.close()


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM, from a batch system, stops like Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _rule(args: argparse.Namespace) -> str:
    """By which one of several series in a folder is taken, where one must be."""
    return "best" if args.series_rule == "all" else args.series_rule


def _list(failures: Sequence[Failure], out: str | None) -> None:
    shown = failures[:LISTED] if out else failures
    for failure in shown:
        print(f"not read: {failure.entry.scan}: {failure.reason}", file=sys.stderr)
    if len(shown) < len(failures):
        print(f"... and {len(failures) - len(shown)} more", file=sys.stderr)


def _findings(asked: str | None, model: Any) -> Sequence[str]:
    """Names of what to classify; what a findings file defines, the model then knows."""
    from medclip_jax.reports.findings_file import choose_findings

    if asked is None:
        return model.spec.findings
    if asked == "none":
        return ()
    names, model.definitions = choose_findings(asked.split(","), model.definitions)
    return names
