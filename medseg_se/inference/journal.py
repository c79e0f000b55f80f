"""A journal to which one run appends a line for every case that has ended; others may read it at any time.

The run holds a lock on it, which the system lets go when the run is killed: so others know whether more will come.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medseg_se.errors import DataError, OutputError, UsageError, describe_os_error
from medseg_se.files import alone
from medseg_se.inference.status import Status

log = logging.getLogger(__name__)

LOCK = ".predictions.lock"
JOURNALS = ".predictions.*.jsonl"
PATIENCE = 60.0
"""Seconds for which another run may rewrite what is shared before it is given up."""
SYNC = 1.0
"""Seconds after which a journal is sent to the disk; what a power failure takes is segmented again."""


class Journal:
    """The journal of this run.

    Args:
        output: The folder in which it is made.
        options: What tells the results of this run from those of others.

    Raises:
        OutputError: The folder is not writable, or the disk is full; no journal is left behind.
    """

    def __init__(self, output: Path, options: dict[str, Any]) -> None:
        self.path = output / f".predictions.{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self._synced = time.monotonic()
        with ExitStack() as made:
            made.enter_context(alone(self.path))
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            made.callback(os.close, self._descriptor)
            try:
                self._append({"options": options})
            except OutputError:
                self.path.unlink(missing_ok=True)
                raise
            self._held = made.pop_all()

    def write(self, name: str, status: Status) -> None:
        """Append what became of a case.

        Raises:
            OutputError: The disk is full, or the folder is gone.
        """
        self._append({"case": name, **asdict(status)})

    def close(self, remove: bool) -> None:
        """Let the journal go, and remove it if all of it stands elsewhere."""
        self._held.close()
        if remove:
            self.path.unlink(missing_ok=True)

    def _append(self, content: dict[str, Any]) -> None:
        line = (json.dumps(content) + "\n").encode()
        try:
            while line:  # a full disk may take a part of it
                line = line[os.write(self._descriptor, line) :]
            if time.monotonic() - self._synced > SYNC:
                os.fsync(self._descriptor)
                self._synced = time.monotonic()
        except OSError as error:
            raise describe_os_error(self.path, error) from error


@contextmanager
def locked(output: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Let one run at a time rewrite what all share in `output`.

    Raises:
        UsageError: Another run took longer than `patience` seconds.
        OutputError: The folder is not writable.
    """
    until = time.monotonic() + patience
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(alone(output / LOCK))
                break
            except UsageError:
                if time.monotonic() >= until:
                    raise
                time.sleep(0.01)
        yield


def journals(output: Path, own: Path | None = None) -> tuple[list[Path], list[Path]]:
    """Return the journals of runs that have ended and of those that live, without one's own."""
    ended, living = [], []
    for path in sorted(output.glob(JOURNALS)):
        if path == own:
            continue
        try:
            with alone(path):
                ended.append(path)
        except UsageError:
            living.append(path)
    return ended, living


def read_journal(path: Path) -> tuple[dict[str, Any] | None, dict[str, Status]]:
    """Return the options of a journal, and case → status; a line that is cut off or garbled counts for nothing.

    Raises:
        DataError: The file may not be read.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:  # its run has just ended, and the whole has its lines
        return None, {}
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}. Make it readable, or remove it.") from error
    head, *entries = [_parsed(line) for line in lines] or [{}]
    known: dict[str, Status] = {}
    for entry in entries:
        try:
            name = entry.pop("case")
            known[name] = Status(**entry)
        except (KeyError, TypeError):
            log.debug("a line of %s was passed over", path)
    return head.get("options"), known


def _parsed(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}
