"""Regions of the body: their names in the archives, what contains what, and the words that mention them.

Names are RadGenome-ChestCT's and TotalSegmentator's. Both are understood by the set of their words: "left
lung lower lobe" and "lung_lower_lobe_left" are one region. The tree is RadGenome-ChestCT's where it has one:
the aorta belongs to the mediastinum and to the abdomen, a finding of no place in the lung fields to the lung.
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

SIDES = ("left", "right")

Key = frozenset[str]
"""The words of a region's name, which say the same in any order."""

_SAME_WORD = {
    "abdominal": "abdomen",
    "arteries": "artery",
    "atrial": "atrium",
    "bones": "bone",
    "bronchie": "bronchi",
    "bronchus": "bronchi",
    "cartilages": "cartilage",
    "clavicula": "clavicle",
    "intestine": "bowel",
    "kidneys": "kidney",
    "lungs": "lung",
    "mediastinal": "mediastinum",
    "oesophagus": "esophagus",
    "pericardial": "pericardium",
    "pleural": "pleura",
    "ribs": "rib",
    "veins": "vein",
    "vena": "vein",
    "vertebra": "vertebrae",
    "vertebral": "vertebrae",
} | dict.fromkeys(("and", "effusion", "gland", "tissue"), "")


@dataclass(frozen=True)
class Region:
    """A part of the body.

    Attributes:
        name: as RadGenome-ChestCT writes it, else TotalSegmentator's in plain words.
        parents: regions that contain it; not always one.
        mentions: regular expression over lower-case text, "" where the region is only ever named by what
            it contains.
        paired: there is one on the left and one on the right, and both are regions as well.
        apart: those of `parents` of which a general statement says nothing about this one: "the upper
            abdominal organs are normal" does not mean the aorta.
    """

    name: str
    parents: tuple[str, ...] = ()
    mentions: str = ""
    paired: bool = False
    apart: tuple[str, ...] = ()


def key_of(name: str) -> Key:
    """The words of a region's name: in lower case, in one spelling, without those that say nothing.

    Args:
        name: any archive's, such as "left lung lower lobe", "lung_lower_lobe_left", "vertebrae_T12".
    """
    words = re.findall(r"[a-z]+\d*|\d+", name.lower())
    level = next((word for word in words if re.fullmatch(r"[ctls]\d{1,2}", word)), None)
    if level is not None and {"vertebrae", "vertebra"} & set(words):
        return frozenset(("vertebrae", level))
    return frozenset(_SAME_WORD.get(word, word) for word in words) - {""}


def _lobe(which: str) -> str:
    # Also the first of "lower and middle lobes".
    return rf"\b{which}(?=(?:(?: ?[,/-] ?| and | or )(?:upper|middle|lower))* (?:lung )?lobes?\b)"


_VERTEBRAE = (
    r"\bvertebra\w*|\bspin(?:e|al)\b|\bcorpus (?:height|corner)\w*|\bdisc (?:space|distance|height)\w*"
    r"|\bneural foramin\w+|\b\w*scoliosis\b|\bkyphosis\b|\blordosis\b|\bspondyl\w+|\bschm\w+l\b|\bdish\b"
)
_BONE = (
    r"\bbon(?:e|es|y)\b|\bosseous\b|\bosteo\w+|\bfractures?\b|\b(?:lytic|sclerotic)\b|\bdegenerative\b"
    r"|\bskelet\w+|\bcort(?:ex|ical) irregular\w+|\bglenohumeral\b|\bhumer\w+|\bendplates?\b|\bmyeloma\b"
)
_FREE = r"\b(?:free fluid|free air|fluid|collections?|loculated)\b"
_LYMPH_NODES = r"lymph nodes?|lymphadenopath\w+|laps?\b|adenopath\w+"
_STATIONS = r"prevascular|(?:pre|para|retro|pretra\w+-para|pre-para)-?tracheal|subcarinal|aorto?-?pulmonary"

