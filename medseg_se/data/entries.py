"""Entries of a store: folders of arrays that are whole or not there, and made again where they are neither."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy.typing as npt

from medseg_se.data.arrays import write_array
from medseg_se.errors import DataError, describe_os_error
from medseg_se.files import digest_of, write_json

Facts = dict[str, Any]
Content = tuple[Mapping[str, npt.NDArray[Any]], Facts]
DAY = 24 * 60 * 60  # seconds


def entry(folder: Path, make: Callable[[], Content]) -> Facts:
    """Return what is known of the entry `folder`; it is made now if it is not there, or not whole.

    Args:
        folder: Its place in the store.
        make: Returns its arrays by file name, and what is known of them as plain data.

    Raises:
        OutputError: It could not be written; nothing partial stays.
    """
    facts = _facts_of(folder)
    if facts is None:
        _write(folder, *make())
        facts = _facts_of(folder)
    if facts is None:
        raise DataError(f"The entry {folder} was changed while it was made. Start the same run again.")
    return facts


def amend(folder: Path, facts: Facts) -> None:
    """Replace what is known of a whole entry, for one that was made when less was asked; its arrays stay as they are.

    Raises:
        OutputError: It could not be written; the entry is as before.
    """
    path = folder / "case.json"
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:  # another process is making it again
        raise describe_os_error(path, error) from error
    write_json(path, {**described, "facts": facts})


def remove_leftovers(store: Path) -> None:
    """Remove what killed runs left behind; what is younger than a day may be at work still."""
    for path in store.glob(".*.entry"):
        with suppress(OSError):  # another process may remove it too
            if path.stat().st_mtime < time.time() - DAY:
                shutil.rmtree(path)


def _facts_of(folder: Path) -> Facts | None:
    """Return what is known of an entry, None if it is not there or one of its files is not what it was."""
    try:
        described = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        whole = all(_is_same(folder / name, **said) for name, said in described["files"].items())
        facts: Facts = described["facts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return facts if whole else None


def _is_same(path: Path, size: int, time: int, digest: str) -> bool:
    """Tell whether a file is as it was written; its content is looked at if its time has changed."""
    found = path.stat()
    return found.st_size == size and (found.st_mtime_ns == time or digest_of([path]) == digest)


def _described(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "time": path.stat().st_mtime_ns, "digest": digest_of([path])}


def _write(folder: Path, arrays: Mapping[str, npt.NDArray[Any]], facts: Facts) -> None:
    partial: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".entry", dir=folder.parent))
        whole = partial / "whole"
        whole.mkdir()
        for name, array in arrays.items():
            write_array(whole / name, array)
        write_json(whole / "case.json", {"files": {name: _described(whole / name) for name in arrays}, "facts": facts})
        if _facts_of(folder) is not None:  # another process was faster
            return
        if folder.exists():
            folder.rename(partial / "damaged")
        whole.rename(folder)
    except OSError as error:
        if _facts_of(folder) is None:
            raise describe_os_error(folder, error) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
