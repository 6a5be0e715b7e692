"""What the library looks for in reports: names, prompt phrases and the wording that states each finding.

A finding is stated by a word of its own ("cardiomegaly"), by two ideas in one clause ("calcific plaques ...
in the coronary arteries"), by a statement of normality ("heart size is normal") or by a number ("main
pulmonary artery 34 mm"). Every wording is a regular expression over lower-case text;
`medclip_jax.reports.context` decides whether a match is affirmed, negated, uncertain, history or hypothesis.
Those of cardiac MR are in `medclip_jax.reports.cardiac_mr`, those of abdominal CT in
`medclip_jax.reports.abdomen`, embolism in `medclip_jax.reports.pulmonary_embolism`.
"""

from __future__ import annotations

from medclip_jax.reports.abdomen import ABDOMEN
from medclip_jax.reports.cardiac_mr import CARDIAC_MR
from medclip_jax.reports.finding import Finding
from medclip_jax.reports.pulmonary_embolism import EMBOLISM

_NORMAL = (
    r"(?<!than )(?<!than the )(?<!from )(?<!above )(?<!beyond )(?<!compared to )(?<!compared with )"
    r"(?<!relative to )(?<!exceeds )"
    r"(?:(?:top|upper|high|low|grossly|essentially|overall)[- ])?(?:normal|natural|unremarkable"
    r"|preserved|(?:not |non[- ]?)(?:enlarged|dilated)|within (?:the )?normal)"
    r"(?! to (?:\w+ )?(?:enlarged|increased|dilated|prominent))"
)
_LARGE = r"(?:enlarged?|enlargement|increased?|increases?|larger|dilated|dilatation|dilation)\b"
_CALCIFIED = r"\bcalci(?:fi|um|c\b|c |nosis)\w*"
_PLAQUE = rf"(?:\bathero\w*|\bplaques?\b|{_CALCIFIED})"
_LUNG = (
    r"\b(?:lungs?|lobes?|lingula\w*|segments?|pulmonary|subpleural|fissures?|parenchymal|r[uml]l|l[ul]l)\b"
)
# A nodule of a chest CT for which no other organ is named is one of the lung.
_NO_OTHER_PLACE = (
    r"^(?!.*\b(?:thyroid|isthmus|liver|hepat|adrenal|splee|splen|breast|kidney|renal|pancrea|skin|cutaneous"
    r"|subcutaneous|axilla|pleura|mediastin|hil|lymph|node|bone|rib|vertebr|muscle|soft tissue|neck"
    r"|chest wall"
    r"|abdom|periton|omental|salivary|parotid|endobronch|trache|nodular (?:thick|contour)))"
)
_CORONARY = (
    r"(?:\bcoronar(?:y|ies)\b|\b(?:lad|rca|lcx|lmca)\b|left anterior descending|circumflex"
    r"|\bleft main (?:stem|artery))"
)
_AORTA = r"\b(?:thoraco-?abdominal )?aort(?:a|ic)\b(?! valv)"
_ARTERY = (
    rf"(?:{_AORTA}|(?<!coronary )\barter(?:y|ies|ial)\b|(?<!coronary )\bvascular\b|supra-?aortic|\bcarotid"
    r"|\bsubclavian|\biliac|brachiocephalic)"
)
_EFFUSION = r"\b(?:effusions?|eff|fluid)\b"
_JOINED = ("{0} and ", "{0} or ", "{0}, ", "{0}-", "{0}/", "{0} - ", "{0} / ", "{0} and/or ")


def _effusion_of_other(own: str, other: str) -> str:
    """Effusion of another space alone: "pleural effusion" but not "pericardial or pleural effusion"."""
    not_joined = "".join(f"(?<!{form.format(own)})" for form in _JOINED)
    return rf"{not_joined}\b{other} (?:space )?(?:effusions?|fluid)\b"


