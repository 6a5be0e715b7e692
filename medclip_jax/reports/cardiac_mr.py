"""What cardiac MR shows: function, size and thickness of the ventricles, scar, the aorta, and diagnoses.

The wording of `medclip_jax.reports.vocabulary`, in a file of its own. A statement about a chamber reaches
over the words between, up to the next chamber or vessel.
"""

from __future__ import annotations

from medclip_jax.reports.finding import Finding

_LEFT = r"(?:\bleft ventric(?:le|les|ular)\b|\blv\b)"
_RIGHT = r"(?:\bright ventric(?:le|les|ular)\b|\brv\b)"
_BOTH = (
    r"(?:\bbi-?ventricular\b|\bboth (?:\w+ )?ventricles\b"
    r"|\b(?:left|right) (?:and|or) (?:left|right) ventric\w+"
    r"|\b(?:lv|rv) ?(?:and|or|/|&) ?(?:lv|rv)\b"
    r"|\b(?:left|right) ventric\w+ (?:and|or) (?:the )?(?:left|right) ventric\w+"
    r"|(?<!left )(?<!right )\bventricles\b|(?<!left )(?<!right )\bventricular(?= (?:size|function|volume)))"
)
_STRUCTURES = (
    r"\batri(?:um|al|a)\b|\baort|\bpulmonary\b|\bvalv|\bannul|\bleaflet|\bcoronary\b|\bpericardi|\bpapillary\b"
    r"|\bmicrovascular\b|\bvena\b|\bsinus(?:es)?\b"
)
_IS = r"(?:is|are|was|were|has|have|had|with|shows?|demonstrates?|appears?|remains?|has been|of)"
_STATES = rf"(?: ?:| {_IS})"
_NORMAL = (
    r"\b(?:(?:low|high|top|upper|grossly|essentially|overall|completely|within)[- ])?"
    r"(?:normal(?:ly)?|preserved|unremarkable|intact|maintained)\b"
    r"(?! to (?:\w+ )?(?:reduced|dilated|enlarged))"
)
_ABNORMAL_WORD = (
    r"\b(?:reduc|impair|decreas|depress|dilat|enlarg|hypertroph|thick(?!ness)|increas|abnormal|dysfunction"
    r"|dyskine|akine|hypokine|but\b|however|although|while\b|except)"
)
_REDUCED = (
    r"\b(?:reduced|reduction|decreased?|impaired|impairment|depressed|diminished|low(?![- ]normal|er limit)"
    r"|poor|compromised|abnormal|worsened)\b"
)
_FUNCTION = r"(?:function|ejection fraction|contractility|contraction|performance|ef)\b"
_DILATED = r"(?:dilat(?:ed|ation|ion)s?|enlarged?|enlargement)\b"
_LARGE_VOLUME = r"increased (?:[\w-]+ ){0,2}?(?:size|volumes?|dimensions?|diameters?)\b"
_SIZE = r"(?:size|sizes|cavity|cavities|volumes?|dimensions?|diameters?|chamber)\b"
_ALONE = r"(?= ?(?:[.,;)]|$|and (?:the )?(?:right|left|rv|lv|no)\b))"


def _between(limit: int, *guards: str) -> str:
    """Up to so many characters of a statement in which none of the guards stands."""
    return rf"(?:(?!{'|'.join(guards)})[^.;]){{0,{limit}}}?"


