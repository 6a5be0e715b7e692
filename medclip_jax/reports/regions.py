"""Regions of the body: their names in the archives, what contains what, and the words that mention them.

Names are RadGenome-ChestCT's and TotalSegmentator's. Both are understood by the set of their words: "left
lung lower lobe" and "lung_lower_lobe_left" are one region.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HEADS = (
    "lung",
    "abdomen",
    "bone",
    "trachea and bronchie",
    "heart",
    "mediastinum",
    "esophagus",
    "pleura",
    "others",
    "breast",
    "thyroid",
)
"""RadGenome-ChestCT's regions of the first level."""

Key = frozenset[str]
"""The words of a region's name, which say the same in any order."""

_SAME_WORD = {
    "bronchie": "bronchi",
    "bronchus": "bronchi",
    "clavicula": "clavicle",
    "ribs": "rib",
    "vertebra": "vertebrae",
    "vertebral": "vertebrae",
    "arteries": "artery",
    "veins": "vein",
    "vena": "vein",
    "lungs": "lung",
    "kidneys": "kidney",
    "atrial": "atrium",
    "oesophagus": "esophagus",
    "pericardial": "pericardium",
    "pleural": "pleura",
    "effusion": "",
    "gland": "",
    "tissue": "",
    "and": "",
}


@dataclass(frozen=True)
class Region:
    """A part of the body.

    Attributes:
        name: as RadGenome-ChestCT writes it, else TotalSegmentator's in plain words.
        parents: regions that contain it, nearest first; not always one ("left lung lower lobe").
        mentions: regular expression over lower-case text, "" where only its sides or parts are mentioned.
        paired: there is one on the left and one on the right, and `sides` are regions too.
    """

    name: str
    parents: tuple[str, ...] = ()
    mentions: str = ""
    paired: bool = False


def key_of(name: str) -> Key:
    """The words of a region's name: in lower case, in one spelling, without those that say nothing.

    Args:
        name: any archive's, such as "left lung lower lobe", "lung_lower_lobe_left", "vertebrae_T12".
    """
    words = re.findall(r"[a-z]+\d*|\d+", name.lower())
    level = next((word for word in words if re.fullmatch(r"[ctls]\d{1,2}", word)), None)
    if level is not None and "vertebrae" in words:
        return frozenset(("vertebrae", level))
    return frozenset(_SAME_WORD.get(word, word) for word in words) - {""}


REGIONS: tuple[Region, ...] = (
    Region("lung", (), r"\blungs?\b|\bpulmonary (?!arter|trunk|vein|valve|hypert|conus|embol|vasc)", True),
    Region("lung upper lobe", ("lung",), r"\bupper lobes?\b|\blingul\w*", True),
    Region("lung middle lobe", ("lung",), r"\bmiddle lobes?\b", True),
    Region("lung lower lobe", ("lung",), r"\blower lobes?\b", True),
    Region("pleura", (), r"\bpleur\w+|\bhemothorax|\bpneumothorax|\bempyema"),
    Region("trachea and bronchie"),
    Region("trachea", ("trachea and bronchie",), r"\btrache\w+|\bcarina\b"),
    Region("bronchie", ("trachea and bronchie",), r"\b(?:main|lobar|segmental) bronch\w+"),
    Region("heart", (), r"\bheart\b|\bcardi(?:ac|omegaly|othoracic)\b|\bpericardi\w+|\bcoronar\w+"),
    Region("heart atrium", ("heart",), r"\batri(?:um|a|al)\b", True),
    Region("heart ventricle", ("heart",), r"\bventric\w+", True),
    Region("heart myocardium", ("heart",), r"\bmyocard\w+"),
    Region("atrium appendage", ("heart",), r"\batrial appendages?\b", True),
    Region("coronary arteries", ("heart",), r"\bcoronar\w+"),
    Region("pericardial effusion", ("heart",), r"\bpericardi\w+"),
    Region("mediastinum", (), r"\bmediastin\w+|\bhil(?:ar|um)\b"),
    Region("aorta", ("mediastinum",), r"\baort(?:a|ic)\b"),
    Region("heart ascending aorta", ("aorta",), r"\bascending aorta\b"),
    Region("pulmonary artery", ("mediastinum",), r"\bpulmonary (?:arter\w+|trunk|conus)"),
    Region("pulmonary vein", ("mediastinum",), r"\bpulmonary veins?\b"),
    Region("superior vena cava", ("mediastinum",), r"\bsuperior vena cava\b|\bsvc\b"),
    Region("inferior vena cava", ("mediastinum",), r"\binferior vena cava\b|\bivc\b"),
    Region("thymus", ("mediastinum",), r"\bthym\w+"),
    Region("esophagus", (), r"\bo?esophag\w+|\bhiatal hernia"),
    Region("thyroid", (), r"\bthyroid\b", True),
    Region("breast", (), r"\bbreasts?\b|\bmammary\b|\bgynecomastia\b", True),
    Region("bone", (), r"\bbon(?:e|es|y)\b|\bosseous\b|\bfractures?\b"),
    Region("vertebrae", ("bone",), r"\bvertebra\w*|\bspin(?:e|al)\b|\bdegenerative\b|\bosteophyt\w+"),
    Region("spinal canal", ("bone",), r"\bspinal canal\b"),
    Region("spinal cord", ("spinal canal",), r"\bspinal cord\b"),
    Region("rib", ("bone",), r"\bribs?\b|\bcostal\b", True),
    Region("costal cartilages", ("rib",), r"\bcostal cartilages?\b"),
    Region("sternum", ("bone",), r"\bstern(?:um|al)\b"),
    Region("clavicle", ("bone",), r"\bclavic\w+", True),
    Region("scapula", ("bone",), r"\bscapul\w+", True),
    Region("abdomen", (), r"\babdom\w+|\bintraabdominal\b|\bperitone\w+"),
    Region("liver", ("abdomen",), r"\bliver\b|\bhepat\w+"),
    Region("gallbladder", ("abdomen",), r"\bgall ?bladder\b|\bcholecyst\w+|\bcholelith\w+"),
    Region("spleen", ("abdomen",), r"\bsple(?:en|nic)\b"),
    Region("pancreas", ("abdomen",), r"\bpancrea\w+"),
    Region("kidney", ("abdomen",), r"\bkidneys?\b|\brenal\b", True),
    Region("adrenal gland", ("abdomen",), r"\b(?:adrenals?|surrenal)\b", True),
    Region("stomach", ("abdomen",), r"\bstomach\b|\bgastric\b"),
    Region("others"),
)
