"""The commands besides training: typed functions whose arguments become the command line's, torch imported inside.

Each returns its exit code.
"""

from __future__ import annotations

from json import dumps as dump_json
from pathlib import Path

from medseg_se.cli.attention import cost, inspect
from medseg_se.cli.comparison import compare
from medseg_se.cli.export import export
from medseg_se.cli.networks import networks
from medseg_se.cli.planning import plan
from medseg_se.cli.prediction import predict
from medseg_se.cli.reporting import report
from medseg_se.errors import UsageError

__all__ = [
    "check",
    "compare",
    "configs",
    "cost",
    "cv",
    "demo",
    "evaluate",
    "export",
    "inspect",
    "networks",
    "plan",
    "predict",
    "report",
]


def check(data: str, *, json: bool = False, workers: int | None = None) -> int:
    """Read every file of a dataset once and say what would break training.

    Exit code 1 if anything would.

    Args:
        data: Dataset folder, dataset.json or CSV.
        json: Print the report as JSON, for machines.
        workers: Files read at the same time.
    """
    from rich.console import Console

    from medseg_se.data.check import check_datalist, render
    from medseg_se.data.datalist import read_datalist

    report = check_datalist(read_datalist(data), workers, progress=not json)
    if json:
        print(dump_json(report.to_dict(), indent=1, ensure_ascii=False))
    else:
        render(report, Console())
    return 1 if report.broken else 0


def cv(
    configs: list[str],
    *training: str,
    output: str,
    folds: int | None = None,
    source: str | None = None,
    devices: str | None = None,
    jobs: int = 1,
) -> int:
    """Train once a fold, judge every case by the fold that left it out, and keep the folds as one model.

    `medseg-se cv generic --output cv --source DATA -- --trainer.max_epochs 200`. Every fold is a `medseg-se fit` of its own; a
    time limit (`max_time`) is for each of them. A group, usually a patient, is never parted. Run again, it goes on where it
    stood. The largest connected component alone is kept of those structures whose mean Dice over the cases rises by that;
    OUTPUT/model then predicts with all folds together. Exit code 1 if a fold or a prediction failed.

    Args:
        configs: Shipped recipes or YAML files, a later one over an earlier.
        training: After `--`: further arguments of `medseg-se fit`, for every fold.
        output: Folder for the folds, the table of all cases and the model.
        folds: Number of folds; what the config says if not given, or the dataset prescribes.
        source: Dataset folder, dataset.json or CSV, if not what the config names.
        devices: CUDA devices, such as 0,1,2,3, each of which trains a fold at a time; one fold after another if not given.
        jobs: Folds trained side by side on a machine without such devices, each with its share of the processors.
    """
    from medseg_se.cli.cross_validation import run_cross_validation

    return run_cross_validation(configs, training, Path(output), folds, source, devices, jobs)


def evaluate(
    predictions: str,
    truth: str,
    *,
    structures: str | None = None,
    output: str | None = None,
    metrics: str = "all",
    tolerance: str = "1.0",
    surface: str = "voxel",
    lesions: str | None = None,
    resample: bool = False,
    workers: int | None = None,
    target: str | None = None,
    validation: str | None = None,
) -> int:
    """Compare predictions with the truth: overlap, volumes and surface distances per structure and case, with intervals and n.

    Of classes or numbers instead of label maps: accuracy, recall, precision, F1, AUC, calibration and confusions, or errors and
    correlation. Missing predictions count as failures. Exit code 1 if there is any. What each measure means:
    docs/evaluation.md.

    Args:
        predictions: Folder of label maps or answers, as `medseg-se predict` writes it.
        truth: Folder of label maps, or a dataset; of classes, also a folder of one folder a class.
        structures: JSON file or dataset that gives the label values; taken from the truth where that is a dataset.
        output: Folder for evaluation.csv and evaluation.json; the predictions' folder if not given.
        metrics: Measures with commas between, such as dice,hd95_mm,nsd; all but lesions if not given.
        tolerance: Of the NSD in mm; one for all, or a JSON table of structures (or its file), with "default" for the others.
        surface: What a surface is made of, voxel (as in MONAI) or surfel (as in surface-distance).
        lesions: Count connected components, too, which match if they share a voxel (any) or have at least this IoU.
        resample: Resample a prediction on another grid to that of the truth, by nearest voxel; otherwise it is a failure.
        workers: Cases judged at the same time.
        target: Of answers that are classes: the attribute with the true class, "class" if not given.
        validation: Of answers that are numbers: folder with those to validation cases, by which the bias is corrected.
    """
    from medseg_se.cli.results import show_answers, show_evaluation
    from medseg_se.data.datalist import read_structures
    from medseg_se.evaluation.answers import holds_answers, judge_answers
    from medseg_se.evaluation.criteria import read_tolerance
    from medseg_se.evaluation.evaluate import evaluate as judge

    if holds_answers(Path(predictions)):
        of_maps = {"structures": structures, "lesions": lesions, "resample": resample or None, "workers": workers}
        of_maps |= {"metrics": None if metrics == "all" else metrics, "surface": None if surface == "voxel" else surface}
        of_maps |= {"tolerance": None if tolerance == "1.0" else tolerance}
        for name, value in of_maps.items():
            if value is not None:
                raise UsageError(f"`{name}` is for label maps, but {predictions} holds answers about whole scans.")
        judged = judge_answers(predictions, truth, target, validation)
        show_answers(judged, Path(output or predictions))
        return 1 if judged.failed else 0
    for name, value in (("target", target), ("validation", validation)):
        if value is not None:
            raise UsageError(f"`{name}` is for answers about whole scans, but {predictions} holds no predictions.csv.")
    result = judge(
        predictions,
        truth,
        read_structures(structures) if structures else None,
        workers,
        metrics=metrics,
        tolerance=read_tolerance(tolerance),
        surface=surface,
        lesions=lesions,
        resample=resample,
    )
    show_evaluation(result, Path(output or predictions))
    return 1 if result.failed else 0


def configs(name: str | None = None) -> int:
    """List the shipped recipes and experiments, or print one.

    Args:
        name: The recipe or experiment to print.
    """
    from medseg_se.cli.recipes import shipped, shipped_path, summary

    if name:
        print(shipped_path(name).read_text(encoding="utf-8"), end="")
        return 0
    names = shipped()
    width = max(map(len, names))
    for one in names:
        print(f"{one:<{width}}  {summary(shipped_path(one))}")
    return 0


def demo(*, output: str = "demo", cases: int = 24, minutes: float = 4.0) -> int:
    """Make phantom brains, check them, train a small 3D U-Net with scSE, segment brains it never saw, judge and show it.

    Args:
        output: Folder for everything.
        cases: Training phantoms; a quarter as many are held out.
        minutes: Time for training.
    """
    from medseg_se.cli.demo import run_demo

    return run_demo(Path(output), cases, minutes)
