"""One datalist from any source: `dataset.json` of Decathlon or nnU-Net v2, or a CSV table.

A case has an id, one or more channel images, perhaps a label map, a `group` (the patient), perhaps a fold and attributes.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg_se.errors import DataError, UsageError
from medseg_se.nifti import SUFFIXES
from medseg_se.structures import Structures
from medseg_se.volumes import case_name

MANIFEST = "predictions.json"  # what `predict` records in its output folder, and `evaluate` reads
CSV_COLUMNS = ("id", "image", "label", "group", "fold", "split")


@dataclass(frozen=True)
class Case:
    """One subject's scan.

    Attributes:
        id: Unique name; results are written under it.
        images: One file per channel, or a single file that holds all channels; none where there is a label map alone.
        label: The label map, if there is one.
        group: What must never be parted by a split, usually the patient.
        fold: The fold in which this case is validated, where the dataset prescribes it.
        attributes: Anything else that the source says of the case (age, class, scanner).
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None = None
    group: str = ""
    fold: int | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def files(self) -> tuple[Path, ...]:
        """Return the images and the label map."""
        return self.images if self.label is None else (*self.images, self.label)


@dataclass(frozen=True)
class Datalist:
    """The cases of a dataset and what their labels mean.

    Attributes:
        name: The dataset's own name.
        source: The file it was read from.
        channels: Channel names in order.
        structures: What the label values mean.
        training: Cases with labels.
        test: Cases that are not for training; mostly without labels.
    """

    name: str
    source: Path
    channels: tuple[str, ...]
    structures: Structures
    training: tuple[Case, ...]
    test: tuple[Case, ...] = ()

    def fold(self, fold: int, folds: int = 5, seed: int = 0) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
        """Return the (training, validation) cases of one fold; a group is never parted.

        Where the dataset prescribes folds, those are used. Otherwise the groups are ordered by a hash of seed and name and
        dealt out in turn, so that the split depends neither on the order of files nor on the machine, and folds differ by
        at most one group.

        Raises:
            UsageError: The fold does not exist, or there are fewer groups than folds.
            DataError: The dataset's own folds part a group, or name some cases only.
        """
        assigned = self._prescribed() or deal_folds([case.group for case in self.training], folds, seed)
        count = max(assigned.values()) + 1
        if not 0 <= fold < count:
            raise UsageError(f"Expected `fold` between 0 and {count - 1}, but got {fold}.")
        validation = tuple(case for case in self.training if assigned[case.group] == fold)
        training = tuple(case for case in self.training if assigned[case.group] != fold)
        if not validation or not training:
            raise DataError(f"Fold {fold} of {self.source} leaves no case to {'train on' if not training else 'validate on'}.")
        return training, validation

    def _prescribed(self) -> dict[str, int]:
        named = [case for case in self.training if case.fold is not None]
        if not named:
            return {}
        if len(named) != len(self.training):
            missing = next(case.id for case in self.training if case.fold is None)
            raise DataError(f"{self.source} gives a fold to some cases, but not to {missing}. Give one to all or to none.")
        assigned: dict[str, int] = {}
        for case in named:
            fold = case.fold or 0
            if assigned.setdefault(case.group, fold) != fold:
                raise DataError(f"{self.source} puts group {case.group!r} into folds {assigned[case.group]} and {fold}.")
        return assigned


def deal_folds(groups: Iterable[str], folds: int, seed: int) -> dict[str, int]:
    """Deal the distinct `groups` into `folds` of equal size (±1), in the order of a hash of seed and name."""
    distinct = sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).hexdigest())
    if folds < 2 or len(distinct) < folds:
        raise UsageError(f"Expected `folds` between 2 and the {len(distinct)} groups there are, but got {folds}.")
    return {group: position % folds for position, group in enumerate(distinct)}


def read_datalist(source: Path | str, structures: Structures | None = None) -> Datalist:
    """Read a folder with a `dataset.json`, a JSON file of that kind, or a CSV.

    Args:
        source: The folder or file.
        structures: What the labels mean; needed for a CSV without a `structures.json` beside it, and overrides what the
            source says otherwise.

    Raises:
        DataError: The source is missing, empty or contradicts itself. Image files are not opened: `check` does that.
    """
    path = Path(source)
    if path.is_dir():
        path = _find_description(path)
    if not path.is_file():
        raise DataError(f"No such dataset: {path}. Expected a folder with a dataset.json, a JSON file or a CSV.")
    if path.suffix.lower() == ".csv":
        found = _read_csv(path, structures)
    else:
        content = read_json(path)
        reader = _read_decathlon if "training" in content else _read_nnunet
        found = reader(path, content, structures)
    if not found.training and not found.test:
        raise DataError(f"{path} lists no case.")
    _refuse_twins(found)
    return found


