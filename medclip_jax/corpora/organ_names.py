"""Which names of masks are names of organs, and so may be written into a set that is passed on.

A mask is often named after its file, and files are named after patients. A name that is made of anatomical
words alone tells nothing about a patient. The words are those of TotalSegmentator's classes, of
RadGenome-ChestCT's regions, and of common data sets of the heart and the lung.
"""

from __future__ import annotations

import re

from medclip_jax.reports.regions import REGIONS

_ANATOMY = """
abdomen abdominal adrenal air airway airways and anterior aorta aortic appendage arch arteries artery
ascending atrial atrium auditory autochthon axillary bladder body bone bones bowel brachiocephalic brain
brainstem breast bronchi bronchia bronchus calcification calcifications calcium canal carotid carpal
cartilage cartilages cava cavity cerebellum cervical chamber chambers circumflex clavicle clavicles
clavicula clot colon common cord coronary costal covid cyst cysts deltoid descending diaphragm discs
duodenum effusion epicardial esophagus external extremities eye face fat feet femoral femur fibula fissure
fissures foot gallbladder gland glands gluteus great hand head heart hemidiaphragm hepatic hernia hiatal
hilum hip humerus ileum iliac iliopsoas implant inferior infiltrate inter intermuscular internal
interventricular intervertebral jejunum jugular kidney kidneys la lad larynx lcx left lens lesion lesions
liver lmca lobe lobes lower lumbar lung lungs lv lymph main major mass maximus mediastinal mediastinum
medius metacarpal metatarsal middle minimus minor mitral muscle muscles myocardium nasal neck nerve node
nodes nodule nodules oesophagus of optic other pancreas parenchyma parotid patella pectoralis pericardial
pericardium peritoneum phalanges plaque plaques pleura pleural portal prostate pulmonary pulmonic ra
radius rca renal rib ribs right rv sacrum scapula scapulae scar septum shoulder skeletal skin skull small
spinal spine spleen splenic sternum stomach subclavian subcutaneous submandibular superior supraspinatus
tarsal the thoracic thorax thrombus thymus thyroid tibia tissue torso trachea tree tricuspid trunc trunk
tumor tumour ulna upper urinary valve vein veins vena ventricle ventricles ventricular vertebra vertebrae
vessel vessels wall
"""

_WORDS = frozenset(_ANATOMY.split()) | {word for region in REGIONS for word in region.name.split()}

_LEVEL = re.compile(r"[ctls]\d{1,2}")
_NUMBER = re.compile(r"[1-9]|1[0-2]")
_MOST_WORDS = 7


def is_organ_name(name: str) -> bool:
    """Whether a name consists of anatomical words: "heart", "lung_lower_lobe_left", "rib left 7".

    Args:
        name: of a mask. Words are divided by spaces, underscores or dashes and may be in any case; beside
            them, one vertebral level or one number from 1 to 12 may stand.
    """
    words = re.split(r"[ _-]", name.lower())
    others = [word for word in words if word not in _WORDS]
    if len(words) > _MOST_WORDS or len(others) == len(words) or len(others) > 1:
        return False
    return all(_LEVEL.fullmatch(word) or _NUMBER.fullmatch(word) for word in others)
