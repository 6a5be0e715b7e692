"""What CT pulmonary angiography is read for: embolism, and what became of the patient.

The wording of `medclip_jax.reports.vocabulary`, in a file of its own. The outcomes are INSPECT's: no report
states them, so that they have no wording, and only labels say what is known.
"""

from __future__ import annotations

from medclip_jax.reports.finding import Finding

_EMBOLISM = (
    r"(?:\bpulmonary (?:arter\w+ )?(?:thrombo-?)?embol\w*|\bpes?\b|\bpulmonary thrombo-?embol\w*"
    r"|\bembol(?:us|i|ism)\b)"
)
_ARTERY = r"\b(?:pulmonary|lobar|segmental|subsegmental|arter(?:y|ies|ial))\b"
_OTHER = (
    r"\bpe[- ](?:protocol|study|studies|ct|cta|scan|exam\w*|evaluation)\b",
    r"\b(?:septic|fat|air|cement|tumor|foreign body) (?:pulmonary )?embol\w*",
    r"\bevaluat\w+ for (?:\w+ )?(?:pulmonary embol\w*|pe)\b",
)
# Where there is none at all, there is none of a kind either.
_NONE = tuple(
    rf"(?<=\b{denial} ){_EMBOLISM}"
    for denial in (
        "no",
        "no evidence of",
        "no evidence for",
        "no ct evidence of",
        "no definite",
        "no sign of",
        "no signs of",
        "without",
        "without evidence of",
        "negative for",
    )
)

EMBOLISM: tuple[Finding, ...] = (
    Finding(
        "pulmonary_embolism",
        "pulmonary embolism",
        patterns=(_EMBOLISM,),
        together=((r"\bfilling defects?\b", _ARTERY),),
        excluded=_OTHER,
    ),
    Finding(
        "acute_pulmonary_embolism",
        "acute pulmonary embolism",
        patterns=_NONE,
        together=((_EMBOLISM, r"\bacute\b"),),
        excluded=_OTHER,
    ),
    Finding(
        "subsegmental_pulmonary_embolism",
        "subsegmental pulmonary embolism",
        patterns=_NONE,
        together=((_EMBOLISM, r"\bsub-?segmental\b"), (r"\bfilling defects?\b", r"\bsub-?segmental\b")),
        excluded=_OTHER,
    ),
    Finding("death_within_1_month", "death within 1 month"),
    Finding("death_within_6_months", "death within 6 months"),
    Finding("death_within_12_months", "death within 12 months"),
    Finding("readmission_within_1_month", "readmission within 1 month"),
    Finding("readmission_within_6_months", "readmission within 6 months"),
    Finding("readmission_within_12_months", "readmission within 12 months"),
    Finding("pulmonary_hypertension_within_12_months", "pulmonary hypertension within 12 months"),
)
"""Embolism, and outcomes."""

INSPECT_FINDINGS: tuple[str, ...] = tuple(finding.name for finding in EMBOLISM)
"""What INSPECT has labels of: three of embolism, seven outcomes."""