def _joined(*wordings: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """All of their patterns, read over a heading and its value, too ("RIGHT VENTRICLE: dilated.")."""
    keys = ("patterns", "normal", "excluded")
    found = {key: sum((wording.get(key, ()) for wording in wordings), ()) for key in keys}
    return found | {"labeled": found["patterns"], "labeled_normal": found["normal"]}


def _function(own: str, other: str) -> dict[str, tuple[str, ...]]:
    """Patterns of reduced and of normal systolic function of a ventricle."""
    chamber = rf"(?:{_BOTH}|{own})"
    reach, short = _between(60, other, _STRUCTURES), _between(25, other, _STRUCTURES, _NORMAL)
    clean = _between(60, other, _STRUCTURES, _ABNORMAL_WORD)
    ef = rf"(?:\b{'l' if own == _LEFT else 'r'}v ?ef\b)"
    return {
        "patterns": (
            rf"{chamber}{reach}(?:(?<!diastolic )|(?<=systolic and diastolic ))\bdysfunction\b",
            rf"\bdysfunction of (?:the )?{chamber}",
            rf"{chamber}{reach}\b{_FUNCTION}{short}{_REDUCED}",
            rf"{chamber}{reach}{_REDUCED} (?:(?!{other}|{_STRUCTURES}|diastolic)[\w-]+ ){{0,2}}{_FUNCTION}",
            rf"{_REDUCED} (?:in |of )?(?:the )?(?:[\w-]+ )?{chamber}"
            rf"{_between(25, other, _STRUCTURES)}\b{_FUNCTION}",
            rf"{_REDUCED} (?:[\w-]+ )?{_FUNCTION} (?:of|in) (?:the |both )?{chamber}",
            rf"{ef}{short}{_REDUCED}|{_REDUCED} {ef}",
            rf"\b(?:global|diffuse) (?:\w+ )?{chamber} hypokine\w+",
            rf"\b(?:global|diffuse) hypokine\w+ of (?:the )?{chamber}",
            rf"{chamber}{_STATES} (?:\w+ly )?(?:globally|diffusely) (?:\w+ly )?hypokine\w+",
            rf"{chamber} (?:systolic |pump )?failure\b",
        ),
        "normal": (
            rf"{_NORMAL} (?:global )?(?:[\w-]+ )?{chamber}{clean}\b{_FUNCTION}",
            rf"{_NORMAL} (?:[\w-]+ )?{_FUNCTION} (?:of|in) (?:the |both )?{chamber}",
            rf"{chamber}{clean}\b{_FUNCTION}{_between(25, other, _STRUCTURES, _ABNORMAL_WORD)}{_NORMAL}",
            rf"{chamber}(?: \w+){{0,2}} {_IS} (?:an? )?(?:\w+ly )?{_NORMAL}{clean}\b{_FUNCTION}",
            rf"{chamber}{reach}{_NORMAL} (?:(?!{other}|{_STRUCTURES}|diastolic)[\w-]+ ){{0,2}}{_FUNCTION}",
            rf"{chamber}{_STATES} (?:\w+ly )?{_NORMAL}{_ALONE}|\bnormal {chamber}{_ALONE}",
            rf"{ef}{_between(25, _ABNORMAL_WORD)}{_NORMAL}|{_NORMAL} {ef}",
        ),
        # "Systolic and diastolic dysfunction" is systolic, too.
        "excluded": (r"(?<!and )\bdiastolic dysfunction",),
    }


def _dilation(own: str, other: str) -> dict[str, tuple[str, ...]]:
    """Patterns of a dilated ventricle and of one of normal size."""
    chamber = rf"(?:{_BOTH}|{own})"
    reach = _between(50, other, _STRUCTURES)
    clean = _between(50, other, _STRUCTURES, _ABNORMAL_WORD)
    # "Dilated left atrium", "dilated cardiomyopathy": something else.
    elsewhere = (
        rf"(?! (?:\w+ )?(?:{other}|{_STRUCTURES}|left atri|right atri|cardiomyop|ascending|descending))"
    )
    return {
        "patterns": (
            rf"{chamber}{reach}\b{_DILATED}{elsewhere}",
            rf"{chamber}{reach}\b{_LARGE_VOLUME}{elsewhere}",
            rf"{chamber}{clean}\b{_SIZE}{_between(20, other, _STRUCTURES, _NORMAL)}\bincreased\b",
            rf"\b{_DILATED} (?:of (?:the )?)?(?:(?!{other}|{_STRUCTURES}|left\b|right\b)[\w-]+ ){{0,3}}"
            rf"{chamber}",
            rf"\bincreased (?:[\w-]+ ){{0,2}}?{chamber} (?:[\w-]+ ){{0,2}}?{_SIZE}",
            r"\b(?:four|4)[- ]chamber (?:dilat|enlarge)\w+",
        ),
        "normal": (
            rf"{_NORMAL}(?:[- ]sized)? (?:[\w-]+ )?{chamber}{clean}\b{_SIZE}",
            rf"\bnormal[- ]sized (?:and \w+ )?{chamber}",
            rf"{_NORMAL} (?:[\w-]+ ){{0,4}}?{_SIZE} (?:and (?:[\w-]+ ){{1,2}})?of (?:the |both )?"
            rf"{chamber}",
            rf"{chamber}{clean}\b{_SIZE}{_between(40, other, _STRUCTURES, _ABNORMAL_WORD)}{_NORMAL}",
            rf"{chamber}{_STATES} (?:of |an? )?(?:\w+ly )?{_NORMAL} (?:in )?(?:[\w-]+,? (?:and )?){{0,3}}?"
            rf"{_SIZE}",
            rf"{chamber}{_STATES} (?:\w+ly )?{_NORMAL}{_ALONE}|\bnormal {chamber}{_ALONE}",
        ),
    }


_NOT_RIGHT = r"(?<!right ventricular )(?<!rv )"
_OF_RIGHT = rf"(?! of (?:the )?{_RIGHT})"
_SYSTOLIC = rf"(?:^|{_NOT_RIGHT}\bglobal )systolic {_FUNCTION}|{_NOT_RIGHT}\bejection fraction\b"
# Where no ventricle is named, the left one is meant.
_NO_VENTRICLE = {
    "patterns": (
        rf"{_NOT_RIGHT}\b(?:global|overall) (?:\w+ )?hypokine\w+",
        rf"(?:{_SYSTOLIC}){_between(25, _RIGHT, _NORMAL)}{_REDUCED}",
        rf"{_REDUCED} (?:global )?(?:systolic function|ejection fraction)\b{_OF_RIGHT}",
    ),
    "normal": (
        rf"(?:{_SYSTOLIC}){_between(25, _RIGHT, _ABNORMAL_WORD)}{_NORMAL}",
        rf"{_NORMAL} (?:global )?(?:systolic function|ejection fraction)\b{_OF_RIGHT}",
    ),
}

_WALL = r"(?:\b(?:inter-?ventricular |ventricular |basal |mid |basal anterior )?septum\b|\bmyocardium\b)"
_THICK_PLACE = rf"(?:{_BOTH}|{_LEFT}|{_WALL}|\b(?:myocardial|septal|apical|anterior|lateral|inferior)\b)"
_TERRITORY = (
    r"\b(?:delayed|late|gadolinium|lge|myocardi\w*|intramyocardial|transmural|sub-?endocardi\w*|mid-?wall"
    r"|mid-?myocardi\w*|sub-?epicardi\w*|epicardial|ventric\w*|sept(?:al|um)|insertion points?|lad|rca|lcx"
    r"|patchy|infarct\w*|papillary|apex|(?:anterior|inferior|lateral|infero-?lateral|antero-?lateral"
    r"|infero-?septal|antero-?septal) wall|territory|hinge points?)\b"
)
_TECHNIQUE = (
    r"(?![- ]?(?:imag\w*|sequences?|stud(?:y|ies)|scans?|protocol|acquisitions?|series|mri?\b|cmr|technique"
    r"|assessment|analysis|(?:was|were) (?:performed|acquired|obtained|limited|not performed)))"
)
_AORTA = (
    r"(?:\baort(?:a|ic)\b(?! (?:valv|stenos|regurg|insuffic|annul|sten|calcif))|\bsinus(?:es)? of valsalva\b)"
)
_WIDE = r"(?:dilat(?:ed|ation|ion)s?|ectatic|ectasia|aneurysm\w*|enlarged?|enlargement|widened)\b"
_IN_AORTA = _between(45, r"\bventric|\b[lr]v\b|\batri|\bpulmonary\b|\bvalve")
_CARDIOMYOPATHY = r"cardio-?myopath\w+"
_ISCHEMIC = r"(?<!non)(?<!non-)(?<!non )\bisch(?:a?)emic\b"
_NONISCHEMIC = r"\bnon[- ]?isch(?:a?)emic\b"
_OF_ORIGIN = r"(?:etiology|aetiology|origin|cause|type)\b"

CARDIAC_MR: tuple[Finding, ...] = (
    Finding(
        "left_ventricular_dysfunction",
        "left ventricular dysfunction",
        numbers=("lv_ejection_fraction",),
        **_joined(_function(_LEFT, _RIGHT), _NO_VENTRICLE),
    ),
    Finding(
        "right_ventricular_dysfunction",
        "right ventricular dysfunction",
        numbers=("rv_ejection_fraction",),
        **_joined(_function(_RIGHT, _LEFT)),
    ),
    Finding(
        "left_ventricular_dilation",
        "left ventricular dilation",
        numbers=("lv_end_diastolic_diameter",),
        **_joined(_dilation(_LEFT, _RIGHT)),
    ),
    Finding(
        "right_ventricular_dilation",
        "right ventricular dilation",
        **_joined(_dilation(_RIGHT, _LEFT)),
    ),
    Finding(
        "left_ventricular_hypertrophy",
        "left ventricular hypertrophy",
        patterns=(
            r"\b(?:left ventricular|lv|septal|asymmetric(?:al)?(?: [\w-]+){0,2}"
            r"|concentric(?: [\w-]+){0,2}|apical|myocardial|biventricular|basal(?: [\w-]+)?)"
            r" hypertroph(?:y|ied)\b",
            r"\blvh\b",
            rf"\bhypertroph(?:y|ied|ic) (?:of |in )?(?:the )?(?:[\w-]+ )?{_THICK_PLACE}",
            rf"{_THICK_PLACE}{_between(40, _RIGHT, _STRUCTURES, 'systolic thick', 'diaphragm')}"
            r"\b(?:hypertroph(?:y|ied)|(?<!systolic )thickened|(?<!wall )thickening|thick)\b",
            rf"{_THICK_PLACE}{_between(30, _RIGHT, _STRUCTURES)}\bthickness(?:es)?"
            rf"{_between(25, _RIGHT, _NORMAL)}\bincreased?\b",
            rf"\bincreased? (?:in )?(?:[\w-]+ ){{0,2}}?{_THICK_PLACE}(?: [\w-]+){{0,2}}?"
            r" (?:thickness|mass)\b",
            rf"{_LEFT} mass (?:index )?{_IS} (?:\w+ly )?increased\b",
            rf"\bthick(?:ened)? (?:[\w-]+ )?{_THICK_PLACE}",
        ),
        normal=(
            rf"{_NORMAL} (?:[\w-]+ )?{_THICK_PLACE}{_between(50, _RIGHT, _ABNORMAL_WORD)}"
            r"\b(?:thickness|mass)\b",
            rf"{_THICK_PLACE}{_between(50, _RIGHT, _ABNORMAL_WORD)}\b(?:thickness|mass)(?:es)?\b"
            rf"{_between(40, _RIGHT, _ABNORMAL_WORD)}{_NORMAL}",
            rf"(?:{_BOTH}|{_LEFT}){_STATES} (?:\w+ly )?{_NORMAL}{_ALONE}",
        ),
        excluded=(
            r"\b(?:right ventricular|rv|lipomatous|papillary(?: muscle)?|prostatic|trabecular) hypertroph\w+",
            r"\bhypertroph\w+ of (?:the )?(?:right ventric\w+|rv|papillary|inter-?atrial|atrial)",
            r"\b(?:inter-?lobular|inter-?lobar|atrial|nasal) sept\w+",
            r"\b(?:pericardial|pleural|valv\w+|leaflet|bronchial|wall) thickening",
        ),
        numbers=("wall_thickness",),
    ),
    Finding(
        "late_gadolinium_enhancement",
        "late gadolinium enhancement",
        patterns=(
            rf"\blge\b{_TECHNIQUE}",
            r"\b(?:late|delayed)[- ](?:gadolinium[- ]|post-?contrast )?(?:hyper-?)?enhancement\b"
            rf"{_TECHNIQUE}",
            r"\bmyocardial (?:scar\w*|fibrosis|necrosis)\b|\breplacement fibrosis\b",
        ),
        together=(
            (rf"\b(?:hyper-?)?enhance(?:ment|s)\b{_TECHNIQUE}", _TERRITORY),
            (r"\bscar(?:s|red|ring)?\b", _TERRITORY),
        ),
        implied=((r"\binfarct(?:s|ion|ions|ed)?\b", r"\b(?:transmural|sub-?endocardi\w*|territory)\b"),),
        excluded=(
            r"\b(?:pericardial|pleural|early|valv\w+|mediastinal|nodal) (?:\w+ )?enhancement",
            r"\b(?:lungs?|pulmonary|pleura\w*|parenchymal)\b[^.;]{0,30}\bscar\w*",
        ),
        numbers=("scar_percent",),
    ),
    Finding(
        "regional_wall_motion_abnormality",
        "regional wall motion abnormality",
        patterns=(
            r"\b(?:regional |segmental |focal )?wall[- ]motion (?:is |are )?(?:abnormal\w*|defects?)\b",
            r"\babnormal (?:\w+ )?wall motion\b",
            r"\br?wmas?\b",
            r"\b(?:hypo|a|dys)kine(?:sis|sia|tic)\b",
            r"\b(?:regional|segmental) (?:\w+ )?dysfunction\b",
        ),
        normal=(
            r"\bwall motion[^.;,]{0,20}\b(?:normal|preserved|unremarkable|intact)\b",
            r"\b(?:normal|preserved|unremarkable) (?:[\w-]+ ){0,3}wall motion\b(?! abnormal)",
        ),
        excluded=(
            rf"\b(?:global|diffuse|overall) (?:\w+ )?(?:{_LEFT} |{_RIGHT} |{_BOTH} )?(?:hypo|a)kine\w+",
            r"\b(?:globally|diffusely) (?:\w+ly )?(?:hypo|a)kine\w+",
            r"\bhypokine\w+ (?:is )?(?:global|diffuse)\b",
        ),
    ),
    Finding(
        "aortic_dilation",
        "aortic dilation",
        patterns=(
            rf"{_AORTA}{_IN_AORTA}\b{_WIDE}(?! (?:\w+ )?(?:left|right|lv|rv|pulm|atri|ventric))",
            rf"\b{_WIDE} (?:of )?(?:the )?(?:(?!left\b|right\b|pulmonary)[\w-]+ ){{0,3}}{_AORTA}",
        ),
        normal=(
            rf"{_AORTA}{_between(60, _ABNORMAL_WORD)}\b(?:caliber|size|dimensions?|diameters?)"
            rf"{_between(20, _ABNORMAL_WORD)}{_NORMAL}",
            rf"{_AORTA}{_between(40, _ABNORMAL_WORD)}{_NORMAL} (?:in )?(?:\w+ )?(?:caliber|size|diameter"
            r"|dimensions?)",
            rf"{_NORMAL}(?:[- ]sized?)? (?:(?:caliber|size|diameters?|dimensions?) (?:of )?(?:the )?)?"
            rf"(?:(?:thoracic|ascending|descending) )?{_AORTA}",
            rf"{_AORTA}(?: root| arch)? {_IS} {_NORMAL}{_ALONE}",
        ),
        numbers=("aortic_root",),
    ),
    Finding(
        "hypertrophic_cardiomyopathy",
        "hypertrophic cardiomyopathy",
        patterns=(rf"\bhypertrophic (?:[\w-]+ ){{0,2}}?{_CARDIOMYOPATHY}", r"\bho?cm\b"),
    ),
    Finding(
        "ischemic_cardiomyopathy",
        "ischemic cardiomyopathy",
        patterns=(
            rf"{_ISCHEMIC}(?:[- ]type)? (?:[\w-]+ ){{0,2}}?{_CARDIOMYOPATHY}",
            rf"\b{_CARDIOMYOPATHY} of (?:an )?{_ISCHEMIC} {_OF_ORIGIN}",
            r"\bicm\b",
        ),
    ),
    Finding(
        "nonischemic_cardiomyopathy",
        "nonischemic cardiomyopathy",
        patterns=(
            rf"{_NONISCHEMIC}(?:[- ]type)? (?:[\w-]+ ){{0,2}}?{_CARDIOMYOPATHY}",
            rf"\b{_CARDIOMYOPATHY} of (?:an? )?{_NONISCHEMIC} {_OF_ORIGIN}",
            rf"(?<!ischemic )\bdilated {_CARDIOMYOPATHY}",
            r"\b(?:nicm|dcm)\b",
        ),
    ),
    Finding(
        "cardiac_amyloidosis",
        "cardiac amyloidosis",
        patterns=(r"\bamyloid\w*", r"\battr(?:-?cm)?\b"),
        excluded=(r"\b(?:pulmonary|tracheobronchial|cerebral|hepatic|renal|nodular) amyloid\w*",),
    ),
)
"""The findings of cardiac MR that no chest CT has among its own."""

CARDIAC_MR_DIAGNOSES: tuple[str, ...] = (
    "hypertrophic_cardiomyopathy",
    "ischemic_cardiomyopathy",
    "nonischemic_cardiomyopathy",
    "cardiac_amyloidosis",
)
"""The four diagnoses of CMR-CLIP, of which a study has one at most."""

CARDIAC_MR_FINDINGS: tuple[str, ...] = (
    "left_ventricular_dysfunction",
    "right_ventricular_dysfunction",
    "left_ventricular_dilation",
    "right_ventricular_dilation",
    "left_ventricular_hypertrophy",
    "late_gadolinium_enhancement",
    "regional_wall_motion_abnormality",
    "aortic_dilation",
    "pericardial_effusion",
    *CARDIAC_MR_DIAGNOSES,
)
"""What cardiac MR shows: nine findings and the four diagnoses."""
