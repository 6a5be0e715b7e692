"""`medclip embed`: put scans and texts into the space of a trained model and compare them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

HELP = "embed scans with a trained model, compare them with texts, classify them zero-shot"

CHUNK = 16
"""Scans that are prepared before they are embedded: bounds the memory."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", metavar="MODEL", help="--workdir of medclip train")
    parser.add_argument("scans", nargs="+", metavar="SCAN", help="NIfTI, NRRD, MHA file or DICOM folder")
    parser.add_argument(
        "--text", action="append", default=[], metavar="TEXT", help="a sentence to compare with; repeatable"
    )
    parser.add_argument(
        "--findings",
        metavar="NAMES",
        help="comma-separated findings to classify (default: those of the shards; none = skip)",
    )
    parser.add_argument(
        "--center",
        nargs=3,
        type=float,
        metavar=("X", "Y", "Z"),
        help="middle of the crop in RAS mm (default: the scan's middle)",
    )
    parser.add_argument(
        "--shards", metavar="FOLDER", help="prepared folder, for a run that kept no copy of its settings"
    )
    parser.add_argument(
        "--batch-size", type=int, default=4, metavar="N", help="volumes at a time (default: 4)"
    )
    parser.add_argument("--out", metavar="FILE.npz", help="write the vectors of scans and texts")


def run(args: argparse.Namespace) -> int:
    """Embed; 0 when every scan could be read, 1 when some could not: each is listed with its reason."""
    import numpy as np

    import medclip_jax
    from medclip_jax.evaluation.results import NotEvaluable, Table
    from medclip_jax.model import prepare_all

    model = medclip_jax.load(args.model, shards=args.shards, batch_size=min(args.batch_size, len(args.scans)))
    texts, pairs = None, {}
    try:
        texts = model.embed_texts(args.text) if args.text else None
        pairs = {name: model.embed_pair(name) for name in _findings(args.findings, model)}
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    except NotEvaluable:
        # A masked autoencoder embeds volumes all the same; only what was asked for must not be dropped.
        if args.text or args.findings:
            raise

    vectors, kept, failed = [], [], {}
    for start in range(0, len(args.scans), CHUNK):
        paths = args.scans[start : start + CHUNK]
        prepared = prepare_all(model, paths, center=args.center)
        failed |= {p: v for p, v in zip(paths, prepared, strict=True) if isinstance(v, Exception)}
        good = [(p, v) for p, v in zip(paths, prepared, strict=True) if not isinstance(v, Exception)]
        if good:
            vectors.append(model.embed_volumes([volume for _, volume in good]))
            kept += [path for path, _ in good]

    if kept:
        found = np.concatenate(vectors)
        if texts is not None:
            rows = [
                (path, *(f"{cosine:+.4f}" for cosine in found[i].astype(np.float64) @ texts.T))
                for i, path in enumerate(kept)
            ]
            legend = {f"text {i + 1}": text for i, text in enumerate(args.text)}
            print(Table("Cosine to each text", ("scan", *legend), tuple(rows), legend), end="\n\n")
        if pairs:
            probabilities = model.scores(found, pairs)
            rows = [(name, *(f"{p[name]:.3f}" for p in probabilities)) for name in pairs]
            legend = {f"scan {i + 1}": path for i, path in enumerate(kept)}
            legend["score"] = f"softmax over the prompt pair, logit scale {model.logit_scale:.4g}"
            header = ("finding", *(f"scan {i + 1}" for i in range(len(kept))))
            print(Table("Zero-shot probability", header, tuple(rows), legend), end="\n\n")
        if args.out:
            _write(Path(args.out), found, kept, texts, args.text)
        print(f"{len(kept)} of {len(args.scans)} scans embedded, {found.shape[1]} numbers each")
    for path, error in failed.items():
        print(f"not read: {path}: {error}", file=sys.stderr)
    return 1 if failed else 0


def _findings(asked: str | None, model: Any) -> list[str]:
    if asked is None:
        return list(model.spec.findings)
    return [] if asked == "none" else [name.strip() for name in asked.split(",")]


def _write(path: Path, vectors: Any, scans: list[str], texts: Any, sentences: list[str]) -> None:
    import numpy as np

    content = {"volumes": vectors, "scans": np.array(scans)}
    if texts is not None:
        content |= {"texts": texts, "sentences": np.array(sentences)}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **content)
    print(f"written: {path}")
