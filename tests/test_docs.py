"""What README, docs and docstrings point to is there: files, sections, commands, names."""

import re
from pathlib import Path

import pytest

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
