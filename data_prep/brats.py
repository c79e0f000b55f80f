"""BraTS: gliomas in four MR contrasts, as released up to 2021 (CASE_flair.nii.gz) and since 2023 (CASE-t2f.nii.gz).

Up to 2021 (https://arxiv.org/abs/2107.02314) label 1 is necrotic core, 2 edema, 4 enhancing tumour. Since 2023 enhancing
tumour is 3; in post-treatment scans (https://arxiv.org/abs/2405.18368) 1 is non-enhancing core and 4 a resection cavity, which
belongs to no region of the tumour. Other challenges of BraTS give other meanings to the same values and are refused.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medseg_se.data.scan import read_channels
from medseg_se.errors import DataError
from medseg_se.files import files_below
from medseg_se.structures import Structures
from medseg_se.volumes import is_scan, read_labels

from .collection import Collection, Item, Scan

CHANNELS = ("t1", "t1ce", "t2", "flair")
LAYOUT = "one folder a case with CASE_{t1,t1ce,t2,flair,seg}.nii.gz or CASE-{t1n,t1c,t2w,t2f,seg}.nii.gz"
POST_TREATMENT = 100  # time points of scans after treatment are numbered from 100, those before it from 0

_OLD = re.compile(r"(?P<case>.+)_(?P<kind>t1|t1ce|t2|flair|seg)(?P<suffix>\.nii(\.gz)?)", re.IGNORECASE)
_NEW = re.compile(r"(?P<case>.+)-(?P<kind>t1n|t1c|t2w|t2f|seg)(?P<suffix>\.nii(\.gz)?)", re.IGNORECASE)
_GLIOMA = re.compile(r"BraTS-GLI-(?P<patient>\d+)-(?P<time>\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Release:
    """How a release names its files.

    Attributes:
        separator: What stands between case and contrast.
        contrasts: The contrasts of `CHANNELS` in their order.
    """

    separator: str
    contrasts: tuple[str, str, str, str]


OLD = Release("_", ("t1", "t1ce", "t2", "flair"))
NEW = Release("-", ("t1n", "t1c", "t2w", "t2f"))

Found = dict[tuple[Path, str], dict[str, Path]]  # folder and case → kind of file → file


def find(source: Path) -> Collection:
    """Convert gliomas of the BraTS challenges: four channels (t1, t1ce, t2, flair), label values as they are, regions named.

    A folder of cases none of which has a label map is the challenge's validation set: its cases are held out. Scans of one
    patient at several times stay together.

    Args:
        source: A folder with the folders of cases, or several such folders (training and validation).
    """
    old, new = _files(source, _OLD), _files(source, _NEW)
    if old and new:
        raise DataError(
            f"{source} mixes releases whose labels differ: {next(iter(old))[1]} is named as up to 2021, "
            f"{next(iter(new))[1]} as since 2023. Convert each by itself."
        )
    if not old and not new:
        raise DataError(f"Expected {source} to hold {LAYOUT}, but there is no such file.")
    release, found = (OLD, old) if old else (NEW, new)
    times = {} if old else {case: _patient_and_time(case) for _, case in found}
    parts = {_part(folder, case) for folder, case in found}
    labelled = {_part(*place) for place, files in found.items() if "seg" in files}
    items = [_item(release, *place, files, _part(*place) not in labelled, times) for place, files in sorted(found.items())]
    notes = [f"{part} holds no label maps: its cases are held out for testing." for part in sorted(parts - labelled)]
    return Collection(source.resolve().name, CHANNELS, _structures(release, times), items, notes=notes)


def _files(source: Path, pattern: re.Pattern[str]) -> Found:
    found: Found = defaultdict(dict)
    for path in sorted(files_below(source)):
        match = pattern.fullmatch(path.name) if is_scan(path) else None
        if match:
            found[path.parent, match["case"]].setdefault(match["kind"].lower(), path)
    return dict(found)


def _part(folder: Path, case: str) -> Path:
    """Return the folder whose cases belong together: the one around the case's own, if it has one."""
    return folder.parent if folder.name.lower() == case.lower() else folder


def _patient_and_time(case: str) -> tuple[str, int]:
    match = _GLIOMA.fullmatch(case)
    if match is None:
        raise DataError(
            f"Expected cases called BraTS-GLI-PATIENT-TIME, but got {case}. Only the gliomas of BraTS are known here: in its "
            "other challenges the label values mean other things."
        )
    return f"BraTS-GLI-{match['patient']}", int(match["time"])


def _structures(release: Release, times: Mapping[str, tuple[str, int]]) -> Structures:
    if release is OLD:
        values = {"necrotic core": (1,), "edema": (2,), "enhancing tumour": (4,)}
    elif all(time < POST_TREATMENT for _, time in times.values()):
        values = {"necrotic core": (1,), "edema": (2,), "enhancing tumour": (3,)}
    else:
        values = {"non-enhancing core": (1,), "edema": (2,), "enhancing tumour": (3,), "resection cavity": (4,)}
    core, edema, enhancing = list(values)[:3]
    regions = {"whole tumour": (core, edema, enhancing), "tumour core": (core, enhancing)}
    return Structures(values, regions=regions)


def _item(
    release: Release,
    folder: Path,
    case: str,
    files: Mapping[str, Path],
    test: bool,
    times: Mapping[str, tuple[str, int]],
) -> Item:
    suffix = next(iter(files.values())).name[len(case) :].partition(".")[2]

    def place(kind: str) -> Path:
        """Return the file, or the name that a missing one should have."""
        return files.get(kind) or folder / f"{case}{release.separator}{kind}.{suffix}"

    images = tuple(place(kind) for kind in release.contrasts)
    label = None if test else place("seg")
    patient, time = times.get(case, ("", None))
    attributes = {} if time is None else {"time_point": time}
    listed = images if label is None else (*images, label)
    return Item(case, listed, partial(_read, images, label), patient, test=test, attributes=attributes)


def _read(images: tuple[Path, ...], label: Path | None) -> Scan:
    return Scan(read_channels(images), None if label is None else read_labels(label))
