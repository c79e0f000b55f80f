"""The plan of a cross-validation: what is trained on what, and the folder in which it is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medseg_se.data.datalist import Case, Datalist, read_json
from medseg_se.errors import UsageError
from medseg_se.experiments.folder import differences
from medseg_se.files import write_json, write_text

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What is trained on what.

    Attributes:
        settings: The config of every fold.
        datalist: The dataset.
        folds: The cases that each fold validates.
        output: Folder of the cross-validation.
    """

    settings: Mapping[str, Any]
    datalist: Datalist
    folds: tuple[tuple[Case, ...], ...]
    output: Path

    @property
    def config(self) -> str:
        """The config as YAML."""
        return yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True)

    @property
    def names(self) -> list[list[str]]:
        """The names of the cases that each fold validates."""
        return [[case.id for case in cases] for cases in self.folds]

    @property
    def digest(self) -> str:
        """Digest of all that the weights follow from, the content of the scans aside."""
        return hashlib.blake2b(json.dumps([self.config, self.names]).encode(), digest_size=16).hexdigest()

    def folder(self, fold: int) -> Path:
        """Return the folder of a fold."""
        return self.output / f"fold_{fold}"

    def checkpoint(self, fold: int) -> Path:
        """Return the best checkpoint of a fold, or its last one if it ended before a validation."""
        kept = self.folder(fold) / "checkpoints"
        return kept / "best.ckpt" if (kept / "best.ckpt").is_file() else kept / "last.ckpt"

    def finished(self, fold: int) -> bool:
        """Tell whether a fold was trained to its end."""
        marker = self.folder(fold) / "finished.json"
        return marker.is_file() and read_json(marker).get("digest") == self.digest and self.checkpoint(fold).is_file()

    def keep(self) -> None:
        """Write what the folder is for, or make sure that it is for the same.

        Raises:
            UsageError: It holds something else.
        """
        config, folds = self.output / "config.yaml", self.output / "folds.json"
        if config.is_file() and folds.is_file():
            other = sorted(differences(yaml.safe_load(config.read_text(encoding="utf-8")), self.settings))
            if other:
                raise UsageError(
                    f"{self.output} holds a cross-validation with other settings: {', '.join(other)}. Give those again to go "
                    "on, or choose another folder."
                )
            if read_json(folds).get("folds") != self.names:
                raise UsageError(
                    f"{self.output} holds a cross-validation of other cases than {self.datalist.source} lists now. Choose "
                    "another folder."
                )
            return
        if any(self.output.glob("fold_*")):
            raise UsageError(f"{self.output} holds folders of folds, but not what they are of. Choose another folder.")
        write_text(config, self.config)
        write_json(folds, {"format": FORMAT, "digest": self.digest, "folds": self.names})
