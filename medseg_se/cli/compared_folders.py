"""Finished folders as runs to be compared, and what is written of a comparison."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from medseg_se.data.datalist import read_structures
from medseg_se.errors import DataError, UsageError, unknown_name
from medseg_se.evaluation.compare import Compared, Correction, Seeds, compare
from medseg_se.evaluation.comparison import Comparison
from medseg_se.evaluation.comparison_table import render
from medseg_se.evaluation.evaluate import evaluate
from medseg_se.evaluation.result import Evaluation
from medseg_se.reports.comparison_page import write_comparison_report
from medseg_se.structures import Structures


def read_folders(words: list[str], truth: str | None, structures: str | None, measure: str) -> list[Compared]:
    """Return the runs in folders, judged where they are not yet."""
    known, named = read_structures(structures) if structures else None, named_folders(words)
    in_order = len({len(folders) for folders in named.values()}) == 1  # then they are taken to be of the same seeds
    return [
        Compared(
            name,
            {
                f"training {place}" if in_order else str(folder): _judged(folder, truth, known, measure)
                for place, folder in enumerate(folders, start=1)
            },
        )
        for name, folders in named.items()
    ]


def named_folders(words: list[str]) -> dict[str, list[Path]]:
    """Return name → folders of words such as FOLDER, NAME=FOLDER or NAME=FOLDER,FOLDER."""
    named = dict[str, list[Path]]()
    for word in words:
        name, equals, listed = word.partition("=")
        whole = not equals or Path(word).exists()
        folders = [Path(word)] if whole else [Path(part) for part in listed.split(",")]
        own = _short(Path(word), words) if whole else name
        if own in named:
            raise UsageError(f"Expected every run to have a name of its own, but two are called {own}. Write NAME=FOLDER.")
        named[own] = folders
    return named


def _short(folder: Path, words: list[str]) -> str:
    """Return a folder's own name, or its whole path where others have that name too."""
    others = [Path(word) for word in words if Path(word) != folder]
    return str(folder) if any(other.name == folder.name for other in others) else folder.name


def _judged(folder: Path, truth: str | None, structures: Structures | None, measure: str) -> Evaluation:
    """Return what a folder's predictions are worth, as its evaluation.json says or, if that does not do, judged now."""
    if not folder.is_dir():
        raise DataError(f"Expected a folder of predictions, but got {folder}.")
    found = folder / "evaluation.json"
    if found.is_file():
        result = Evaluation.read_json(found)
        older = any(path.stat().st_mtime > found.stat().st_mtime for path in folder.glob("*.nii*"))
        if measure in result.measures and not older:
            return result
        if truth is None:
            why = "is older than the predictions beside it" if older else f"does not tell {measure}"
            raise DataError(f"{found} {why}. Give `--truth` to judge them again.")
    if truth is None:
        raise UsageError(
            f"{folder} has no evaluation.json. Give `--truth` with a folder of label maps or a dataset to judge it."
        )
    result = evaluate(folder, truth, structures)
    result.write(folder)
    return result


def compare_folders(
    runs: list[Compared],
    reference: str | None,
    measure: str,
    correction: Correction,
    seeds: Seeds,
) -> Comparison:
    """Compare runs with the one called `reference`, or the first."""
    names = [run.name for run in runs]
    first = reference or names[0]
    if first not in names:
        raise unknown_name("reference", first, names)
    ordered = [
        run if run.name == first else replace(run, reference=first) for run in sorted(runs, key=lambda run: run.name != first)
    ]
    return compare(ordered, measure, correction, seeds)


def write(result: Comparison, output: Path | None) -> None:
    """Print the comparison, and write it and its figures to a folder."""
    console = Console(highlight=False)
    render(result, console)
    if output is None:
        return
    result.write_csv(output / "table.csv")
    result.write_json(output / "comparison.json")
    write_comparison_report(result, output / "report.html")
    written = ["table.csv", "comparison.json", "report.html"]
    if importlib.util.find_spec("matplotlib") is None:
        console.print(
            "Figures are left out: they need matplotlib, pip install 'medseg-se[report]'.", soft_wrap=True, markup=False
        )
    else:
        from medseg_se.reports.comparison_figures import write_figures

        written += [path.name for path in write_figures(result, output)]
    console.print(f"Written to {output}: {', '.join(written)}", soft_wrap=True, markup=False)
