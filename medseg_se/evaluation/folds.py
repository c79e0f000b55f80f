"""The outcome of a cross-validation: every case judged once, by the network of the fold that left it out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from medseg_se.evaluation.document import to_document
from medseg_se.evaluation.result import POLICY, Evaluation, together, write_rows
from medseg_se.evaluation.table import show_number, structure_label
from medseg_se.files import write_json


@dataclass(frozen=True)
class CrossValidation:
    """What was found of the folds of a cross-validation.

    Attributes:
        folds: The evaluation of every fold's validation cases, in the order of the folds.
    """

    folds: Sequence[Evaluation]

    @cached_property
    def together(self) -> Evaluation:
        """Every case of all folds, in the order of their names, as one evaluation."""
        return together(self.folds)

    def means(self, name: str) -> list[float]:
        """Return the mean Dice of a structure or region in every fold; NaN where it is counted in no case."""
        return [fold.summary()[name].mean for fold in self.folds]

    @property
    def fold_of(self) -> dict[str, int]:
        """Case → the fold that judged it."""
        return {case.id: number for number, fold in enumerate(self.folds) for case in fold.cases}

    def write_csv(self, path: Path) -> None:
        """Write one row a case and structure or region, as `Evaluation.write_csv` does, with the fold."""
        write_rows(path, self.together, {"fold": self.fold_of})

    def write_json(self, path: Path) -> None:
        """Write all cases as one evaluation, which `Evaluation.read_json` reads, with what each fold found of Dice."""
        all_cases = self.together
        folds = {
            "fold_of": self.fold_of,
            "mean_foreground_of_folds": [fold.mean_foreground for fold in self.folds],
            "means_of_folds": {name: self.means(name) for name in all_cases.structures.judged()},
        }
        write_json(path, {**to_document(all_cases, POLICY, path), **folds})

    def render(self, console: Console) -> None:
        """Print the table of structures, failures, unreadable truths and the policy."""
        all_cases = self.together
        table = Table(title=f"Dice over {len(all_cases.cases)} cases of {len(self.folds)} folds", title_justify="left")
        table.add_column("structure", overflow="fold")
        for heading in ("mean ± SD", "n", *(f"fold {number}" for number in range(len(self.folds)))):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, spread in all_cases.summary().items():
            mean = f"{show_number(spread.mean)} ± {show_number(spread.sd)}"
            table.add_row(structure_label(all_cases, name), mean, str(spread.n), *map(show_number, self.means(name)))
        table.add_section()
        foreground = [show_number(fold.mean_foreground) for fold in self.folds]
        table.add_row(
            "mean over foreground", f"{show_number(all_cases.mean_foreground)}        ", "", *foreground, style="bold"
        )
        console.print(table)
        for heading, reasons in (("Failed, counted as empty", all_cases.failures), ("Not judged", all_cases.unjudged)):
            for name, reason in reasons.items():
                console.print(Text(f"{heading}: {name}: {reason}", "red"))
        console.print(Text(POLICY, "dim"))
