"""The findings that are known somewhere: the library's, and those that a user defines beside them.

There is no registry: a `Findings` is handed to what reads reports, writes prompts or names columns. It
travels with what was made by it, from `prepare.json` to the exported model.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from medclip_jax.reports.sentences import LONGEST_SENTENCE
from medclip_jax.reports.vocabulary import CT_RATE_COLUMNS, FINDINGS, Finding

RESERVED = ("all", "cardiac", "cardiac_mr", "ct_rate", "inspect", "merlin", "none", "phantom", "rad_chest_ct")
"""What `--findings` takes for several findings, or for none."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
_LONG_NUMBER = re.compile(r"\d{5,}")
_TEXTS = ("positive", "negative", "columns")
_PATTERNS = ("patterns", "normal", "excluded")
_SLOW = 0.05
"""Seconds of a core that one pattern may take for a sentence of the greatest length."""
_LENGTHS = tuple(round(LONGEST_SENTENCE / 1.25**n) for n in range(21, -1, -1))


class DefinitionError(ValueError):
    """A definition that cannot be used.

    Attributes:
        finding: its name.
        key: what of it is at fault; "" for the name itself.
        fault: what is wrong, and what would be right.
    """

    def __init__(self, finding: str, key: str, fault: str):
        super().__init__(f"finding {finding!r}{f', {key}' if key else ''}: {fault}")
        self.finding, self.key, self.fault = finding, key, fault


class Findings(Mapping[str, Finding]):
    """Name to finding: the library's, then a user's own.

    Args:
        own: the user's, in order. They have `patterns`, `normal` and `excluded` of the ways in which a report
            can state a finding.
        redefine: take also those that go by a name of the library's, in its place: for what was made before
            the library knew that name.

    Raises:
        DefinitionError: a name that is taken or cannot be one, a pattern that does not compile or takes too
            long, prompts of one side alone.
    """

    def __init__(self, own: Iterable[Finding] = (), *, redefine: bool = False):
        self.own = tuple(own)
        taken = {} if redefine else dict(_BUILT_IN_SPELLINGS)
        for finding in self.own:
            _check(finding)
            for key, text in (("", finding.name), *(("column", title) for title in finding.columns)):
                _check_free(finding.name, key, text, taken)
            taken |= {plain_spelling(text): finding.name for text in (finding.name, *finding.columns)}
        self._all = FINDINGS | {finding.name: finding for finding in self.own}

    def __getitem__(self, name: str) -> Finding:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __hash__(self) -> int:
        return hash(self.own)

    def __repr__(self) -> str:
        return f"Findings(own={', '.join(finding.name for finding in self.own) or 'none'})"

    @cached_property
    def spellings(self) -> Mapping[str, str]:
        """Names, phrases and titles of columns, as `plain_spelling` has them, to the finding's name."""
        found: dict[str, str] = {}
        for finding in self.own:
            for text in (finding.name, finding.phrase, *finding.columns):
                found.setdefault(plain_spelling(text), finding.name)
        return found | _BUILT_IN_SPELLINGS

    @property
    def titles(self) -> Mapping[str, str]:
        """Titles of columns that a user's findings claim, as `plain_spelling` has them, to the name."""
        return {plain_spelling(title): finding.name for finding in self.own for title in finding.columns}

    def to_json(self) -> list[dict[str, Any]]:
        """A user's own, for `from_json`: of each what is not empty."""
        keys = ("name", "phrase", *_TEXTS, *_PATTERNS)
        return [{key: value for key in keys if (value := getattr(one, key))} for one in self.own]

    @classmethod
    def from_json(cls, written: Any) -> Findings:
        """Read what `to_json` gave, from a file that somebody may have changed.

        Raises:
            ValueError: it is something else, or as the constructor.
        """
        if not isinstance(written, Sequence) or not all(isinstance(one, Mapping) for one in written):
            raise ValueError("definitions of findings are a list of objects")
        own = []
        for one in written:
            unknown = sorted(set(one) - {"name", "phrase", *_TEXTS, *_PATTERNS})
            if unknown or not all(isinstance(one.get(key), str) for key in ("name", "phrase")):
                raise ValueError(f"a definition of a finding has the keys {', '.join(map(str, one))}")
            lists = {key: one[key] for key in (*_TEXTS, *_PATTERNS) if key in one}
            for key, value in lists.items():
                if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
                    raise ValueError(f"{key} of the finding {one['name']!r} is no list of texts")
            own.append(
                Finding(one["name"], one["phrase"], **{key: tuple(value) for key, value in lists.items()})
            )
        return cls(own, redefine=True)

    def updated(self, others: Findings) -> Findings:
        """These, and the own of others; where both define one, as the others do."""
        own = {finding.name: finding for finding in (*self.own, *others.own)}
        return Findings(own.values(), redefine=True) if others.own else self


