"""Which sentence of a report talks of which organ: by rules, or from an archive's own region sentences."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from medclip_jax.reports.context import Assertion, Sentence
from medclip_jax.reports.definitions import BUILT_IN, Findings
from medclip_jax.reports.findings import extract
from medclip_jax.reports.regions import IMPLIED, OPENING, REGIONS, SIDES, Key, key_of
from medclip_jax.reports.sentences import split_sentences

_PAIRED = frozenset(key_of(region.name) for region in REGIONS if region.paired)
_MENTIONS = tuple((key_of(region.name), re.compile(region.mentions)) for region in REGIONS if region.mentions)
_IMPLIED = tuple((re.compile(words), key_of(name)) for words, name in IMPLIED)
_OPENING = re.compile(OPENING)
_VERTEBRAE, _RIB, _MIDDLE_LOBE = key_of("vertebrae"), key_of("rib"), key_of("lung middle lobe")
_LEVELS = {"c": ("cervical", 7), "t": ("thoracic", 12), "l": ("lumbar", 5)}

_SIDE_AFTER = re.compile(r"[^.;,]{0,40}?\b(?:of|in) (?:the )?(left|right|both|bilateral)\b")
_SIDE = re.compile(r"\b(left|right|both|bilateral\w*|each)\b")
_LEVEL = re.compile(r"\b(?:([ctl])|d)(\d{1,2})\b")
_ORDINAL = re.compile(r"\b(\d{1,2})(?:st|nd|rd|th)\b|\bribs? (\d{1,2})\b|\b(\d{1,2})\. ribs?\b")


def _parents() -> dict[Key, tuple[Key, ...]]:
    parents: dict[Key, tuple[Key, ...]] = {}
    for region in REGIONS:
        key = key_of(region.name)
        parents[key] = tuple(key_of(name) for name in region.parents)
        for side in SIDES if region.paired else ():
            sided = tuple(parent | {side} for parent in parents[key] if parent in _PAIRED)
            parents[key | {side}] = (*sided, key)
    for letter, (part, count) in _LEVELS.items():
        for number in range(1, count + 1):
            parents[_VERTEBRAE | {f"{letter}{number}"}] = (_VERTEBRAE | {part},)
    for number in range(1, 13):
        numbered = _RIB | {str(number)}
        parents[numbered] = (_RIB,)
        parents |= {numbered | {side}: (_RIB | {side}, numbered) for side in SIDES}
    return parents


_PARENTS = _parents()
_APART = frozenset(
    (key_of(region.name) | side, key_of(parent))
    for region in REGIONS
    for parent in region.apart
    for side in (frozenset(), *(frozenset((side,)) for side in SIDES))
)


def is_known(organ: str) -> bool:
    """Whether sentences can be found for an organ by its name."""
    return key_of(organ) in _PARENTS


@lru_cache(maxsize=4096)
def regions_of(sentence: str) -> frozenset[Key]:
    """The regions that a sentence is about: those it names, else the one that its words imply.

    Of a region and a part of it, only the part counts: "in the lower lobe of the left lung" is about the
    lobe. A region with two sides is about the one that is named beside it, about both for "both" and
    "bilateral", and about neither of them where no side is named.

    Args:
        sentence: one sentence of a report.
    """
    text = " ".join(sentence.lower().split())
    opening = _OPENING.match(text)
    body = text[opening.end() :] if opening else text
    found: set[Key] = set()
    for key, pattern in _MENTIONS:
        for match in pattern.finditer(body):
            found |= _sided(key, body, *match.span()) if key in _PAIRED else {key}
    found |= _numbered(found, body)
    found = {key for key in found if not any(key in containers(other) for other in found)}
    if not found:
        found = set(itertools.islice((key for words, key in _IMPLIED if words.search(text)), 1))
    return frozenset(found)


def _sided(key: Key, text: str, start: int, end: int) -> set[Key]:
    """A mention with the side that is named beside it."""
    if text[start:end].startswith("lingu"):
        return {key | {"left"}}
    after = _SIDE_AFTER.match(text, end)
    before = _SIDE.findall(text, max(0, start - 60), start)
    anywhere = set(_SIDE.findall(text))
    if key == _MIDDLE_LOBE:
        side = "right"
    elif after:
        side = after[1]
    elif before:
        side = before[-1]
    elif len(anywhere) == 1:
        (side,) = anywhere
    else:
        return {key}
    return {key | {side}} if side in SIDES else {key | {one} for one in SIDES}


def _numbered(found: set[Key], text: str) -> set[Key]:
    """Vertebrae and ribs that a sentence about them names by number."""
    numbered = set()
    if any(key >= _VERTEBRAE for key in found):
        for letter, number in _LEVEL.findall(text):
            numbered.add(_VERTEBRAE | {f"{letter or 't'}{number}"})
    for rib in [key for key in found if key >= _RIB and key in _PARENTS]:
        for groups in _ORDINAL.findall(text):
            numbered.add(rib | {next(filter(None, groups))})
    return numbered & _PARENTS.keys()


@lru_cache(maxsize=1024)
def containers(key: Key, *, apart: bool = True) -> frozenset[Key]:
    """All regions that contain a region, itself excluded.

    Args:
        key: of the region.
        apart: also those of which a general statement says nothing about this one, see `Region.apart`.
    """
    parents = _PARENTS.get(key, ()) if apart else nearest_containers(key)
    return frozenset(parents).union(*(containers(parent, apart=apart) for parent in parents))


def nearest_containers(key: Key) -> frozenset[Key]:
    """The regions next above one, but for those of which a general statement says nothing about it."""
    return frozenset(parent for parent in _PARENTS.get(key, ()) if (key, parent) not in _APART)


def assign_sentences(report: str, organs: Sequence[str], *, containing: bool = True) -> dict[str, str]:
    """Sort a report's sentences by organ, by rules.

    A sentence may belong to several organs, or to none. An organ takes the sentences about itself and about
    parts of it.

    Args:
        report: any report text.
        organs: names, TotalSegmentator's or RadGenome-ChestCT's; others take nothing.
        containing: an organ that has no sentence of its own takes those about the nearest region that
            contains it, but not those about other parts of that region: a lobe takes what is said of
            "both lungs", and not what is said of another lobe.

    Returns:
        Organ to its sentences, each once, in the report's order; only organs that have some.
    """
    sentences = dict.fromkeys(split_sentences(report))
    return _by_organ({sentence: regions_of(sentence) for sentence in sentences}, organs, containing)


def organ_sentences(
    paths: Mapping[str, str], organs: Sequence[str], *, containing: bool = True
) -> dict[str, str]:
    """Sort an archive's region sentences by organ.

    What a path says is taken as it is; no rule looks into the text. A sentence that stands under several
    paths is about the smallest of their regions.

    Args:
        paths: anatomy path ("lung/left lung/left lung lower lobe") to its text. An empty path, the whole
            report, is left out.
        organs: names, TotalSegmentator's or RadGenome-ChestCT's; others take nothing.
        containing: as for `assign_sentences`.

    Returns:
        Organ to its sentences, each once, in the order of the paths; only organs that have some.
    """
    found: dict[str, set[Key]] = {}
    for path, text in paths.items():
        region = region_of_path(path)
        for sentence in split_sentences(text) if region else ():
            found.setdefault(sentence, set()).add(region)
    said = {
        sentence: frozenset(k for k in keys if not any(k in containers(other) for other in keys))
        for sentence, keys in found.items()
    }
    return _by_organ(said, organs, containing)


def region_of_path(path: str) -> Key:
    """The last part of an anatomy path that is a known region; the path's last part where none is."""
    keys = [key_of(part) for part in path.split("/") if part.strip()]
    return next((key for key in reversed(keys) if key in _PARENTS), keys[-1] if keys else frozenset())


