"""Put the figures of a full `medclip demo` where they are quoted: docs/results.md, README.md, configs/demo.

    medclip demo && python tools/demo_results.py medclip-demo/summary.json

`tests/test_docs.py` checks that all of them agree.
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path("docs/results.md")
BLOCK = re.compile(r"(?<=<!-- demo: begin -->\n).*?(?=<!-- demo: end -->)", re.DOTALL)
QUOTES = {
    "README.md": (r"mean zero-shot AUROC over eleven findings is ([\d.]+\d)", r"(\d+) scans that the model"),
    "configs/demo/contrastive.py": (
        r"mean zero-shot AUROC of eleven findings[^.]*? ([\d.]+\d), one",
        r"on (\d+) unseen phantoms",
    ),
}
"""Where the mean AUROC and the number of unseen scans are quoted: one group each."""


def table(summary: Mapping[str, Any]) -> str:
    """The block of docs/results.md.

    Args:
        summary: what `medclip demo` writes to summary.json.
    """
    zero_shot, baseline = summary["zero_shot"], summary["baseline_auroc"]
    if summary["short"]:
        raise SystemExit("This is the summary of a --short demo: run `medclip demo` in full.")
    rows = [(name, value, baseline.get(name)) for name, value in zero_shot["auroc"].items()]
    known = [value for *_, value in rows if value is not None]
    rows.append(("mean", zero_shot["auroc_mean"], sum(known) / len(known)))
    retrieval = summary["retrieval"]
    splits = summary["phantoms"]
    lines = [
        f"{sum(splits.values())} phantoms, {splits['train']} to train on, {splits['test']} unseen.",
        f"All stages: {summary['seconds']:.0f} s, {summary['peak_memory_gb']:.1f} GB.",
        f"R@10 of reports by scan {retrieval['image_to_text']['R@10']:.2f}, of scans by report "
        f"{retrieval['text_to_image']['R@10']:.2f}.",
        "",
        "| finding | zero-shot AUROC | ten intensity statistics |",
        "|---|---|---|",
        *(f"| {name} | {_number(value)} | {_number(other)} |" for name, value, other in rows),
    ]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def figures(block: str) -> tuple[str, str]:
    """The mean AUROC, to two digits, and the number of unseen scans that a block states."""
    mean = re.search(r"^\| mean \| (\d?\.\d+)", block, re.MULTILINE)[1]
    return f"{float(mean):.2f}", re.search(r"(\d+) unseen", block)[1]


def quoted(text: str, patterns: tuple[str, str]) -> tuple[str, str]:
    """The same two figures, as a page or config quotes them."""
    flat = re.sub(r"\s+", " ", text)
    return tuple(re.search(pattern, flat)[1] for pattern in patterns)


def requoted(text: str, patterns: tuple[str, str], values: tuple[str, str]) -> str:
    """The page with other figures."""
    for pattern, value in zip(patterns, values, strict=True):
        found = re.search(pattern.replace(" ", r"\s+"), text)
        text = text[: found.start(1)] + value + text[found.end(1) :]
    return text


def main() -> None:
    """Write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("summary", type=Path, help="summary.json of a full demo")
    args = parser.parse_args()
    page = (ROOT / RESULTS).read_text()
    block = table(json.loads(args.summary.read_text()))
    (ROOT / RESULTS).write_text(BLOCK.sub(lambda _: block, page))
    for name, patterns in QUOTES.items():
        path = ROOT / name
        path.write_text(requoted(path.read_text(), patterns, figures(block)))
    print(block)


if __name__ == "__main__":
    main()
