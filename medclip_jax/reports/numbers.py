"""Numbers that decide a finding: calcium score, CAD-RADS, ratios, diameters, ejection fractions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

LARGEST_RATIO = 0.5
"""Cardiothoracic ratio above which the heart counts as enlarged."""
WIDEST_TRUNK_MM = 29.0
"""Diameter of the pulmonary trunk above which it counts as wide: the upper limit usually taken for men."""
_PLAUSIBLE_TRUNK_MM = (12.0, 80.0)
# Of the heart, (up to where it is normal, beyond which it is not): between the two the words decide.
LV_EJECTION_FRACTION = (55.0, 50.0)
RV_EJECTION_FRACTION = (50.0, 45.0)
LV_DIAMETER_MM = (52.0, 58.0)
WALL_THICKNESS_MM = (11.0, 12.0)
AORTIC_ROOT_MM = (37.0, 40.0)


@dataclass(frozen=True)
class Measured:
    """A number that decides a finding.

    Attributes:
        start: index of the first character of what was measured.
        end: index behind the number.
        exceeds: whether the value is beyond the limit.
    """

    start: int
    end: int
    exceeds: bool


_NUMBER = r"\d{1,3}(?:,\d{3})+(?!\d)|\d*[.,]\d+|\d+"
_MORE = r"(?:>=?|≥|(?:greater|more|larger) than(?: or equal to)?|above|over|exceed(?:s|ing)?|at least|beyond)"
_LESS = r"(?:<=?|≤|less than|below|under|smaller than|at most|within)"
_DENIED = re.compile(r"\bnot\b|\bno\b|\bnever\b")


def _value(text: str) -> float:
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+", text):
        return float(text.replace(",", ""))
    return float(text.replace(",", "."))


def _exceeds(value: float, limit: float, before: str) -> bool | None:
    """Whether a value that follows `before` is beyond a limit; None where "> 0.4" leaves it open."""
    more, less = re.search(rf"{_MORE}\s*$", before), re.search(rf"{_LESS}\s*(?:or equal to\s*)?$", before)
    if (more or less) and _DENIED.search(before):
        more, less = less, more
    if more:
        return True if value >= limit else None
    if less:
        return False if value <= limit else None
    return value > limit


_RATIO = re.compile(
    r"(?:\bcardio[- ]?thoracic (?:ratio|index)|\b(?:heart|cardiac)[/-]thora\w+ ratio|\bctr\b"
    r"|\bct ratio\b|\bheart occupies\b)(?: \(?ctr\)?)?"
    r"(?P<between>[^.;\d]{0,40}?)"
    r"(?P<value>[01]?[.,]\d+|\d{2}(?:[.,]\d+)?(?= ?(?:%|percent))|(?<=: )[3-8]\d\b(?! ?[\w.,/]))"
)


def cardiothoracic_ratio(text: str) -> list[Measured]:
    """The ratio as a fraction ("0.58", "0,45") or in percent, with "above", "<" and the like before it."""
    found = []
    for match in _RATIO.finditer(text):
        value = _value(match["value"])
        exceeds = _exceeds(value / 100 if value > 2 else value, LARGEST_RATIO, match["between"])
        if exceeds is not None:
            found.append(Measured(match.start(), match.end(), exceeds))
    return found


_TRUNK = re.compile(
    r"\b(?:pulmonary (?:trunk|conus)|(?:main |common )?pulmonary artery|truncus pulmonalis|main pa|mpa|pa)\b"
    r"(?P<between>[^.;\d]{0,60}?)(?P<value>\d+(?:[.,]\d+)?) ?-?(?P<unit>mm|cm)\b"
)
_TRUNK_BEHIND = re.compile(
    r"\b(?P<value>\d+(?:[.,]\d+)?) ?-?(?P<unit>mm|cm) (?:wide |dilated )?(?:main pulmonary artery"
    r"|pulmonary trunk)\b"
    r"(?! (?:embol|thromb|aneurysm))"
)
_ANOTHER_THING = re.compile(
    r"\b(?:mass|nodul|thromb|embol|fill|lesion|lymph|node|plaque|stent|extend|distance|aort|wall|thick|vein"
    r"|segment|catheter|tumou?r|cyst|left|right|branch|beside|adjacent|next to|stenosis)"
)
_MEASURED_OTHERWISE = re.compile(
    r"\s*(?:in )?(?:thick|wall|long|length|nodul|mass|lesion|lymph|thromb|embol|from)"
)
# "abutting the main pulmonary artery": it is a place there, not what was measured.
_AS_PLACE = re.compile(
    r"\b(?:in|within|inside|abut\w*|adjacent to|near|beside|next to|into|to|of|at|from|behind|below"
    r"|above|encas\w+"
    r"|invad\w+|around|along|left|right|by|and)(?: the)?(?: left| right)? $"
)
_OF_ITS_SIZE = re.compile(
    r"\b(?:diameters?|calib\w+|widths?|sizes?|dimensions?|dilat\w+|enlarge\w+|ectasia|increase\w*|and)"
    r"(?: of| in| at)?(?: the level of)?(?: the)? $"
)


def pulmonary_trunk(text: str) -> list[Measured]:
    """The diameter of the pulmonary trunk in mm or cm; lengths of what lies in or beside it do not count."""
    found = []
    for match in [*_TRUNK.finditer(text), *_TRUNK_BEHIND.finditer(text)]:
        between = match.groupdict().get("between") or ""
        before = text[max(0, match.start() - 40) : match.start()]
        if _ANOTHER_THING.search(between) or _MEASURED_OTHERWISE.match(text, match.end()):
            continue
        if _AS_PLACE.search(before) and not _OF_ITS_SIZE.search(before):
            continue
        value = _value(match["value"]) * (10 if match["unit"] == "cm" else 1)
        exceeds = _exceeds(value, WIDEST_TRUNK_MM, between)
        if exceeds is not None and _PLAUSIBLE_TRUNK_MM[0] <= value <= _PLAUSIBLE_TRUNK_MM[1]:
            found.append(Measured(match.start(), match.end(), exceeds))
    return found


_SCORE = re.compile(
    r"\bagatston\b|\bca(?:lcium)?\.? scor\w+|\bcalcium burden\b|\bcoronary (?:artery )?calcium\b"
    r"|\bcacs?\b(?=(?: score)?(?: of| is| was)? ?[:=]? ?(?:\d|zero|nil))"
)
_ZERO_SCORE = re.compile(r"(?<![\d.,])(?:zero|0) (?:calcium|agatston) score\b")
_SCORED = re.compile(rf"(?<![\w.,-])(?P<value>{_NUMBER}|zero|nil)(?![\w])")
_NOT_A_SCORE = re.compile(
    r" ?(?:%|percent|(?:th|st|nd|rd) percent|th\b|mm|cm|years?|y/?o\b|mg|kv|vessels?|slices?|hu\b|[-/]\d)"
)
_EARLIER = re.compile(
    r"\b(?:previous(?:ly)?|prior|formerly|in|on|from|since|before|(?<!\d )(?<!th )percentile:?|year|\w was) $"
)
_VESSEL = re.compile(r"\b(?:lm|lmca|lad|lcx|cx|rca|left main|circumflex|right coronary|pda|total)\b")
_TOTAL = re.compile(rf"\b(?:total|sum|overall|altogether)\b[^;\d]{{0,25}}?(?P<value>{_NUMBER})(?! ?%)")
_SCORE_END = re.compile(r";|\.\s")
_FIRST_SCORE = 60
"""Characters behind the words of a score within which its first number stands."""
_REACH = 160
"""Characters behind the words of a score within which all of them do."""


def agatston_score(text: str) -> list[Measured]:
    """The calcium score: the total where vessels are listed, else any of them; percentiles do not count."""
    found = [Measured(match.start(), match.end(), False) for match in _ZERO_SCORE.finditer(text)]
    for match in _SCORE.finditer(text):
        if found and match.start() < found[-1].end:
            continue
        stop = _SCORE_END.search(text, match.end(), match.end() + _REACH)
        end = stop.start() if stop else match.end() + _REACH
        values = _scores(text, match.end(), end)
        if not values:
            continue
        total = _TOTAL.search(text, match.end(), end)
        if total:
            found.append(Measured(match.start(), total.end(), _value(total["value"]) > 0))
        elif _VESSEL.search(text, match.end(), end):
            found.append(Measured(match.start(), values[-1][1], any(value > 0 for value, _, _ in values)))
        else:
            value, last, before = values[0]
            less = re.search(rf"{_LESS}\s*$", before)
            if not less or value <= 1:
                found.append(Measured(match.start(), last, value > 0 and not less))
    return found


def _scores(text: str, start: int, stop: int) -> list[tuple[float, int, str]]:
    """Numbers that can be scores, each with where it ends and what stands before it."""
    values: list[tuple[float, int, str]] = []
    for number in _SCORED.finditer(text, start, stop):
        before = text[start : number.start()]
        if not values and len(before) > _FIRST_SCORE:
            break
        if not _NOT_A_SCORE.match(text, number.end()) and not _EARLIER.search(before):
            word = number["value"]
            values.append((0.0 if word in ("zero", "nil") else _value(word), number.end(), before))
    return values


_CAD_RADS = re.compile(r"\bcad[ -]?rads\b")
_CATEGORY = re.compile(r"(?<![\d.])(?P<value>[0-5])(?![\d.]*\d)[ab]?\b")


def cad_rads(text: str) -> list[Measured]:
    """The CAD-RADS category; the number of the classification's version ("2.0") is none."""
    found = []
    for match in _CAD_RADS.finditer(text):
        category = _CATEGORY.search(text, match.end(), match.end() + 40)
        if category:
            found.append(Measured(match.start(), category.end(), int(category["value"]) > 0))
    return found


