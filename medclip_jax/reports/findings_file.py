"""A findings file: findings of your own in TOML, a section each.

TOML, because patterns stand in it as they are ('\\bnstemi\\b' in single quotes; JSON wants every backslash
twice), lists of prompts fit (a CSV has none), and Python reads it without another package.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medclip_jax.reports.abdomen import MERLIN_FINDINGS
from medclip_jax.reports.cardiac_mr import CARDIAC_MR_FINDINGS
from medclip_jax.reports.cleaning import normalize
from medclip_jax.reports.definitions import BUILT_IN, DefinitionError, Findings, nearest
from medclip_jax.reports.names import UnknownFinding, finding_name
from medclip_jax.reports.pulmonary_embolism import INSPECT_FINDINGS
from medclip_jax.reports.rad_chest_ct import RAD_CHEST_DEFINITIONS, RAD_CHEST_FINDINGS
from medclip_jax.reports.vocabulary import (
    CARDIAC_FINDINGS,
    CT_RATE_FINDINGS,
    FINDINGS,
    PHANTOM_FINDINGS,
    Finding,
)

SUFFIX = ".toml"

GROUPS: Mapping[str, tuple[str, ...]] = {
    "cardiac": CARDIAC_FINDINGS,
    "cardiac_mr": CARDIAC_MR_FINDINGS,
    "phantom": PHANTOM_FINDINGS,
    "ct_rate": CT_RATE_FINDINGS,
    "merlin": MERLIN_FINDINGS,
    "inspect": INSPECT_FINDINGS,
    "rad_chest_ct": RAD_CHEST_FINDINGS,
    "all": tuple(FINDINGS),
}
"""What stands for several findings."""

_DEFINED: Mapping[str, Findings] = {"rad_chest_ct": RAD_CHEST_DEFINITIONS}
"""Groups with findings that are known only where the group is asked for."""

_KEYS = ("phrase", "positive", "negative", "column", "words", "patterns", "normal", "excluded")


class FindingsFileError(ValueError):
    """A findings file that cannot be used; the message names file, line and key, and says what to do."""


def read_findings(path: str | os.PathLike) -> Findings:
    """Read a findings file.

    Args:
        path: TOML; `docs/reference/reports.md` describes it.

    Returns:
        The library's findings and those of the file.

    Raises:
        FindingsFileError: no such file, no TOML, an unknown key, a value of another kind, or what
            `definitions.Findings` refuses.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        sections = tomllib.loads(text)
    except OSError as error:
        raise FindingsFileError(f"cannot read the findings file '{path}' ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise FindingsFileError(
            f"'{path}' is no TOML ({error}). Write texts in quotes, patterns in single ones, lists in [ ]"
        ) from None
    if not sections:
        raise FindingsFileError(f"'{path}' defines no finding: begin one with a line such as [{_EXAMPLE}]")
    try:
        return Findings(_finding(name, section) for name, section in sections.items())
    except DefinitionError as error:
        line = _line(text, error.finding, error.key)
        where = f"'{path}', line {line}, [{error.finding}]" + (f" {error.key}" if error.key else "")
        raise FindingsFileError(f"{where}: {error.fault}") from None


def choose_findings(
    entries: Iterable[str], definitions: Findings = BUILT_IN
) -> tuple[tuple[str, ...], Findings]:
    """The findings that a command is told of.

    Args:
        entries: names, as `names.finding_name` understands them, keys of `GROUPS`, and findings files, each
            of which gives all that it defines.
        definitions: the findings that are known before.

    Returns:
        Names in the order given, without repetition; and the findings that are known then.

    Raises:
        FindingsFileError: as `read_findings`, or two files define one finding.
        UnknownFinding: a name that is none.
    """
    entries = [entry.strip() for entry in entries if entry.strip()]
    files = {entry: read_findings(entry) for entry in entries if entry.lower().endswith(SUFFIX)}
    defining = files | {entry: _DEFINED[entry] for entry in entries if entry in _DEFINED}
    try:
        read = Findings(finding for findings in defining.values() for finding in findings.own)
    except DefinitionError as error:
        raise FindingsFileError(f"{' and '.join(defining)} together: {error}") from None
    known = definitions.updated(read)
    names: list[str] = []
    for entry in entries:
        if entry in files:
            names += [finding.name for finding in files[entry].own]
        elif entry in GROUPS:
            names += GROUPS[entry]
        else:
            names.append(_known_name(entry, known))
    return tuple(dict.fromkeys(names)), known


