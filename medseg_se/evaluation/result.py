"""The outcome of an evaluation: what is known of every case and structure, summed up, written and printed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medseg_se.files import write_json, write_text
from medseg_se.structures import Structures

POLICY = (
    "A structure absent from both truth and prediction is not counted; absent from one of them, its Dice is 0. "
    "A missing, failed or unusable prediction counts as an empty one: 0 for every structure present in the truth. "
    "Voxels whose truth is unknown (the ignore value) are left out. "
    "The mean over foreground is the mean of the structures' means, regions aside."
)


@dataclass(frozen=True)
class CaseResult:
    """How well one case was predicted.

    Attributes:
        id: The case's name.
        dice: Judged structure or region → Dice; NaN where it is not counted.
        truth_ml: The same names → volume in the truth in ml.
        predicted_ml: The same names → volume in the prediction in ml.
        failure: Why the prediction could not be used, or None.
    """

    id: str
    dice: Mapping[str, float]
    truth_ml: Mapping[str, float]
    predicted_ml: Mapping[str, float]
    failure: str | None = None


@dataclass(frozen=True)
class Spread:
    """Dice of one structure over the cases in which it is counted; NaN and None where there is no such case.

    Attributes:
        mean: Mean.
        sd: Standard deviation with n - 1 in the denominator; NaN for fewer than two cases.
        median: Median.
        n: Number of counted cases.
        minimum: The lowest Dice.
        worst_case: Name of the (first) case with the lowest Dice.
    """

    mean: float
    sd: float
    median: float
    n: int
    minimum: float
    worst_case: str | None


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        structures: What was judged.
        cases: The judged cases, in the order of their names.
        unjudged: Case → why its truth could not be read.
        extra: Names of predicted cases without truth.
    """

    structures: Structures
    cases: tuple[CaseResult, ...]
    unjudged: Mapping[str, str]
    extra: tuple[str, ...]

    @property
    def failures(self) -> dict[str, str]:
        """Case → why its prediction could not be used."""
        return {case.id: case.failure for case in self.cases if case.failure is not None}

    @property
    def failed(self) -> bool:
        """Whether a prediction could not be used or a truth could not be read; the command then exits with an error."""
        return bool(self.failures or self.unjudged)

    @property
    def mean_foreground(self) -> float:
        """Mean of the structures' mean Dice, regions aside; structures counted in no case are left out."""
        summary = self.summary()
        return _mean([summary[name].mean for name in self.structures.names if summary[name].n])

    def summary(self) -> dict[str, Spread]:
        """Return the spread of each structure and region over the cases."""
        return {name: self._spread(name) for name in self.structures.judged()}

    def _spread(self, name: str) -> Spread:
        counted = [(case.dice[name], case.id) for case in self.cases if not np.isnan(case.dice[name])]
        scores = np.array([score for score, _ in counted])
        if not counted:
            return Spread(np.nan, np.nan, np.nan, 0, np.nan, None)
        minimum, worst_case = min(counted, key=lambda pair: pair[0])
        sd = float(scores.std(ddof=1)) if len(counted) > 1 else np.nan
        return Spread(float(scores.mean()), sd, float(np.median(scores)), len(counted), minimum, worst_case)

    def write_csv(self, path: Path | str) -> None:
        """Write one row per case, one column per structure and region (empty where not counted), and the failure."""
        names = list(self.structures.judged())
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["case", *names, "failure"])
        for case in self.cases:
            scores = ["" if np.isnan(case.dice[name]) else repr(case.dice[name]) for name in names]
            table.writerow([case.id, *scores, case.failure or ""])
        write_text(path, text.getvalue())

    def write_json(self, path: Path | str) -> None:
        """Write policy, summary, cases, failures and what was not judged; NaN becomes null."""
        content = {
            "format": 1,
            "metric": "Dice",
            "policy": POLICY,
            "structures": self.structures.to_dict(),
            "mean_foreground": self.mean_foreground,
            "summary": {name: asdict(spread) for name, spread in self.summary().items()},
            "cases": [asdict(case) for case in self.cases],
            "failures": self.failures,
            "unjudged": dict(self.unjudged),
            "extra": list(self.extra),
        }
        write_json(path, content)

    def render(self, console: Console) -> None:
        """Print the table of structures, then failures, unreadable truths, extra predictions and the policy."""
        console.print(self._table())
        _print_listed(console, "Failed predictions, counted as empty", self.failures, "bold red")
        _print_listed(console, "Not judged, because the truth cannot be read", self.unjudged, "bold red")
        if self.extra:
            console.print(Text(f"Predicted without truth, not judged ({len(self.extra)}): {', '.join(self.extra)}", "yellow"))
        console.print(Text(POLICY, "dim"))

    def _table(self) -> Table:
        count = len(self.cases)
        table = Table(title=f"Dice over {count} case{'' if count == 1 else 's'}", title_justify="left")
        table.add_column("structure", overflow="fold")
        for heading in ("mean ± SD", "median", "worst"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("worst case", overflow="fold")
        table.add_column("n", justify="right", no_wrap=True)
        summary = self.summary()
        for name, spread in summary.items():
            shown = Text(name) if name not in self.structures.regions else Text(f"{name} (region)", "italic")
            mean = f"{_number(spread.mean)} ± {_number(spread.sd)}"
            median, worst = _number(spread.median), _number(spread.minimum)
            table.add_row(shown, mean, median, worst, Text(spread.worst_case or "–"), str(spread.n))
        table.add_section()
        counted = sum(summary[name].n > 0 for name in self.structures.names)
        structures = f"{counted} structure{'' if counted == 1 else 's'}"
        table.add_row("mean over foreground", f"{_number(self.mean_foreground)}        ", "", "", structures, "", style="bold")
        return table


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else np.nan


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _print_listed(console: Console, heading: str, reasons: Mapping[str, str], style: str) -> None:
    if reasons:
        console.print(Text(f"{heading} ({len(reasons)}):", style))
    for name, reason in reasons.items():
        console.print(Text(f"  {name}: {reason}"))