_NO_STENOSIS = re.compile(r"(?<![\d.,-])0 ?% (?:\w+ )?(?:stenos|narrow)\w+|\bstenos[ei]s\W{0,3}(?:of )?0 ?%")


def stenosis_percent(text: str) -> list[Measured]:
    """A stenosis of 0 %, which is none; any other number leaves the words to decide."""
    return [Measured(m.start(), m.end(), False) for m in _NO_STENOSIS.finditer(text)]


# "62 %", "35-40%", "from 35 % to 50 %": of a range the middle, of a change where it led.
_PERCENT = (
    r"(?P<between>[^.;\d]{0,40}?)(?:\bfrom \d{1,2} ?%? to )?(?P<value>\d{1,2}(?:[.,]\d+)?)(?: ?%?)"
    r"(?:(?: ?- ?| to )(?P<upper>\d{1,2}))? ?(?:%|percent\b|(?= ?(?:[.,;)]|$)))"
)
_LV_EF = re.compile(
    r"(?:\blv ?ef\b|\b(?:lv|left ventricular) (?:ejection fraction|ef)\b"
    r"|(?<!rv )(?<!right ventricular )\b(?:ejection fraction|ef)\b)(?: \(lvef\))?" + _PERCENT
)
_RV_EF = re.compile(
    r"(?:\brv ?ef\b|\b(?:rv|right ventricular) (?:ejection fraction|ef)\b)(?: \(rvef\))?" + _PERCENT
)
_REFERENCE = re.compile(
    r"\b(?:normal(?: range| value)?|reference|previous(?:ly)?|prior|formerly|limit)\b[^a-z]*$"
)