def describes_dataset(folder: Path) -> bool:
    """Tell a dataset from a folder of scans, which may hold tables of other kinds."""
    tables = list(folder.glob("*.csv"))
    if (folder / "dataset.json").is_file() or len(tables) != 1:
        return (folder / "dataset.json").is_file()
    header = tables[0].read_text(encoding="utf-8-sig", errors="replace").partition("\n")[0]
    return "image" in header.strip().split(",")


def read_structures(source: Path | str) -> Structures:
    """Read structures from a dataset folder, a `dataset.json`, or a JSON table of names and values."""
    path = Path(source)
    if path.is_dir():
        known = [path / name for name in ("dataset.json", "structures.json", "labels.json")]
        path = next((candidate for candidate in known if candidate.is_file()), path)
    if not path.is_file():
        raise DataError(f"No structures at {source}: expected a JSON file of names and label values, or a dataset folder.")
    content = read_json(path)
    if "values" in content and "background" in content:
        return Structures.from_dict(content)
    try:
        return Structures.from_labels(content.get("labels", content), content.get("regions"))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a file that is none is a `DataError` with the line at fault."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"Cannot read {path} as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"Expected {path} to hold a JSON object, but it holds a {type(content).__name__}.")
    return content


def _find_description(folder: Path) -> Path:
    if (folder / "dataset.json").is_file():
        return folder / "dataset.json"
    tables = sorted(folder.glob("*.csv"))
    if len(tables) == 1:
        return tables[0]
    if not any(folder.iterdir()):
        raise DataError(f"The folder {folder} is empty. Expected a dataset.json or a CSV that lists its cases.")
    raise DataError(f"Expected {folder} to hold a dataset.json or one CSV, but it holds {len(tables)} CSV files.")


def _read_decathlon(path: Path, content: Mapping[str, Any], structures: Structures | None) -> Datalist:
    channels = content.get("modality") or content.get("channel_names") or {"0": "image"}
    for key in ("training", "test"):
        if not isinstance(content.get(key, []), list):
            raise DataError(f"Expected {key!r} in {path} to be a list of cases, but got {content[key]!r}.")
    return Datalist(
        name=str(content.get("name", path.parent.name)),
        source=path,
        channels=_channel_names(channels),
        structures=structures or _labels_of(path, content),
        training=tuple(_decathlon_case(path, entry) for entry in content["training"]),
        test=tuple(_decathlon_case(path, entry) for entry in content.get("test", [])),
    )


def _decathlon_case(path: Path, entry: Any) -> Case:
    if isinstance(entry, str):
        entry = {"image": entry}
    if not isinstance(entry, Mapping) or "image" not in entry:
        raise DataError(f"Expected each case of {path} to be a path or to have an 'image', but got {entry!r}.")
    found = entry["image"]
    alone = found is None and entry.get("label")  # said outright, so that a misspelt key is not taken for it
    listed = found if isinstance(found, (list, tuple)) else [] if found is None else [found]
    images = tuple(path.parent / str(image) for image in listed)
    if not images and not alone:
        raise DataError(f"Expected each case of {path} to have at least one image, but got {entry!r}.")
    if not isinstance(entry.get("label", ""), (str, type(None))):
        case = _text(entry.get("id")) or found
        raise DataError(f"Expected the label of case {case} in {path} to be one file, but got {entry['label']!r}.")
    name = _text(entry.get("id")) or case_name(images[0] if images else entry["label"])
    known = {"id", "image", "label", "group", "fold"}
    return Case(
        id=name,
        images=images,
        label=path.parent / entry["label"] if entry.get("label") else None,
        group=_text(entry.get("group")) or name,
        fold=None if entry.get("fold") is None else _whole(entry["fold"], path, name),
        attributes={key: value for key, value in entry.items() if key not in known},
    )


