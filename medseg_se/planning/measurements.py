"""What trials found, kept in a file beside the plan: the same plan made again takes the same numbers, without waiting."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from medseg_se.errors import DataError
from medseg_se.files import write_json
from medseg_se.planning.trial import PATIENCE, Measurement, run_trial

Trial = Callable[[Mapping[str, Any], Sequence[str], Path], Measurement | None]
FORMAT = 1
_IRRELEVANT = {  # to what a trial finds
    "trainer": ("max_time", "max_epochs", "default_root_dir"),
    "model": ("lr", "weight_decay", "schedule", "warmup"),
    "data": ("source", "store", "seed", "fold", "folds", "split_seed", "progress", "batches_per_epoch"),
}


@dataclass(frozen=True)
class Tried:
    """A trial and how long it took.

    Attributes:
        measurement: What it found; None if memory or patience did not suffice.
        seconds: How long it took when it was made.
        busy: Whether the machine was busy with other work then.
    """

    measurement: Measurement | None
    seconds: float
    busy: bool


class Measurements:
    """Trials by what was tried, on which data and on which machine.

    Args:
        path: The file; read if it is there, written after every trial.
        conditions: Whatever else the trials depend on: the machine and the data.
        trial: What tries a config.
        busy: Whether the machine is busy with other work. What is tried then is tried again once it is not.
    """

    def __init__(self, path: Path, conditions: Sequence[str], trial: Trial = run_trial, busy: bool = False) -> None:
        self.path, self.conditions, self.trial, self.busy = path, list(conditions), trial, busy
        self.records = _read(path)

    def of(self, config: Mapping[str, Any], cases: Sequence[str], store: Path) -> Tried:
        """Return what was found for `config` on `cases`; tried now if it was not yet. See `run_trial`."""
        tried = {
            "trainer": _without(config["trainer"], "trainer"),
            "model": _without(config["model"]["init_args"], "model"),
            "data": _without(config["data"]["init_args"], "data"),
            "cases": list(cases),
        }
        text = json.dumps([FORMAT, self.conditions, tried], sort_keys=True)
        key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        kept = _tried(self.records.get(key))
        if kept is not None and (self.busy or not kept.busy):
            return kept
        began = time.monotonic()
        found = self.trial(config, cases, store)
        made = Tried(found, round(time.monotonic() - began, 1), self.busy)
        if found is not None or made.seconds < PATIENCE:  # what took too long may not, another time
            told = found.to_dict() if found else None
            self.records[key] = {"seconds": made.seconds, "busy": made.busy, "found": told, "tried": tried}
            write_json(self.path, {"format": FORMAT, "trials": self.records})
        return made


def _without(options: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _IRRELEVANT[part]}


def _tried(record: Any) -> Tried | None:
    """Return what a record of the file says, or None if it is not there or does not say all."""
    try:
        found, seconds, busy = record["found"], record["seconds"], record["busy"]
        if found is None:
            return Tried(None, float(seconds), bool(busy))
        numbers = [found[field.name] for field in fields(Measurement)]
        if not all(isinstance(number, int | float) for number in numbers):
            return None
        return Tried(Measurement(*numbers), float(seconds), bool(busy))
    except (KeyError, TypeError, ValueError):
        return None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] == FORMAT and isinstance(content["trials"], dict):
            return dict(content["trials"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{path} is damaged or of another version. Delete it, and the plan measures anew.")