def _certain(value: float, limits: tuple[float, float], before: str) -> bool | None:
    """Whether a value is abnormal; None between the limits, and where "> 40" leaves it open.

    Args:
        value: the number.
        limits: up to where it is normal, and beyond which it is not.
        before: what stands before the number.
    """
    if _REFERENCE.search(before):
        return None
    normal, abnormal = limits
    sign = 1 if abnormal > normal else -1
    more, less = re.search(rf"{_MORE}\s*$", before), re.search(rf"{_LESS}\s*(?:or equal to\s*)?$", before)
    worse, better = (more, less) if sign > 0 else (less, more)
    if not better and (sign * (value - abnormal) > 0 or (worse and value == abnormal)):
        return True
    return False if not worse and sign * (value - normal) <= 0 else None


def _ejection_fraction(pattern: re.Pattern[str], limits: tuple[float, float], text: str) -> list[Measured]:
    found = []
    for match in pattern.finditer(text):
        value = _value(match["value"])
        if match["upper"]:
            value = (value + _value(match["upper"])) / 2
        reduced = _certain(value, limits, match["between"])
        if reduced is not None and value > 5:
            found.append(Measured(match.start(), match.end(), reduced))
    return found


def lv_ejection_fraction(text: str) -> list[Measured]:
    """The left ventricle's, in percent; one that names no ventricle is the left one's."""
    return _ejection_fraction(_LV_EF, LV_EJECTION_FRACTION, text)


