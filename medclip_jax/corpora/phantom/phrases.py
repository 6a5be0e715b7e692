"""The words of the reports: for every finding how it is stated, denied and summed up, and what else is said.

Slots in braces are filled by `reports`: `degree` (mild, moderate, severe or a synonym), `size` (small,
moderate, large), measurements and places. Brackets hold alternatives: "[is seen|is present]".
"""

from __future__ import annotations

from collections.abc import Mapping

STATED: Mapping[str, tuple[str, ...]] = {
    "coronary_stenosis": (
        "There is {degree} stenosis of the {vessel} of about {stenosis} %.",
        "{degree} coronary stenosis [is seen|is present|is noted] in the {vessel}.",
        "Luminal narrowing of the {vessel} by {stenosis} % [is seen|is present].",
        "Significant coronary artery stenosis of {stenosis} % [is seen|is found] in the {vessel}.",
        "The lumen of the {vessel} is narrowed by {stenosis} %.",
    ),
    "coronary_calcification": (
        "{calcium} coronary artery calcification [is seen|is noted], with an Agatston score of {score}.",
        "There is {calcium} coronary calcification.",
        "Calcified plaques [are present|are observed|are seen] in the coronary arteries.",
        "{calcium} calcification of the coronary arteries [is noted|is observed].",
        "Calcific atheroma plaques are seen along the coronary arteries (Agatston score {score}).",
        "The coronary arteries show {calcium} calcifications.",
    ),
    "aortic_calcification": (
        "There is {degree} aortic calcification.",
        "{degree} calcification of the aortic wall [is seen|is present|is observed].",
        "Calcified plaques [are present|are observed] in the thoracic aorta.",
        "The wall of the aortic arch and descending aorta shows {degree} calcifications.",
    ),
    "atherosclerosis": (
        "{degree} atherosclerosis [is present|is noted].",
        "Atherosclerotic changes [are seen|are observed|are present].",
        "There is {degree} atherosclerosis of the thoracic arteries.",
        "Atheromatous plaques are [noted|observed] in the arterial walls.",
    ),
    "cardiomegaly": (
        "There is {degree} cardiomegaly.",
        "The heart is enlarged, with a cardiothoracic ratio of {ratio}.",
        "Heart size is increased.",
        "{degree} cardiomegaly [is seen|is observed], cardiothoracic ratio {ratio}.",
        "The cardiothoracic ratio is increased to {ratio}.",
        "The heart is {degree|adverb} enlarged.",
    ),
    "pericardial_effusion": (
        "A {size} pericardial effusion [is present|is seen].",
        "There is a pericardial effusion of up to {pericardial} mm.",
        "Pericardial effusion [is seen|is observed], measuring {pericardial} mm.",
        "Fluid [is seen|is present] in the pericardial space, {pericardial} mm thick.",
    ),
    "pulmonary_arterial_hypertension": (
        "The main pulmonary artery is dilated to {trunk} mm, as in pulmonary arterial hypertension.",
        "There are signs of pulmonary arterial hypertension.",
        "The pulmonary trunk is enlarged and measures {trunk} mm.",
        "Findings are in keeping with {degree} pulmonary arterial hypertension.",
        "The diameter of the main pulmonary artery is increased ({trunk} mm).",
    ),
    "pleural_effusion": (
        "There is a {size} {side} pleural effusion.",
        "{side} pleural effusion [is seen|is observed], up to {pleural} mm deep.",
        "A {size} {side} pleural effusion [is present|is noted], with adjacent passive atelectasis.",
        "Pleural fluid of {pleural} mm [is seen|is present] ({side}).",
    ),
    "lung_nodule": (
        "A {nodule} mm {kind} nodule [is seen|is present] in the {nodule_lobe}.",
        "There is a pulmonary nodule of {nodule} mm in the {nodule_lobe}.",
        "A {kind} lung nodule measuring {nodule} mm [is observed|is noted] in the {nodule_lobe}.",
        "In the {nodule_lobe}, a nodule with a diameter of {nodule} mm is observed.",
    ),
    "emphysema": (
        "There is {degree} emphysema.",
        "{degree} emphysematous changes [are seen|are observed], predominantly in the upper lobes.",
        "Emphysematous areas are present in both lungs.",
        "{degree} centrilobular emphysema [is noted|is present].",
    ),
    "consolidation": (
        "There is consolidation in the {consolidation_lobe}.",
        "A consolidation with air bronchograms [is seen|is present] in the {consolidation_lobe}.",
        "Airspace consolidation [is observed|is noted] in the {consolidation_lobe}.",
        "The {consolidation_lobe} shows {degree} consolidation.",
    ),
}
"""A finding that is present."""

