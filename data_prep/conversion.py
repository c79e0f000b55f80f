"""Conversion: from the cases that a converter found to a dataset folder, in parallel, killed and run again at will.

A case is done when its files are written and recorded; a rerun makes only what is missing or what its source has changed.
`dataset.json` is written last, so a folder that has one is whole. What could not be used is named in `conversion.json`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medseg_se.data.pictures import NO_STRUCTURES, read_picture
from medseg_se.errors import DataError, UsageError, describe_os_error
from medseg_se.files import alone, atomic_write, write_json, write_text
from medseg_se.processors import at_once
from medseg_se.volumes import Volume, write_volume

from .collection import Collection, Item, Scan
from .steps import Steps

FORMAT = 1  # raise it when the same source gives other files
SUMMARY, LOG, LOCK = "conversion.json", ".conversion.jsonl", ".conversion.lock"
FOLDERS = ("imagesTr", "imagesTs", "labelsTr", "labelsTs")
SHOWN = 20  # names of cases that are shown on screen; all stand in the summary


@dataclass(frozen=True)
class Record:
    """What became of one case.

    Attributes:
        key: Digest of its source files' names, sizes and times, and of every option.
        written: Files of the dataset, relative → bytes; "image" and "label" in this order, as far as there are any.
        image: Path of the image within the dataset.
        label: Path of the label map within the dataset.
        notes: What a person should know.
        why: Why it was left out; empty if it is done.
    """

    key: str
    written: Mapping[str, int] = field(default_factory=dict)
    image: str | None = None
    label: str | None = None
    notes: tuple[str, ...] = ()
    why: str = ""


def convert(
    collection: Collection,
    output: Path,
    steps: Steps,
    options: Mapping[str, Any],
    *,
    workers: int | None = None,
    dry_run: bool = False,
) -> int:
    """Make a dataset of a collection; returns the exit code: 1 if anything was left out.

    Args:
        collection: What the converter found.
        output: Folder of the dataset.
        steps: What is done to every case.
        options: The converter and what it was asked for; cases made with others are made again.
        workers: Cases converted at the same time; as many as there are cores, at most 8, if not given.
        dry_run: Only list the cases that were found, and what would be left out at once.

    Raises:
        DataError: The source holds no case, or none that can be used.
        UsageError: The output folder holds something else, or two cases have one name.
        OutputError: The output cannot be written.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"Expected `workers` to be at least 1, but got {workers}.")
    _check(collection, output)
    if steps != Steps() and any(item.read is None for item in collection.items):
        raise UsageError("Pictures are copied as they are; leave out the options that change scans.")
    collection = _without_twins(collection)
    if dry_run:
        return _list(collection)
    with alone(output / LOCK):
        return _convert(collection, output, steps, options, workers)


def _convert(collection: Collection, output: Path, steps: Steps, options: Mapping[str, Any], workers: int | None) -> int:
    known, before = _known(output)
    keys = {item.id: _key(item, collection, steps, options) for item in collection.items}
    ready = {item.id: known[item.id] for item in collection.items if _is_done(known.get(item.id), keys[item.id], output)}
    waiting = [item for item in collection.items if item.id not in ready]
    _open(output)
    made = dict(_convert_all(waiting, keys, collection, output, steps, workers))
    records = {item.id: ready.get(item.id) or made[item.id] for item in collection.items}
    done = [item for item in collection.items if not records[item.id].why]
    left_out = {**collection.left_out, **{name: record.why for name, record in records.items() if record.why}}
    listed = {name for record in records.values() for name in record.written}
    for name, record in records.items():
        if not record.why and name in known:  # of a case that went from training to testing or back, one copy stays
            _remove(output, known[name].written.keys() - listed)
    unlisted = sorted(name for name in before - listed if (output / name).is_file())
    summary = {
        **options,
        "format": FORMAT,
        "found": len(collection.items) + len(collection.left_out),
        "usable": len(done),
        "left_out": left_out,
        "notes": list(collection.notes),
        "unlisted": unlisted,
        "cases": {name: asdict(record) for name, record in records.items()},
    }
    write_json(output / SUMMARY, summary)
    (output / LOG).unlink(missing_ok=True)
    if not done:
        name, why = next(iter(left_out.items()))
        raise DataError(
            f"None of the {summary['found']} cases can be used, the first, {name}, because: {why} "
            f"All reasons stand in {output / SUMMARY}."
        )
    for name, text in collection.tables.items():
        write_text(output / name, text)
    write_json(output / "dataset.json", _description(collection, done, records))
    there = len(done) - sum(not record.why for record in made.values())
    _report(collection, output, records, there, left_out, unlisted)
    return 1 if left_out else 0