def rv_ejection_fraction(text: str) -> list[Measured]:
    """The right ventricle's, in percent."""
    return _ejection_fraction(_RV_EF, RV_EJECTION_FRACTION, text)


_LENGTH = r"(?P<between>[^.;\d]{0,40}?)(?P<value>\d+(?:[.,]\d+)?) ?-?(?P<unit>mm|cm)\b"
_LV_DIAMETER = re.compile(
    r"(?:\blv(?:edd|idd|id)\b"
    r"|\b(?:lv|left ventricular) (?:internal )?end-?[ -]?diastolic (?:diameter|dimension)\b)" + _LENGTH
)
_WALL_THICKNESS = re.compile(
    r"(?<!right ventricular )(?<!rv )(?<!aortic )(?<!bladder )(?<!bronchial )(?<!esophageal )(?<!chest )"
    r"(?<!bowel )(?<!gastric )(?<!gallbladder )"
    r"(?:\bwall thickness(?:es)?|\bseptal thickness|\bseptum (?:measures|is)"
    r"|\bthickness of (?:the )?(?:\w+ )?septum)\b" + _LENGTH
)
_AORTIC_ROOT = re.compile(
    r"(?:\baortic root\b|\bascending (?:thoracic )?aorta\b|\bsinus(?:es)? of valsalva\b)" + _LENGTH
)


def _lengths(pattern: re.Pattern[str], limits: tuple[float, float], text: str) -> list[Measured]:
    found = []
    for match in pattern.finditer(text):
        value = _value(match["value"]) * (10 if match["unit"] == "cm" else 1)
        beyond = _certain(value, limits, match["between"])
        if beyond is not None and not _MEASURED_OTHERWISE.match(text, match.end()):
            found.append(Measured(match.start(), match.end(), beyond))
    return found


def lv_end_diastolic_diameter(text: str) -> list[Measured]:
    """The left ventricle's diameter in mm or cm."""
    return _lengths(_LV_DIAMETER, LV_DIAMETER_MM, text)


def wall_thickness(text: str) -> list[Measured]:
    """The thickness of the left ventricle's wall in mm or cm."""
    return _lengths(_WALL_THICKNESS, WALL_THICKNESS_MM, text)


def aortic_root(text: str) -> list[Measured]:
    """The diameter of the aortic root or the ascending aorta in mm or cm."""
    return _lengths(_AORTIC_ROOT, AORTIC_ROOT_MM, text)


_SCAR = re.compile(
    r"\b(?:scar(?: burden| size| mass)?|lge(?: extent| burden)?|enhancement|fibrosis)\b"
    r"(?P<between>[^.;\d]{0,40}?)(?P<value>\d+(?:[.,]\d+)?) ?(?:%|percent\b)"
)


def scar_percent(text: str) -> list[Measured]:
    """The share of the wall that is scarred: any above 0, and 0 as none."""
    return [Measured(m.start(), m.end(), _value(m["value"]) > 0) for m in _SCAR.finditer(text)]


READERS: dict[str, Callable[[str], list[Measured]]] = {
    "cardiothoracic_ratio": cardiothoracic_ratio,
    "pulmonary_trunk": pulmonary_trunk,
    "agatston_score": agatston_score,
    "cad_rads": cad_rads,
    "stenosis_percent": stenosis_percent,
    "lv_ejection_fraction": lv_ejection_fraction,
    "rv_ejection_fraction": rv_ejection_fraction,
    "lv_end_diastolic_diameter": lv_end_diastolic_diameter,
    "wall_thickness": wall_thickness,
    "aortic_root": aortic_root,
    "scar_percent": scar_percent,
}
"""What `Finding.numbers` may name; each looks at one sentence as `normalize` gives it."""
