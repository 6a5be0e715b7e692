"""What CT of the abdomen shows: the findings of Merlin's zero-shot table that no chest CT has among its own.

The wording of `medclip_jax.reports.vocabulary`, in a file of its own. Reports of the abdomen are mostly lists
of organs ("Spleen: Normal."), so that an organ that is called normal denies what would be seen in it.
"""

from __future__ import annotations

from medclip_jax.reports.finding import Finding

_NORMAL = (
    r"(?:\w+ly )?(?:normal|unremarkable|within normal limits|negative|no (?:\w+ )?abnormalit(?:y|ies))\b"
    r"(?! (?:except|other than|apart from|aside from|but|variant))"
)
_CALCIFIED = r"\bcalci(?:fi|um|c\b|c |nosis)\w*"
_KIDNEY = r"(?:kidneys?|renal)"
_BILE_DUCT = (
    r"(?:\bbiliary\b|\bbile ducts?\b|\bcommon (?:bile|hepatic) duct\b|\bcommon duct\b|\bcbd\b"
    r"|\b(?:intra|extra)-?hepatic (?:and (?:intra|extra)-?hepatic )?duct\w*)"
)


def _normal(organ: str) -> dict[str, tuple[str, ...]]:
    """Patterns of an organ that is called normal, in a sentence and over a label and its value."""
    return {
        "normal": (
            rf"\b{organ}(?: and [\w ]{{1,20}})? (?:is|are|appears?|looks?) {_NORMAL}",
            rf"\b(?:normal|unremarkable)(?:[- ]appearing)? {organ}\b",
        ),
        "labeled_normal": (rf"^(?:[\w ,/&]*\b)?{organ}\b[\w ,/&]{{0,40}}: {_NORMAL}",),
    }


def _large(organ: str) -> tuple[str, ...]:
    """Patterns of an enlarged organ."""
    return (
        rf"\b{organ}\b[^.;,]{{0,30}}?\b(?:enlarged|enlargement)\b",
        rf"\benlarge(?:d|ment of)(?: the)? (?:\w+ )?{organ}\b",
    )


