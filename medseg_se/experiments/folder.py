"""The folder of an experiment: what is trained in each run, what was finished, and the refusal to mix it with anything else.

`training.json` and `held_out.json` are the cases, `contents.json` digests of their files; `runs/NAME/` has a run's
`settings.yaml`, its checkpoints and logs, the `predictions/` of the held-out cases, their `evaluation.json`, and
`finished.json` once all of that is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medseg_se.data.datalist import read_json
from medseg_se.errors import UsageError
from medseg_se.experiments.cases import HELD_OUT, TRAINING
from medseg_se.files import write_json, write_text

FORMAT = 1
Settings = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    Attributes:
        path: The folder, in `runs` of the experiment's.
    """

    path: Path

    @classmethod
    def of(cls, output: Path, name: str) -> RunFolder:
        """Return the folder of the run called `name` in the folder of an experiment."""
        return cls(output / "runs" / name)

    @property
    def cases(self) -> Path:
        """The folder of the cases, that of the experiment."""
        return self.path.parents[1]

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.path / "checkpoints"

    @property
    def predictions(self) -> Path:
        """The folder of its predictions."""
        return self.path / "predictions"

    @property
    def evaluation(self) -> Path:
        """What its predictions were found to be worth."""
        return self.path / "evaluation.json"

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.path / "run.log"

    def settings(self) -> Settings:
        """Return the config of its training as `fit`, and which weights are judged as `judged`."""
        return dict(yaml.safe_load((self.path / "settings.yaml").read_text(encoding="utf-8")))

    def other(self, settings: Settings) -> list[str]:
        """Return the keys in which the settings that lie there differ from these; none if none lie there."""
        if not (self.path / "settings.yaml").is_file():
            return []
        return sorted(set(differences(self.settings(), settings)))

    def keep(self, settings: Settings) -> None:
        """Write what is to be trained."""
        write_text(self.path / "settings.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    def digest(self) -> str:
        """Return a digest of all that its result follows from, the content of the scans aside."""
        cases = [(self.cases / name).read_text(encoding="utf-8") for name in (TRAINING, HELD_OUT)]
        return hashlib.blake2b(json.dumps([self.settings(), *cases]).encode(), digest_size=16).hexdigest()

    def finished(self) -> bool:
        """Tell whether it was trained, predicted and judged as its settings say."""
        done = self.account()
        return bool(done) and done.get("digest") == self.digest() and self.evaluation.is_file()

    def finish(self, account: Mapping[str, Any]) -> None:
        """Note that all is there, and what it took."""
        write_json(self.path / "finished.json", {"format": FORMAT, "digest": self.digest(), **account})

    def account(self) -> dict[str, Any]:
        """Return what was noted of it; nothing if it is not finished."""
        path = self.path / "finished.json"
        return read_json(path) if path.is_file() else {}


def keep_runs(output: Path, settings: Mapping[str, Settings]) -> None:
    """Write what every run is to do, or make sure that those which lie there do the same; others may come to them.

    Raises:
        UsageError: A run that lies there has other settings.
    """
    folders = {name: RunFolder.of(output, name) for name in settings}
    for name, folder in folders.items():
        if other := folder.other(settings[name]):
            raise UsageError(
                f"{output} holds the run {name} with other settings: {', '.join(other)}. Give those again to go on, or choose "
                "another folder. New networks, blocks, folds or seeds may be added at any time."
            )
    for name, folder in folders.items():
        if not (folder.path / "settings.yaml").is_file():
            folder.keep(settings[name])


def differences(one: Any, other: Any, key: str = "") -> Iterator[str]:
    """Yield the dotted keys in which two configs differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in {**one, **other}:
            yield from differences(one.get(name), other.get(name), f"{key}.{name}" if key else str(name))
    elif one != other:
        yield key.replace(".init_args", "")
