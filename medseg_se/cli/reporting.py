"""The command that shows a finished evaluation on a page. Torch is not needed."""

from __future__ import annotations

from pathlib import Path

from medseg_se.errors import DataError


def report(
    evaluation: str,
    *,
    images: str | None = None,
    output: str | None = None,
    cases: int = 20,
    megabytes: float = 15.0,
) -> int:
    """Show an evaluation on one HTML page, for a browser without a network: numbers, plots, the worst cases, and a 3-D viewer.

    Args:
        evaluation: evaluation.json, as `medseg-se evaluate` writes it, or its folder.
        images: Dataset or folder with the scans; that of the truth if not given, where the truth is part of a dataset.
        output: The HTML file; report.html beside evaluation.json if not given.
        cases: How many cases are shown in pictures, the worst ones.
        megabytes: What the page may take; volumes in the viewer are coarsened to fit, then left out.
    """
    from rich.console import Console

    from medseg_se.evaluation.result import Evaluation
    from medseg_se.reports.case_view import find_images
    from medseg_se.reports.evaluation_page import write_evaluation_report

    source = Path(evaluation)
    source = source / "evaluation.json" if source.is_dir() else source
    if not source.is_file():
        raise DataError(f"No such evaluation: {source}. Write one with `medseg-se evaluate PREDICTIONS TRUTH`.")
    found = Evaluation.read_json(source)
    scans = find_images(found, Path(images) if images else None)
    title = f"Evaluation of {source.absolute().parent.name}"
    made = write_evaluation_report(
        found, Path(output) if output else source.with_name("report.html"), scans, cases, round(megabytes * 1e6), title
    )
    Console().print(
        f"Written to {made.path} ({made.size / 1e6:.1f} MB): {len(found.cases)} cases, {made.pictured} of them in pictures, "
        f"{made.turnable} in the 3-D viewer, {len(scans)} with their scans",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    return 0
