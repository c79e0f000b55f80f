"""The record of a cohort that several runs may write at the same time, and that survives if they are killed at any instant.

A run appends a line to a journal of its own for every case that has ended, and seldom rewrites the whole: `predictions.json`
for programs and `status.csv` for people. A rewriting takes in the journals of other runs, those that live and those that were
killed, so nothing is lost.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from medseg_se.data.datalist import MANIFEST, read_json
from medseg_se.errors import DataError, OutputError, UsageError, describe_os_error
from medseg_se.files import write_json, write_text
from medseg_se.inference.journal import JOURNALS, PATIENCE, Journal, journals, locked, read_journal
from medseg_se.inference.status import ENDINGS, Status, to_csv
from medseg_se.inference.volumes_report import COHORT

log = logging.getLogger(__name__)

FORMAT = 2
TABLE = "status.csv"
PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part")
REWRITE, SHARE = 10.0, 0.02
"""The whole is rewritten no more often than after so many seconds, and in no more than this share of the time."""


def label_map(name: str) -> str:
    """Return the file that holds the label map of a case."""
    return f"{name}.nii.gz"


def read_record(
    output: Path, options: dict[str, Any], overwrite: bool = False, file_of: Callable[[str], str] = label_map
) -> dict[str, Status]:
    """Return case → status as all runs have left it in `output`; empty if there was none.

    Args:
        output: The folder.
        options: What tells results apart: the model's digest and all that changes them.
        overwrite: Whether results of other options are to be replaced: their cases are waiting.
        file_of: Returns the name of the file that holds the result of a case.

    Raises:
        UsageError: The results are of other options.
        DataError: `predictions.json` is damaged or not ours.
        OutputError: The folder is a file.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"Expected `output` to be a folder, but {output} is a file.")
    path, known = output / MANIFEST, dict[str, Status]()
    if path.is_file():
        content = read_json(path)
        same = content.get("format") == FORMAT and content.get("options") == options
        if not same and not overwrite:
            raise UsageError(
                f"{output} holds predictions of another model or with other options. Choose another folder, or --overwrite."
            )
        try:
            if not same:
                return {name: Status("waiting", file_of(name)) for name in content.get("cases", {})}
            known = {name: Status(**entry) for name, entry in content["cases"].items()}
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f"{path} was not written by this command or is damaged. Remove it, and run again.") from error
    for journal in sorted(output.glob(JOURNALS)):
        of_journal, found = read_journal(journal)
        known.update(found if of_journal == options else {})
    return known


class Record:
    """The record of one run, as a context: `with Record(...) as record: record.note("case", status)`.

    Args:
        output: The folder; made if it is not there.
        options: See `read_record`.
        overwrite: See `read_record`.
        names: Cases that the record lists from the beginning, as waiting if nothing else is known.
        file_of: See `read_record`.

    Attributes:
        statuses: Case → status of everything in the folder, as far as this run knows.

    Raises:
        UsageError: See `read_record`; or a run with other options is writing there now.
        OutputError: The folder is not writable, or the disk is full.
    """

    def __init__(
        self,
        output: Path,
        options: dict[str, Any],
        overwrite: bool,
        names: Iterable[str],
        file_of: Callable[[str], str] = label_map,
    ) -> None:
        self.output, self.options = output, options
        self.statuses: dict[str, Status] = {}
        self._mine: dict[str, Status] = {}
        self._turn = threading.Lock()
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise describe_os_error(output / MANIFEST, error) from error
        with locked(output):
            ended, living = journals(output)
            self.statuses = read_record(output, options, overwrite, file_of)
            if any(read_journal(path)[0] not in (None, options) for path in living):
                raise UsageError(f"A run of another model or with other options is writing to {output}. Let it end first.")
            for name in names:
                self.statuses.setdefault(name, Status("waiting", file_of(name)))
            self._rewrite(ended, sweep=not living)
            self._journal = Journal(output, options)
        self._rewritten, self._pause = time.monotonic(), REWRITE

    def __enter__(self) -> Record:
        return self

    def note(self, name: str, status: Status) -> None:
        """Record what became of a case; may be called by any thread.

        Raises:
            OutputError: The disk is full, or the folder is gone.
        """
        with self._turn:
            self.statuses[name] = self._mine[name] = status
            self._journal.write(name, status)
            started = time.monotonic()
            if started - self._rewritten > self._pause:
                self._take_in(patience=0)
                self._rewritten = time.monotonic()
                self._pause = max(REWRITE, (self._rewritten - started) / SHARE)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        whole = False
        try:
            with self._turn:
                whole = self._take_in(PATIENCE, sweep=True)
        except (OutputError, UsageError) as failure:
            if error is None:
                raise
            log.warning("The next run puts the record right: %s", failure)  # the first error says more
        finally:
            self._journal.close(remove=whole)

    def _take_in(self, patience: float, sweep: bool = False) -> bool:
        """Rewrite the whole with what other runs have done; returns False if another does so now and there is no patience."""
        try:
            with locked(self.output, patience):
                ended, living = journals(self.output, self._journal.path)  # first, as those that live may write more
                self.statuses = {**read_record(self.output, self.options), **self._mine}
                self._rewrite(ended, sweep and not living)
        except UsageError:
            if patience:
                raise
            return False
        return True

    def _rewrite(self, ended: Iterable[Path], sweep: bool) -> None:
        """Write the whole, then remove the journals of ended runs; and what those had begun to write, if nobody else writes."""
        cases = {name: asdict(status) for name, status in self.statuses.items()}
        content = {"format": FORMAT, "model": self.options["model"], "options": self.options, "cases": cases}
        write_json(self.output / MANIFEST, content)
        write_text(self.output / TABLE, to_csv(self.statuses))
        for journal in ended:
            journal.unlink(missing_ok=True)
        for path in self.output.glob(".*.part") if sweep else ():
            match = PARTIAL.fullmatch(path.name)
            if match and (match[1] in (MANIFEST, TABLE, COHORT) or _case_of(match[1]) & cases.keys()):
                path.unlink(missing_ok=True)


def _case_of(file: str) -> set[str]:
    """Return the cases whose result a file could be by its name."""
    return {file.removesuffix(ending) for ending in ENDINGS.values() if file.endswith(ending)}
