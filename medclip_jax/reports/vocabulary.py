"""What the library looks for in reports: names, prompt phrases and the wording that states each finding.

A finding is stated by a word of its own ("cardiomegaly"), by two ideas in one clause ("calcific plaques ... in the
coronary arteries"), by a statement of normality ("heart size is normal") or by a number ("main pulmonary artery
34 mm"). Every wording below is a regular expression over lower-case text; `medclip_jax.reports.context` decides
whether a match is affirmed, negated, uncertain or history.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """A number in the report that decides a finding.

    Attributes:
        pattern: regular expression with a group ``value`` and, where a length, a group ``unit`` (mm or cm).
        above: the finding is present where the value (mm for lengths) exceeds this.
    """

    pattern: str
    above: float


@dataclass(frozen=True)
class Finding:
    """One finding and the wording that states it.

    Attributes:
        name: snake_case key used everywhere in the library.
        phrase: what stands for X in "There is X."
        patterns: each match is a mention; a negation in the same clause turns it into absence.
        together: pairs (core, place); a mention where both match in one clause. Negation is judged at the core.
        normal: statements of normality; a match means absent unless the statement itself is negated.
        excluded: wordings that contain a mention but mean something else ("subcutaneous emphysema").
        measurements: numbers that decide the finding.
    """

    name: str
    phrase: str
    patterns: tuple[str, ...] = ()
    together: tuple[tuple[str, str], ...] = ()
    normal: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    measurements: tuple[Measurement, ...] = ()


_NORMAL = r"(?:normal|natural|unremarkable|preserved|within (?:the )?normal limits|within normal)"
_CALCIFIED = r"(?:calcifi\w*|calcific\w*|calcium|calcareous)"
_PLAQUE = r"(?:athero\w*|plaques?|" + _CALCIFIED + ")"
_CORONARY = (
    r"(?:coronar(?:y|ies)|\blad\b|\brca\b|\blcx\b|\blmca\b|left anterior descending|circumflex|left main)"
)
_AORTA = r"(?:aort(?:a|ic)\b(?! valv)|arcus aorta)"
_ARTERY = r"(?:aort(?:a|ic)\b(?! valv)|arter(?:y|ies|ial)\b|vascular|vessels?|supra-?aortic|carotid|subclavian|iliac)"
_EFFUSION = r"(?:effusions?|fluid)"
_HEART = r"(?:heart|cardiac)"

_ALL = (
    Finding(
        "coronary_stenosis",
        "coronary stenosis",
        together=((r"(?:stenos[ie]s|stenotic|narrowing|occlu\w+)", _CORONARY),),
    ),
    Finding(
        "coronary_calcification",
        "coronary calcification",
        together=((_PLAQUE, _CORONARY),),
    ),
    Finding(
        "aortic_calcification",
        "aortic calcification",
        together=((_PLAQUE, _AORTA),),
    ),
    Finding(
        "atherosclerosis",
        "atherosclerosis",
        patterns=(r"athero\w*", r"calcifi\w+ plaques?"),
    ),
    Finding(
        "cardiomegaly",
        "cardiomegaly",
        patterns=(
            r"cardiomegaly",
            _HEART + r"[^.;,]{0,40}(?:enlarged|increased|larger|bigger|enlargement)",
            r"(?:cardiothoracic (?:ratio|index)|cardio-?thoracic (?:ratio|index)|\bctr\b)[^.;]{0,60}increase\w*",
            r"(?:enlarge\w*|increase\w*)[^.;,]{0,20}(?:of the |in |the )"
            + _HEART
            + r"(?: size| dimensions)?",
        ),
        normal=(
            _HEART + r"[^.;]{0,40}size[^.;]{0,40}" + _NORMAL,
            _HEART + r"(?: \w+){0,4} (?:is|are|was|were) " + _NORMAL,
            r"cardio-?thoracic (?:ratio|index)[^.;]{0,30}" + _NORMAL,
        ),
        measurements=(
            Measurement(
                r"(?:cardio-?thoracic (?:ratio|index)|\bctr\b)[^.;\d]{0,40}(?P<value>0[.,]\d+)",
                0.5,
            ),
        ),
    ),
    Finding(
        "pericardial_effusion",
        "pericardial effusion",
        together=((_EFFUSION, r"pericard\w*"),),
    ),
    Finding(
        "pulmonary_arterial_hypertension",
        "pulmonary arterial hypertension",
        patterns=(
            r"pulmonary (?:arterial |artery )?hypertension",
            r"\bpah\b",
            r"(?:pulmonary (?:trunk|conus|arter(?:y|ies))|truncus pulmonalis)[^.;]{0,60}"
            r"(?:dilat\w+|increased|enlarged|wider than normal|ectatic|prominent)",
        ),
        normal=(r"pulmonary (?:trunk|conus|arter(?:y|ies))[^.;]{0,60}" + _NORMAL,),
        measurements=(
            Measurement(
                r"(?:pulmonary trunk|main pulmonary artery|pulmonary conus|truncus pulmonalis)[^.;\d]{0,60}"
                r"(?P<value>\d+(?:[.,]\d+)?) ?(?P<unit>mm|cm)",
                29.0,
            ),
        ),
    ),
    Finding(
        "pleural_effusion",
        "pleural effusion",
        patterns=(r"hydrothorax", r"hydropneumothorax"),
        together=((_EFFUSION, r"(?:pleura\w*|hemithora\w*|bilateral|interlobar|fissur\w*)"),),
        excluded=(r"pericardial (?:effusion|fluid)s?",),
    ),
    Finding(
        "lung_nodule",
        "lung nodule",
        patterns=(
            r"pulmonary (?:micro)?nodul\w*",
            r"lung nodul\w*",
            r"parenchymal nodul\w*",
        ),
        together=(
            (
                r"(?:micro)?nodul(?:es?|ar lesions?)",
                r"(?:lung|lobe|lobes|segment|pulmonary|parenchyma\w*|pleura\w*)",
            ),
        ),
        excluded=(r"thyroid[^.;]{0,60}nodul\w*", r"nodul\w*[^.;]{0,40}thyroid"),
    ),
    Finding(
        "emphysema",
        "emphysema",
        patterns=(r"emphysem\w*",),
        excluded=(r"(?:subcutaneous|soft tissue|mediastinal|intramuscular) emphysem\w*",),
    ),
    Finding(
        "consolidation",
        "consolidation",
        patterns=(r"consolidat\w*",),
    ),
    Finding(
        "medical_material",
        "medical material",
        patterns=(
            r"catheters?",
            r"pacemakers?",
            r"stents?",
            r"prosthe\w+",
            r"sternotomy",
            r"sutures?",
            r"\bport\b",
            r"(?:nasogastric|endotracheal|tracheostomy|drainage|thorax|chest) (?:tube|cannula)",
            r"electrodes?",
            r"surgical (?:clips?|materials?)",
            r"implants?",
            r"cannula\w*",
            r"tubes?",
        ),
    ),
    Finding(
        "arterial_wall_calcification",
        "arterial wall calcification",
        together=((_PLAQUE, _ARTERY),),
        excluded=(r"coronary (?:artery|arteries|arterial|vascular)",),
    ),
    Finding("hiatal_hernia", "hiatal hernia", patterns=(r"hiat\w* hernia\w*",)),
    Finding(
        "lymphadenopathy", "lymphadenopathy", patterns=(r"lymphadenopath\w*", r"\blaps?\b", r"lymph nodes?")
    ),
    Finding("atelectasis", "atelectasis", patterns=(r"atelecta\w*",)),
    Finding(
        "lung_opacity",
        "lung opacity",
        patterns=(r"opaci\w+", r"ground[- ]glass", r"infiltrat\w*", r"consolidat\w*"),
    ),
    Finding(
        "pulmonary_fibrotic_sequela",
        "pulmonary fibrotic sequela",
        patterns=(r"sequela\w*", r"fibro\w*"),
    ),
    Finding("mosaic_attenuation", "mosaic attenuation pattern", patterns=(r"mosaic \w+",)),
    Finding(
        "peribronchial_thickening",
        "peribronchial thickening",
        patterns=(r"peribronchial\w* (?:\w+ ){0,2}thick\w*", r"bronchial wall (?:\w+ ){0,2}thick\w*"),
    ),
    Finding("bronchiectasis", "bronchiectasis", patterns=(r"bronchiecta\w*",)),
    Finding(
        "interlobular_septal_thickening",
        "interlobular septal thickening",
        patterns=(
            r"(?:interlobular )?sept(?:al|a|um)\w* (?:\w+ ){0,2}thick\w*",
            r"thick\w* (?:\w+ ){0,3}sept\w*",
        ),
    ),
)

FINDINGS: dict[str, Finding] = {finding.name: finding for finding in _ALL}
"""Every finding the library knows, by name."""

CARDIAC_FINDINGS: tuple[str, ...] = (
    "coronary_stenosis",
    "coronary_calcification",
    "aortic_calcification",
    "atherosclerosis",
    "cardiomegaly",
    "pericardial_effusion",
    "pulmonary_arterial_hypertension",
)
"""The seven findings of Cardiac-CLIP, in the order of its label vector."""

PHANTOM_FINDINGS: tuple[str, ...] = (
    *CARDIAC_FINDINGS,
    "pleural_effusion",
    "lung_nodule",
    "emphysema",
    "consolidation",
)
"""The findings that the phantom corpus draws."""

CT_RATE_COLUMNS: dict[str, str] = {
    "Medical material": "medical_material",
    "Arterial wall calcification": "arterial_wall_calcification",
    "Cardiomegaly": "cardiomegaly",
    "Pericardial effusion": "pericardial_effusion",
    "Coronary artery wall calcification": "coronary_calcification",
    "Hiatal hernia": "hiatal_hernia",
    "Lymphadenopathy": "lymphadenopathy",
    "Emphysema": "emphysema",
    "Atelectasis": "atelectasis",
    "Lung nodule": "lung_nodule",
    "Lung opacity": "lung_opacity",
    "Pulmonary fibrotic sequela": "pulmonary_fibrotic_sequela",
    "Pleural effusion": "pleural_effusion",
    "Mosaic attenuation pattern": "mosaic_attenuation",
    "Peribronchial thickening": "peribronchial_thickening",
    "Consolidation": "consolidation",
    "Bronchiectasis": "bronchiectasis",
    "Interlobular septal thickening": "interlobular_septal_thickening",
}
"""Title of each label column of CT-RATE to the finding's name."""

CT_RATE_FINDINGS: tuple[str, ...] = tuple(CT_RATE_COLUMNS.values())
"""The eighteen findings of CT-RATE, in the order of its columns."""
