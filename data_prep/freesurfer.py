"""FreeSurfer: a SUBJECTS_DIR, such as OASIS-1 processed by recon-all, SUBJECT/mri/{norm,aseg}.mgz.

Label values stay those of FreeSurfer's colour table. Parcels of the cortex, as aparc+aseg holds them, count as the cortex of
their side.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Literal

from medseg_se.errors import DataError, UsageError
from medseg_se.structures import Structures

from .collection import Collection, Item, Scan
from .folders import folders_in
from .freesurfer_labels import ASEG, LEFT_PARCELS, RIGHT_PARCELS, WHOLE_BRAIN_27
from .reading import ANY_SUFFIXES, read_any_image, read_any_labels

_DEPTH = 3  # folders above SUBJECT/mri, such as the discs in which OASIS-1 comes
# Whose a folder is where its name says it: sub-01_ses-02_run-1 (BIDS), 002_S_0295_m12 (ADNI).
_PERSON = re.compile(r"(?<![A-Za-z0-9])(sub-[A-Za-z0-9]+|\d{3}_S_\d{4,5})(?![A-Za-z0-9])", re.IGNORECASE)
# What follows the person's name where one was scanned several times: _MR2 (OASIS-1), _ses-02, _MR_d0129 (OASIS-3), 0295_bl …
_SESSION = re.compile(r"[_-](MR\d*|ses-?[\w-]+|Freesurfer\d*)(_d\d+)?$|(?<=\d)_(bl|sc|m\d{2,3})$", re.IGNORECASE)
_SESSION_FOLDER = re.compile(r"ses-.+", re.IGNORECASE)

Parts = tuple[str, ...]  # the names of the folders from the source down to a subject's


def find(
    source: Path,
    *,
    image: Literal["norm", "brain", "T1", "orig"] = "norm",
    labels: Literal["aseg", "aparc+aseg", "aparc.DKTatlas+aseg"] = "aseg",
    structures: Literal["all", "28"] = "all",
    group: str | None = None,
) -> Collection:
    """Convert what FreeSurfer made of T1 scans: one volume as image, one segmentation as label map.

    Args:
        source: The SUBJECTS_DIR, the folder of one subject, or a folder of several such, as OASIS-1 has its discs.
        image: Volume in SUBJECT/mri: "norm" is without skull and bias field, "T1" with skull, "orig" as it was scanned.
        labels: Segmentation in SUBJECT/mri.
        structures: "all" that aseg has, or "28" for the 27 structures and the background that whole-brain networks are
            compared on; the corpus callosum and all else are background then.
        group: Regular expression that finds the person in a subject's path below the source, such as "P[0-9]+" in
            P07_follow-up. If not given, the names of BIDS, ADNI and OASIS are understood, and other folders are persons.
    """
    found = _subjects(source)
    skipped = [folder for folder in found if folder.name.startswith("fsaverage") or ".long." in folder.name]
    subjects = [folder for folder in found if folder not in skipped]
    if not subjects:
        raise DataError(f"Expected {source} to hold folders of subjects such as SUBJECT/mri/{image}.mgz, but found none.")
    parts = {folder: folder.relative_to(source).parts or (source.resolve().name,) for folder in subjects}
    names, persons = _names(parts.values()), _persons(parts.values(), source, group)
    items = [_item(folder, names[key], persons[key], image, labels) for folder, key in parts.items()]
    notes = [f"Templates and runs of a longitudinal stream are not taken: {', '.join(f.name for f in skipped)}."]
    return Collection(source.resolve().name, ("T1",), _structures(structures), items, notes=notes if skipped else ())


def _subjects(source: Path) -> list[Path]:
    """Return the folders that hold an `mri`, the source itself or some way down, each once whatever links lead to it."""
    level, found = [source], {}
    for _ in range(_DEPTH + 1):
        inside = [folder for above in level for folder in folders_in(above)]
        found.update({folder.parent: folder.parent.resolve() for folder in inside if folder.name == "mri"})
        level = [folder for folder in inside if folder.name != "mri"]
    once = {real: folder for folder, real in sorted(found.items(), reverse=True)}
    return sorted(once.values())


def _names(subjects: Iterable[Parts]) -> dict[Parts, str]:
    """Return what each subject is called: as its folder, with those above where that is a session's or not the only one."""
    often = Counter(parts[-1].lower() for parts in subjects)
    return {
        parts: "_".join(parts) if often[parts[-1].lower()] > 1 or _SESSION_FOLDER.fullmatch(parts[-1]) else parts[-1]
        for parts in subjects
    }


def _persons(subjects: Iterable[Parts], source: Path, pattern: str | None) -> dict[Parts, str]:
    """Return whose each subject is."""
    if pattern is not None:
        return {parts: _match(pattern, "/".join(parts)) for parts in subjects}
    known = {parts: _known_person(parts, source) for parts in subjects}
    often = Counter(parts[-1].lower() for parts, person in known.items() if not person)
    visits = any(count > 1 for count in often.values())  # such as P1/visit1, P2/visit1: the folder around is the person
    return {
        parts: person or ("/".join(parts[:-1]) if visits and len(parts) > 1 else parts[-1]) for parts, person in known.items()
    }


def _match(pattern: str, path: str) -> str:
    try:
        found = re.search(pattern, path)
    except re.error as error:
        raise UsageError(f"Expected `group` to be a regular expression, but got {pattern!r}: {error}.") from error
    if found is None or not found[0]:
        raise UsageError(f"Expected `group` to find a person in every subject's path, but {pattern!r} finds none in {path!r}.")
    return found[0]


def _known_person(parts: Parts, source: Path) -> str:
    """Return the person that a name of BIDS, ADNI or OASIS tells; empty if it is none of these."""
    above = (source.resolve().name,) if _SESSION_FOLDER.fullmatch(parts[0]) else ()
    for name in reversed((*above, *parts)):
        if found := _PERSON.search(name):
            return found[0]
    person = _SESSION.sub("", parts[-1])
    return person if person != parts[-1] else ""


def _item(folder: Path, name: str, person: str, image: str, labels: str) -> Item:
    files = _volume(folder, image), _volume(folder, labels)
    return Item(name, files, partial(_read, *files), group=person)


def _volume(folder: Path, name: str) -> Path:
    """Return the file of a volume; FreeSurfer's own kind where there is none, to be missed by name."""
    candidates = [folder / "mri" / f"{name}{suffix}" for suffix in ANY_SUFFIXES]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _read(image: Path, labels: Path) -> Scan:
    return Scan(read_any_image(image), read_any_labels(labels))


def _structures(which: str) -> Structures:
    values = dict(ASEG)
    values["Left-Cerebral-Cortex"] += tuple(LEFT_PARCELS)
    values["Right-Cerebral-Cortex"] += tuple(RIGHT_PARCELS)
    if which == "all":
        return Structures(values)
    rest = [value for name, group in values.items() if name not in WHOLE_BRAIN_27 for value in group]
    return Structures({name: values[name] for name in WHOLE_BRAIN_27}, background=(0, *rest))
