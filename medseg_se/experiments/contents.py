"""What the files of an experiment's cases hold, kept as digests: a file that is replaced under its name is another case.

Runs before and after such a change would not be alike, and nothing else would show it: names, settings and starts stay equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg_se.data.datalist import read_json
from medseg_se.errors import DataError, UsageError, some_of
from medseg_se.experiments.cases import Cases
from medseg_se.files import digest_of, write_json

CONTENTS = "contents.json"
FORMAT = 1


def keep_contents(cases: Cases, folder: Path) -> None:
    """Note what the scans and label maps hold, or make sure that they hold the same as when the first run began.

    A file of the same size and times is not read again.

    Raises:
        UsageError: Files were replaced since a run began.
        DataError: A file is missing or cannot be read.
    """
    known = _known(folder)
    found = {str(path): _described(path, known.get(str(path))) for path in _files(cases)}
    other = [path for path, said in found.items() if path in known and known[path]["digest"] != said["digest"]]
    if other and any((folder / "runs").glob("*/start.ckpt")):
        raise UsageError(
            f"{folder} holds runs on other contents of {some_of(other)}: replaced or changed since the first run began, so "
            "that runs would not be alike. Put the earlier files back to go on, or choose another folder."
        )
    if found != known:
        write_json(folder / CONTENTS, {"format": FORMAT, "files": found})


def _known(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / CONTENTS
    if not path.is_file():
        return {}
    content = read_json(path)
    if content.get("format") != FORMAT or not isinstance(content.get("files"), dict):
        raise DataError(f"Expected {path} to be in format {FORMAT}, but it is not. Choose another folder.")
    return dict(content["files"])


def _files(cases: Cases) -> Sequence[Path]:
    listed = (path for case in (*cases.training.training, *cases.held_out.training) for path in case.files())
    return sorted({path.absolute() for path in listed})


def _described(path: Path, known: dict[str, Any] | None) -> dict[str, Any]:
    """Return size, times and digest of a file; its content is looked at unless size and times are the known ones."""
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    state = {
        "size": stat.st_size,
        "changed": [stat.st_mtime_ns, stat.st_ctime_ns],
    }  # the latter tells copies that keep the first
    if known is not None and {**state, "digest": known.get("digest")} == known:
        return known
    return {**state, "digest": digest_of([path])}
