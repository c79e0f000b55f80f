"""What became of each case of a cohort, as data, as a table for people and as lines on the screen."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

STAGES = ("read", "prepare", "network", "export", "write")
COLUMNS = ("case", "status", "file", "seconds", *STAGES, "peak_mb", "voxels", "warnings", "notes", "error")
ENDINGS = {
    "labels": ".nii.gz",
    "probabilities": "_probabilities.nii.gz",
    "volumes": "_volumes.csv",
    "segmentation": "_seg.dcm",
}
"""Of the files that are written for a case."""
SHOWN = 100
"""Rows on the screen; of a larger cohort, only the cases of which there is something to say."""


@dataclass
class Status:
    """What became of one case.

    Attributes:
        status: "done", "failed", or "waiting".
        file: Name of the result in the output folder.
        error: Why it failed.
        seconds: Time it took, without waiting for other cases.
        input: Digest of its image files.
        known: "training" or "validation" if the model has seen the scan, else "".
        parts: The seconds of each stage: read, prepare, network, export (the answer besides the network), write.
        peak_mb: The most memory in 10⁶ bytes that its process had taken until then; 0 where the system does not say.
        voxels: Voxels of the scan.
        warnings: What makes the scan doubtful, a sentence each.
        notes: What a person should know about how it was computed.
        answer: What a model of whole scans says, as plain data: "image", "numbers" and "distance", see
            `medseg_se.data.answers.Answers`; None for label maps, which lie in files of their own.
    """

    status: Literal["done", "failed", "waiting"]
    file: str
    error: str | None = None
    seconds: float = 0.0
    input: str = ""
    known: str = ""
    parts: dict[str, float] = field(default_factory=dict)
    peak_mb: int = 0
    voxels: int = 0
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    answer: dict[str, Any] | None = None


class Outcome(dict[str, Status]):
    """Case → what became of it.

    Args:
        statuses: The statuses.
        seconds: How long the run took.
        segmented: Cases that this run segmented; the others were done before, failed, or are waiting.
    """

    def __init__(self, statuses: Mapping[str, Status], seconds: float, segmented: int) -> None:
        super().__init__(statuses)
        self.seconds, self.segmented = seconds, segmented


def to_csv(statuses: Mapping[str, Status]) -> str:
    """Return the table, one line a case."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, status in statuses.items():
        times = [f"{status.parts[stage]:.3f}" if stage in status.parts else "" for stage in STAGES]
        measured = [f"{status.seconds:.3f}", *times, status.peak_mb or "", status.voxels or ""]
        words = [" | ".join(status.warnings), " | ".join(status.notes), status.error or ""]
        writer.writerow([name, status.status, status.file, *measured, *map(_one_line, words)])
    return text.getvalue()


def render(statuses: Mapping[str, Status], console: Console) -> None:
    """Print what became of each case, failures last, and a line of totals."""
    table = Table(Column("case", overflow="fold"), "status", "seconds", Column("note", overflow="fold"), title="predictions")
    told = {name: _note(status) for name, status in statuses.items()}
    rows = [name for name in statuses if len(statuses) <= SHOWN or told[name] or statuses[name].status != "done"]
    for name in sorted(rows, key=lambda name: (statuses[name].status == "failed", name)):
        status = statuses[name]
        style = "red" if status.status == "failed" else "yellow" if status.warnings else ""
        table.add_row(Text(name), status.status, f"{status.seconds:.1f}", Text(told[name]), style=style)
    if len(rows) < len(statuses):
        table.caption = f"and {len(statuses) - len(rows)} more, done without remarks"
    if rows:
        console.print(table)
    counted = Counter(status.status for status in statuses.values())
    totals = ", ".join(f"{number} {what}" for what, number in sorted(counted.items())) or "no case"
    doubtful = sum(bool(status.warnings) for status in statuses.values())
    totals += f"; {doubtful} with warnings" if doubtful else ""
    if isinstance(statuses, Outcome) and statuses.segmented:
        rate = statuses.segmented / max(statuses.seconds, 1e-9)
        totals += f"; {statuses.segmented} segmented in {statuses.seconds:.1f} s, {rate:.3g} cases a second"
    console.print(totals, highlight=False)
    trained = sum(status.known == "training" for status in statuses.values())
    if trained:
        console.print(
            f"The model was trained on {trained} of these scans: their Dice says nothing about new ones.", style="yellow"
        )


def _note(status: Status) -> str:
    if status.error:
        return status.error
    seen = {"training": "the model was trained on it", "validation": "the model was chosen on it"}.get(status.known, "")
    return "\n".join([*([seen] if seen else []), *status.warnings])


def _one_line(text: str) -> str:
    return " ".join(text.split())
