"""What README, docs and docstrings point to is there: files, sections, commands, names, figures."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from medclip_jax.cli.evaluate import _apply as apply_setting
from medclip_jax.cli.evaluation_config import load_evaluation
from medclip_jax.cli.main import COMMANDS, main
from medclip_jax.evaluation.settings import EVALUATORS, check_evaluators
from medclip_jax.training.config import load_config
from tools import demo_results

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("C*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCES = sorted(
    path
    for folder in ("medclip_jax", "configs", "tests", "tools", "launch")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".sh", ".yaml")
)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_files_that_are_named():
    for path in (*PAGES, *SOURCES):
        folders = "docs" if "tests" in path.parts else "docs|configs|tools|launch|tests"
        for name in re.findall(rf"(?<![\w/.])(?:{folders})/[\w/-]+\.\w+", path.read_text()):
            assert (ROOT / name).exists(), f"{path.relative_to(ROOT)} names {name}"


def test_every_page_is_in_the_index():
    listed = re.findall(r"\]\(([^)#\s]+)\)", (ROOT / "docs/README.md").read_text())
    listed = {(ROOT / "docs" / target).resolve() for target in listed}
    assert listed >= {page for page in PAGES if page.parent != ROOT} - {ROOT / "docs/README.md"}


def commands(page: Path) -> list[list[str]]:
    """Every `medclip COMMAND ...` of a page's code blocks, as words, without what stands in front of it."""
    text = page.read_text().replace("\\\n", " ")
    blocks = [
        *re.findall(r"^ *```sh\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL),
        *re.findall(r"^    .*$", text, re.M),
    ]
    found = re.findall(
        r"^(?: *|(?:bash|sbatch) .*? |[A-Z_]+=.* )(medclip [a-z]+\b.*)$", "\n".join(blocks), re.MULTILINE
    )
    return [[word for word in shlex.split(line, comments=True) if word != "..."][1:] for line in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page, monkeypatch):
    """Options are known to the command, and overrides to the config that it names."""
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        module = importlib.import_module(COMMANDS[words[0]][0])
        parsed = []
        monkeypatch.setattr(module, "run", lambda args, parsed=parsed: parsed.append(args) or 0)
        assert main(words) == 0, words
        overrides = [word for word in words if word.startswith("--config.")]
        if overrides and parsed[0].config.startswith("configs/"):  # else a file that the page itself writes
            load_config(parsed[0].config, overrides)


def test_commands_are_found():
    """The pages' commands do not slip through the pattern above."""
    assert len(commands(ROOT / "README.md")) > 10
    assert len(commands(ROOT / "docs/start/getting-started.md")) >= 1


def test_names_import():
    """Every dotted name of the package that a page mentions."""
    for page in PAGES:
        if page.name == "CHANGELOG.md":  # it names what is gone
            continue
        for name in re.findall(r"\bmedclip_jax(?:\.\w+)+", page.read_text()):
            parts = name.split(".")
            for length in range(len(parts), 0, -1):
                try:
                    found = importlib.import_module(".".join(parts[:length]))
                    break
                except ModuleNotFoundError:
                    continue
            for part in parts[length:]:
                assert hasattr(found, part), f"{page.relative_to(ROOT)}: {name}"
                found = getattr(found, part)


def test_quoted_figures_of_the_demo():
    """README and config state what docs/results.md says: `tools/demo_results.py` writes all three."""
    expected = demo_results.figures(demo_results.BLOCK.search((ROOT / demo_results.RESULTS).read_text())[0])
    for name, patterns in demo_results.QUOTES.items():
        assert demo_results.quoted((ROOT / name).read_text(), patterns) == expected, name


def test_new_figures_of_the_demo():
    """Those of another run go where the present ones stand."""
    summary = {
        "short": False,
        "phantoms": {"train": 80, "validation": 10, "test": 30},
        "seconds": 100.4,
        "peak_memory_gb": 1.26,
        "zero_shot": {"auroc": {"cardiomegaly": 0.91239, "lung_nodule": None}, "auroc_mean": 0.91239},
        "baseline_auroc": {"cardiomegaly": 0.7, "lung_nodule": None},
        "retrieval": {"image_to_text": {"R@10": 0.5}, "text_to_image": {"R@10": 0.6}},
    }
    block = demo_results.table(summary)
    assert "| cardiomegaly | 0.912 | 0.700 |\n| lung_nodule | n/a | n/a |\n| mean | 0.912 | 0.700 |" in block
    assert demo_results.figures(block) == ("0.91", "30")
    for name, patterns in demo_results.QUOTES.items():
        text = demo_results.requoted((ROOT / name).read_text(), patterns, ("0.91", "30"))
        assert demo_results.quoted(text, patterns) == ("0.91", "30")


@pytest.mark.parametrize(
    ("config", "section", "row"),
    [
        ("configs/phantom/contrastive.py", "## Phantom study", r"^\| mean \| (.*) \|$"),
        ("configs/hipro_ct/ablation.py", "## HiPro-CT on phantoms", r"^\| [\w +,']+ \| (\.\d+) ± .*$"),
    ],
)
def test_quoted_figures_of_the_studies(config, section, row):
    page = (ROOT / demo_results.RESULTS).read_text().split(section + "\n")[1].split("\n## ")[0]
    known = {
        f"0{value}" for found in re.findall(row, page, re.MULTILINE) for value in re.findall(r"\.\d+", found)
    }
    header = (ROOT / config).read_text().split('"""')[1].split("Expected:")[1].split("from the paper")[0]
    stated = [value for value in re.findall(r"0\.\d{3}", header.split("On chest CT")[0])]
    assert len(stated) >= 4
    assert set(stated) <= known


DOWNSTREAM = ROOT / "docs/downstream.md"


def inline_commands():
    """`medclip ...` between backticks in the tables of docs/downstream.md."""
    return re.findall(r"`(medclip \w+ [^`\n]+)`", DOWNSTREAM.read_text())


def test_inline_commands_of_downstream_tasks_parse(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert len(inline_commands()) > 15
    for line in inline_commands():
        words = shlex.split(line)[1:]
        module = importlib.import_module(COMMANDS[words[0]][0])
        parsed = []
        monkeypatch.setattr(module, "run", lambda args, parsed=parsed: parsed.append(args) or 0)
        assert main(words) == 0, line
        (args,) = parsed
        if words[0] == "train":
            load_config(args.config, [word for word in words if word.startswith("--config.")])
        elif words[0] == "evaluate" and args.config:
            load_evaluation(args.config)
        elif words[0] == "evaluate" and args.evaluators:
            plan = {name: {} for name in args.evaluators.split(",")}
            for override in args.set:
                apply_setting(plan, override)
            assert check_evaluators(plan)


def test_every_evaluator_has_a_command_among_downstream_tasks_or_is_of_training():
    """A new evaluator is listed there, or here with those that say something of a system alone."""
    shown = set(re.findall(r"[a-z_]+", " ".join(inline_commands())))
    of_systems = {"uncertainty", "grounding", "masked_words", "organs", "reconstruction", "views"}
    assert set(EVALUATORS) - shown - of_systems == {"volume_retrieval"}  # by its protocols