# ------------------------------------------------------------------------------------------------------------- before it starts


def _check(collection: Collection, output: Path) -> None:
    if not collection.items:
        reasons = [f"{name}: {why}" for name, why in collection.left_out.items()]
        raise DataError(f"No case of {collection.name} can be used. {' '.join(reasons[:1])}".strip())
    for item in collection.items:
        path = PurePosixPath(item.id)
        if not item.id or path.is_absolute() or "\\" in item.id or any(part in (".", "..") for part in item.id.split("/")):
            raise DataError(f"Expected the name of a case to be one of a file, but got {item.id!r} ({item.files[0]}).")
    if (output / "dataset.json").exists() and not (output / SUMMARY).exists():
        raise UsageError(f"{output} already holds a dataset that was not converted here. Choose another output folder.")
    sources = {path.resolve().parent for item in collection.items for path in item.files[:1]}
    if any(output.resolve() == folder or output.resolve() in folder.parents for folder in sources):
        raise UsageError(f"The output folder {output} holds the source itself. Choose another one.")


def _without_twins(collection: Collection) -> Collection:
    """Leave out cases whose names cannot be those of files: several of one name, or one that is no text."""
    owners: dict[str, list[Item]] = {}
    for item in collection.items:
        owners.setdefault(item.id.lower(), []).append(item)
    left_out = dict(collection.left_out)
    for name, items in owners.items():
        if len(items) > 1:
            files = ", ".join(_called(item.files[0], collection) for item in items)
            left_out[name] = f"{len(items)} cases have this name ({files}). Rename or remove all but one."
        elif not name.isprintable():  # such as bytes that are no UTF-8
            left_out[_printable(name)] = "Its name holds characters that are no text. Rename the file."
    kept = [item for item in collection.items if _printable(item.id.lower()) not in left_out]
    return replace(collection, items=kept, left_out=left_out)


def _called(path: Path | str, collection: Collection) -> str:
    """Return what a file is called in reasons, which are written down; in a private collection none is named."""
    return "one of its files" if collection.private else str(path)


def _printable(text: str) -> str:
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _list(collection: Collection) -> int:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for item in collection.items:
        more = f" and {len(item.files) - 1} more" if len(item.files) > 1 else ""
        console.print(f"{item.id}  {'test' if item.test else 'training'}  {item.files[0]}{more}")
    for note in collection.notes:
        console.print(f"note: {note}")
    for name, why in collection.left_out.items():
        console.print(f"left out: {name}: {why}")
    return 1 if collection.left_out else 0


def _known(output: Path) -> tuple[dict[str, Record], set[str]]:
    """Return what earlier runs recorded, finished ones and the one that was killed, and the names of all files they wrote."""
    found: dict[str, Any] = {}
    files: set[str] = set()
    with suppress(OSError, ValueError, KeyError, TypeError):  # none, or not ours: then every case is made
        summary = json.loads((output / SUMMARY).read_text(encoding="utf-8"))
        found.update(summary["cases"])
        files.update(map(str, summary["unlisted"]))
    if (output / LOG).is_file():
        for line in (output / LOG).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                name, record = json.loads(line)
            except (TypeError, ValueError):
                continue  # the line at which a run was killed
            found[name] = record
    records: dict[str, Record] = {}
    for name, record in found.items():
        with suppress(AttributeError, KeyError, TypeError):  # not ours either
            records[name] = Record(**{**record, "notes": tuple(record["notes"]), "written": dict(record["written"])})
            files.update(records[name].written)
    return records, files