_HEART = r"\b(?:heart|cardiac|cardio-?mediastinal(?= silhouette| contour))\b"
_HEART_LABEL = r"^(?:[\w ,/&]*\b)?(?:heart|cardiac)\b(?! (?:valve|rate))[\w ,/&]{0,40}(?::| -) ?"
_RATIO = (
    r"(?:\bcardio[- ]?thoracic (?:ratio|index)|\b(?:heart|cardiac)[/-]thora\w+ ratio|\bctr\b|\bct ratio\b)"
)
_PULMONARY_TRUNK = (
    r"(?:\bpulmonary (?:trunk|conus)|\bmain pulmonary artery|\btruncus pulmonalis|\bmpa\b|\bmain pa\b)"
)
_PULMONARY_ARTERY = rf"(?:{_PULMONARY_TRUNK}|\bpulmonary arter(?:y|ies|ial)\b)"
_OTHER_ORGAN = r"(?:thyroid|liver|hepatic|adrenal|spleen|splenic|breast|kidney|renal|pancrea\w*|isthmus)"
_NOT_THE_LUNG = r"(?:(?!\blung|\bpulmonary)[^.;]){0,60}"
_WALL = r"(?:walls?|sheaths?|cuff\w*)"
_THICK = r"(?:thick\w*|cuffing|prominen\w*|increases? in (?:wall )?thickness)"
_SEPTA = r"(?:inter-?(?:lobular|lobar|septal) )?sept(?:al|a|um)\b"

