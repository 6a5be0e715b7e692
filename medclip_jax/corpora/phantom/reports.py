"""A grammar of radiology reports: what is present is said, what is absent often is not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

NORMAL: Mapping[str, tuple[str, ...]] = {
    "coronary_stenosis": (
        "There is no significant coronary stenosis.",
        "No hemodynamically significant coronary artery stenosis is seen.",
    ),
    "coronary_calcification": (
        "No coronary artery calcification is seen.",
        "There is no coronary calcification.",
        "The coronary arteries are free of calcification.",
    ),
    "aortic_calcification": (
        "No aortic calcification is seen.",
        "There is no calcification of the aortic wall.",
    ),
    "atherosclerosis": (
        "There is no evidence of atherosclerosis.",
        "No atherosclerotic changes are identified.",
    ),
    "cardiomegaly": (
        "The heart is normal in size.",
        "There is no cardiomegaly.",
        "Heart size is within normal limits.",
    ),
    "pericardial_effusion": (
        "There is no pericardial effusion.",
        "No pericardial effusion is detected.",
    ),
    "pulmonary_arterial_hypertension": (
        "There is no sign of pulmonary arterial hypertension.",
        "The pulmonary artery is of normal caliber.",
    ),
    "pleural_effusion": (
        "There is no pleural effusion.",
        "No pleural effusion is detected.",
    ),
    "lung_nodule": (
        "No pulmonary nodule is seen.",
        "There is no lung nodule.",
    ),
    "emphysema": (
        "There is no emphysema.",
        "No emphysematous change is present.",
    ),
    "consolidation": (
        "No consolidation is seen.",
        "There is no consolidation in either lung.",
    ),
}
"""How an absent finding is denied, if it is mentioned at all."""

DISTRACTORS = (
    "The thyroid gland is unremarkable.",
    "A hypodense nodule of 8 mm is seen in the left thyroid lobe.",
    "There are degenerative changes of the thoracic spine.",
    "Mild osteophytes are present along the vertebral end plates.",
    "Bone structures are intact without lytic lesions.",
    "A simple cyst is seen in the liver.",
    "The visualized upper abdominal organs are unremarkable.",
    "The gallbladder is not included in the examination.",
    "The trachea and main bronchi are patent.",
    "No pathologically enlarged mediastinal lymph nodes are identified.",
    "The esophagus has a normal course and wall thickness.",
    "The spleen is of normal size.",
    "The adrenal glands are normal in appearance.",
    "There is no axillary lymphadenopathy.",
    "The chest wall soft tissues are unremarkable.",
    "Minimal linear atelectasis is seen in the lung bases.",
    "A small hiatal hernia is present.",
    "The thoracic aorta is of normal course.",
    "Old healed rib fractures are seen on the right.",
    "The great vessels of the neck are patent.",
    "Sternal wires are not present.",
    "There is mild scoliosis of the thoracic spine.",
    "The liver shows diffuse low density in keeping with steatosis.",
    "Small accessory spleen is noted.",
    "Mild apical pleural thickening is seen.",
)

DEGREES = ("mild", "moderate", "severe")


def _degree(severity: float) -> str:
    return DEGREES[min(int(severity * 3), 2)]


def _sentence(name: str, facts: Mapping, rng: np.random.Generator) -> str:
    """One sentence of the findings section that states `name` as present."""
    degree = _degree(facts["severities"][name])
    m = facts["measurements"]
    pick = rng.integers

    def one(*options: str) -> str:
        text = options[pick(len(options))]
        return text[0].upper() + text[1:]

    if name == "coronary_calcification":
        score = m["agatston_score"]
        return one(
            f"{degree} coronary artery calcification is seen, with an Agatston score of {score:.0f}.",
            f"there is {degree} coronary calcification.",
            f"calcified plaques are present in the coronary arteries (Agatston score {score:.0f}).",
            f"{degree} calcification of the coronary arteries is noted.",
        )
    if name == "coronary_stenosis":
        share = 5 * round(20 * m["coronary_stenosis_fraction"])
        return one(
            f"there is a coronary stenosis of {share} %.",
            f"{degree} coronary artery stenosis is seen, with luminal narrowing of about {share} %.",
            f"significant coronary stenosis of {share} % is present.",
        )
    if name == "aortic_calcification":
        return one(
            f"there is {degree} aortic calcification.",
            f"{degree} calcification of the aorta is seen.",
            "calcified plaques are present in the aortic wall.",
        )
    if name == "atherosclerosis":
        return one(
            f"{degree} atherosclerosis is present.",
            "atherosclerotic changes are seen.",
            "there is atherosclerosis.",
            "atherosclerotic plaques are noted.",
        )
    if name == "cardiomegaly":
        ratio = m["cardiothoracic_ratio"]
        return one(
            f"there is {degree} cardiomegaly.",
            f"the heart is enlarged, with a cardiothoracic ratio of {ratio:.2f}.",
            "heart size is increased.",
            f"{degree} cardiomegaly is seen.",
        )
    if name == "pericardial_effusion":
        return one(
            f"a {degree} pericardial effusion is present.",
            f"there is a pericardial effusion of up to {m['pericardial_effusion_mm']:.0f} mm.",
            "pericardial effusion is seen.",
        )
    if name == "pulmonary_arterial_hypertension":
        width = m["pulmonary_artery_diameter_mm"]
        return one(
            f"the main pulmonary artery is dilated to {width:.0f} mm, consistent with pulmonary arterial hypertension.",
            "there are signs of pulmonary arterial hypertension.",
            f"findings of pulmonary arterial hypertension, with a pulmonary trunk of {width:.0f} mm.",
        )
    if name == "pleural_effusion":
        side = facts["effusion_side"]
        return one(
            f"there is a {degree} {side} pleural effusion.",
            f"{side} pleural effusion is seen, up to {m['pleural_effusion_mm']:.0f} mm deep.",
            f"a {degree} {side} pleural effusion is present.",
        )
    if name == "lung_nodule":
        lobe, size = facts["nodule_lobe"], m["lung_nodule_mm"]
        return one(
            f"a {size:.0f} mm nodule is seen in the {lobe}.",
            f"there is a pulmonary nodule of {size:.0f} mm in the {lobe}.",
            f"a lung nodule measuring {size:.0f} mm is present in the {lobe}.",
        )
    if name == "emphysema":
        return one(
            f"there is {degree} emphysema.",
            f"{degree} emphysematous changes are seen, predominantly in the upper lobes.",
            "emphysematous areas are present in both lungs.",
        )
    lobe = facts["consolidation_lobe"]
    return one(
        f"there is consolidation in the {lobe}.",
        f"a consolidation with air bronchograms is seen in the {lobe}.",
        f"{lobe} consolidation is present.",
    )


SHORT: Mapping[str, tuple[str, ...]] = {
    "coronary_calcification": ("Coronary artery calcification.", "Coronary calcification."),
    "coronary_stenosis": ("Coronary stenosis.", "Significant coronary artery stenosis."),
    "aortic_calcification": ("Aortic calcification.", "Calcification of the aorta."),
    "atherosclerosis": ("Atherosclerosis.", "Atherosclerotic changes."),
    "cardiomegaly": ("Cardiomegaly.", "Enlarged heart."),
    "pericardial_effusion": ("Pericardial effusion.",),
    "pulmonary_arterial_hypertension": (
        "Pulmonary arterial hypertension.",
        "Signs of pulmonary arterial hypertension.",
    ),
    "pleural_effusion": ("Pleural effusion.",),
    "lung_nodule": ("Pulmonary nodule.", "Lung nodule."),
    "emphysema": ("Emphysema.", "Pulmonary emphysema."),
    "consolidation": ("Consolidation.", "Pulmonary consolidation."),
}


def write_report(labels: Mapping[str, int], facts: Mapping, rng: np.random.Generator) -> dict[str, str]:
    """Compose {"findings": ..., "impression": ...}.

    The number of characters is drawn before the content and filled up with denials, normal sentences
    and distractors, so the length says nothing about the findings.

    Args:
        labels: finding to 1, -1 or 0.
        facts: "severities", "measurements" and the places that sentences name.
        rng: source of all choices.
    """
    target = rng.uniform(900, 1900)
    present = [n for n, v in labels.items() if v == 1]
    sentences = [_sentence(n, facts, rng) for n in present]
    impression = [SHORT[n][rng.integers(len(SHORT[n]))] for n in present if rng.random() < 0.8]
    denied = [n for n, v in labels.items() if v == -1 and rng.random() < 0.5]
    pool = [NORMAL[n][rng.integers(len(NORMAL[n]))] for n in denied]
    fill = pool + list(rng.permutation(np.array(DISTRACTORS)))
    fill = [fill[i] for i in rng.permutation(len(fill))]
    if not impression:
        impression = ["No acute abnormality."]
    length = sum(map(len, sentences)) + sum(map(len, impression))
    for sentence in fill:
        if length > target:
            break
        sentences.append(str(sentence))
        length += len(sentence)
    sentences = [sentences[i] for i in rng.permutation(len(sentences))]
    impression = [impression[i] for i in rng.permutation(len(impression))]
    return {"findings": " ".join(sentences), "impression": " ".join(impression)}


def join_sections(sections: Mapping[str, str]) -> str:
    """The whole report, with its section headings."""
    return "\n".join(f"{name.upper()}: {text}" for name, text in sections.items())
