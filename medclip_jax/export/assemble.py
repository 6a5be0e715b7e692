"""The file of torch code that travels with an exported model, put together from the parts that it needs.

One file, because it is imported in three ways: copied by transformers, from a folder on `sys.path` and by
its path; several files would need relative imports for the first and none for the second. It also shows all
that will run to anyone who is requested `trust_remote_code`.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

PARTS = "medclip_jax.export.torch"
"""Package of our parts; a system from elsewhere may have more of its own, which import these."""

_USE = '''\
"""A medclip model in PyTorch: {what} in, vectors{of} out.

This file is all the code of an exported model and needs nothing but torch. Two ways to load a folder:

    from transformers import AutoModel
    model = AutoModel.from_pretrained(DIR, trust_remote_code=True)      # also a hub id

    import sys; sys.path.insert(0, DIR)                                 # without transformers
    from modeling_medclip import MedclipModel
    model = MedclipModel.from_pretrained(DIR)

and then:

    volume = model.prepare(voxels, affine)              # HU and the affine as nibabel gives them
    model.embed_volumes(volume[None]).mean              # (1, E), L2-normalized
{texts}
`model.prepare(image)` takes images of nibabel and SimpleITK, too. Volumes have axes (D, H, W) = (superior,
anterior, right), indices growing that way. What is named `embed_...` keeps no gradients; `forward`,
`patch_tokens` and the towers do.
"""
'''

_TEXTS = """\
    model.embed_texts(["There is cardiomegaly."]).mean  # (1, E)
    model.zero_shot(volume)                             # {finding: probability}
"""


def assemble(twin: str, encoder: str, *, has_text: bool) -> str:
    """The source of a file that defines `MedclipModel`.

    Args:
        twin: "package.module:Class", a model in torch, see `export.torch.model.VolumeModel`.
        encoder: "package.module:Class", the network of its volume tower; "" where the twin brings its own.
        has_text: whether the twin is an `export.torch.text_model.TextModel`.

    Returns:
        Python that imports torch and the standard library.

    Raises:
        ValueError: a module or class is not there, two parts define one name, or a part takes from this
            package what does not travel.
    """
    parts: dict[str, _Part] = {}
    for module, name in map(_split, (encoder, twin) if encoder else (twin,)):
        _collect(module, parts)
        if name not in parts[module].defined:
            raise ValueError(f"{module} defines no class {name!r}: correct the name of the torch class")
    owners: dict[str, str] = {}
    for part in parts.values():
        for name in part.defined:
            if owners.setdefault(name, part.module) != part.module or name == "MedclipModel":
                other = owners[name] if name != "MedclipModel" else "the exported file"
                raise ValueError(f"{part.module} and {other} both define {name}: rename one")
    use = _USE.format(
        what="volumes and reports" if has_text else "volumes",
        of=" of one joint space" if has_text else "",
        texts=_TEXTS if has_text else "",
    )
    model = f'class MedclipModel({_split(twin)[1]}):\n    """The model of this folder."""\n'
    if encoder:
        model += f"\n    vision_encoder = {_split(encoder)[1]}\n"
    sections = [f"# --- {part.title} ---\n\n\n{part.body}" for part in parts.values()]
    return "\n\n".join([_head(use, parts.values()), *sections, model])


def _split(name: str) -> tuple[str, str]:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"{name!r} names no torch class: write package.module:Class")
    return module, attribute


class _Part:
    """A module taken apart.

    Attributes:
        module: its full name.
        title: first line of its docstring.
        body: its source after docstring and imports.
        defined: names that it binds at its top level.
        parts: modules of parts that it imports, in order.
        imports: all other imports, as statements of one name each: (module, name or "", alias or "").
    """

    def __init__(self, module: str):
        source = _source(module)
        tree = ast.parse(source)
        self.module = module
        self.title = (ast.get_docstring(tree) or module).partition("\n")[0].rstrip(".")
        self.parts: list[str] = []
        self.imports: set[tuple[str, str, str]] = set()
        self.defined: set[str] = set()
        lines = source.splitlines(keepends=True)
        for node in tree.body:
            is_docstring = node is tree.body[0] and ast.get_docstring(tree) is not None
            if is_docstring or self._take_import(node):
                lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
            else:
                self.defined |= _bound(node)
        self.body = "".join(lines).strip("\n") + "\n"

    def _take_import(self, node: ast.stmt) -> bool:
        """Whether a statement is an import, which the top of the file then has."""
        if isinstance(node, ast.Import):
            self.imports |= {(alias.name, "", alias.asname or "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and _is_part(node.module or "", self.module):
            if any(alias.asname for alias in node.names):
                raise ValueError(f"{self.module} imports from {node.module} under another name: keep it")
            self.parts.append(node.module)
        elif isinstance(node, ast.ImportFrom):
            if node.level or (node.module or "").partition(".")[0] == "medclip_jax":
                raise ValueError(
                    f"{self.module} imports {node.module}, which does not travel with an exported model: "
                    f"take from {PARTS} and torch alone, by full names"
                )
            self.imports |= {(node.module, alias.name, alias.asname or "") for alias in node.names}
        else:
            return False
        return True


def _is_part(name: str, importer: str) -> bool:
    """Whether an imported module is a part: one of ours, or of the importer's own package."""
    if name.startswith(f"{PARTS}."):
        return True
    package = importer.rpartition(".")[0]
    return bool(package) and package.partition(".")[0] != "medclip_jax" and name.startswith(f"{package}.")


def _source(module: str) -> str:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ValueError(
            f"there is no module {module!r}: install the package that has it, or add its folder to PYTHONPATH"
        )
    return Path(spec.origin).read_text(encoding="utf-8")


def _bound(node: ast.stmt) -> set[str]:
    """Names that a statement at the top level of a module binds."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    inner = ast.walk(node)
    names = {child.id for child in inner if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store)}
    return names | {
        child.name for child in ast.walk(node) if isinstance(child, ast.ClassDef) and node is not child
    }


def _collect(module: str, parts: dict[str, _Part]) -> None:
    """Add a module after all that it imports."""
    if module in parts:
        return
    part = _Part(module)
    for other in part.parts:
        _collect(other, parts)
    parts[module] = part


def _head(use: str, parts: Iterable[_Part]) -> str:
    imports = set().union(*(part.imports for part in parts)) - {("__future__", "annotations", "")}
    names: dict[tuple[str, str], list[str]] = {}
    for module, name, alias in sorted(imports):
        kept = f"{name or module} as {alias}" if alias else name or module
        # "import a" stands alone; "from a import b, c" is one line.
        names.setdefault((module, "from" if name else kept), []).append(kept)
    groups: dict[bool, list[str]] = {True: [], False: []}
    for (module, kind), kept in sorted(names.items(), key=lambda entry: (entry[0][1] == "from", entry[0])):
        statement = f"from {module} import {', '.join(kept)}" if kind == "from" else f"import {kept[0]}"
        groups[module.partition(".")[0] in sys.stdlib_module_names].append(statement)
    blocks = ["from __future__ import annotations", *("\n".join(lines) for lines in groups.values() if lines)]
    return use + "\n" + "\n\n".join(blocks) + "\n"
