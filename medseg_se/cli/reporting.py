"""The command that shows a finished evaluation on a page. Torch is needed only to show what a model looked at."""

from __future__ import annotations

from pathlib import Path

from medseg_se.errors import DataError, UsageError


def report(
    evaluation: str,
    *,
    images: str | None = None,
    output: str | None = None,
    cases: int = 20,
    megabytes: float = 15.0,
    checkpoint: str | None = None,
    device: str = "auto",
) -> int:
    """Show an evaluation on one HTML page, for a browser without a network: numbers, plots, the worst cases, and a 3-D viewer.

    Of classes or numbers: curves, confusions, the most confident errors first and, with the model, what spoke for them.

    Args:
        evaluation: evaluation.json, as `medseg-se evaluate` writes it, or its folder.
        images: Dataset or folder with the scans; that of the truth if not given, where the truth is part of a dataset.
        output: The HTML file; report.html beside evaluation.json if not given.
        cases: How many cases are shown in pictures, the worst ones.
        megabytes: What the page may take; volumes in the viewer are coarsened to fit, then left out.
        checkpoint: Of classes or numbers, the model that answered; what spoke for each answer is shown, and its gates by class.
        device: Where that model computes: auto, cpu, cuda, cuda:1 or mps.
    """
    from rich.console import Console

    from medseg_se.evaluation.judged import is_judged
    from medseg_se.evaluation.result import Evaluation
    from medseg_se.reports.case_view import find_images
    from medseg_se.reports.evaluation_page import write_evaluation_report

    source = Path(evaluation)
    source = source / "evaluation.json" if source.is_dir() else source
    if not source.is_file():
        raise DataError(f"No such evaluation: {source}. Write one with `medseg-se evaluate PREDICTIONS TRUTH`.")
    page = Path(output) if output else source.with_name("report.html")
    if is_judged(source):
        return _report_answers(
            source, page, Path(images) if images else None, cases, round(megabytes * 1e6), checkpoint, device
        )
    if checkpoint:
        raise UsageError(f"`checkpoint` is for evaluations of classes or numbers, but {source} is of label maps.")
    found = Evaluation.read_json(source)
    scans = find_images(found, Path(images) if images else None)
    title = f"Evaluation of {source.absolute().parent.name}"
    made = write_evaluation_report(found, page, scans, cases, round(megabytes * 1e6), title)
    Console().print(
        f"Written to {made.path} ({made.size / 1e6:.1f} MB): {len(found.cases)} cases, {made.pictured} of them in pictures, "
        f"{made.turnable} in the 3-D viewer, {len(scans)} with their scans",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    return 0


def _report_answers(
    source: Path, page: Path, images: Path | None, cases: int, limit: int, checkpoint: str | None, device: str
) -> int:
    """Write the page of judged answers about whole scans."""
    from rich.console import Console

    from medseg_se.data.whole_scan_data import read_whole_scans
    from medseg_se.evaluation.judged import Judged
    from medseg_se.reports.classification_page import write_classification_report
    from medseg_se.reports.regression_page import write_regression_report

    judged = Judged.read_json(source)
    files = dict(judged.images)
    if images is not None:
        datalist = read_whole_scans(images)
        files = {case.id: case.images for case in (*datalist.training, *datalist.test)}
    explainer = None
    if checkpoint:
        from medseg_se.analysis.explaining import Explainer

        explainer = Explainer.load(checkpoint, device)
    write = write_classification_report if judged.is_classification else write_regression_report
    made = write(judged, page, files, explainer, cases, limit, f"Evaluation of {source.absolute().parent.name}")
    Console().print(
        f"Written to {made.path} ({made.size / 1e6:.1f} MB): {len(judged.ids)} cases, {made.pictured} of them in pictures"
        f"{', with what spoke for their answers' if made.explained else ''}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    return 0
