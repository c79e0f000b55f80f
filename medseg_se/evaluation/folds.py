"""The outcome of a cross-validation: every case judged once, by the network of the fold that left it out."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medseg_se.evaluation.result import POLICY, Evaluation
from medseg_se.files import write_json, write_text


@dataclass(frozen=True)
class CrossValidation:
    """What was found of the folds of a cross-validation.

    Attributes:
        folds: The evaluation of every fold's validation cases, in the order of the folds.
    """

    folds: Sequence[Evaluation]

    @property
    def together(self) -> Evaluation:
        """Every case of all folds, in the order of their names, as one evaluation."""
        cases = sorted((case for fold in self.folds for case in fold.cases), key=lambda case: case.id)
        unjudged = {name: reason for fold in self.folds for name, reason in fold.unjudged.items()}
        return Evaluation(self.folds[0].structures, tuple(cases), unjudged, extra=())

    def means(self, name: str) -> list[float]:
        """Return the mean Dice of a structure or region in every fold; NaN where it is counted in no case."""
        return [fold.summary()[name].mean for fold in self.folds]

    def write_csv(self, path: Path) -> None:
        """Write one row a case: its fold, one column a structure and region (empty where not counted), and the failure."""
        names, text = list(self.together.structures.judged()), io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["case", "fold", *names, "failure"])
        fold_of = {case.id: number for number, fold in enumerate(self.folds) for case in fold.cases}
        for case in self.together.cases:
            scores = ["" if np.isnan(case.dice[name]) else repr(case.dice[name]) for name in names]
            table.writerow([case.id, fold_of[case.id], *scores, case.failure or ""])
        write_text(path, text.getvalue())

    def write_json(self, path: Path) -> None:
        """Write policy, summary over all cases and by fold, cases, failures and what was not judged; NaN becomes null."""
        all_cases = self.together
        summary = {name: {**asdict(spread), "folds": self.means(name)} for name, spread in all_cases.summary().items()}
        content = {
            "format": 1,
            "metric": "Dice",
            "policy": POLICY,
            "structures": all_cases.structures.to_dict(),
            "mean_foreground": all_cases.mean_foreground,
            "mean_foreground_of_folds": [fold.mean_foreground for fold in self.folds],
            "summary": summary,
            "cases": [{**asdict(case), "fold": number} for number, fold in enumerate(self.folds) for case in fold.cases],
            "failures": all_cases.failures,
            "unjudged": dict(all_cases.unjudged),
        }
        write_json(path, content)

    def render(self, console: Console) -> None:
        """Print the table of structures, failures, unreadable truths and the policy."""
        all_cases = self.together
        table = Table(title=f"Dice over {len(all_cases.cases)} cases of {len(self.folds)} folds", title_justify="left")
        table.add_column("structure", overflow="fold")
        for heading in ("mean ± SD", "n", *(f"fold {number}" for number in range(len(self.folds)))):
            table.add_column(heading, justify="right", no_wrap=True)
        regions = all_cases.structures.regions
        for name, spread in all_cases.summary().items():
            shown = Text(f"{name} (region)", "italic") if name in regions else Text(name)
            mean = f"{_number(spread.mean)} ± {_number(spread.sd)}"
            table.add_row(shown, mean, str(spread.n), *map(_number, self.means(name)))
        table.add_section()
        foreground = [_number(fold.mean_foreground) for fold in self.folds]
        table.add_row("mean over foreground", f"{_number(all_cases.mean_foreground)}        ", "", *foreground, style="bold")
        console.print(table)
        for heading, reasons in (("Failed, counted as empty", all_cases.failures), ("Not judged", all_cases.unjudged)):
            for name, reason in reasons.items():
                console.print(Text(f"{heading}: {name}: {reason}", "red"))
        console.print(Text(POLICY, "dim"))


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"
