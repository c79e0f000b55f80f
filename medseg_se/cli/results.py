"""What `evaluate` and the demo do with an evaluation: write it and show it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from medseg_se.evaluation.result import Evaluation


def show_evaluation(result: Evaluation, output: Path) -> None:
    """Write evaluation.csv and evaluation.json to `output` and print the table."""
    result.write(output)
    console = Console()
    result.render(console)
    console.print(
        f"Written to {output / 'evaluation.csv'} and {output / 'evaluation.json'}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
