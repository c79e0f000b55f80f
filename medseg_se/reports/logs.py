"""The numbers of a training run: always a table that goes on with the run, besides whatever loggers a person adds."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.core.saving import save_hparams_to_yaml
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment

from medseg_se.errors import describe_os_error
from medseg_se.files import write_text

TABLE = "metrics.csv"
_FIRST = ("epoch", "step")
_TRAINED = "train_loss"  # only rows of training have it
_WHOLE_SCANS = "val_scan_"

Row = dict[str, str]
History = dict[str, dict[int, float]]


def run_loggers(folder: Path | str, chosen: Any, resumed: bool) -> list[Logger]:
    """Return the loggers of a run in `folder`: its table, TensorBoard's where that is installed, and those that were chosen.

    Args:
        folder: Folder of the run.
        chosen: A logger, several, True for no others, or False for none at all.
        resumed: Whether the run goes on, and its table with it.
    """
    if chosen is False:
        return []
    others = [] if chosen is None or chosen is True else list(chosen) if isinstance(chosen, Sequence) else [chosen]
    table = RunLog(folder, resumed)
    own: list[Logger] = [table]
    watched = any(isinstance(logger, TensorBoardLogger) for logger in others)
    if importlib.util.find_spec("tensorboard") is not None and not watched:
        own.append(TensorBoardLogger(str(folder), name="logs", version=table.version))
    return [*own, *others]


class RunLog(CSVLogger):
    """A `CSVLogger` whose table goes on where a resumed run does, with each step in it once.

    Lightning's begins a folder of its own each time, and deletes what lies in the one it is given.

    Args:
        folder: Folder of the run; the table is ``folder/logs/version_N/metrics.csv``.
        resumed: Whether the run goes on.
    """

    def __init__(self, folder: Path | str, resumed: bool = False) -> None:
        version = _version_to_continue(Path(folder) / "logs") if resumed else None
        super().__init__(str(folder), name="logs", version=version)
        self._experiment: Any = None

    @property
    @rank_zero_experiment  # type: ignore[untyped-decorator]
    def experiment(self) -> _Table:
        """The table, which is made when it is first needed."""
        if self._experiment is None:
            self._experiment = _Table(Path(self.log_dir))
        table: _Table = self._experiment
        return table

    def rewind(self, steps: int) -> None:
        """Forget what was logged after the first `steps` steps, which are taken again.

        Raises:
            OutputError: The table could not be written.
        """
        self.experiment.rewind(steps)

    def history(self) -> History:
        """Return name → epoch, from 0 → value: the last one logged in that epoch."""
        found: History = {}
        for row in self.experiment.rows:
            for name, text in row.items():
                if name not in _FIRST and text != "" and row.get("epoch"):
                    found.setdefault(name, {})[int(float(row["epoch"]))] = _number(text)
        return found


class _Table:
    """Rows in memory and on disk: a row is appended, and only a column that is new makes the file be written anew."""

    def __init__(self, folder: Path) -> None:
        self.log_dir, self.metrics_file_path = str(folder), str(folder / TABLE)
        self._path = folder / TABLE
        self._hyperparameters: dict[str, Any] = {}
        self.rows, self._cut = _read(self._path)
        self._columns = list(self.rows[0]) if self.rows else []
        self._saved = len(self.rows)

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Keep the arguments of the task and the data beside the table."""
        self._hyperparameters.update(params)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        save_hparams_to_yaml(str(self._path.parent / "hparams.yaml"), self._hyperparameters)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row."""
        values = {**metrics, "step": len(self.rows) if step is None else step}
        self.rows.append({name: str(value.item() if hasattr(value, "item") else value) for name, value in values.items()})

    def rewind(self, steps: int) -> None:
        """Drop the rows of steps that are taken again."""
        # What was judged after the end of a run bears the number of the step that would have come next. Of whole scans it
        # stays; what has the same names as the validation of an epoch would be taken for that of the epoch that follows.
        kept = [row for row in self.rows if _step(row) < steps or (_step(row) == steps and _of_whole_scans(row))]
        if len(kept) < len(self.rows):
            self.rows = kept
            self._write()

    def save(self) -> None:
        """Write the rows that are new."""
        new = self.rows[self._saved :]
        if not new:
            return
        names = {name for row in new for name in row}
        if names - set(self._columns) or self._cut or not self._path.is_file():
            self._write()
            return
        try:
            with self._path.open("a", encoding="utf-8", newline="") as stream:
                stream.write(_lines(new, self._columns))
        except OSError as error:
            raise describe_os_error(self._path, error) from error
        self._saved = len(self.rows)

    def _write(self) -> None:
        names = {name for row in self.rows for name in row} | set(self._columns)
        self._columns = [*_FIRST, *sorted(names - set(_FIRST))]
        write_text(self._path, _lines([dict(zip(self._columns, self._columns, strict=True)), *self.rows], self._columns))
        self._saved, self._cut = len(self.rows), False


def _lines(rows: Sequence[Row], columns: Sequence[str]) -> str:
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue()


def _read(path: Path) -> tuple[list[Row], bool]:
    """Return the rows of a table, but for one that was cut off while it was written, and whether there was such a row."""
    if not path.is_file():
        return [], False
    text = path.read_bytes().decode("utf-8", errors="replace")  # a letter may be cut too
    whole = text[: text.rfind("\n") + 1]
    rows = csv.DictReader(io.StringIO(whole, newline=""))
    return [row for row in rows if None not in row and None not in row.values()], whole != text


def _version_to_continue(logs: Path) -> int | None:
    """Return the version of the training that was logged last; None if there is none."""
    versions = {int(path.name[8:]): path for path in logs.glob("version_*") if path.name[8:].isdigit()}
    columns = {
        number: (path / TABLE).open(encoding="utf-8", errors="replace").readline() if (path / TABLE).is_file() else None
        for number, path in versions.items()
    }
    trained = [number for number, line in columns.items() if line is not None and _TRAINED in line]
    begun = [number for number, line in columns.items() if line is None]  # ended within the first epoch
    return max(trained or begun, default=None)


def _of_whole_scans(row: Row) -> bool:
    return any(name.startswith(_WHOLE_SCANS) and text != "" for name, text in row.items())


def _step(row: Row) -> float:
    return _number(row.get("step", ""))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
