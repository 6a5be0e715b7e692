"""Quantities that a training text must not state: how reports state them, the library's and a user's own.

An ordinal score that stands in the report teaches the model to read it, not to see it: a zero-shot grade is
then worth nothing. `redaction` takes such quantities out of a text; here is what they are.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from medclip_jax.reports.definitions import DefinitionError, check_pattern, nearest

SUFFIX = ".toml"
_FILE = "quantities.toml"
_REMOVES = ("statement", "value")
_TEXTS = ("about", "removes")
_PATTERNS = (
    "names",
    "values",
    "value_words",
    "other_values",
    "other_names",
    "lists",
    "patterns",
    "fragments",
    "degrees",
    "graded",
    "places",
    "excluded",
)
_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")


class QuantityError(ValueError):
    """A quantity, or a file of them, that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Quantity:
    """What a training text must not state, and the wordings that state it. All but texts are patterns.

    Attributes:
        name: snake_case.
        about: what it is, in words.
        removes: "statement" takes out the clause that states it (a score alone says nothing else), "value"
            the value alone and the words that lead to it ("a 6 mm nodule" becomes "a nodule").
        names: what it is called; a value near a name states it.
        values: what a value looks like; () for a number.
        value_words: words that do, next to a name ("calcium score is zero").
        other_values: what stands behind a number that is no value ("mm", "%").
        other_names: what else has such values: one that stands behind it is not the quantity's.
        lists: what begins the next entry of a list or table of values ("LAD 120, RCA 30").
        patterns: wordings that state it by themselves.
        fragments: likewise, and what stands around them is complete without.
        degrees: words of degree, which state it where they say how much there is of what is graded.
        graded: what it is a degree of.
        places: what the sentence must name for the degree to count; () for any.
        excluded: wordings in which nothing is looked for.
    """

    name: str
    about: str
    removes: str = "statement"
    names: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    value_words: tuple[str, ...] = ()
    other_values: tuple[str, ...] = ()
    other_names: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    fragments: tuple[str, ...] = ()
    degrees: tuple[str, ...] = ()
    graded: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What of it is not empty, for `from_json`."""
        return {key: value for key, value in asdict(self).items() if value}

    @classmethod
    def from_json(cls, written: Any) -> Quantity:
        """Read what `to_json` gave, from a file that somebody may have changed.

        Raises:
            ValueError: it is something else, or a pattern does not compile.
        """
        if not isinstance(written, Mapping) or not isinstance(written.get("name"), str):
            raise ValueError("a redacted quantity is an object with a name")
        if unknown := set(written) - {field.name for field in fields(cls)}:
            raise ValueError(f"a redacted quantity has no {', '.join(map(str, unknown))}")
        if not isinstance(written.get("about"), str) or written.get("removes", _REMOVES[0]) not in _REMOVES:
            raise ValueError(
                f"the redacted quantity {written['name']!r} does not say what it is, or what goes"
            )
        lists = {key: value for key, value in written.items() if key not in ("name", *_TEXTS)}
        for key, patterns in lists.items():
            _texts(written["name"], key, patterns)
            re.compile("|".join(patterns))
        texts = {key: str(written[key]) for key in _TEXTS if key in written}
        return cls(written["name"], **texts, **{key: tuple(value) for key, value in lists.items()})


@cache
def built_in() -> Mapping[str, Quantity]:
    """The library's quantities by name, from `quantities.toml`."""
    text = resources.files("medclip_jax.reports").joinpath(_FILE).read_text(encoding="utf-8")
    # They are checked by the tests, not at every start.
    return {
        name: Quantity(name, **{k: v if k in _TEXTS else tuple(v) for k, v in section.items()})
        for name, section in tomllib.loads(text).items()
    }


def read_quantities(path: str | os.PathLike) -> tuple[Quantity, ...]:
    """Read a file of quantities.

    Args:
        path: TOML, a section each; `docs/reference/reports.md` describes it.

    Raises:
        QuantityError: no such file, no TOML, an unknown key, a value of another kind, a pattern that does not
            compile or takes too long.
    """
    path = Path(path)
    try:
        sections = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QuantityError(f"cannot read the file of quantities '{path}' ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise QuantityError(
            f"'{path}' is no TOML ({error}). Write texts in quotes, patterns in single ones, lists in [ ]"
        ) from None
    if not sections:
        raise QuantityError(f"'{path}' defines no quantity: begin one with a line such as [bone_density]")
    try:
        return tuple(_checked(name, section) for name, section in sections.items())
    except DefinitionError as error:
        where = f"[{error.finding}]" + (f" {error.key}" if error.key else "")
        raise QuantityError(f"'{path}', {where}: {error.fault}") from None


def choose_quantities(entries: Iterable[str]) -> tuple[Quantity, ...]:
    """The quantities that ``--redact`` is told of.

    Args:
        entries: names of the library's, and files (.toml), each of which gives all that it defines. A file
            may define one of the library's anew.

    Raises:
        QuantityError: as `read_quantities`, or an unknown name.
    """
    found: dict[str, Quantity] = {}
    for entry in (entry.strip() for entry in entries):
        if entry.lower().endswith(SUFFIX):
            found |= {quantity.name: quantity for quantity in read_quantities(entry)}
        elif entry in built_in():
            found.setdefault(entry, built_in()[entry])
        elif entry:
            raise QuantityError(
                f"no quantity '{entry}' to redact.{nearest(entry, built_in())} There are "
                f"{', '.join(built_in())}, and files of your own, which end in {SUFFIX}"
            )
    return tuple(found.values())


def _checked(name: str, section: Any) -> Quantity:
    """A quantity of a file.

    Raises:
        DefinitionError: it cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise DefinitionError(
            name, "", "a name is of lower-case words with _ between, and begins with a letter"
        )
    if not isinstance(section, Mapping):
        raise DefinitionError(
            name, "", "a quantity is a section: write a line [bone_density] before its keys"
        )
    for key in section:
        if key not in (*_TEXTS, *_PATTERNS, "words"):
            known = (*_TEXTS, "words", *_PATTERNS)
            raise DefinitionError(
                name, key, f"there is no such key.{nearest(key, known)} There are {', '.join(known)}"
            )
    about = section.get("about")
    if not isinstance(about, str) or not about.strip():
        raise DefinitionError(name, "about", 'say what it is: about = "the density of bone, in mg/cm3"')
    removes = section.get("removes", "statement")
    if removes not in _REMOVES:
        raise DefinitionError(name, "removes", f"{removes!r} is neither {' nor '.join(_REMOVES)}")
    lists = {key: _texts(name, key, section.get(key, ())) for key in (*_PATTERNS, "words")}
    for key in _PATTERNS:
        for pattern in lists[key]:
            check_pattern(name, key, f"(?i:{pattern})")
    lists["names"] += tuple(map(_of_words, lists.pop("words")))
    if not (
        lists["names"] or lists["patterns"] or lists["fragments"] or (lists["degrees"] and lists["graded"])
    ):
        raise DefinitionError(
            name, "", "nothing says how reports state it: give words (what it is called), patterns (whole "
            "wordings), or degrees and graded"
        )  # fmt: skip
    return Quantity(name, about.strip(), removes, **lists)


def _of_words(text: str) -> str:
    words = "[ -]".join(map(re.escape, text.split()))
    return rf"(?<!\w){words}(?!\w)"


def _texts(name: str, key: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text for text in texts):
        raise DefinitionError(name, key, f'{value!r} is no list of texts: write {key} = ["...", "..."]')
    return tuple(texts)