def _open(output: Path) -> None:
    """Make the folder, clear away what a killed run had begun, and take away the list until everything in it is there."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "dataset.json").unlink(missing_ok=True)
        for folder in FOLDERS:
            for partial in (output / folder).rglob(".*.part"):
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise describe_os_error(output, error) from error


def _remove(output: Path, names: Iterable[str]) -> None:
    for name in names:
        if name.startswith(FOLDERS) and ".." not in PurePosixPath(name).parts:
            (output / name).unlink(missing_ok=True)


def _key(item: Item, collection: Collection, steps: Steps, options: Mapping[str, Any]) -> str:
    facts = [[str(path.resolve()), *_stamp(path)] for path in (*item.files, *steps.files(item.id))]
    meaning = collection.structures.to_dict() if collection.structures else None
    content = json.dumps([FORMAT, facts, collection.channels, meaning, asdict(steps), options, item.test], default=str)
    return hashlib.blake2b(content.encode(errors="backslashreplace"), digest_size=16).hexdigest()


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _is_done(record: Record | None, key: str, output: Path) -> bool:
    if record is None or record.key != key or record.why:
        return False
    return all(_stamp(output / name)[0] == size for name, size in record.written.items())


# ----------------------------------------------------------------------------------------------------------------- each case


def _convert_all(
    items: Sequence[Item],
    keys: Mapping[str, str],
    collection: Collection,
    output: Path,
    steps: Steps,
    workers: int | None,
) -> Iterator[tuple[str, Record]]:
    console = Console(stderr=True)
    counted = (MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    pool = ThreadPoolExecutor(workers or at_once())
    try:
        with (
            (output / LOG).open("a", encoding="utf-8") as log,
            Progress(
                TextColumn("converting"),
                BarColumn(),
                *counted,
                transient=True,
                console=console,
                disable=not console.is_terminal,
            ) as bar,
        ):
            log.write("\n")  # after a line at which a run was killed
            task = bar.add_task("", total=len(items))
            jobs = {pool.submit(_convert_one, item, keys[item.id], collection, output, steps): item for item in items}
            left_out = 0
            for job in as_completed(jobs):
                item, record = jobs[job], job.result()
                log.write(json.dumps([item.id, asdict(record)]) + "\n")
                log.flush()
                left_out += bool(record.why)
                bar.update(task, advance=1, description=f"{left_out} left out" if left_out else "")
                yield item.id, record
    except OSError as error:
        raise describe_os_error(output, error) from error
    finally:  # after Ctrl-C or on a full disk, the cases that wait are not begun
        pool.shutdown(cancel_futures=True)


def _convert_one(item: Item, key: str, collection: Collection, output: Path, steps: Steps) -> Record:
    missing = {path: why for path in item.files if (why := _why_not(path))}
    if missing:
        path, why = next(iter(missing.items()))
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        return Record(key, why=f"{_called(path, collection)} {why}{more}. Mend that and run it again.")
    part = "Ts" if item.test else "Tr"
    try:
        if item.read is None:
            return _copy_picture(item, key, output, part)
        scan = steps(_checked(item.read(), collection, item), item.id)
        return _write(item, key, scan, output, part)
    except DataError as error:
        return Record(key, why=str(error))
    except OSError as error:
        which = _called(error.filename or item.files[0], collection)
        return Record(key, why=f"Cannot read {which}: {error.strerror or error}. Mend that and run it again.")
    except MemoryError:
        return Record(key, why="Not enough memory to read it. Run the same command again with `--workers 1`.")


def _why_not(path: Path) -> str:
    """Return why a file cannot be read, or nothing."""
    try:
        path.stat()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if path.is_file() else "is no file"


def _checked(scan: Scan, collection: Collection, item: Item) -> Scan:
    """Refuse what would mislead a training."""
    image, labels = scan.image, scan.labels
    of_image = _called((image and image.path) or item.files[0], collection)
    of_labels = _called((labels and labels.path) or item.files[-1], collection)
    if image is None and labels is None:
        raise DataError("It has neither a scan nor a label map.")
    if image is not None:
        if image.array.shape[0] != len(collection.channels):
            listed = ", ".join(collection.channels)
            raise DataError(f"Expected the channels {listed}, but {of_image} has {image.array.shape[0]}.")
        if image.array.dtype.kind == "f" and not np.isfinite(image.array).all():
            raise DataError(f"{of_image} holds voxels that are NaN or infinite. Repair it.")
    if labels is not None:
        if image is not None and (difference := image.same_grid(labels)):
            raise DataError(f"Image and label map lie on different grids: {difference} ({of_labels}).")
        structures = collection.structures
        if structures is not None:
            structures.encode(np.unique(labels.array), where=of_labels)
    if image is not None and labels is not None:
        # Of two affines that differ in the last digit, one may count as turned where the other does not.
        return replace(scan, labels=replace(labels, affine=image.affine))
    return scan


def _write(item: Item, key: str, scan: Scan, output: Path, part: str) -> Record:
    """Write image and label map; headers are made anew, so nothing that an old one says of a person is carried over."""
    written: dict[str, int] = {}
    paths: list[str | None] = []
    for volume, folder in ((scan.image, f"images{part}"), (scan.labels, f"labels{part}")):
        name = f"{folder}/{item.id}.nii.gz" if volume is not None else None
        if volume is not None and name is not None:
            plain = Volume(compact(volume.array), volume.affine)
            write_volume(plain, output / name)
            written[name] = (output / name).stat().st_size
        paths.append(name)
    return Record(key, written, paths[0], paths[1], scan.notes)


def _copy_picture(item: Item, key: str, output: Path, part: str) -> Record:
    source = item.files[0]
    read_picture(source)  # a damaged one is left out
    name = f"images{part}/{item.id}{source.suffix.lower()}"
    with source.open("rb") as stream, atomic_write(output / name) as target:
        shutil.copyfileobj(stream, target)
    return Record(key, {name: (output / name).stat().st_size}, name)


def compact(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the same numbers in the smallest of uint8, int16, uint16 and int32 that holds them all, else as float32."""
    if array.dtype.kind == "f":
        whole = np.rint(array)
        if not np.array_equal(whole, array):
            return array.astype(np.float32, copy=False)
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if array.dtype.kind == "u" and high > np.iinfo(np.int64).max:
        raise DataError(f"It holds values up to {high}, which no label map needs. Is it damaged?")
    for kind in (np.uint8, np.int16, np.uint16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return array.astype(kind, copy=False)
    return array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.int64)


