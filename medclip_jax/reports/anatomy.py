"""Which sentence of a report talks of which organ: by rules, or from an archive's own region sentences."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from medclip_jax.reports.context import Assertion, Sentence
from medclip_jax.reports.findings import FINDINGS, extract
from medclip_jax.reports.regions import REGIONS, Key, key_of
from medclip_jax.reports.sentences import split_sentences

_SIDES = ("left", "right")
_LESION = re.compile(r"\b\d+(?:[.,]\d+)?(?: ?x ?\d+(?:[.,]\d+)?)* ?(?:mm|cm)\b")


def _build() -> tuple[dict[Key, tuple[Key, ...]], dict[Key, re.Pattern], frozenset[Key]]:
    parents: dict[Key, tuple[Key, ...]] = {}
    mentions: dict[Key, re.Pattern] = {}
    paired = frozenset(key_of(region.name) for region in REGIONS if region.paired)
    for region in REGIONS:
        key = key_of(region.name)
        parents[key] = tuple(key_of(name) for name in region.parents)
        if region.mentions:
            mentions[key] = re.compile(region.mentions)
        for side in _SIDES if region.paired else ():
            sided = tuple(parent | {side} for parent in parents[key] if parent in paired)
            parents[key | {side}] = (*sided, key)
    return parents, mentions, paired


_PARENTS, _MENTIONS, _PAIRED = _build()


def regions_of(sentence: str) -> frozenset[Key]:
    """The regions that a sentence mentions, the smallest alone: a mention of a lobe is none of the lung."""
    text = " ".join(sentence.lower().split())
    found: set[Key] = set()
    for key, pattern in _MENTIONS.items():
        if not pattern.search(text):
            continue
        sides = [side for side in _SIDES if re.search(rf"\b(?:{side}|both|bilateral\w*)\b", text)]
        found |= {key | {side} for side in sides} if key in _PAIRED and sides else {key}
    return frozenset(key for key in found if not any(key in _containers(other) for other in found))


def _containers(key: Key) -> set[Key]:
    """All regions that contain a region."""
    found: set[Key] = set()
    level = _PARENTS.get(key, ())
    while level:
        found.update(level)
        level = [parent for one in level for parent in _PARENTS.get(one, ())]
    return found


def assign_sentences(report: str, organs: Sequence[str], *, containing: bool = True) -> dict[str, str]:
    """Sort a report's sentences by organ.

    A sentence may belong to several organs, or to none. An organ takes the sentences about itself and its
    parts.

    Args:
        report: any report text.
        organs: names, TotalSegmentator's or RadGenome-ChestCT's.
        containing: an organ that has no sentence of its own takes those about the nearest region that
            contains it (the lung, for a lobe), without those about other parts of that region.

    Returns:
        Organ to its sentences, in the report's order; only organs that have some.
    """
    sentences = list(dict.fromkeys(split_sentences(report)))
    return _by_organ([(sentence, regions_of(sentence)) for sentence in sentences], organs, containing)


def organ_sentences(
    paths: Mapping[str, str], organs: Sequence[str], *, containing: bool = True
) -> dict[str, str]:
    """Sort an archive's region sentences by organ.

    Args:
        paths: anatomy path ("lung/left lung/left lung lower lobe") to its text.
        organs: names, TotalSegmentator's or RadGenome-ChestCT's.
        containing: as for `assign_sentences`.

    Returns:
        Organ to its sentences; only organs that have some.
    """
    found: dict[str, set[Key]] = {}
    for path, text in paths.items():
        for sentence in split_sentences(text):
            found.setdefault(sentence, set()).add(_region_of_path(path))
    said = [
        (sentence, frozenset(k for k in keys if not any(k in _containers(other) for other in keys)))
        for sentence, keys in found.items()
    ]
    return _by_organ(said, organs, containing)


def _region_of_path(path: str) -> Key:
    """The last part of a path that is a known region, else its last part."""
    keys = [key_of(part) for part in path.split("/") if part.strip()]
    return next((key for key in reversed(keys) if key in _PARENTS), keys[-1] if keys else frozenset())


def _by_organ(
    said: Iterable[tuple[str, frozenset[Key]]], organs: Sequence[str], containing: bool
) -> dict[str, str]:
    said = list(said)
    found = {}
    for organ in organs:
        level: tuple[Key, ...] = (key_of(organ),)
        own = [text for text, keys in said if any(k in level or set(level) & _containers(k) for k in keys)]
        while containing and not own and level:
            level = tuple(itertools.chain.from_iterable(_PARENTS.get(key, ()) for key in level))
            own = [text for text, keys in said if any(key in level for key in keys)]
        if own:
            found[organ] = " ".join(own)
    return found


def states_normal(text: str) -> bool:
    """Whether a text states no present finding and measures no lesion."""
    if any(status == 1 for status in extract(text, tuple(FINDINGS)).values()):
        return False
    for sentence in map(Sentence, split_sentences(text)):
        for match in _LESION.finditer(sentence.text):
            if sentence.judge(*match.span()).assertion is not Assertion.NEGATED:
                return False
    return True