DENIED: Mapping[str, tuple[str, ...]] = {
    "coronary_stenosis": (
        "There is no significant coronary stenosis.",
        "No hemodynamically significant coronary artery stenosis is seen.",
        "The coronary arteries are patent without stenosis.",
    ),
    "coronary_calcification": (
        "No coronary artery calcification is seen.",
        "There is no coronary calcification.",
        "The coronary arteries are free of calcification.",
        "Coronary calcification is absent.",
    ),
    "aortic_calcification": (
        "No aortic calcification is seen.",
        "There is no calcification of the aortic wall.",
        "The aorta is without calcification.",
    ),
    "atherosclerosis": (
        "There is no evidence of atherosclerosis.",
        "No atherosclerotic changes are identified.",
        "No atherosclerotic plaque is detected.",
    ),
    "cardiomegaly": (
        "The heart is normal in size.",
        "There is no cardiomegaly.",
        "Heart size is within normal limits.",
        "The heart is not enlarged.",
    ),
    "pericardial_effusion": (
        "There is no pericardial effusion.",
        "No pericardial effusion is detected.",
        "Pericardial effusion was not observed.",
    ),
    "pulmonary_arterial_hypertension": (
        "There is no sign of pulmonary arterial hypertension.",
        "The pulmonary artery is of normal caliber.",
        "The main pulmonary artery is not dilated.",
    ),
    "pleural_effusion": (
        "There is no pleural effusion.",
        "No pleural effusion is detected.",
        "Pleural effusion was not observed.",
    ),
    "lung_nodule": (
        "No pulmonary nodule is seen.",
        "There is no lung nodule.",
        "No suspicious pulmonary nodule is identified.",
    ),
    "emphysema": (
        "There is no emphysema.",
        "No emphysematous change is present.",
        "Emphysema is absent.",
    ),
    "consolidation": (
        "No consolidation is seen.",
        "There is no consolidation in either lung.",
        "The lungs are free of consolidation.",
    ),
}
"""A finding that is absent, where it is mentioned at all."""

DENIED_TOGETHER: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("pleural_effusion", "pericardial_effusion"),
        ("There is no pleural or pericardial effusion.", "No pericardial or pleural effusion is seen."),
    ),
    (
        ("lung_nodule", "consolidation"),
        ("There is no pulmonary nodule or consolidation.", "No consolidation or lung nodule is identified."),
    ),
)
"""Two absent findings in one sentence."""

SUMMED: Mapping[str, tuple[str, ...]] = {
    "coronary_stenosis": ("{degree} coronary stenosis.", "Significant stenosis of the {vessel}."),
    "coronary_calcification": ("{calcium} coronary artery calcification.", "Coronary calcification."),
    "aortic_calcification": ("{degree} aortic calcification.", "Calcification of the aorta."),
    "atherosclerosis": ("Atherosclerosis.", "Atherosclerotic changes."),
    "cardiomegaly": ("{degree} cardiomegaly.", "Cardiomegaly.", "Enlarged heart."),
    "pericardial_effusion": ("Pericardial effusion.", "{size} pericardial effusion."),
    "pulmonary_arterial_hypertension": (
        "Pulmonary arterial hypertension.",
        "Signs of pulmonary arterial hypertension.",
    ),
    "pleural_effusion": ("{side} pleural effusion.", "{size} pleural effusion."),
    "lung_nodule": ("Pulmonary nodule of {nodule} mm.", "Nodule in the {nodule_lobe}."),
    "emphysema": ("{degree} emphysema.", "Pulmonary emphysema."),
    "consolidation": ("Consolidation in the {consolidation_lobe}.", "Pulmonary consolidation."),
}
"""A finding in the impression."""