REGIONS: tuple[Region, ...] = (
    Region(
        "lung", (), r"\blungs?\b|\bpulmonary (?:parenchym|nodul|fibros|edema|lobe|vascular)\w*", paired=True
    ),
    Region("lung upper lobe", ("lung",), _lobe("upper") + r"|\blingul\w*|\blinguistic\b", paired=True),
    Region("lung middle lobe", ("lung",), _lobe("middle"), paired=True),
    Region("lung lower lobe", ("lung",), _lobe("lower"), paired=True),
    Region(
        "pleura",
        (),
        r"\b(?:sub)?pleura(?:l|e)?\b|\b(?:hemo|hydro|pneumo|chylo)thora\w+|\bempyema\b",
    ),
    Region("trachea and bronchie"),
    Region("trachea", ("trachea and bronchie",), r"\btrache(?:a|al|ostomy)\b|\bcarina\b"),
    Region(
        "bronchie", ("trachea and bronchie",), r"\bmain bronch\w+|\bbronchial (?:structures?|lumens?|tree)\b"
    ),
    Region(
        "heart",
        (),
        r"\bheart\b|\bcardi(?:ac|omegaly|othoracic)\b(?! failure)|\bct[or]\b|\bpacemaker\b"
        r"|\b(?:mitral|tricuspid|aortic|pulmonary) (?:valve|annul)",
    ),
    Region("heart atrium", ("heart",), r"\batri(?:um|a|al)\b", paired=True),
    Region("atrium appendage", ("heart atrium",), r"\batrial appendages?\b", paired=True),
    Region("heart ventricle", ("heart",), r"\bventric(?:le|les|ular)\b", paired=True),
    Region("heart myocardium", ("heart",), r"\bmyocard\w+"),
    Region("pericardium", ("heart",), r"\bpericard\w+", apart=("heart",)),
    Region("coronary arteries", ("heart",), r"\bcoronar(?:y|ies)\b|\b(?:lad|rca|lcx|lmca)\b|\bcircumflex\b"),
    Region("mediastinum", (), r"\bmediastin\w+"),
    Region(
        "mediastinal lymph nodes",
        ("mediastinum",),
        rf"\b(?:{_STATIONS})\b|\bmediastin\w+(?=[^.;]*\b(?:{_LYMPH_NODES}))"
        rf"|\b(?:{_LYMPH_NODES})(?=[^.;]*\bmediastin\w+)",
    ),
    Region(
        "aorta",
        ("mediastinum", "abdomen"),
        r"\b(?:para-?)?aort(?:a|ic)\b(?! valv)",
        apart=("abdomen",),
    ),
    Region("heart ascending aorta", ("heart", "aorta"), r"\bascending (?:thoracic )?aorta\b"),
    Region(
        "pulmonary artery", ("mediastinum",), r"\bpulmonary (?:arter(?:y|ies|ial)|trunk|conus)\b", paired=True
    ),
    Region("pulmonary vein", ("mediastinum",), r"\bpulmonary veins?\b"),
    Region("superior vena cava", ("mediastinum",), r"\bsuperior ven[ae] cava\b|\bsvc\b|\bvena cava\b"),
    Region("brachiocephalic vein", ("mediastinum",), r"\bbrachiocephalic veins?\b", paired=True),
    Region("brachiocephalic trunk", ("mediastinum",), r"\bbrachiocephalic (?:trunk|artery)\b"),
    Region("subclavian artery", ("mediastinum",), r"\bsubclavian arter(?:y|ies)\b", paired=True),
    Region("common carotid artery", ("mediastinum",), r"\bcarotid\b", paired=True),
    Region("thymus", ("mediastinum",), r"\bthym(?:us|ic|oma)\b"),
    Region("esophagus", (), r"\b(?<!para)o?esophag(?:us|eal)\b|\bhiat(?:al|us) hernia\w*"),
    Region("cervical esophagus", ("esophagus",), r"\bcervical o?esophag\w+"),
    Region("thyroid", (), r"\bthyroid\b|\bgoit(?:er|re)\b", paired=True),
    Region(
        "breast", (), r"\bbreasts?\b|\bmammary\b|\bgyn[ae]+comastia\b|\bareola\b|\bmastectomy\b", paired=True
    ),
    Region("bone", (), _BONE),
    Region("vertebrae", ("bone",), _VERTEBRAE),
    Region("cervical vertebrae", ("vertebrae",), r"\bcervical vertebra\w*"),
    Region(
        "thoracic vertebrae", ("vertebrae",), r"\b(?:thoracic|dorsal) (?:vertebra\w*|spine)|\bdorsal region"
    ),
    Region("lumbar vertebrae", ("vertebrae",), r"\blumbar (?:vertebra\w*|spine)"),
    Region("spinal canal", ("vertebrae",), r"\bspinal canal\b", apart=("vertebrae",)),
    Region("spinal cord", ("spinal canal",), r"\bspinal cord\b|\bmyel(?:um|on)\b"),
    Region("sacrum", ("bone",), r"\bsacr(?:um|al)\b"),
    Region("rib", ("bone",), r"\bribs?\b|\bcost(?:ae|al arch\w*|overtebral)\b", paired=True),
    Region("costal cartilages", ("rib",), r"\bcostal cartilages?\b"),
    Region("sternum", ("bone",), r"\bstern(?:um|al|otomy)\b|\bmanubri\w+"),
    Region("clavicle", ("bone",), r"\bclavic(?:le|ula)\w*", paired=True),
    Region("scapula", ("bone",), r"\bscapul\w+", paired=True),
    Region("humerus", ("bone",), r"\bhumer(?:us|al)\b", paired=True),
    Region("femur", ("bone",), r"\bfem(?:ur|oral head)\w*", paired=True),
    Region("hip", ("bone",), r"\bhip\b|\biliac bones?\b|\bpelvic bones?\b", paired=True),
    Region("skull", ("bone",), r"\bskull\b|\bcalvari\w+"),
    Region("abdomen", (), r"\b(?:intra-?)?abdom\w+"),
    Region(
        "peritoneum",
        ("abdomen",),
        rf"\bperitone\w+|\bascites\b|\bomentum\b|\b\w*abdom\w+(?=.*{_FREE})|{_FREE}(?=.*\babdom)",
    ),
    Region("liver", ("abdomen",), r"\bliver\b|\b(?:peri|sub|intra)?hepat\w+|\bperiportal\b|\bcirrho\w+"),
    Region("caudate lobe", ("liver",), r"\bcaudate lobe\b"),
    Region("gallbladder", ("abdomen",), r"\bgall ?bladder\b|\bcholecyst\w+|\bcholelith\w+|\bbile\b"),
    Region("spleen", ("abdomen",), r"\b(?:peri)?splen(?:ic|omegaly)\b|\bspleens?\b"),
    Region("portal vein and splenic vein", ("abdomen",), r"\bportal vein\b|\bsplenic vein\b"),
    Region("pancreas", ("abdomen",), r"\bpancrea\w+"),
    Region("kidney", ("abdomen",), r"\bkidneys?\b|\brenal (?!arter|vein)|\b(?:hydro)?nephr\w+", paired=True),
    Region("kidney cyst", ("kidney",), r"\b(?:renal|kidney) (?:cortical )?cysts?\b", paired=True),
    Region("renal artery", ("abdomen",), r"\brenal arter(?:y|ies)\b", paired=True, apart=("abdomen",)),
    Region("adrenal gland", ("abdomen",), r"\b(?:adrenals?|surrenal)\b", paired=True),
    Region("stomach", ("abdomen",), r"\bstomach\b|\bgastric\b"),
    Region("intestine", ("abdomen",), r"\bintestin\w+|\bbowel\b"),
    Region("small bowel", ("intestine",), r"\bsmall bowel\b|\bjejun\w+|\bile(?:um|al)\b"),
    Region("duodenum", ("small bowel",), r"\bduoden\w+"),
    Region("colon", ("intestine",), r"\bcol(?:on|onic)\b|\bdiverticul\w+"),
    Region("inferior vena cava", ("abdomen",), r"\binferior vena cava\b|\bivc\b", apart=("abdomen",)),
    Region("iliac artery", ("abdomen",), r"\biliac arter(?:y|ies)\b", paired=True, apart=("abdomen",)),
    Region("iliac vein", ("abdomen",), r"\biliac veins?\b", paired=True, apart=("abdomen",)),
    Region("others"),
    Region("urinary bladder", ("others",), r"\burinary bladder\b"),
    Region("prostate", ("others",), r"\bprostat\w+"),
    Region("brain", ("others",), r"\bbrain\b|\bcerebr\w+"),
    Region("larynx", ("others",), r"\b(?:laryn|pharyn|nasopharyn|oropharyn|epiglott)\w+|\bcricoid\b"),
    Region("salivary glands", ("others",), r"\bparotid\b|\bsubmandibular\b"),
    # Mentioned by nothing of their own, see IMPLIED.
    Region("thoracic cavity", ("others",)),
    Region("chest wall", ("others",)),
)