_ALL = (
    Finding(
        "coronary_stenosis",
        "coronary stenosis",
        together=((r"\b(?:stenos[ei]s|stenotic|stenosed|narrow(?:ed|ing)|occlu(?:sion|ded))\b", _CORONARY),),
        normal=(
            rf"{_CORONARY}(?: arter\w+)?(?:[^.;]{{0,40}}\b(?:is|are)|:)? (?:\w+ly )?"
            r"(?:patent|normal|unremarkable|open)\b",
        ),
        numbers=("cad_rads", "stenosis_percent"),
    ),
    Finding(
        "coronary_calcification",
        "coronary calcification",
        patterns=(r"\bcacs?\b(?! score)",),
        together=((_PLAQUE, _CORONARY),),
        excluded=(r"\b(?:non-?calcified|non-?calcific|soft|lipid(?:-rich)?) (?:\w+ )?plaques?\b",),
        numbers=("agatston_score",),
    ),
    Finding(
        "aortic_calcification",
        "aortic calcification",
        together=((_PLAQUE, _AORTA),),
    ),
    Finding(
        "atherosclerosis",
        "atherosclerosis",
        patterns=(
            r"\bathero\w*",
            r"\barteriosclero\w*",
            rf"{_CALCIFIED} plaques?",
            r"\bvascular calcification\w*",
        ),
        implied=((rf"(?:\bplaques?\b|{_CALCIFIED})", rf"(?:{_ARTERY}|{_CORONARY})"),),
    ),
    Finding(
        "cardiomegaly",
        "cardiomegaly",
        patterns=(
            r"\bcardiomegal\w*",
            rf"{_HEART}(?! rate| valve| failure)[^.;,]{{0,40}}?\b{_LARGE}",
            rf"{_RATIO}[^.;]{{0,60}}?\bincreas\w*",
            rf"\bincreas\w*[^.;]{{0,30}}{_RATIO}",
            r"\b(?:enlarge|increase|global dilatation)\w*[^.;,]{0,20} (?:of|in) (?:the )?(?:heart|cardiac)\b",
            r"\b(?:enlarged|large) (?:heart|cardiac)\b",
            rf"{_HEART} (?:is |appears |looks )?(?:\w+ly )?(?:large|big|bulky)\b",
        ),
        normal=(
            rf"{_HEART}[^.;]{{0,40}}\bsize[^.;]{{0,40}}?\b{_NORMAL}",
            rf"{_HEART}(?:,? \w+){{0,4}} (?:is|are|was|were) {_NORMAL}",
            rf"{_HEART} (?:\w+ ){{0,2}}?(?:is |are |was |has |shows )?(?:of |in "
            rf"|an? )*{_NORMAL} (?:\w+ )?(?:size|dimension"
            r"|contour)",
            rf"{_RATIO}[^.;]{{0,30}}\b{_NORMAL}",
            r"\b(?:normal|unremarkable|non-?enlarged) (?:\w+ )?(?:heart|cardiac)\b",
        ),
        excluded=(r"\bpericardial\b",),
        labeled=(rf"{_HEART_LABEL}(?:\w+ ){{0,2}}(?:enlarged|enlargement|increased(?: in)? size)\b",),
        labeled_normal=(
            rf"{_HEART_LABEL}(?:overall |grossly |size |is |are )*(?:(?:top[- ]|upper )?normal|unremarkable"
            r"|within normal|(?:not|non-?) ?enlarged|no (?:\w+ )?(?:enlargement|abnormalit\w+))\b"
            r"(?! (?:valve|function|ejection|position|rhythm))",
        ),
        numbers=("cardiothoracic_ratio",),
    ),
    Finding(
        "pericardial_effusion",
        "pericardial effusion",
        patterns=(r"\bhemopericardium\b", r"\bpericardial tamponade\b"),
        together=((_EFFUSION, r"\bpericardi(?:al|um|ac)\b"),),
        excluded=(_effusion_of_other("pericardial", "pleural"),),
    ),
    Finding(
        "pulmonary_arterial_hypertension",
        "pulmonary arterial hypertension",
        patterns=(
            r"\bpulmonary (?:arterial |artery )?hypertension\b",
            r"\b(?:pah|phtn|pht|pulmonary htn)\b",
            rf"{_PULMONARY_ARTERY}[^.;]{{0,60}}?\b(?:{_LARGE}|wider|wide\b|ectatic|ectasia|prominent)",
            rf"\b(?:{_LARGE}|ectasia|wide|prominent)[^.;,]{{0,30}}{_PULMONARY_ARTERY}",
        ),
        normal=(rf"{_PULMONARY_ARTERY}[^.;]{{0,60}}?\b{_NORMAL}", rf"\bnormal (?:\w+ )?{_PULMONARY_ARTERY}"),
        numbers=("pulmonary_trunk",),
    ),
    Finding(
        "pleural_effusion",
        "pleural effusion",
        patterns=(
            r"\bhydro(?:pneumo)?thorax\b",
            r"\bhemothorax\b",
            r"\bhydropneumothora\w*",
            r"\b(?:left|right|bilateral)(?:-sided)? effusions?\b",
        ),
        together=(
            (_EFFUSION, r"\b(?:pleura\w*|pl|hemithora\w*|bilateral|interlobar|fissur\w*|costophrenic)\b"),
        ),
        excluded=(
            _effusion_of_other("pleural", "pericardial"),
            r"\b(?:perihepatic|(?:intra-?)?abdominal|pelvic) fluid",
        ),
    ),
    Finding(
        "lung_nodule",
        "lung nodule",
        patterns=(
            r"\b(?:pulmonary|lung|parenchymal|ground[- ]glass) (?:micro)?nodul\w*",
            r"\b(?:ggns?|spns?)\b",
        ),
        together=(
            (
                r"\b(?:micro)?nodul(?:es?\b|ar lesions?|ar densit\w+|ar opacit\w+)",
                _LUNG,
            ),
            (r"\b(?:micro)?nodules?\b", _NO_OTHER_PLACE),
        ),
        excluded=(
            rf"{_OTHER_ORGAN}{_NOT_THE_LUNG}\bnodul\w*",
            rf"\bnodul\w*{_NOT_THE_LUNG}\b{_OTHER_ORGAN}",
        ),
    ),
    Finding(
        "emphysema",
        "emphysema",
        patterns=(r"\b(?:\w+-)?emphysem\w*", r"\b(?:bulla|bullae|bullous)\b"),
        excluded=(
            r"\b(?:subcutaneous|soft tissue|mediastinal|intramuscular|surgical|orbital|epidural) emphysem\w*",
            r"\bemphysem\w* (?:cystitis|pyel\w+|cholecyst\w+|gastritis|osteomyel\w+)"
            r"|\bemphysem\w* (?:in|of) (?:the )?(?:subcutaneous|soft tissue|chest wall|neck|mediastin)\w*",
        ),
    ),
    Finding(
        "consolidation",
        "consolidation",
        patterns=(r"\bconsol(?:idat\w*)?\b",),
        excluded=(r"\bground[- ]glass consolidat\w*",),
    ),
    Finding(
        "medical_material",
        "medical material",
        patterns=(
            r"\bmedical (?:materials?|devices?)\b",
            r"\b(?:catheters?|pacemakers?|stents?|sternotomy|sutures?|electrodes?|icd)\b",
            r"\b(?:prosthe\w+|cannulas?|cannulae|(?:breast|silicone|dental|cochlear) implants?)\b",
            r"\b(?:port|tubes?|valve replacement|chemoport)\b",
            r"\b(?:surgical|operation|suture|post-?op\w*) (?:\w+ )?(?:clips?|materials?|densit\w+)\b",
            r"\bclips?\b|\bmetallic\b",
            r"\b(?:picc|aicd|ppm|lvad|iabp|ett|ngt|hardware|screws?|coils?)\b",
        ),
        excluded=(r"\bdr\.? \w+", r"\btube (?:current|voltage)\b", r"\bfallopian tubes?\b"),
        lasting=True,
    ),
    Finding(
        "arterial_wall_calcification",
        "arterial wall calcification",
        together=((_PLAQUE, _ARTERY),),
    ),
    Finding(
        "hiatal_hernia",
        "hiatal hernia",
        patterns=(r"\bhiat\w* hernia\w*", r"\bhernia\w*[^.;]{0,30}\bhiat\w*", r"\bparaesophageal hernia\w*"),
    ),
    Finding(
        "lymphadenopathy",
        "lymphadenopathy",
        patterns=(
            r"\b(?:lymph)?adenopath\w*",
            r"\b(?:laps?|lan)\b",
            r"\blymph nodes? (?:is|are) not (?:\w+ly )?enlarged\b",
            r"\blymph nodes?\b(?! ?:)",
            r"\blymphadenomegal\w*",
        ),
        normal=(r"\blymph nodes? (?:is|are) (?:normal|unremarkable)\b",),
        labeled=(r"^[\w ,/&]*\blymph nodes?\b[\w ,/&]{0,30}: .{0,60}?\b(?:enlarged|prominent|nodes?|mm)\b",),
        labeled_normal=(
            r"^[\w ,/&]*\blymph nodes?\b[\w ,/&]{0,30}: (?:normal|unremarkable|negative|none)\b",
        ),
        excluded=(
            r"\blymph node (?:stations?|dissection)",
            r"\bintra-?(?:pulmonary|abdominal|mammary) lymph nodes?",
            r"\b(?:inguinal|mesenteric|pericolonic) lymph nodes?",
        ),
    ),
    Finding(
        "atelectasis",
        "atelectasis",
        patterns=(r"\batelecta\w*", r"\b\w+-atelecta\w*", r"\batx\b"),
        # "Fibroatelectasis" is a scar in these reports: it counts as sequela, as CT-RATE's labels have it.
        excluded=(r"\bfibro-?atelecta\w*",),
    ),
    Finding(
        "lung_opacity",
        "lung opacity",
        patterns=(
            r"\bground[- ]?glass\b|\bgg[oan]s?\b|\bgg opacit\w+",
            r"\bopaci(?:ty|ties|fication)\w*",
            r"\b(?:icy|frosted)[- ](?:glass|density)",
            r"\b(?:nonspecific|depend[ae]nt) (?:\w+ )?densit\w+",
            r"\bcrazy[- ]paving\b",
        ),
    ),
    Finding(
        "pulmonary_fibrotic_sequela",
        "pulmonary fibrotic sequela",
        patterns=(
            r"\bsequela\w*",
            r"\bfibro(?:tic|sis|-?atelecta\w*)\b",
            r"\bparenchymal bands?\b|\bsubpleural bands?\b",
            r"\bpleuro-?parenchymal (?:\w+ ){0,2}densit\w+",
            r"\bscar(?:s|ring)?\b",
        ),
    ),
    Finding(
        "mosaic_attenuation",
        "mosaic attenuation pattern",
        patterns=(r"\bmosaic\b",),
    ),
    Finding(
        "peribronchial_thickening",
        "peribronchial thickening",
        patterns=(
            rf"\bperi-?broncho?(?:ial|vascular|iolar)\w*[^.;]{{0,40}}?\b{_THICK}",
            rf"\b{_THICK}[^.;]{{0,40}}?\bperi-?broncho?(?:ial|vascular|iolar)\w*",
            rf"\bbronch(?:ial|us|i)\b (?:{_WALL} )?(?:\w+ ){{0,2}}{_THICK}",
            rf"\b{_THICK} (?:of |in )?(?:the )?bronchial {_WALL}",
        ),
    ),
    Finding(
        "bronchiectasis",
        "bronchiectasis",
        patterns=(r"\bbronchiecta\w*", r"\bbronchial (?:\w+ )?(?:ectasia|dilatation)\w*"),
    ),
    Finding(
        "interlobular_septal_thickening",
        "interlobular septal thickening",
        patterns=(
            rf"\b{_SEPTA} (?:\w+ ){{0,2}}{_THICK}",
            rf"\bthicken\w*[^.;]{{0,50}}?\b{_SEPTA}\b",
            rf"\bprominence (?:\w+ ){{0,3}}{_SEPTA}\b",
        ),
        excluded=(r"\b(?:atrial|ventricular|nasal) sept\w*",),
    ),
)

FINDINGS: dict[str, Finding] = {
    finding.name: finding for finding in (*_ALL, *CARDIAC_MR, *ABDOMEN, *EMBOLISM)
}
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