def _read_nnunet(path: Path, content: Mapping[str, Any], structures: Structures | None) -> Datalist:
    if "channel_names" not in content or "labels" not in content:
        raise DataError(f"{path} is neither a Decathlon dataset.json (no 'training') nor an nnU-Net one (no 'channel_names').")
    channels = _channel_names(content["channel_names"])
    ending = str(content.get("file_ending", ".nii.gz"))
    if ending not in SUFFIXES:
        raise DataError(f"{path} has the file ending {ending!r}; only {' and '.join(SUFFIXES)} are read.")
    root = path.parent
    training = [
        Case(
            id=(name := label.name[: -len(ending)]),
            images=tuple(root / "imagesTr" / f"{name}_{channel:04d}{ending}" for channel in range(len(channels))),
            label=label,
            group=name,
        )
        for label in sorted((root / "labelsTr").glob(f"*{ending}"))
        if not label.name.startswith(".")
    ]
    test_names = sorted({image.name[: -len(ending) - 5] for image in (root / "imagesTs").glob(f"*_0000{ending}")})
    test = [
        Case(name, tuple(root / "imagesTs" / f"{name}_{channel:04d}{ending}" for channel in range(len(channels))), group=name)
        for name in test_names
        if not name.startswith(".")
    ]
    return Datalist(
        name=str(content.get("name", root.name)),
        source=path,
        channels=channels,
        structures=structures or _labels_of(path, content),
        training=tuple(training),
        test=tuple(test),
    )


def _read_csv(path: Path, structures: Structures | None) -> Datalist:
    beside = [path.with_suffix(".json"), path.parent / "structures.json", path.parent / "labels.json"]
    described = next((candidate for candidate in beside if candidate.is_file()), None)
    if structures is None:
        if described is None:
            raise DataError(f"{path} needs a {beside[1].name} beside it that gives every structure its label value.")
        structures = read_structures(described)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"Cannot read {path} as CSV: {error}.") from error
    if not rows or "image" not in rows[0]:
        raise DataError(f"Expected {path} to have a header with the column 'image' and at least one row.")
    cases = [_csv_case(path, line, row) for line, row in enumerate(rows, start=2)]
    in_test = [(row.get("split") or "").strip().lower() in ("test", "ts") for row in rows]
    named = read_json(described).get("channel_names") if described else None
    width = len(cases[0].images)
    default = ("image",) if width == 1 else tuple(f"channel_{number}" for number in range(width))
    return Datalist(
        name=path.stem,
        source=path,
        channels=_channel_names(named) if named else default,
        structures=structures,
        training=tuple(case for case, test in zip(cases, in_test, strict=True) if not test),
        test=tuple(case for case, test in zip(cases, in_test, strict=True) if test),
    )


def _csv_case(path: Path, line: int, row: Mapping[str, str]) -> Case:
    listed = [part.strip() for part in (row.get("image") or "").split(";") if part.strip()]
    if not listed:
        raise DataError(f"Line {line} of {path} has no image.")
    images = tuple(path.parent / part for part in listed)
    name = (row.get("id") or "").strip() or case_name(images[0])
    label = (row.get("label") or "").strip()
    fold = (row.get("fold") or "").strip()
    return Case(
        id=name,
        images=images,
        label=path.parent / label if label else None,
        group=(row.get("group") or "").strip() or name,
        fold=_whole(fold, path, name) if fold else None,
        attributes={key: value for key, value in row.items() if key and key not in CSV_COLUMNS and value},
    )


def _text(value: Any) -> str:
    """Return `value` as text, empty if there is none; a patient numbered 0 is one."""
    return "" if value is None else str(value).strip()


def _whole(value: Any, path: Path, case: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and value.isdigit():
        return int(value)
    raise DataError(f"Expected the fold of case {case} in {path} to be a whole number from 0, but got {value!r}.")


def _channel_names(channels: Any) -> tuple[str, ...]:
    if isinstance(channels, Mapping):
        ordered = sorted(channels, key=int) if all(str(key).isdigit() for key in channels) else list(channels)
        return tuple(str(channels[key]) for key in ordered)
    if not isinstance(channels, (str, list, tuple)):
        raise DataError(f"Expected the channels to be a table or a list of names, but got {channels!r}.")
    return (channels,) if isinstance(channels, str) else tuple(str(channel) for channel in channels)


def _labels_of(path: Path, content: Mapping[str, Any]) -> Structures:
    if "labels" not in content:
        raise DataError(f"{path} has no 'labels' that give every structure its value.")
    try:
        return Structures.from_labels(content["labels"], content.get("regions"))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _refuse_twins(datalist: Datalist) -> None:
    for cases in (datalist.training, datalist.test):
        seen: set[str] = set()
        for case in cases:
            if case.id in seen:
                raise DataError(f"{datalist.source} lists case {case.id!r} twice; results would overwrite each other.")
            seen.add(case.id)