IMPLIED: tuple[tuple[str, str], ...] = (
    (rf"\b(?:axill\w+|supra-?clavic\w+|pectoral|cervical)\b(?=.*\b(?:{_LYMPH_NODES}))", "chest wall"),
    (rf"\b(?:{_LYMPH_NODES})(?=.*\b(?:axill\w+|supra-?clavic\w+|pectoral|cervical)\b)", "chest wall"),
    (r"\bhil(?:ar|um|us)\b", "lung"),
    (rf"\b(?:{_LYMPH_NODES})", "mediastinal lymph nodes"),
    (r"\bthoracic (?:main |major )?vascular structures\b", "thoracic cavity"),
    (r"\bathero\w+", "aorta"),
    (r"\bcatheter\b|\bport chamber\b|\bvascular structures\b", "mediastinum"),
    (r"\b(?:free fluids?|collections?)\b", "peritoneum"),
    (r"\b(?:stones?|calcul\w+|steatosis|adiposity)\b", "abdomen"),
    (r"\blumens?\b", "trachea and bronchie"),
    (r"\bwall thick\w+", "esophagus"),
    (r"\b(?:skin|subcutaneous|muscles?|chest wall|axill\w+|intercostal|supra-?clavic\w+)\b", "chest wall"),
    (r"\beffusions?\b", "pleura"),
    (
        r"\b(?:lungs?|ground[- ]glass|consolidat\w+|infiltrat\w+|pneumon\w+|covid\w*|emphysem\w+|bronchi\w+"
        r"|\w*atelecta\w+|peribronch\w+|nodul\w+|sequela?e?|parenchym\w+|pleuroparenchym\w+|aeration"
        r"|ventilation|septal|septa|air cysts?|mosaic|airway|small vessel|apic(?:al|es)|apex|fissures?"
        r"|\w*basal|crazy paving|cavit\w+|budding|tree|honeycomb\w*|mass(?! effect)|viral|fung\w+"
        r"|hemidiaphragm)\b",
        "lung",
    ),
    (r"\b(?:hemi)?thorax\b|\bthoracic (?:cavity|inlet)\b", "thoracic cavity"),
)
"""Words that imply a region where a sentence names none; the first pattern that is found counts.

They are looked for in the opening as well (see `OPENING`), which so implies the lung.
"""

OPENING = (
    r"^(?:when|in)\b[^;:,]*\b(?:lungs?|parenchym\w*|bones?)\b[^;:,]*\b(?:window|evaluat|examin)\w*[^;:,]*[;:,]"
    r"|^in (?:the )?(?:evaluation|examination) (?:of|made in) [^;:,]*[;:,]"
    r"|^when [^;:,]*\blungs?\b[^;:,]*[;:,]"
)
"""How a sentence opens that tells what was looked at ("In the lung window; ..."): it mentions no region."""