def plain_spelling(text: str) -> str:
    """Lower case, words joined by underscores, the last one in the singular."""
    plain = "_".join(re.findall(r"[^\W_]+", text.casefold()))
    return plain[:-1] if plain.endswith("s") and not plain.endswith(("ss", "is", "us")) else plain


def _check(finding: Finding) -> None:
    name = finding.name
    if not _NAME.fullmatch(name) or _LONG_NUMBER.search(name):
        near = re.sub(r"\W+", "_", name.strip().lower()).strip("_")[:60]
        hint = f", such as {near}" if _NAME.fullmatch(near) and not _LONG_NUMBER.search(near) else ""
        raise DefinitionError(
            name, "", "a name is written in lower case, with _ between words, begins with a letter, has at "
            f"most 60 characters and no number of five digits or more{hint}"
        )  # fmt: skip
    if not finding.phrase.strip():
        raise DefinitionError(name, "phrase", 'it is empty: give what stands for X in "There is X."')
    if bool(finding.positive) != bool(finding.negative):
        given, missing = ("positive", "negative") if finding.positive else ("negative", "positive")
        raise DefinitionError(
            name, given, f"prompts are compared, present against absent: give {missing} prompts too"
        )
    for key in _TEXTS:
        if not all(text.strip() for text in getattr(finding, key)):
            raise DefinitionError(name, key, "an entry is empty: take it out")
    for key in _PATTERNS:
        for pattern in getattr(finding, key):
            check_pattern(name, key, pattern)


def _check_free(name: str, key: str, text: str, taken: Mapping[str, str]) -> None:
    """Check that no other finding goes by this name."""
    plain = plain_spelling(text)
    if plain in RESERVED:
        raise DefinitionError(
            name, key, f"{text!r} stands for several findings with --findings: take another"
        )
    holder = taken.get(plain)
    if holder is None or (key and holder == name):
        return
    whose = f"the library's {holder}" if holder in FINDINGS else f"the finding {holder}"
    fix = "title the column otherwise" if key else f"call it otherwise, such as {name[:50]}_own"
    raise DefinitionError(
        name, key, f"{text!r} is {whose}, which a definition does not change: {fix}, or use that one"
    )


def check_pattern(name: str, key: str, pattern: str) -> None:
    """Check that a pattern compiles, matches something, and takes no long time on a long sentence.

    Args:
        name: of what it defines, for the message.
        key: under which it stands, likewise.
        pattern: a regular expression.

    Raises:
        DefinitionError: it does not; the message says what would be right.
    """
    shown = pattern.removeprefix("(?i:").removesuffix(")") if pattern.startswith("(?i:") else pattern
    if re.search(r"\\[1-9]|\(\?P|\(\?\(", pattern):
        raise DefinitionError(
            name, key, f"{shown!r} has groups with names or numbers, which several patterns together cannot "
            "have: write (?:...) for a group"
        )  # fmt: skip
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise DefinitionError(
            name, key, f"{shown!r} is no regular expression ({error}): mend it, or write plain words as words"
        ) from None
    if compiled.match(""):
        raise DefinitionError(
            name, key, f"{shown!r} matches where there is nothing: every text would state it"
        )
    if (slow := _slow_text(compiled)) is not None:
        raise DefinitionError(
            name, key, f"{shown!r} takes more than {_SLOW:g} s for a sentence of {len(slow)} characters like "
            f"{slow[:20]!r}: give the repeats within it a limit, such as [^.;]{{0,40}} for [^.;]* and "
            r"(?:\w+ ){0,3} for (?:\w+ )*"
        )  # fmt: skip


@lru_cache(maxsize=1024)
def _slow_text(pattern: re.Pattern[str]) -> str | None:
    """A text, no longer than a sentence can be, for which a pattern takes too long; None where there is none.

    The texts repeat what the pattern is made of, with an end that it does not expect, and grow by a quarter
    each: so the first that takes too long comes soon after those that do not, whether the time grows as a
    power or exponentially.
    """
    words = re.findall(r"[a-z]+", pattern.pattern.lower())
    units = {*words, *(f"{word} " for word in words), "".join(words), *"".join(words), *"a 0-.,", "a ", "a, "}
    for unit in sorted(filter(None, units)):
        for length in _LENGTHS:
            text = (unit * length)[: length - 1] + "~"
            start = time.thread_time()
            for _ in pattern.finditer(text):
                pass
            if time.thread_time() - start > _SLOW:
                return text
    return None


def nearest(text: str, known: Iterable[str]) -> str:
    """A hint at what was perhaps meant, "" where nothing is near."""
    near = difflib.get_close_matches(text, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


_BUILT_IN_SPELLINGS: Mapping[str, str] = {
    **{plain_spelling(finding.phrase): name for name, finding in FINDINGS.items()},
    **{plain_spelling(title): name for title, name in CT_RATE_COLUMNS.items()},
    **{plain_spelling(name): name for name in FINDINGS},
}

BUILT_IN = Findings()
"""The library's findings alone."""
