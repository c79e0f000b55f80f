"""VISCERAL Anatomy3: CT and MR of the trunk with one mask a structure, 10000100_1_CTce_ThAb_58_1.nii.gz.

A volume is called PATIENT_NUMBER_MODALITY_REGION.nii.gz, its masks the same with the RadLex number of the structure and the
number of the annotator. Label maps hold the RadLex numbers. Where several annotators outlined one structure, the one with the
lowest number counts; where masks overlap, the smaller structure does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medseg_se.data.scan import read_channels
from medseg_se.errors import DataError, UsageError, unknown_name
from medseg_se.files import files_below
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, is_scan, read_labels

from .collection import Collection, Item, Scan

# RadLex numbers (https://radlex.org, "RID58") of the structures that Anatomy3 asks for.
RADLEX = {
    "liver": 58,
    "spleen": 86,
    "pancreas": 170,
    "gallbladder": 187,
    "urinary bladder": 237,
    "aorta": 480,
    "trachea": 1247,
    "right lung": 1302,
    "left lung": 1326,
    "sternum": 2473,
    "thyroid gland": 7578,
    "first lumbar vertebra": 29193,
    "right kidney": 29662,
    "left kidney": 29663,
    "right adrenal gland": 30324,
    "left adrenal gland": 30325,
    "right psoas major": 32248,
    "left psoas major": 32249,
    "right rectus abdominis": 40357,
    "left rectus abdominis": 40358,
}
_NAME = re.compile(
    r"(?P<case>(?P<patient>\d+)_\d+_(?P<modality>[A-Za-z0-9]+)_(?P<region>[A-Za-z]+))"
    r"(_(?P<radlex>\d+)_(?P<annotator>\d+))?\.nii(\.gz)?",
    re.IGNORECASE,
)


@dataclass
class _Found:
    """A volume and its masks: RadLex number → annotator → file."""

    volume: Path
    patient: str
    modality: str
    region: str
    masks: dict[int, dict[int, Path]] = field(default_factory=dict)

    def mask(self, name: str) -> Path:
        by_annotator = self.masks[RADLEX[name]]
        return by_annotator[min(by_annotator)]


def find(source: Path, *, modality: str | None = None, structures: list[str] | None = None) -> Collection:
    """Convert the volumes of one modality, each with a label map made of its masks.

    Args:
        source: Folder that holds volumes and segmentations, in any folders below it.
        modality: Such as CTce, or with the region, CTce_ThAb; needed where the source holds several.
        structures: Which structures are wanted. A volume that lacks the mask of one is left out, for there the structure would
            be taken for background. Those that at least half of the volumes with masks have, if not given.
    """
    for name in structures or []:
        if name not in RADLEX:
            raise unknown_name("structure", name, RADLEX)
    cases, others = _gather(source)
    chosen = _of_modality(cases, modality, source)
    wanted, notes = _wanted(chosen, structures)
    if others:
        notes = [
            *notes,
            f"Masks of RadLex numbers that are not of Anatomy3 are not taken: {', '.join(map(str, sorted(others)))}.",
        ]
    items, left_out = [], {}
    for case, found in chosen.items():
        lacking = [name for name in wanted if RADLEX[name] not in found.masks]
        if lacking:
            left_out[case] = f"{found.volume} has no mask of {', '.join(lacking)}. Add it, or name other `--structures`."
            continue
        masks = {name: found.mask(name) for name in wanted}
        doubled = [name for name in wanted if len(found.masks[RADLEX[name]]) > 1]
        attributes = {"modality": found.modality, "region": found.region}
        reader = partial(_read, found.volume, masks, doubled)
        items.append(Item(case, (found.volume, *masks.values()), reader, found.patient, attributes=attributes))
    meaning = Structures({name: (RADLEX[name],) for name in wanted})
    channel = next(iter(chosen.values())).modality
    return Collection("VISCERAL Anatomy3", (channel,), meaning, items, left_out, notes)


def _gather(source: Path) -> tuple[dict[str, _Found], set[int]]:
    """Return the volumes by name, each with its masks, and the RadLex numbers that are not in the table."""
    matched = [(path, match) for path in sorted(files_below(source)) if is_scan(path) and (match := _NAME.fullmatch(path.name))]
    cases: dict[str, _Found] = {}
    for path, match in matched:
        if match["radlex"]:
            continue
        if match["case"] in cases:
            raise DataError(f"{path} and {cases[match['case']].volume} are the same volume. Remove one of them.")
        cases[match["case"]] = _Found(path, match["patient"], match["modality"], match["region"])
    if not cases:
        raise DataError(f"Expected {source} to hold volumes such as 10000100_1_CTce_ThAb.nii.gz, but found none.")
    folder, others = next(iter(cases.values())).volume.parent, set()
    for path, match in matched:
        if not match["radlex"]:
            continue
        missing = _Found(folder / f"{match['case']}.nii.gz", match["patient"], match["modality"], match["region"])
        by_annotator = cases.setdefault(match["case"], missing).masks.setdefault(int(match["radlex"]), {})
        twin = by_annotator.setdefault(int(match["annotator"]), path)
        if twin != path:
            raise DataError(f"{path} and {twin} are the same mask. Remove one of them.")
        others |= {int(match["radlex"])} - set(RADLEX.values())
    return cases, others


def _of_modality(cases: Mapping[str, _Found], modality: str | None, source: Path) -> dict[str, _Found]:
    """Return the volumes of one modality; those of several must not be mixed up."""
    full = {case: f"{found.modality}_{found.region}" for case, found in cases.items()}
    listed = ", ".join(f"{name} ({list(full.values()).count(name)})" for name in sorted(set(full.values())))
    if modality is None:
        if len(set(full.values())) > 1:
            raise DataError(f"{source} holds volumes of several kinds: {listed}. Name one with `--modality`.")
        return dict(cases)
    wanted = modality.lower()
    chosen = {c: found for c, found in cases.items() if wanted in (found.modality.lower(), full[c].lower())}
    if not chosen:
        raise UsageError(f"Expected `modality` to be one that {source} holds, {listed}, but got {modality!r}.")
    return chosen


def _wanted(cases: Mapping[str, _Found], structures: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Return the structures of the label maps, and what is to be said of those that are not taken."""
    if structures:
        return [name for name in RADLEX if name in structures], []
    annotated = [found for found in cases.values() if found.masks]
    counts = {name: sum(RADLEX[name] in found.masks for found in annotated) for name in RADLEX}
    wanted = [name for name, count in counts.items() if count and 2 * count >= len(annotated)]
    if not any(all(RADLEX[name] in found.masks for name in wanted) for found in annotated) or not wanted:
        listed = ", ".join(f"{name} ({count})" for name, count in counts.items() if count) or "none"
        raise DataError(
            f"None of the {len(annotated)} volumes with masks has one of each structure that half of them have; there are "
            f"{listed}. Name those you want with `--structures`."
        )
    rare = [f"{name} ({count} of {len(annotated)})" for name, count in counts.items() if 0 < 2 * count < len(annotated)]
    if not rare:
        return wanted, []
    return wanted, [
        f"Structures with masks in less than half of the volumes are not taken: {', '.join(rare)}; see `--structures`."
    ]


