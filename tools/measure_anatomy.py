"""Precision, recall and F1 of the anatomy rules against a table of region sentences.

    python tools/measure_anatomy.py --table radgenome_region_sentences_200.csv --half report

The table has RadGenome-ChestCT's columns: Volumename, Anatomy, Sentence; an empty Anatomy is the whole
report. Every sentence of it stands under one or more regions of the first level: that is the reference.
Rules were tuned on the volumes of `--half tune` only. Prints counts and scores, never text.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from medclip_jax.corpora.sentences import read_sentences
from medclip_jax.reports.anatomy import containers, regions_of
from medclip_jax.reports.regions import HEADS, key_of
from medclip_jax.reports.sentences import split_sentences

PECULIAR = (
    ("lung and pleura are named: pleura alone", ("lung|lobe", "pleura"), lambda heads: heads == {"pleura"}),
    ("pericardium and pleura: heart left out", ("pericard", "pleura"), lambda heads: "heart" not in heads),
    ("aorta and coronaries: heart left out", ("aort", "coronar"), lambda heads: "heart" not in heads),
    ("thoracic aorta or arch: abdomen too", ("thoracic aort|aortic arch",), lambda heads: "abdomen" in heads),
    ("axillary, supraclavicular: under bone", ("axill|supraclav",), lambda heads: "bone" in heads),
)
"""Where the table goes against the words: what it does, patterns that all match, whether it did so."""


def halves(volumes: Sequence[str], half: str, seed: int) -> list[str]:
    """The volumes of one half, split at random by volume."""
    names = sorted(volumes)
    random.Random(seed).shuffle(names)
    middle = len(names) // 2
    return {"tune": names[:middle], "report": names[middle:], "all": names}[half]


def reference(paths: Mapping[str, str]) -> dict[str, set[str]]:
    """Sentence of the full report to the heads that the table puts it under."""
    found: dict[str, set[str]] = {sentence: set() for sentence in split_sentences(paths.get("", ""))}
    for path, text in paths.items():
        head = path.split("/")[0].strip().lower()
        for sentence in split_sentences(text) if head else ():
            if sentence in found:
                found[sentence].add(head)
    return found


def heads_of(sentence: str) -> set[str]:
    """The heads that the rules put a sentence under."""
    named = regions_of(sentence)
    return {head for head in HEADS if any(key_of(head) in {key, *containers(key)} for key in named)}


def measure(sentences: Sequence[tuple[str, set[str]]]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Count by head.

    Args:
        sentences: with the heads of the table.

    Returns:
        How often rules and table agree, the rules alone, and the table alone give each head.
    """
    right, wrong, missed = Counter(), Counter(), Counter()
    for sentence, heads in sentences:
        found = heads_of(sentence)
        right.update(found & heads)
        wrong.update(found - heads)
        missed.update(heads - found)
    return right, wrong, missed


def read_half(table: Path, half: str, seed: int = 0) -> list[tuple[str, set[str]]]:
    """Sentences of one half of the table's volumes, with their heads."""
    paths = read_sentences(table).paths
    return [pair for volume in halves(list(paths), half, seed) for pair in reference(paths[volume]).items()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--half", choices=("tune", "report", "all"), default="report")
    parser.add_argument("--seed", type=int, default=0, help="of the split into halves (%(default)s)")
    args = parser.parse_args()
    sentences = read_half(args.table, args.half, args.seed)
    right, wrong, missed = measure(sentences)
    print(f"{len(sentences)} sentences of the {args.half} half")
    print(f"{'':22}{'sentences':>10}{'precision':>10}{'recall':>8}{'F1':>7}")
    for head in sorted(HEADS, key=lambda head: -right[head] - missed[head]):
        _line(head, right[head], wrong[head], missed[head])
    _line("all (micro)", right.total(), wrong.total(), missed.total())
    silent = sum(not heads_of(sentence) for sentence, _ in sentences)
    placed = [(sentence, heads) for sentence, heads in sentences if heads_of(sentence)]
    print(f"{silent} sentences name or imply no region ('it is stable'); rules leave them out")
    exact = sum(heads_of(sentence) == heads for sentence, heads in placed)
    print(f"of the other {len(placed)}, {exact} have exactly the table's heads")
    for what, patterns, peculiar in PECULIAR:
        matching = [h for s, h in sentences if all(re.search(p, s.lower()) for p in patterns)]
        print(f"table, {what}: {sum(map(peculiar, matching))} of {len(matching)}")


def _line(name: str, right: int, wrong: int, missed: int) -> None:
    precision = right / (right + wrong) if right + wrong else 0.0
    recall = right / (right + missed) if right + missed else 0.0
    score = 2 * right / (2 * right + wrong + missed) if right + wrong + missed else 0.0
    print(f"{name:22}{right + missed:10}{precision:10.3f}{recall:8.3f}{score:7.3f}")


if __name__ == "__main__":
    main()
