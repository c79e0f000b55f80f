"""MALC 2012 (Neuromorphometrics): 30 brains with manual labels, {training,testing}-{images,labels}.

The data of the MICCAI 2012 workshop on multi-atlas labeling: `training-images/1000_3.nii.gz` with
`training-labels/1000_3_glm.nii.gz`, and the same for testing. Subjects have distinct numbers, except that five scans of the
testing part, 1023, 1024, 1025, 1038 and 1039, are second scans of persons who are here under another number.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from medseg_se.errors import DataError
from medseg_se.files import files_below
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, read_image, read_labels

from .collection import Collection, Item, Scan
from .folders import folders_in
from .freesurfer_labels import WHOLE_BRAIN_27

SECOND_SCANS = ("1023", "1024", "1025", "1038", "1039")
_NAME = re.compile(r"(?P<case>(?P<subject>\d{4})_\d+)(?P<label>_glm)?\.nii(\.gz)?", re.IGNORECASE)
_LARGEST = 207  # the largest label value of Neuromorphometrics' protocol
_PARCELS = 100  # label values from here on are parcels of the cortex, even ones on the right and odd ones on the left

# What the workshop judged, with Neuromorphometrics' values; cortical parcels are merged into 210 and 211. Other values
# (vessels, lesions, exterior) were not judged and are background.
_VALUES = {
    "3rd-Ventricle": 4,
    "4th-Ventricle": 11,
    "Right-Accumbens-area": 23,
    "Left-Accumbens-area": 30,
    "Right-Amygdala": 31,
    "Left-Amygdala": 32,
    "Brain-Stem": 35,
    "Right-Caudate": 36,
    "Left-Caudate": 37,
    "Right-Cerebellum-Cortex": 38,
    "Left-Cerebellum-Cortex": 39,
    "Right-Cerebellum-White-Matter": 40,
    "Left-Cerebellum-White-Matter": 41,
    "Right-Cerebral-White-Matter": 44,
    "Left-Cerebral-White-Matter": 45,
    "CSF": 46,
    "Right-Hippocampus": 47,
    "Left-Hippocampus": 48,
    "Right-Inf-Lat-Vent": 49,
    "Left-Inf-Lat-Vent": 50,
    "Right-Lateral-Ventricle": 51,
    "Left-Lateral-Ventricle": 52,
    "Right-Pallidum": 55,
    "Left-Pallidum": 56,
    "Right-Putamen": 57,
    "Left-Putamen": 58,
    "Right-Thalamus": 59,
    "Left-Thalamus": 60,
    "Right-VentralDC": 61,
    "Left-VentralDC": 62,
    "Optic-Chiasm": 69,
    "Cerebellar-Vermal-Lobules-I-V": 71,
    "Cerebellar-Vermal-Lobules-VI-VII": 72,
    "Cerebellar-Vermal-Lobules-VIII-X": 73,
    "Left-Basal-Forebrain": 75,
    "Right-Basal-Forebrain": 76,
    "Right-Cerebral-Cortex": 210,
    "Left-Cerebral-Cortex": 211,
}


def find(source: Path, *, structures: Literal["28", "all"] = "28", rescans: bool = False) -> Collection:
    """Convert the MALC 2012 brains: cortical parcels merged by side, the testing part held out.

    Args:
        source: Folder that holds training-images, training-labels, testing-images and testing-labels, or the one above it.
        structures: "28" for the 27 structures and the background that whole-brain networks are compared on; "all" for the 38
            that remain of the workshop's when the parcels of each side are merged. Everything else is background.
        rescans: Take the five second scans, too. Whose they are is not published, so they may be of persons in training.
    """
    folders = _folders(source)
    named = {name: (_VALUES[name],) for name in (WHOLE_BRAIN_27 if structures == "28" else _VALUES)}
    kept = tuple(value for (value,) in named.values())
    items, second, left_out = [], [], {}
    for part in ("training", "testing"):
        images, labels = (_scans(folders.get(f"{part}-{what}"), what == "labels") for what in ("images", "labels"))
        for case in sorted(images.keys() | labels.keys()):
            subject = case.partition("_")[0]
            if subject in SECOND_SCANS:
                second.append(case)
                if not rescans:
                    continue
            if case not in images:
                left_out[case] = f"{labels[case]} has no scan {part}-images/{case}.nii.gz. Restore it."
                continue
            image, label = images[case], labels.get(case)
            if label is None and (part == "training" or "testing-labels" in folders):
                label = image.parent.with_name(f"{part}-labels") / f"{case}_glm.nii.gz"  # to be missed by name
            files = (image,) if label is None else (image, label)
            attributes = {"rescan": True} if subject in SECOND_SCANS else {}
            items.append(Item(case, files, partial(_read, image, label, kept), subject, None, part == "testing", attributes))
    if not items:
        raise DataError(f"Expected {source} to hold scans such as training-images/1000_3.nii.gz, but found none.")
    return Collection("MALC 2012", ("T1",), Structures(named), items, left_out, _notes(second, rescans))


def _folders(source: Path) -> dict[str, Path]:
    """Return the folders of the dataset by their names in lower case; they may lie one folder down."""
    for folder in (source, *folders_in(source)):
        named = {entry.name.lower(): entry for entry in folders_in(folder)}
        if "training-images" in named or "testing-images" in named:
            return named
    raise DataError(f"Expected {source} to hold training-images and training-labels, but it does not.")


def _scans(folder: Path | None, labels: bool) -> dict[str, Path]:
    """Return case → its scan in a folder, or its label map."""
    found: dict[str, Path] = {}
    for path in files_below(folder) if folder else ():
        match = _NAME.fullmatch(path.name) if path.parent == folder else None
        if match and bool(match["label"]) == labels:
            found.setdefault(match["case"], path)
    return found


def _notes(second: list[str], rescans: bool) -> tuple[str, ...]:
    if not second:
        return ()
    names = ", ".join(second)
    if rescans:
        return (f"{names} are second scans of persons who are here under another number, perhaps among those for training.",)
    return (f"Second scans of persons who are here under another number are not taken: {names}. `--rescans` takes them.",)


def _read(image: Path, label: Path | None, kept: tuple[int, ...]) -> Scan:
    return Scan(read_image(image), None if label is None else _merge(read_labels(label), kept))


def _merge(labels: Volume, kept: tuple[int, ...]) -> Volume:
    """Merge the cortical parcels of each side and clear what is not `kept`; refuse maps with values of another protocol."""
    low, high = int(labels.array.min()), int(labels.array.max())
    if low < 0 or high > _LARGEST:
        raise DataError(
            f"{labels.path} holds label value {low if low < 0 else high}, but those of Neuromorphometrics go from 0 to "
            f"{_LARGEST}. Restore the original file, which ends in _glm."
        )
    if high < _PARCELS:
        raise DataError(
            f"{labels.path} holds no parcel of the cortex (a label value from {_PARCELS}), so its values are not those of "
            "Neuromorphometrics. Restore the original file, which ends in _glm."
        )
    table = np.zeros(_LARGEST + 1, dtype=np.uint8)
    for value in kept:
        if value <= _LARGEST:
            table[value] = value
    table[_PARCELS::2], table[_PARCELS + 1 :: 2] = _VALUES["Right-Cerebral-Cortex"], _VALUES["Left-Cerebral-Cortex"]
    return replace(labels, array=table[labels.array])