SEEN: Mapping[str, tuple[str, ...]] = {
    "calcified lymph nodes": (
        "Calcified mediastinal lymph nodes are noted.",
        "Calcified hilar lymph nodes are seen, in keeping with old granulomatous disease.",
    ),
    "mitral annular calcification": ("Mitral annular calcification is noted.",),
    "aortic valve calcification": ("The aortic valve leaflets are calcified.",),
    "costal calcification": ("Costal cartilages show calcification.",),
    "pacemaker lead": ("A pacemaker lead is seen with its tip in the right ventricle.",),
}
"""Distractors that were painted."""

UNRELATED: tuple[str, ...] = (
    "The thyroid gland is unremarkable.",
    "A hypodense area of {number} mm is seen in the left thyroid gland.",
    "There are degenerative changes of the thoracic spine.",
    "Mild osteophytes are present along the vertebral end plates.",
    "Bone structures are intact without lytic lesions.",
    "Vertebral body heights are preserved.",
    "A simple cyst of {number} mm is seen in the liver.",
    "The visualized upper abdominal organs are unremarkable.",
    "The gallbladder is not included in the examination.",
    "The trachea and both main bronchi are patent.",
    "No pathologically enlarged mediastinal lymph nodes are identified.",
    "A lymph node of {number} mm is seen in the right paratracheal region.",
    "The esophagus has a normal course and wall thickness.",
    "The spleen is of normal size.",
    "The adrenal glands are normal in appearance.",
    "There is no axillary lymphadenopathy.",
    "The chest wall soft tissues are unremarkable.",
    "Minimal linear atelectasis is seen in the lung bases.",
    "A small hiatal hernia is present.",
    "The thoracic aorta has a normal course.",
    "Old healed rib fractures are seen on the right.",
    "The great vessels of the neck are patent.",
    "There is mild scoliosis of the thoracic spine.",
    "The liver shows diffuse low density in keeping with steatosis.",
    "A small accessory spleen is noted.",
    "Mild apical pleural thickening is seen.",
    "No pneumothorax is present.",
    "There is no pathological wall thickening of the esophagus.",
    "A renal cyst of {number} mm is partly included.",
    "The kidneys are not fully included in the field of view.",
)
"""Normal and unrelated sentences, true or not of the image; none states or denies a labeled finding."""

NOTHING: tuple[str, ...] = (
    "No acute abnormality.",
    "No significant abnormality in the thorax.",
    "Unremarkable examination.",
)
"""The impression when no finding is present."""

INCIDENTAL: tuple[str, ...] = (
    "Degenerative changes of the spine.",
    "Small hiatal hernia.",
    "Hepatic steatosis.",
    "Minimal basal atelectasis.",
    "Simple liver cyst.",
)
"""Unrelated lines of the impression."""

DEGREES: tuple[tuple[str, ...], ...] = (
    ("mild", "slight", "minor"),
    ("moderate",),
    ("severe", "marked", "pronounced"),
)
SIZES: tuple[tuple[str, ...], ...] = (
    ("small", "minimal"),
    ("moderate", "medium-sized"),
    ("large", "massive"),
)
CALCIUM: tuple[tuple[str, ...], ...] = (
    ("minimal",),
    ("mild",),
    ("moderate",),
    ("severe", "extensive"),
)
"""By calcium grade, 1 to 4."""
ADVERBS: Mapping[str, str] = {
    "mild": "mildly",
    "slight": "slightly",
    "minor": "slightly",
    "moderate": "moderately",
    "severe": "severely",
    "marked": "markedly",
    "pronounced": "markedly",
}
VESSELS: Mapping[str, str] = {
    "lad": "left anterior descending coronary artery",
    "lcx": "left circumflex coronary artery",
    "rca": "right coronary artery",
}
