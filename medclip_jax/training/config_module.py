"""A config file as a module, so that it can import its siblings: `from .mae import vision`."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType

from medclip_jax.sections import shown_file

PREFIX = "medclip_config_"
"""What the names of these modules begin with."""

_NUMBERS = itertools.count()


@contextlib.contextmanager
def config_module(file: str | os.PathLike) -> Iterator[ModuleType]:
    """Run a config file as a module of a package that its folder makes, and that folder's parents above it.

    So `from . import x` finds files beside it and `from ..folder import x` those of another folder, wherever
    they lie: in a checkout, in an installed package, in a folder of the user's own. Nothing is taken from, or
    left in, Python's caches: a file that has changed is read anew.

    Args:
        file: a Python file.

    Yields:
        The module. Imports inside of its functions work until the context ends.

    Raises:
        ValueError: it imports a sibling that is not there.
    """
    path = Path(os.path.abspath(file))
    root = f"{PREFIX}{next(_NUMBERS)}"
    finder = _Siblings(root)
    sys.meta_path.insert(0, finder)
    try:
        name = root
        _add_package(name, path.anchor)
        for folder in reversed(path.parents[:-1]):
            name = f"{name}.{folder.name.replace('.', '_')}"
            _add_package(name, str(folder))
        spec = _spec(f"{name}.{path.stem.replace('.', '_')}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
            yield module
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith(f"{root}."):
                raise
            missing = Path(*sys.modules[error.name.rpartition(".")[0]].__path__, error.name.split(".")[-1])
            raise ValueError(
                f"{shown_file(path)} imports {shown_file(missing)}.py, which is not there: copy it, too"
            ) from None
    finally:
        sys.meta_path.remove(finder)
        for known in [known for known in sys.modules if known == root or known.startswith(f"{root}.")]:
            del sys.modules[known]


def _add_package(name: str, folder: str) -> None:
    package = ModuleType(name)
    package.__path__ = [folder]
    sys.modules[name] = package


def _spec(name: str, file: Path, folders: list[str] | None = None) -> importlib.machinery.ModuleSpec:
    return importlib.util.spec_from_file_location(
        name, file, loader=_Loader(name, str(file)), submodule_search_locations=folders
    )


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Compile the source: a cached file of the same second and size would be taken for it."""
        return self.source_to_code(self.get_data(self.path), self.path)


class _Siblings(importlib.abc.MetaPathFinder):
    """Finds what a config file imports from beside it."""

    def __init__(self, root: str):
        self.root = root

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """As the import system asks for it."""
        if not fullname.startswith(f"{self.root}.") or path is None:
            return None
        for folder in path:
            place = Path(folder, fullname.rpartition(".")[2])
            if (place / "__init__.py").is_file():
                return _spec(fullname, place / "__init__.py", [str(place)])
            if place.with_suffix(".py").is_file():
                return _spec(fullname, place.with_suffix(".py"))
            if place.is_dir():
                spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
                spec.submodule_search_locations = [str(place)]
                return spec
        return None