# -------------------------------------------------------------------------------------------------------------------- the end


def _description(collection: Collection, done: Sequence[Item], records: Mapping[str, Record]) -> dict[str, Any]:
    """Return the `dataset.json`."""
    structures = collection.structures or NO_STRUCTURES
    described: dict[str, Any] = {
        "name": collection.name,
        "modality": {str(number): channel for number, channel in enumerate(collection.channels)},
        "labels": structures.to_labels(),
        "numTraining": sum(not item.test for item in done),
        "numTest": sum(item.test for item in done),
        "training": [_entry(item, records[item.id]) for item in done if not item.test],
        "test": [_entry(item, records[item.id]) for item in done if item.test],
    }
    if structures.regions:
        described["regions"] = {name: list(members) for name, members in structures.regions.items()}
    return described


def _entry(item: Item, record: Record) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": item.id, "image": record.image and f"./{record.image}"}
    if record.label:
        entry["label"] = f"./{record.label}"
    if item.group:
        entry["group"] = item.group
    if item.fold is not None:
        entry["fold"] = item.fold
    return {**item.attributes, **entry}


def _report(
    collection: Collection,
    output: Path,
    records: Mapping[str, Record],
    before: int,
    left_out: Mapping[str, str],
    unlisted: Sequence[str],
) -> None:
    console = Console(highlight=False, markup=False, soft_wrap=True)
    done = sum(not record.why for record in records.values())
    there = f", {before} of them were there already" if before else ""
    test = sum(item.test and not records[item.id].why for item in collection.items)
    held = f" ({test} held out for testing)" if test else ""
    console.print(f"{collection.name}: {done} of {len(records) + len(collection.left_out)} cases converted{held}{there}.")
    for note in collection.notes:
        console.print(f"note: {note}")
    _print_some(console, "note: ", {name: " ".join(record.notes) for name, record in records.items() if record.notes}, output)
    _print_some(console, "left out: ", left_out, output)
    if unlisted:
        console.print(
            f"note: {len(unlisted)} files of earlier runs, such as {output / unlisted[0]}, belong to no case any more. "
            "They stay, but are not in dataset.json; remove them if they are not wanted."
        )
    console.print(f"Written to {output / 'dataset.json'}; `medseg-se check {output}` looks through it.")


def _print_some(console: Console, word: str, lines: Mapping[str, str], output: Path) -> None:
    for name in list(lines)[:SHOWN]:
        console.print(_printable(f"{word}{name}: {lines[name]}"))
    if len(lines) > SHOWN:
        console.print(f"{word}{len(lines) - SHOWN} more, all in {output / SUMMARY}")
