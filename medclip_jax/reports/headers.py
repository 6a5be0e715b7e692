"""Titles of a report's parts: which section a title opens, in the spellings of many hospitals."""

from __future__ import annotations

import re

HEADERS: dict[str, tuple[str, ...]] = {
    "clinical_information": (
        "clinical information",
        "clinical history",
        "clinical indication",
        "clinical data",
        "clinical details",
        "clinical statement",
        "clinical question",
        "patient history",
        "medical history",
        "relevant history",
        "reason for exam",
        "reason for examination",
        "reason for study",
        "reason for referral",
        "history",
        "hx",
        "indication",
        "indications",
        "clinical",
    ),
    "technique": (
        "technique",
        "technical information",
        "examination technique",
        "imaging technique",
        "procedure",
        "protocol",
        "method",
        "methods",
        "scan technique",
    ),
    "comparison": ("comparison", "comparisons", "comparison study", "prior studies", "prior examinations"),
    "examination": ("examination", "exam", "study", "type of examination", "exam type"),
    "findings": (
        "findings",
        "finding",
        "imaging findings",
        "ct findings",
        "radiological findings",
        "observations",
        "report",
        "description",
        "results",
        "result",
        "findings/impression",
        "findings and impression",
    ),
    "impression": (
        "impression",
        "impressions",
        "conclusion",
        "conclusions",
        "opinion",
        "interpretation",
        "summary",
        "diagnosis",
        "final diagnosis",
        "assessment",
        "comment",
        "conclusion and recommendations",
    ),
    "recommendation": ("recommendation", "recommendations", "advice", "follow up", "follow-up"),
    "addendum": ("addendum", "addenda", "correction"),
}
"""Section name to the usual headers that open it, lower case; `section_of` understands their combinations."""

ADMINISTRATIVE = re.compile(
    r"(?:(?:this )?report (?:was |has been )?)?(?:(?:electronically|digitally|finally) )?(?:dictated|signed"
    r"|reported|transcribed|read|verified|approved|finali[sz]ed|authenticated|interpreted|reviewed|validated)"
    r"(?: (?:and|&) \w+)? (?:by|on|at)\b|electronically signed\b"
    r"|(?:attending|resident|reporting|consultant|referring|reading|responsible)(?: physician| radiologist"
    r"| doctor)?s? ?:|(?:physician|radiologist|doctor|author|signature|signatory)s? ?:"
    r"|(?:accession|mrn|patient (?:name|id)|name|dob|date|cc|typed by|report(?:ed)? date|study date)\b"
    r"[^:\n]{0,20}:",
    re.IGNORECASE,
)
"""How a line opens that names people, numbers and dates, and describes no image."""


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# In order of precedence: "reason for exam" is a reason, "findings and impression" are findings.
_WORDS: tuple[tuple[str, str], ...] = (
    ("addendum", "addendum addenda correction amendment"),
    (
        "clinical_information",
        "clinical history hx hpi pmh psh indication indications reason referral referred complaint"
        " complaints symptom"
        " symptoms question background request requested anamnesis presentation presenting",
    ),
    ("comparison", "comparison comparisons prior priors previous"),
    ("findings", "findings finding observations observation results result"),
    (
        "impression",
        "impression impressions conclusion conclusions opinion interpretation summary diagnosis diagnoses"
        " assessment comment comments discussion",
    ),
    (
        "technique",
        "technique techniques technical protocol procedure procedures method methods acquisition"
        " contrast dose"
        " dlp scanner parameters radiation",
    ),
    ("recommendation", "recommendation recommendations advice follow-up followup plan management"),
    ("findings", "report description narrative"),
    ("examination", "examination examinations exam exams study studies modality"),
)
_SECTION_OF_WORD = {word: rank for rank, (_, words) in enumerate(_WORDS) for word in words.split()}
_JOINING = _set(
    "and or of for the this that with to on in at as is your provided relevant pertinent patient "
    "patient's medical past present current given information data details statement imaging image "
    "ct mdct hrct cta radiological radiology radiologic radiographic diagnostic final preliminary "
    "main other additional incidental key general significant scan type name chest thorax thoracic "
    "body available short brief overall structured official en text follow up level main number"
)
_NAMES = {header: name for name, headers in HEADERS.items() for header in headers}
_LONGEST_TITLE = 7
"""Words."""


def section_of(title: str) -> str | None:
    """The section that a title opens, None where it is no title of a section.

    Args:
        title: what stands before the colon, in any case ("PROVIDED CLINICAL HISTORY", "Findings/Impression").
            Every word must be one of titles: "comparison shows" is none.
    """
    plain = " ".join(title.lower().split())
    if plain in _NAMES:
        return _NAMES[plain]
    words = re.findall(r"[a-z][a-z'-]*", plain)
    known = [_SECTION_OF_WORD[word] for word in words if word in _SECTION_OF_WORD]
    if not known or len(words) > _LONGEST_TITLE or re.search(r"[^a-z'/&,()\s-]", plain):
        return None
    if all(word in _SECTION_OF_WORD or word in _JOINING for word in words):
        return _WORDS[min(known)][0]
    return None


_REGION_WORDS = _set(
    "heart cardiac cardiovascular cardiomediastinal pericardium pericardial pericardiac pleura "
    "pleural pleurae lung lungs pulmonary parenchyma airway airways trachea tracheobronchial bronchi "
    "bronchial mediastinum mediastinal hila hilar hilum vessel vessels vascular vasculature aorta "
    "aortic coronary coronaries artery arteries great chest thorax thoracic wall bone bones osseous "
    "skeletal skeleton musculoskeletal thyroid neck abdomen abdominal lymph node nodes nodal soft "
    "tissue tissues lines tubes devices support hardware diaphragm spine ribs esophagus oesophagus "
    "breast breasts axilla axillae liver spleen kidneys adrenals pancreas structures spaces space "
    "cavity cavities trunk main upper lower lad rca lcx lm lmca mpa pa rv lv atrium atria ventricle "
    "ventricles valves size base bases right left tree body system region regions contents contour "
    "silhouette central"
)
_REGION_JOINING = _set("and or of the both other visualized included")
_NOT_ALONE = _set("main upper lower size right left base wall great central support body tree")


def is_region(title: str) -> bool:
    """Whether a title names parts of the body and nothing else ("LUNGS AND PLEURA", "Heart/Pericardium")."""
    words = re.findall(r"[a-z]+", title.lower())
    named = [word for word in words if word in _REGION_WORDS]
    return (
        len(named) > 0
        and len(words) <= _LONGEST_TITLE
        and not all(word in _NOT_ALONE for word in named)
        and all(word in _REGION_WORDS or word in _REGION_JOINING for word in words)
    )