def _read(volume: Path, masks: Mapping[str, Path], doubled: Iterable[str]) -> Scan:
    """Read a volume and lay its masks on one another, the smaller structure on top."""
    image = read_channels([volume])
    labels = np.zeros(image.shape, dtype=np.uint8)
    sizes, overlap = np.zeros(len(masks) + 1, dtype=np.int64), 0
    for number, (name, path) in enumerate(masks.items(), start=1):
        inside = _read_mask(path, name, image)
        sizes[number] = np.count_nonzero(inside)
        taken = inside & (labels > 0)
        overlap += int(np.count_nonzero(taken))
        inside[taken] = sizes[number] < sizes[labels[taken]]
        labels[inside] = number
    values = np.array([0, *(RADLEX[name] for name in masks)], dtype=np.uint16)
    notes = [f"several annotators outlined {', '.join(doubled)}; the one with the lowest number counts"] if doubled else []
    notes += [f"masks overlap in {overlap} voxels, which go to the smaller structure"] if overlap else []
    return Scan(image, Volume(values[labels][None], image.affine, path=volume), tuple(notes))


def _read_mask(path: Path, name: str, image: Volume) -> npt.NDArray[np.bool_]:
    mask = read_labels(path)
    if difference := image.same_grid(mask):
        raise DataError(f"The mask {path} lies on another grid than its volume: {difference}. Restore it.")
    values = [value for value in np.unique(mask.array).tolist() if value != 0]
    if len(values) != 1:
        found = "is empty" if not values else f"holds the values {values[:5]}"
        raise DataError(f"Expected a mask of the {name} with one value, but {path} {found}. Restore it, or leave it out.")
    return np.asarray(mask.array[0] != 0)
