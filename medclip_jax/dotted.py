"""What a config names: a class of this package by a short name, or "package.module:Class" from anywhere."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping


def find_class(name: str, known: Mapping[str, str], base: type, field: str) -> type:
    """The class that a name stands for.

    Args:
        name: a key of `known`, or "package.module:Class".
        known: short name to "package.module:Class".
        base: what the class must be a subclass of.
        field: of the config that holds the name, for messages.

    Raises:
        ValueError: there is no such class; the message says what there is.
    """
    where = f"{field}={name!r}"
    if name not in known and ":" not in name:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{where}: there are {', '.join(known)}, and package.module:Class for one of your own.{hint}"
        )
    module_name, _, class_name = known.get(name, name).partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"{where}: {module_name} cannot be imported: {error}") from error
        raise ValueError(
            f"{where}: there is no module {error.name!r}: install the package that has it, or add the folder "
            "that it lies in to PYTHONPATH"
        ) from None
    except Exception as error:
        raise ValueError(
            f"{where}: {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, class_name, None)
    if not (inspect.isclass(found) and issubclass(found, base)):
        held = [
            key
            for key, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module_name
        ]
        raise ValueError(
            f"{where}: {module_name} has no class {class_name!r} that is a {base.__module__}."
            f"{base.__name__}; it has {', '.join(held) or 'none'}"
        )
    return found