ABDOMEN: tuple[Finding, ...] = (
    Finding(
        "submucosal_edema",
        "submucosal edema",
        patterns=(r"\bsub-?mucosal (?:\w+ )?edema\b",),
        **_normal("(?:bowel|colon|gastrointestinal tract)"),
    ),
    Finding(
        "renal_hypodensities",
        "renal hypodensity",
        together=(
            (
                r"\b(?:hypo-?(?:dens|attenuat)\w*|low[- ](?:density|attenuation|attenuating))\b",
                rf"\b{_KIDNEY}\b",
            ),
        ),
        excluded=(r"\b(?:hepatic|liver|splenic|adrenal|pancreatic) hypo-?dens\w*",),
        **_normal(_KIDNEY),
    ),
    Finding(
        "aortic_valve_calcification",
        "aortic valve calcification",
        together=((_CALCIFIED, r"\baortic (?:annul\w+ and )?valv\w*"),),
    ),
    Finding(
        "thrombosis",
        "thrombosis",
        patterns=(r"\bthromb(?:us|i|osis|oses|osed|otic)\b", r"\bdvt\b"),
        normal=(
            r"\b(?:portal|splenic|mesenteric|hepatic|renal|iliac|femoral) veins? (?:is|are) patent\b",
            r"\bpatent (?:\w+ ){0,3}veins?\b",
        ),
    ),
    Finding(
        "metastatic_disease",
        "metastatic disease",
        patterns=(r"\bmetasta(?:sis|ses|tic|si[sz]ed)\b", r"\bmets\b", r"\bcarcinomatosis\b"),
    ),
    Finding(
        "pancreatic_atrophy",
        "pancreatic atrophy",
        together=((r"\batroph\w*", r"\bpancrea\w*"),),
        excluded=(r"\b(?:renal|cortical|muscle|muscular|splenic|hepatic) atroph\w*",),
        **_normal("pancreas"),
    ),
    Finding(
        "renal_cyst",
        "renal cyst",
        patterns=(r"\bpolycystic kidney\w*", r"\bparapelvic cysts?\b"),
        together=((r"\bcysts?\b", rf"\b{_KIDNEY}\b"),),
        excluded=(r"\b(?:hepatic|liver|ovarian|adnexal|splenic|pancreatic|adrenal|simple hepatic) cysts?\b",),
        **_normal(_KIDNEY),
    ),
    Finding(
        "osteopenia",
        "osteopenia",
        patterns=(r"\bosteopeni\w*", r"\bosteoporo\w*", r"\bde-?minerali[sz]\w*"),
    ),
    Finding(
        "surgically_absent_gallbladder",
        "prior cholecystectomy",
        patterns=(
            r"\bcholecystectom\w*",
            r"\bgallbladder[^.;,]{0,30}?\b(?:absent|(?:been|was) (?:removed|resected))\b",
            r"\b(?:surgically )?absent gallbladder\b",
        ),
        labeled=(r"\bgallbladder\b[\w ,/&]{0,30}: (?:surgically |\w+ly )?(?:absent|removed|resected)\b",),
        lasting=True,
        **_normal("gallbladder"),
    ),
    Finding(
        "abdominal_aortic_aneurysm",
        "abdominal aortic aneurysm",
        patterns=(r"\baaa\b", r"\baort(?:ic|a) (?:\w+ )?aneurysm\w*"),
        together=(
            (
                r"\baneurysm\w*",
                r"\b(?:abdominal|(?:infra|juxta|supra)-?renal)\b[^.;]{0,20}\baort|\baort[^.;]{0,20}\babdominal",
            ),
        ),
        excluded=(
            r"\b(?:thoracic|ascending|descending|root) (?:\w+ )?(?:aort\w+ )?aneurysm\w*",
            r"\b(?:iliac|splenic|renal|hepatic|popliteal|femoral)(?: arter\w+)? aneurysm\w*",
        ),
    ),
    Finding(
        "anasarca",
        "anasarca",
        patterns=(
            r"\banasarca\b",
            r"\b(?:diffuse|generali[sz]ed) (?:\w+ )?(?:body wall|subcutaneous|soft tissue) edema\b",
        ),
    ),
    Finding(
        "prostatomegaly",
        "prostatomegaly",
        patterns=(
            r"\bprostatomegal\w*",
            r"\bbph\b|\bprostat\w+ (?:hypertroph\w*|hyperplasia)",
            *_large(r"(?:prostate(?: gland)?|prostatic)"),
        ),
        **_normal(r"prostate(?: gland)?"),
    ),
    Finding(
        "biliary_ductal_dilation",
        "biliary ductal dilation",
        together=((r"\b(?:dilat(?:ed|ation|ion)|ectasia|ectatic)\b", _BILE_DUCT),),
        excluded=(
            r"\bpancreatic duct(?:al)? (?:\w+ )?dilat\w*",
            r"\bdilat(?:ed|ation of|ion of)(?: the)? pancreatic",
        ),
        **_normal(r"(?:biliary (?:tree|tract|system|ducts?)|bile ducts?)"),
    ),
    Finding(
        "splenomegaly",
        "splenomegaly",
        patterns=(r"\b(?:hepato-?)?splenomegal\w*", *_large("spleen")),
        **_normal("spleen"),
    ),
    Finding(
        "hepatomegaly",
        "hepatomegaly",
        patterns=(r"\bhepato-?(?:spleno)?megal\w*", *_large("liver")),
        **_normal("liver"),
    ),
    Finding(
        "ascites",
        "ascites",
        patterns=(r"\bascit(?:es|ic)\b",),
    ),
    Finding(
        "hepatic_steatosis",
        "hepatic steatosis",
        patterns=(
            r"\b(?:hepato)?steato(?:sis|tic|hepatitis)\b",
            r"\bfatty (?:\w+ )?liver\b",
            r"\bfatty (?:infiltration|change|deposition)[^.;,]{0,25}\b(?:liver|hepatic)\b",
            r"\b(?:liver|hepatic)\b[^.;,]{0,25}\bfatty (?:infiltration|change|deposition)",
        ),
        excluded=(r"\bpancrea\w* steatosis\b",),
        labeled=(r"\bliver\b[\w ,/&]{0,40}: [^.;]{0,40}?\bfatty infiltration\b",),
        **_normal("liver"),
    ),
    Finding(
        "appendicitis",
        "appendicitis",
        patterns=(r"\bappendicitis\b",),
        **_normal("appendix"),
    ),
    Finding(
        "gallstones",
        "gallstones",
        patterns=(
            r"\bgall-?stones?\b",
            r"\bcholelithiasis\b",
            r"\bstones?[^.;,]{0,20}\b(?:in|within) (?:the )?gallbladder\b",
        ),
        labeled=(r"\bgallbladder\b[\w ,/&]{0,30}: [^.;,]{0,30}?\bstones?\b",),
        **_normal("gallbladder"),
    ),
    Finding(
        "hydronephrosis",
        "hydronephrosis",
        patterns=(
            r"\bhydro(?:-?uretero)?-?nephrosis\b",
            r"\b(?:pelvi|pelvo)?-?cali(?:ec|c)tasis\b",
        ),
        **_normal(_KIDNEY),
    ),
    Finding(
        "bowel_obstruction",
        "bowel obstruction",
        patterns=(
            r"\b(?:bowel|colonic|intestinal|duodenal|jejunal|ileal) obstruct\w*",
            r"\bobstruct(?:ed|ion of(?: the)?) (?:\w+ )?(?:bowel|colon)\b",
            r"\bsbo\b",
        ),
        **_normal(r"(?:bowel|gastrointestinal tract)"),
    ),
    Finding(
        "free_air",
        "free air",
        patterns=(
            r"\bfree (?:intra-?(?:peritoneal|abdominal) |peritoneal |abdominal )?(?:air|gas)\b",
            r"\bfree (?:\w+ )?fluid (?:and|or|/) ?(?:air|gas)\b",
            r"\bpneumoperitoneum\b",
            r"\bextra-?luminal (?:air|gas)\b",
        ),
    ),
    Finding(
        "fracture",
        "fracture",
        patterns=(r"\bfractur(?:e|es|ed)\b",),
    ),
)
"""The findings of abdominal CT, in the order of Merlin's table without those that chest CT shares."""

MERLIN_FINDINGS: tuple[str, ...] = (
    "submucosal_edema",
    "renal_hypodensities",
    "aortic_valve_calcification",
    "coronary_calcification",
    "thrombosis",
    "metastatic_disease",
    "pancreatic_atrophy",
    "renal_cyst",
    "osteopenia",
    "surgically_absent_gallbladder",
    "atelectasis",
    "abdominal_aortic_aneurysm",
    "anasarca",
    "hiatal_hernia",
    "lymphadenopathy",
    "prostatomegaly",
    "biliary_ductal_dilation",
    "cardiomegaly",
    "splenomegaly",
    "hepatomegaly",
    "atherosclerosis",
    "ascites",
    "pleural_effusion",
    "hepatic_steatosis",
    "appendicitis",
    "gallstones",
    "hydronephrosis",
    "bowel_obstruction",
    "free_air",
    "fracture",
)
"""The thirty findings of Merlin, in the order of its table's columns, which go by the same names."""