def how_to_define(name: str) -> str:
    """What to write for a finding that is not known.

    Args:
        name: as somebody wrote it.
    """
    plain = re.sub(r"\W+", "_", name.strip().lower()).strip("_") or _EXAMPLE
    phrase = plain.replace("_", " ")
    return (
        "To define it, write these lines into a file findings.toml, and add the file to --findings "
        "(--findings cardiac,findings.toml):\n"
        f'    [{plain}]\n    phrase = "{phrase}"\n    words = ["{phrase}"]'
    )


_EXAMPLE = "acute_coronary_syndrome"


def _known_name(entry: str, known: Findings) -> str:
    try:
        return finding_name(entry, definitions=known)
    except UnknownFinding as error:
        if Path(entry).is_file():
            raise UnknownFinding(f"'{entry}' is a file, and a findings file ends in {SUFFIX}") from None
        if error.near:
            raise
        raise UnknownFinding(f"{error}. {how_to_define(entry)}") from None


def _finding(name: str, section: Any) -> Finding:
    if not isinstance(section, Mapping):
        raise DefinitionError(
            name, "", f"a finding is a section: write a line [{_EXAMPLE}] before the keys of each"
        )
    for key in section:
        if key not in _KEYS:
            raise DefinitionError(
                name, key, f"there is no such key.{nearest(key, _KEYS)} There are {', '.join(_KEYS)}"
            )
    phrase = section.get("phrase", name.replace("_", " "))
    if not isinstance(phrase, str):
        raise DefinitionError(name, "phrase", f'{phrase!r} is no text: what stands for X in "There is X."')
    texts = {key: _texts(name, key, section.get(key, [])) for key in _KEYS[1:]}
    return Finding(
        name,
        phrase.strip(),
        # Text is looked at in lower case, and people write "FFR".
        patterns=(*map(_of_words, texts["words"]), *map(_any_case, texts["patterns"])),
        normal=tuple(map(_any_case, texts["normal"])),
        excluded=tuple(map(_any_case, texts["excluded"])),
        positive=texts["positive"],
        negative=texts["negative"],
        columns=texts["column"],
    )


def _texts(name: str, key: str, value: Any) -> tuple[str, ...]:
    """One text or a list of them."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DefinitionError(name, key, f'{value!r} is no list of texts: write {key} = ["...", "..."]')
    if not all(text.strip() for text in texts):
        raise DefinitionError(name, key, "an entry is empty: take it out")
    return tuple(text.strip() for text in texts)


def _any_case(pattern: str) -> str:
    return f"(?i:{pattern})"


def _of_words(text: str) -> str:
    """Words as reports hold them: joined by spaces or dashes, in the singular or plural."""
    words = [re.escape(word) for word in re.split(r"[\s-]+", normalize(text)) if word]
    ending = "s?" if words and words[-1][-1].isalpha() else ""
    return rf"(?<!\w){r'[ -]'.join(words)}{ending}(?!\w)"


def _line(text: str, finding: str, key: str) -> int:
    """Where a section, or a key of it, stands."""
    lines = text.splitlines()
    header = re.compile(
        rf"\s*(?:\[\s*[\"']?{re.escape(finding)}[\"']?\s*\]|[\"']?{re.escape(finding)}[\"']?\s*=)"
    )
    start = next((n for n, line in enumerate(lines) if header.match(line)), 0)
    for n, line in enumerate(lines[start + 1 :] if key else (), start + 1):
        if line.lstrip().startswith("["):
            break
        if re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return n + 1
    return start + 1
