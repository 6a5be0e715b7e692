"""Sections of a config: locked, and each field remembers which line of which file set it."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections.config_dict.config_dict as _ml_collections
from ml_collections import ConfigDict

DEFAULT = "default"
"""Origin of a field that nothing set."""

_PACKAGE = Path(__file__).resolve().parent
_INNER_FILES = (__file__, _ml_collections.__file__)


class SectionError(ValueError):
    """A field that does not exist, or a value that it cannot have; the message begins with file and line."""


class Section(ConfigDict):
    """A part of a config, whose fields are those that it was made with and keep their types.

    `section.field = value` and `section.update(field=value)` record the line that they stand in. A section
    within can be set to a dict of some of its fields; `training.config.resolve` gives the others defaults.

    Args:
        fields: name to default value; dicts become sections.
        name: what messages put before a field's name.
        origin: where these values are from.
    """

    # Underscores, because every other name may be that of a field.

    def __init__(
        self, fields: Mapping[str, Any] | None = None, name: str = "config.objective", origin: str = DEFAULT
    ):
        super().__init__()
        for slot, value in (("_name", name), ("_parent", None), ("_origins", {})):
            object.__setattr__(self, slot, value)
        for field, value in (fields or {}).items():
            if isinstance(value, Mapping | ConfigDict) and not isinstance(value, Section):
                value = type(self)(value, origin=origin)
            self._put(field, value, origin)
        if fields:
            self.lock()

    def __setitem__(self, field: str, value: Any) -> None:
        set_field(self, field, value, _calling_line())

    def __getattr__(self, field: str) -> Any:
        if not field.startswith("_") and field not in self._fields:
            raise AttributeError(unknown_field(self._root(), f"{self._path()}{field}"))
        return super().__getattr__(field)

    def _put(self, field: str, value: Any, origin: str) -> None:
        if isinstance(value, ConfigDict):
            self._fields[field] = value  # past the check of types: one kind of section replaces another
        else:
            super().__setitem__(field, value)
        self._origins.pop(field, None)
        if isinstance(value, Section):
            object.__setattr__(value, "_parent", self)
            object.__setattr__(value, "_name", field)
        elif not isinstance(value, ConfigDict) and origin != DEFAULT:
            self._origins[field] = origin

    def _root(self) -> Section:
        return self if self._parent is None else self._parent._root()

    def _path(self) -> str:
        return "" if self._parent is None else f"{self._parent._path()}{self._name}."

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the parent: a copy of a section is no copy of what contains it.
        return _copied, (type(self), self._fields, self._name, self._origins, self.is_locked)


class OpenSection(Section):
    """A section whose fields have names of the user's own; what they hold is checked where it is used."""

    def lock(self) -> OpenSection:
        """Leave it open."""
        return self


def _copied(
    kind: type[Section], fields: Mapping[str, Any], name: str, origins: Mapping[str, str], locked: bool
) -> Section:
    section = kind(None, name)
    for field, value in fields.items():
        section._put(field, value, origins.get(field, DEFAULT))
    return section.lock() if locked else section


def set_field(section: Section, field: str, value: Any, origin: str) -> None:
    """Set a field and say where the value is from.

    Args:
        section: that has the field.
        field: its name in the section.
        value: of the field's type; a section can be set to a dict of fields.
        origin: for messages and `leaves`.

    Raises:
        SectionError: there is no such field (the message names the nearest), or the value is of another type.
    """
    full = f"{section._path()}{field}"
    before = section._fields.get(field)
    if section.is_locked and field not in section:
        raise SectionError(f"{origin}: {unknown_field(section._root(), full)}")
    full = f"{section._root()._name}.{full}"
    if isinstance(before, ConfigDict) and not isinstance(value, Mapping | ConfigDict):
        raise SectionError(f"{origin}: {full} is a section, and cannot be {value!r}")
    if isinstance(value, Mapping):
        kind = type(before) if isinstance(before, Section) else type(section)
        value = kind(value, origin=origin)
    elif isinstance(value, ConfigDict) and not isinstance(value, Section):
        value.lock()
    try:
        section._put(field, value, origin)
    except TypeError:
        kind = type(before).__name__
        raise SectionError(f"{origin}: {full} is a {kind} (now {before!r}) and cannot be {value!r}") from None


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """All fields as ("a.b.c", value, origin), in order; a section without fields as {}.

    Args:
        config: a section, or another ConfigDict, whose origins are not known.
        prefix: of the names.
    """
    for name, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            origins = config._origins if isinstance(config, Section) else {}
            plain = {} if isinstance(value, ConfigDict) else value
            yield f"{prefix}{name}", plain, origins.get(name, DEFAULT)


def unknown_field(config: Section, name: str) -> str:
    """A message that there is no such field, with the nearest that there is.

    Args:
        config: where it was looked for.
        name: "section.field".
    """
    names = [known for known, _, _ in leaves(config)]
    same_leaf = [known for known in names if known.split(".")[-1] == name.split(".")[-1]]
    near = difflib.get_close_matches(name, same_leaf or names, n=1, cutoff=0.0 if same_leaf else 0.5)
    hint = f"Did you mean {config._name}.{near[0]}?" if near else f"There are {', '.join(config)}."
    return f"no {config._name}.{name}. {hint}"


def _calling_line() -> str:
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename in _INNER_FILES:
        frame = frame.f_back
    return f"{shown_file(frame.f_code.co_filename)}:{frame.f_lineno}"


def shown_file(file: str | os.PathLike) -> str:
    """A file as people name it: from this folder, else from where the package and its configs lie."""
    path = Path(os.path.abspath(file))
    # An installed package has its configs inside, a checkout beside it.
    package = _PACKAGE if path.is_relative_to(_PACKAGE / "configs") else _PACKAGE.parent
    for folder in (Path.cwd(), package):
        if path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return str(path)
