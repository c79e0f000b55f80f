"""Exceptions a caller catches: each says what was expected, what was found and how to mend it.

Every one derives from `MedsegError`. The command line prints such an error as one line and exits with code 2; any other
exception is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path


class MedsegError(Exception):
    """Base of all errors that a user can mend."""


class UsageError(MedsegError):
    """An argument, option or name is not one that exists or makes sense."""


class UnknownNameError(UsageError):
    """A name stands in no table.

    Attributes:
        kind: Of what it is the name.
        name: The name.
    """

    kind = name = ""


class DataError(MedsegError):
    """A scan, label map or dataset file is missing, corrupt or contradicts its description."""


class CheckpointError(MedsegError):
    """A checkpoint is not one of ours, or is damaged."""


class OutputError(MedsegError):
    """A result could not be written; nothing partial was left behind."""


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name most like `name`, or None if none is alike."""
    candidates = list(valid)
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def unknown_name(kind: str, name: str, valid: Iterable[str], remedy: str = "") -> UnknownNameError:
    """Build the error for a failed lookup: the nearest valid name first, then all of them, then what else could be done."""
    names = sorted(valid)
    guess = nearest(name, names)
    hint = f" Did you mean {guess!r}?" if guess else ""
    error = UnknownNameError(f"Unknown {kind} {name!r}.{hint} Valid names: {', '.join(names)}.{remedy and ' '}{remedy}")
    error.kind, error.name = kind, name
    return error


def some_of(names: Iterable[str], most: int = 3) -> str:
    """Return names for a message: the first ones, and how many more there are; "none" if there is none."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more if listed else "none"


def describe_os_error(path: Path | str, error: OSError) -> OutputError:
    """Turn a failed write to `path` into one line that names the file, the cause and the remedy."""
    if error.errno == errno.ENOSPC:
        cause = "the disk is full; free some space and run the same command again"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        cause = "the folder is not writable; choose another output folder or change its permissions"
    else:
        cause = error.strerror or str(error)
    return OutputError(f"Cannot write {path}: {cause}.")
