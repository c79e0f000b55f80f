"""What trials found, kept in a file beside the plan: the same plan made again takes the same numbers, without waiting."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg_se.errors import DataError
from medseg_se.files import write_json
from medseg_se.planning.trial import Measurement, run_trial

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
    """

    measurement: Measurement | None
    seconds: float


class Measurements:
    """Trials by what was tried, on which data and on which machine.

    Args:
        path: The file; read if it is there, written after every trial.
        conditions: Whatever else the trials depend on: the machine and the data.
        trial: What tries a config.
    """

    def __init__(self, path: Path, conditions: Sequence[str], trial: Trial = run_trial) -> None:
        self.path, self.conditions, self.trial = path, list(conditions), trial
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
        if key not in self.records:
            began = time.monotonic()
            found = self.trial(config, cases, store)
            self.records[key] = {
                "seconds": round(time.monotonic() - began, 1),
                "found": found.to_dict() if found else None,
                "tried": tried,
            }
            write_json(self.path, {"format": FORMAT, "trials": self.records})
        record = self.records[key]
        return Tried(Measurement(**record["found"]) if record["found"] else None, record["seconds"])


def _without(options: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _IRRELEVANT[part]}


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