def _by_organ(said: Mapping[str, frozenset[Key]], organs: Sequence[str], containing: bool) -> dict[str, str]:
    found = {}
    for organ in organs:
        key = key_of(organ)
        own = [text for text, keys in said.items() if any(key == k or key in containers(k) for k in keys)]
        level = {key}
        while containing and not own and level:
            level = set().union(*map(nearest_containers, level))
            own = [text for text, keys in said.items() if keys & level]
        if own:
            found[organ] = " ".join(own)
    return found


_MEASURED = r"\b\d+(?:[.,]\d+)?(?: ?x ?\d+(?:[.,]\d+)?)* ?(?:mm|cm|millimet\w+|centimet\w+)\b"
_ABNORMAL = re.compile(
    rf"{_MEASURED}|\b(?:lesions?|mass(?:es)?|nod(?:ul|os)\w+|cysts?|cystic|stones?|calcul(?:us|i)|fractur\w+"
    r"|\w*scoliosis|kyphosis|osteophyt\w+|osteopor\w+|osteopen\w+|degenerat\w+|herni\w+|thicken\w+"
    r"|\w*dilat\w+|ecta\w+|enlarg\w+|increas\w+|decreas\w+|loss|\w*steatosis|fatty|cirrho\w+|metasta\w+"
    r"|fluid|edema\w*|calcific\w+|plaques?|sclero\w+|lytic|atroph\w+|operated|\w*ectomy|diverticul\w+"
    r"|hypodens\w+|hyperdens\w+|collapse\w*|deviat\w+|infiltrat\w+|scar\w*|sequela\w*|adenoma\w*"
    r"|hemangioma\w*|stenosis|narrow\w+|occlu\w+|catheters?|prosthe\w+|sutures?|stents?|pacemaker"
    r"|pneumothorax|aneurysm\w*|thromb\w+|emboli\w*|tumou?r\w*|malignan\w+|carcinom\w+|suspicious)\b"
)


def states_normal(text: str, definitions: Findings = BUILT_IN) -> bool:
    """Whether a text states nothing abnormal.

    It does where any known finding is present or possible (`medclip_jax.reports.findings`), where a length
    is given, because what is measured is mostly a lesion, and where any other abnormal word is not denied.

    Args:
        text: sentences about one organ.
        definitions: the findings that are known.
    """
    if any(status == 1 for status in extract(text, definitions, definitions=definitions).values()):
        return False
    denied = (Assertion.NEGATED, Assertion.HYPOTHESIS)
    return not any(
        sentence.judge(*match.span()).assertion not in denied
        for sentence in map(Sentence, split_sentences(text))
        for match in _ABNORMAL.finditer(sentence.text)
    )
