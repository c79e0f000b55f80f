"""Codes of structures: what a name means in SNOMED CT, as DICOM segmentations say it besides the name.

Names are those of common label tables: FreeSurfer's, TotalSegmentator's, the Decathlon's. A name that is not in the table is
coded as an anatomical structure, tissue, without saying which; its own name stays beside the code. Nothing is guessed.
Categories are those of DICOM PS3.16, CID 7150; sides those of CID 244.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Code = tuple[str, str]  # value in SNOMED CT, and its meaning in words

ANATOMICAL: Code = ("91723000", "Anatomical Structure")
TISSUE: Code = ("85756007", "Tissue")
ABNORMAL: Code = ("49755003", "Morphologically Abnormal Structure")
SUBSTANCE: Code = ("91720002", "Body Substance")
LEFT: Code = ("7771000", "Left")
RIGHT: Code = ("24028007", "Right")

_STRUCTURES: dict[str, Code] = {
    "brain": ("12738006", "Brain"),
    "skull": ("89546000", "Skull"),
    "cerebral white matter": ("68523003", "Cerebral White Matter"),
    "cerebral cortex": ("40146001", "Cerebral cortex"),
    "white matter": ("389080008", "White Matter"),
    "grey matter": ("389081007", "Gray Matter"),
    "gray matter": ("389081007", "Gray Matter"),
    "lateral ventricle": ("66720007", "Lateral Ventricle"),
    "inf lat vent": ("53118009", "Inferior Horn of Lateral Ventricle"),
    "third ventricle": ("49841001", "Third ventricle"),
    "3rd ventricle": ("49841001", "Third ventricle"),
    "fourth ventricle": ("35918002", "Fourth Ventricle"),
    "4th ventricle": ("35918002", "Fourth Ventricle"),
    "cerebellum": ("113305005", "Cerebellum"),
    "cerebellum cortex": ("25991003", "Cerebellar Cortex"),
    "cerebellar cortex": ("25991003", "Cerebellar Cortex"),
    "cerebellum white matter": ("33060004", "Cerebellar White Matter"),
    "cerebellar white matter": ("33060004", "Cerebellar White Matter"),
    "thalamus": ("42695009", "Thalamus"),
    "caudate": ("11000004", "Caudate Nucleus"),
    "caudate nucleus": ("11000004", "Caudate Nucleus"),
    "putamen": ("89278009", "Putamen"),
    "pallidum": ("14738005", "Globus Pallidus"),
    "globus pallidus": ("14738005", "Globus Pallidus"),
    "brain stem": ("119238007", "Brain Stem"),
    "brainstem": ("119238007", "Brain Stem"),
    "hippocampus": ("5366008", "Hippocampus"),
    "amygdala": ("4958002", "Amygdala"),
    "accumbens": ("427667007", "Nucleus Accumbens"),
    "accumbens area": ("427667007", "Nucleus Accumbens"),
    "nucleus accumbens": ("427667007", "Nucleus Accumbens"),
    "corpus callosum": ("88442005", "Corpus callosum"),
    "insula": ("36169008", "Insula"),
    "spinal cord": ("2748008", "Spinal cord"),
    "eye": ("81745001", "Eye"),
    "optic nerve": ("18234004", "optic nerve"),
    "optic chiasm": ("244453006", "Optic chiasm"),
    "liver": ("10200004", "Liver"),
    "spleen": ("78961009", "Spleen"),
    "kidney": ("64033007", "Kidney"),
    "gallbladder": ("28231008", "Gallbladder"),
    "pancreas": ("15776009", "Pancreas"),
    "stomach": ("69695003", "Stomach"),
    "duodenum": ("38848004", "Duodenum"),
    "small bowel": ("30315005", "Small intestine"),
    "small intestine": ("30315005", "Small intestine"),
    "colon": ("71854001", "Colon"),
    "adrenal gland": ("23451007", "Adrenal gland"),
    "esophagus": ("32849002", "Esophagus"),
    "oesophagus": ("32849002", "Esophagus"),
    "trachea": ("44567001", "Trachea"),
    "thyroid": ("69748006", "Thyroid"),
    "thyroid gland": ("69748006", "Thyroid"),
    "bladder": ("89837001", "Bladder"),
    "urinary bladder": ("89837001", "Bladder"),
    "prostate": ("41216001", "Prostate"),
    "uterus": ("35039007", "Uterus"),
    "lung": ("39607008", "Lung"),
    "lung upper lobe": ("45653009", "Upper lobe of lung"),
    "lung middle lobe": ("72481006", "Middle lobe of right lung"),
    "lung lower lobe": ("90572001", "Lower lobe of lung"),
    "heart": ("80891009", "Heart"),
    "heart atrium": ("59652004", "Atrium"),
    "heart ventricle": ("21814001", "Ventricle"),
    "aorta": ("15825003", "Aorta"),
    "inferior vena cava": ("64131007", "Inferior vena cava"),
    "superior vena cava": ("48345005", "Superior vena cava"),
    "portal vein": ("32764006", "Portal vein"),
    "pulmonary artery": ("81040000", "Pulmonary artery"),
    "iliac artery": ("10293006", "Iliac artery"),
    "iliac vein": ("244411005", "Iliac vein"),
    "iliac vena": ("244411005", "Iliac vein"),
    "spine": ("421060004", "Spine"),
    "vertebra": ("51282000", "Vertebra"),
    "sacrum": ("54735007", "Sacrum"),
    "rib": ("113197003", "Rib"),
    "sternum": ("56873002", "Sternum"),
    "clavicle": ("51299004", "Clavicle"),
    "clavicula": ("51299004", "Clavicle"),
    "scapula": ("79601000", "Scapula"),
    "humerus": ("85050009", "Humerus"),
    "femur": ("71341001", "Femur"),
    "hip": ("29836001", "Hip"),
    "mandible": ("91609006", "Mandible"),
}
_TISSUES: dict[str, Code] = {
    "bone": ("272673000", "Bone"),
    "muscle": ("71616004", "Muscle"),
    "fat": ("256674009", "Fat"),
    "skin": ("39937001", "Skin"),
    "lymph node": ("59441001", "Lymph Node"),
}
_LESIONS: dict[str, Code] = {
    "tumor": ("108369006", "Neoplasm"),
    "tumour": ("108369006", "Neoplasm"),
    "cancer": ("108369006", "Neoplasm"),
    "lesion": ("52988006", "Lesion"),
    "edema": ("79654002", "Edema"),
    "oedema": ("79654002", "Edema"),
    "necrosis": ("6574001", "Necrosis"),
    "cyst": ("367643001", "Cyst"),
    "nodule": ("27925004", "Nodule"),
    "hemorrhage": ("50960005", "Hemorrhage"),
}
_SUBSTANCES: dict[str, Code] = {"csf": ("65216001", "Cerebrospinal Fluid")}
_VERTEBRAE = {
    "c": "14806007 39976000 113205007 5329002 36978003 36054005 87391001",
    "t": "64864005 53733008 1626008 73071006 56401006 45296009 62487009 11068009 82687006 7610001 12989004 23215003",
    "l": "66794005 14293000 36470004 11994002 49668003",
}
_SIDES = {"left": LEFT, "lh": LEFT, "lt": LEFT, "l": LEFT, "right": RIGHT, "rh": RIGHT, "rt": RIGHT, "r": RIGHT}
_PLURALS = {"vertebrae": "vertebra", "ribs": "rib", "lungs": "lung", "kidneys": "kidney", "hippocampi": "hippocampus"}
_FILLING = {"proper", "of", "the", "structure"}


@dataclass(frozen=True)
class Meaning:
    """What a structure is.

    Attributes:
        category: What kind of thing.
        kind: Which one; `TISSUE` if that is not known.
        side: `LEFT` or `RIGHT`, where the name says it.
    """

    category: Code
    kind: Code
    side: Code | None = None


def meaning_of(name: str) -> Meaning:
    """Return what a structure called `name` is: "Left-Hippocampus", "kidney_right", "vertebrae_L1", "liver tumor"."""
    words = [_PLURALS.get(word, word) for word in _words(name) if word not in _FILLING]
    sides = [word for word in words if word in _SIDES]
    side = _SIDES[sides[0]] if len(sides) == 1 and len(words) > 1 else None
    if side:
        words.remove(sides[0])
    lesion = next((_LESIONS[word] for word in words if word in _LESIONS), None)
    if lesion:
        return Meaning(ABNORMAL, lesion, side)
    if words[:1] == ["rib"] and len(words) == 2 and words[1].isdigit():
        words = ["rib"]
    plain = " ".join(words)
    for table, category in ((_STRUCTURES, ANATOMICAL), (_TISSUES, TISSUE), (_SUBSTANCES, SUBSTANCE)):
        if plain in table:
            return Meaning(category, table[plain], side)
    return Meaning(ANATOMICAL, _vertebra(plain) or TISSUE, side)


def _words(name: str) -> list[str]:
    """Return the words of a name in small letters; "LungL" is two."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[^a-z0-9]+", parted.lower()) if word]


def _vertebra(plain: str) -> Code | None:
    """Return the code of a vertebra that is named by its number: "vertebra l1", "t12"."""
    found = re.fullmatch(r"(?:vertebra )?([ctl])(\d{1,2})", plain)
    if not found:
        return None
    codes, number = _VERTEBRAE[found[1]].split(), int(found[2])
    return (codes[number - 1], f"{found[1].upper()}{number} vertebra") if 1 <= number <= len(codes) else None
