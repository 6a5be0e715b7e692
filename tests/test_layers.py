"""The packages stand in one order, and each imports only those before it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "medclip_jax"

ORDER = (
    # From files to records, without JAX.
    "progress", "allocator", "pool", "volumes", "reports", "corpora", "shards", "hub",
    # Arrays and parameters.
    "sections", "dotted", "vectors", "sharding", "parameters", "transforms", "text_transforms",
    "losses", "models",
    # Batches, and the systems that learn from them.
    "draws", "text_vectors", "fields", "pipeline", "objectives", "weights", "evaluation", "training",
    # Models in use.
    "inference", "export",
    # What people call.
    "planning", "pages", "sweeps", "cli",
)  # fmt: skip
"""Packages and modules of the top level, lowest first; docs/architecture.md says the same."""


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, package) of every import of ours, those inside functions too; not those for type checkers."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            nodes += node.orelse
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: import by the full name, medclip_jax...."
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            top, *rest = name.split(".")
            if top == "medclip_jax" and rest and rest[0] != "__version__":
                yield node.lineno, rest[0]
        nodes += ast.iter_child_nodes(node)


def upward(file: str, source: str) -> list[str]:
    """The imports of a file that go up, each as a sentence."""
    own = file.split("/")[0].removesuffix(".py")
    return [
        f"medclip_jax/{file}:{line}: {own} imports {name}, which stands after it: move what both need down"
        for line, name in imports(ast.parse(source))
        if name != own and place(name) > place(own)
    ]


def place(name: str) -> int:
    """Of a package in the order; what `medclip_jax` itself shows stands after all."""
    return ORDER.index(name) if name in ORDER else len(ORDER)


def sources() -> Iterator[tuple[str, str]]:
    """Path and content of every file but the package's own `__init__.py`, which takes from all."""
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        if file != "__init__.py":
            yield file, path.read_text(encoding="utf-8")


def test_every_package_has_its_place():
    there = {file.split("/")[0].removesuffix(".py") for file, _ in sources()}
    assert there - {"configs"} <= set(ORDER), "give a new package its place in ORDER"
    assert len(set(ORDER)) == len(ORDER)


def test_no_import_goes_up():
    found = [line for file, source in sources() for line in upward(file, source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "from medclip_jax.training import loop",
        "import medclip_jax.training.loop",
        "from medclip_jax import training",
        "def f():\n    from medclip_jax.training.config import base_config",
        "if TYPE_CHECKING:\n    pass\nelse:\n    from medclip_jax import training",
    ],
)
def test_one_that_does_is_told(source):
    (line,) = upward("losses/masked.py", source)
    assert line.startswith("medclip_jax/losses/masked.py:")
    assert "losses imports training" in line


def test_what_type_checkers_alone_read_is_free():
    assert upward("losses/masked.py", "if TYPE_CHECKING:\n    from medclip_jax import training") == []
    assert upward("losses/masked.py", "import jax\nfrom medclip_jax.vectors import normalize") == []


def test_the_documentation_says_the_same_order():
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    text = text.split("Data flows one way")[1].split("\n\n")[0]
    places = [text.find(f"`{name}`") for name in ORDER]
    assert -1 not in places, [name for name, at in zip(ORDER, places, strict=True) if at == -1]
    assert places == sorted(places)
