"""Structured reports: ticked boxes, and labels whose value follows ("Heart: normal size. No effusion.")."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from medclip_jax.reports.cleaning import normalize
from medclip_jax.reports.headers import is_region
from medclip_jax.reports.sentences import LONGEST_SENTENCE, split_sentences

_BOX = re.compile(r"\[ ?[xX✓✔*]? ?\]|\( ?[xX✓✔]? ?\)|[☐☑☒□■▢✓✔✗✘]")
_TICKED = re.compile(r"[xX✓✔*☑☒■]")
_ANSWER = re.compile(
    r"(?:no(?:ne)?|yes|y|n|absent|present|nil|normal|abnormal|negative|positive|mild|moderate|severe|small|large"
    r"|trace|minimal|left|right|bilateral|n/?a|unknown|not \w+)\W*",
    re.IGNORECASE,
)
_DENIAL = re.compile(r"\b(?:no|not|without|absent|none|normal|unremarkable|negative)\b", re.IGNORECASE)


def resolve_boxes(line: str) -> str:
    """Write out what the ticks of a line say.

    Of answers to one label the ticked ones stay ("Effusion: [ ] none [x] mild" becomes "Effusion: mild"), and
    nothing where none is. Of statements with a box each, the ticked ones stay and the others are denied; a
    denial that is not ticked says nothing.

    Args:
        line: one line of a report, with or without boxes.
    """
    boxes = list(_BOX.finditer(line))
    if not boxes:
        return line
    lead = line[: boxes[0].start()]
    behind = bool(lead.strip(" \t-*•")) and not lead.rstrip().endswith((":", "-", "–", "=", "?"))
    label, options = "", []
    start = 0 if behind else boxes[0].end()
    for index, box in enumerate(boxes):
        if behind:
            text = line[start : box.start()]
            start = box.end()
        else:
            text = line[box.end() : boxes[index + 1].start() if index + 1 < len(boxes) else len(line)]
        options.append((bool(_TICKED.search(box.group())), text.strip(" \t,;|/")))
    if not behind:
        label = lead.strip(" \t-*•")
    elif ":" in options[0][1] and len(options) > 1:
        label, _, first = options[0][1].rpartition(":")
        label, options[0] = f"{label}:", (options[0][0], first.strip())
    rest = line[start:].strip() if behind else ""
    return _write_out(label, options) + (f" {rest}" if rest else "")


def _write_out(label: str, options: list[tuple[bool, str]]) -> str:
    label = label.rstrip(" :-–=?")
    if label and len(options) == 1 and not options[0][1]:
        return f"{label}: {'present' if options[0][0] else 'absent'}."
    ticked = [text for is_ticked, text in options if is_ticked]
    if label and all(_ANSWER.fullmatch(text) for _, text in options):
        return f"{label}: {', '.join(ticked)}." if ticked else ""
    written = []
    for is_ticked, text in options:
        if is_ticked and text:
            written.append(f"{text.rstrip('.')}.")
        elif text and not _DENIAL.search(text):
            written.append(f"{text.rstrip('.:')}: absent.")
    return " ".join([*([f"{label}:"] if label else []), *written])


@dataclass(frozen=True)
class Statement:
    """A sentence of a section with the label that it stands under.

    Attributes:
        text: as written.
        topic: the parts of the body that the label names ("lungs and pleura"), "" where there is none or
            where the sentence itself begins with it.
    """

    text: str
    topic: str


_TAKEN_UP = re.compile(
    r"(?:it|this|these|they) (?:is|are|was|were|has|have) (?:(?:now|since|completely|\w+ly|been) )*"
    r"(?:resolved|disappeared|cleared|gone|removed|drained|no longer|not (?:seen|present"
    r"|visible) (?:today|now))\b",
    re.IGNORECASE,
)


_ONE_SIDE = re.compile(r"[:;,] ?(?:left|right)(?: side)? ?:", re.IGNORECASE)
_OTHER_SIDE = re.compile(r"(?:left|right)(?: side)? ?:", re.IGNORECASE)


def _with_taken_up(sentences: list[str]) -> list[str]:
    """Join a sentence that is about the one before it alone: "It has resolved.", "Left: none"."""
    joined: list[str] = []
    for sentence in sentences:
        if not joined or len(joined[-1]) > LONGEST_SENTENCE // 2:
            joined.append(sentence)
        elif _OTHER_SIDE.match(sentence) and _ONE_SIDE.search(joined[-1]):
            joined[-1] = f"{joined[-1].rstrip('.')}, {sentence}"
        elif _TAKEN_UP.match(sentence):
            joined[-1] = f"{joined[-1].rstrip('.')}, and {sentence[0].lower()}{sentence[1:]}"
        else:
            joined.append(sentence)
    return joined


_LABEL = re.compile(
    r"(?P<label>[A-Za-z][A-Za-z /,&()-]{1,60}?)\s*(?::|\s[-–](?=\s))\s*(?P<value>.*)", re.DOTALL
)


def split_statements(text: str) -> Iterator[Statement]:
    """The sentences of a section, each with the label above it.

    A label holds to the end of its line; one that is alone on its line, to the next label or empty line.

    Args:
        text: of a section, cleaned.
    """
    topic = ""
    for line in text.split("\n"):
        if not line.strip():
            topic = ""
            continue
        held = topic
        for sentence in _with_taken_up(split_sentences(resolve_boxes(line))):
            found = _LABEL.match(sentence)
            if sentence == line.strip() and is_region(sentence):
                held = topic = normalize(sentence).rstrip(" :")
                yield Statement(sentence, "")
            elif found and is_region(found["label"]):
                held = normalize(found["label"])
                topic = held if not re.search(r"\w", found["value"]) and sentence == line.strip() else ""
                yield Statement(sentence, "")
            else:
                yield Statement(sentence, held)
