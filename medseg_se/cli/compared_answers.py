"""Finished folders of classifiers, compared: what is right in each, and the verdict."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medseg_se.cli.compared_folders import named_folders
from medseg_se.data.answers import FILE
from medseg_se.errors import DataError, UsageError, unknown_name
from medseg_se.evaluation.answers import holds_answers, judge_answers
from medseg_se.evaluation.compare_answers import ClassComparison, compare_classifiers
from medseg_se.evaluation.judged import Judged, is_judged
from medseg_se.evaluation.table import show_number
from medseg_se.evaluation.verdict import p_value


def are_answers(words: list[str]) -> bool:
    """Tell whether the folders hold answers about whole scans, or evaluations of such."""
    folders = [folder for listed in named_folders(words).values() for folder in listed]
    return any(holds_answers(folder) or _evaluation(folder) is not None for folder in folders)


def compare_answers(words: list[str], truth: str | None, reference: str | None, output: Path | None) -> None:
    """Compare classifiers with the one called `reference`, or the first; print and write what is found."""
    runs = {}
    for name, folders in named_folders(words).items():
        if len(folders) > 1:
            raise UsageError(f"Expected one folder for the classifier {name}, but got {len(folders)}.")
        runs[name] = _judged(folders[0], truth)
    first = reference or next(iter(runs))
    if first not in runs:
        raise unknown_name("reference", first, list(runs))
    result = compare_classifiers(runs, first)
    console = Console(highlight=False)
    _render(result, console)
    if output is not None:
        result.write(output)
        console.print(f"Written to {output}: table.csv, comparison.json", soft_wrap=True, markup=False)


def _evaluation(folder: Path) -> Path | None:
    path = folder / "evaluation.json"
    return path if path.is_file() and is_judged(path) else None


def _judged(folder: Path, truth: str | None) -> Judged:
    """Return what a folder's answers are worth, judged now where the truth is given."""
    if truth is not None and holds_answers(folder):
        result = judge_answers(folder, truth)
        result.write(folder)
        return result
    found = _evaluation(folder)
    if found is not None and holds_answers(folder) and found.stat().st_mtime < (folder / FILE).stat().st_mtime:
        raise DataError(f"{found} is older than the {FILE} beside it. Give `--truth` to judge it again.")
    if found is None:
        raise UsageError(f"{folder} has no evaluation of a classifier. Give `--truth` with the dataset to judge it.")
    return Judged.read_json(found)


def _render(result: ClassComparison, console: Console) -> None:
    table = Table(
        title=f"{result.cases} scans", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for column in ("run", "measure", "class"):
        table.add_column(column, overflow="fold")
    for column in ("reference", "run", "difference [95 %]", "p, Holm", "z", "p of z"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in result.contrasts:
        ends = f"[{show_number(one.low)}, {show_number(one.high)}]" if one.low == one.low else "[no interval]"
        numbers = [show_number(one.reference_value), show_number(one.value), f"{one.difference:+.3f} {ends}"]
        tests = [p_value(one.p_holm) if one.p_holm == one.p_holm else "–", show_number(one.z, 2)]
        tests.append(p_value(one.p_z) if one.p_z == one.p_z else "–")
        table.add_row(Text(one.run), one.measure, Text(one.of), *numbers, *tests)
    console.print(table)
    for words in result.verdicts():
        console.print(Text(words, "bold"))
    for words in result.notes():
        console.print(Text(words, "yellow"))
