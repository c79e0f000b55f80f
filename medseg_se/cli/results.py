"""What `evaluate` and the demo do with an evaluation: write it and show it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from medseg_se.evaluation.judged import Judged
from medseg_se.evaluation.judged_text import render_judged
from medseg_se.evaluation.result import Evaluation


def show_evaluation(result: Evaluation, output: Path) -> None:
    """Write evaluation.csv and evaluation.json to `output` and print the table."""
    result.write(output)
    console = Console()
    result.render(console)
    _say_where(console, output)


def show_answers(judged: Judged, output: Path) -> None:
    """Write evaluation.csv and evaluation.json to `output` and print the tables."""
    judged.write(output)
    console = Console()
    render_judged(judged, console)
    _say_where(console, output)


def _say_where(console: Console, output: Path) -> None:
    console.print(
        f"Written to {output / 'evaluation.csv'} and {output / 'evaluation.json'}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
