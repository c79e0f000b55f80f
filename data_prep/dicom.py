"""DICOM: a folder of series, as a scanner, a disc or an archive gives them; nothing that identifies a person is kept."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from medseg_se.dicom import Found, Series, find_series, read_series
from medseg_se.errors import DataError, UsageError

from .collection import Collection, Item, Scan
from .groups import Identity, by_patient, connected

log = logging.getLogger(__name__)

Group = Literal["patient", "study", "series"]


def find(source: Path, *, modality: str | None = None, group: Group = "patient", slices: int = 2) -> Collection:
    """Convert every volume in a folder of DICOM files, and the folders below it, to an image without a label map.

    Files are taken together by what their headers say, so their names and places do not matter. A volume is left out, by name
    and with the reason, if slices are missing or lie in one place twice, if its gantry was tilted, or if it is an enhanced
    (multi-frame), colour or single image. Localizers, secondary captures, reports and the like are counted and passed over.

    Nothing that identifies a person is written: neither names, numbers, dates and descriptions nor the names of folders and
    files. A scan is called after a digest of its SeriesInstanceUID, so a rerun calls it the same, and who has the source finds
    it again: `--dry_run` shows on the screen which files each name stands for. A face in a scan stays in it.

    Args:
        source: A folder, or one file of the series that is wanted.
        modality: Which one to convert, such as CT, MR or PT, if there are several.
        group: What a split must not part: everything of a patient (by PatientID; what has none by name and date of birth, or
            by the study that it shares), of a study, or nothing but the volumes of one series.
        slices: Series of fewer are left out.
    """
    if group not in get_args(Group):
        raise UsageError(f"Expected `group` to be one of {', '.join(get_args(Group))}, but got {group!r}.")
    if slices < 2:
        raise UsageError(f"Expected `slices` to be at least 2, but got {slices}.")
    found = find_series(source)
    if not found.series and not found.damaged:
        listed = "; ".join(f"{count} x {what}" for what, count in found.skipped.items()) or "no file at all"
        raise DataError(f"Expected the DICOM files of one or several scans in {source}, but found {listed}.")
    chosen = _choose(found.series, modality)
    wanted = [series for series in found.series if series.modality == chosen or not series.slices[0].tags]
    groups = _groups(wanted, group)
    left_out = {_name(series): why for series in wanted if (why := _why_not(series, slices))}
    for series in wanted:
        if _name(series) in left_out:  # only on the screen: the path may name a person
            log.warning("%s is left out; its first file is %s", _name(series), series.slices[0].path)
    for number, path in enumerate(found.damaged, start=1):
        left_out[f"damaged_{number}"] = "It is truncated or corrupt and does not say which series it belongs to. Copy it again."
        log.warning("damaged_%d is %s", number, path)
    items = [_item(series, groups[series.uid]) for series in wanted if _name(series) not in left_out]
    return Collection("DICOM", (chosen,), None, items, left_out, _notes(found, wanted, groups, group), private=True)


def _choose(found: Sequence[Series], wanted: str | None) -> str:
    """Return the modality to convert; where all that can be used is of one, there is nothing to choose."""
    every = Counter(series.modality for series in found)
    usable = Counter(series.modality for series in found if not series.problem) or every
    if wanted is not None:
        if wanted.upper() not in every:
            raise UsageError(f"Expected `modality` to be one of those found, {_listed(every)}, but got {wanted!r}.")
        return wanted.upper()
    if len(usable) > 1:
        raise UsageError(f"The folder holds series of several modalities, {_listed(usable)}. Choose one with --modality.")
    return next(iter(usable), "OT")


def _listed(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in sorted(counted.items())) or "none"


def _name(series: Series) -> str:
    return f"series_{_digest(series.uid)}{f'_{series.part}' if series.part else ''}"


def _digest(uid: str) -> str:
    return hashlib.blake2b(uid.encode(errors="replace"), digest_size=6).hexdigest()


def _why_not(series: Series, least: int) -> str:
    if series.problem:
        return f"It {series.problem}"
    if len(series.slices) < least:
        return f"It has {len(series.slices)} slices; at least {least} were asked for."
    return ""


def _groups(found: Sequence[Series], kind: Group) -> dict[str, str]:
    """Return the group of each series, by its identifier.

    A group is called after its first series, for a digest of a patient's number could be found by trying all numbers.
    """
    identities = [_identity(series) for series in found]
    if kind == "patient":
        members = by_patient(identities)
    else:
        names = [identity.study if kind == "study" else "" for identity in identities]
        first_of: dict[str, int] = {}
        keys = [name or f"series {series.uid}" for name, series in zip(names, found, strict=True)]
        members = connected(len(keys), [(first_of.setdefault(key, place), place) for place, key in enumerate(keys)])
    named = [[found[place].uid for place in places] for places in members]
    return {uid: f"{kind}_{_digest(min(uids))}" for uids in named for uid in uids}


def _identity(series: Series) -> Identity:
    """Return whose a series is, by the first of its slices that says it."""

    def told(tag: str) -> str:
        return next((text for one in series.slices if (text := one.tags.get(tag, "").lower())), "")

    return Identity(told("PatientID"), told("PatientName"), told("PatientBirthDate"), told("StudyInstanceUID"))


def _item(series: Series, group: str) -> Item:
    tags = series.slices[0].tags
    attributes: dict[str, Any] = {"modality": series.modality}
    if "Manufacturer" in tags:
        attributes["manufacturer"] = tags["Manufacturer"]
    if (field := series.slices[0].numbers("MagneticFieldStrength", 1)) is not None:
        attributes["field_strength"] = float(field[0])
    paths = tuple(one.path for one in series.slices)
    return Item(_name(series), paths, partial(_read, series), group, attributes=attributes)


def _read(series: Series) -> Scan:
    notes = [series.doubt] if series.doubt else []
    if series.part:
        notes.append(f"It is volume {series.part} of its series, whose volumes differ in {' and '.join(series.parted_by)}.")
    return Scan(read_series(series, name=_name(series)), notes=tuple(notes))


def _notes(found: Found, wanted: Sequence[Series], groups: Mapping[str, str], kind: Group) -> list[str]:
    notes = [f"{count} file{'s' if count > 1 else ''} passed over: {what}." for what, count in found.skipped.items()]
    others = Counter(series.modality for series in found.series) - Counter(series.modality for series in wanted)
    notes += [f"{count} series of {name} passed over." for name, count in sorted(others.items())]
    unnamed = sum(not (one.number or one.name) for one in map(_identity, wanted)) if kind == "patient" else 0
    if unnamed:
        notes.append(f"{unnamed} series do not say whose they are; each study is taken for a patient.")
    studies = {series.slices[0].tags.get("StudyInstanceUID") for series in wanted}
    if kind == "patient" and len(studies) > 1 and len(set(groups.values())) == 1:
        notes.append(f"All {len(studies)} studies are of one patient; if they were made anonymous that way, use --group study.")
    return notes
