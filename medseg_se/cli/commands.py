"""The commands besides training: typed functions whose arguments become the command line's, torch imported inside.

Each returns its exit code.
"""

from __future__ import annotations

from json import dumps as dump_json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medseg_se.cli.attention import cost, inspect
from medseg_se.cli.networks import networks
from medseg_se.cli.planning import plan
from medseg_se.errors import UsageError

__all__ = ["check", "configs", "cost", "cv", "demo", "evaluate", "inspect", "networks", "plan", "predict"]

if TYPE_CHECKING:
    from medseg_se.evaluation.result import Evaluation
    from medseg_se.structures import Structures


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


def predict(
    checkpoint: str,
    inputs: list[str],
    *,
    output: str,
    weights: str | None = None,
    cases: Literal["all", "validation", "unseen"] = "all",
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    overlap: float = 0.5,
    probabilities: bool = False,
    raw: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> int:
    """Segment scans with a checkpoint; each result lies on its scan's own grid with the dataset's label values.

    Several checkpoints answer together, by the weighted mean of their probabilities: `predict a.ckpt b.ckpt SCANS`, or
    `predict FOLDER SCANS` with all in a folder, such as that of `medseg-se cv`. Finished cases are skipped on a rerun; a broken
    case is reported and the rest go on. Exit code 1 if any failed.

    Of all folds of a cross-validation together, no case is a validation case: some were trained on it. What each fold says of
    its own validation cases, `medseg-se cv` has written to its predictions.

    Args:
        checkpoint: A checkpoint written by `medseg-se fit`, or a folder of checkpoints.
        inputs: Scans, folders of scans, or datasets; before them, files ending in .ckpt are further checkpoints.
        output: Folder for the label maps.
        weights: Weight of each checkpoint where there are several, such as 0.4,0.4,0.2; equal if not given.
        cases: Of what the inputs name: all, those that chose the checkpoint in validation, or those that played no part in it.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: bf16 is faster where the hardware has it, and rounds.
        overlap: Share of a tile that its neighbour covers too.
        probabilities: Also write the probability of every class.
        raw: Leave out the post-processing that `medseg-se cv` has chosen for the model.
        overwrite: Replace what another model or other options left in the output folder.
        dry_run: Only print which files would be read and written.
    """
    from rich.console import Console

    from medseg_se.hardware import keep_freed_memory
    from medseg_se.inference.ensemble import load_model
    from medseg_se.inference.inputs import find_cases
    from medseg_se.inference.predict import choose_cases, predict_cases, render

    keep_freed_memory()
    console = Console()
    further = [word for word in inputs if Path(word).suffix == ".ckpt"]
    scans = [word for word in inputs if word not in further]
    if not scans:
        raise UsageError("Expected scans, folders of scans or datasets after the checkpoints, but got none.")
    model = load_model([checkpoint, *further], _weights(weights), device, precision, raw)
    chosen = choose_cases(find_cases(scans, len(model.channels)), model, cases)
    if dry_run:
        for case in chosen:
            line = f"{', '.join(map(str, case.images))} → {Path(output) / case.id}.nii.gz"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        return 0
    statuses = predict_cases(model, chosen, Path(output), overlap, probabilities, overwrite)
    render(statuses, console)
    return 1 if any(status.status != "done" for status in statuses.values()) else 0


def _weights(text: str | None) -> list[float] | None:
    """Return the numbers in "0.4,0.4,0.2"."""
    try:
        return None if text is None else [float(number) for number in text.strip("[]").split(",")]
    except ValueError:
        raise UsageError(f"Expected `weights` to be numbers such as 0.4,0.4,0.2, but got {text!r}.") from None


def evaluate(
    predictions: str,
    truth: str,
    *,
    structures: str | None = None,
    output: str | None = None,
    workers: int | None = None,
) -> int:
    """Compare predictions with the truth: Dice per structure and case, mean, standard deviation and n.

    Missing predictions count as failures. Exit code 1 if there is any.

    Args:
        predictions: Folder of label maps, as `medseg-se predict` writes it.
        truth: Folder of label maps, or a dataset.
        structures: JSON file or dataset that gives the label values; taken from the truth where that is a dataset.
        output: Folder for evaluation.csv and evaluation.json; the predictions' folder if not given.
        workers: Cases judged at the same time.
    """
    from medseg_se.data.datalist import read_structures

    known = read_structures(structures) if structures else None
    result = judge_folder(Path(predictions), Path(truth), known, Path(output or predictions), workers)
    return 1 if result.failed else 0


def judge_folder(
    predictions: Path, truth: Path, structures: Structures | None, output: Path, workers: int | None = None
) -> Evaluation:
    """Evaluate a folder of predictions, write evaluation.csv and evaluation.json to `output` and print the table."""
    from rich.console import Console

    from medseg_se.evaluation.evaluate import evaluate as judge

    result = judge(predictions, truth, structures, workers)
    result.write_csv(output / "evaluation.csv")
    result.write_json(output / "evaluation.json")
    console = Console()
    result.render(console)
    console.print(
        f"Written to {output / 'evaluation.csv'} and {output / 'evaluation.json'}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    return result


def configs(name: str | None = None) -> int:
    """List the shipped recipes, or print one.

    Args:
        name: The recipe to print.
    """
    from medseg_se.cli.recipes import recipe_names, recipe_path, recipe_summary

    if name:
        print(recipe_path(name).read_text(encoding="utf-8"), end="")
        return 0
    width = max(map(len, recipe_names()))
    for recipe in recipe_names():
        print(f"{recipe:<{width}}  {recipe_summary(recipe)}")
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
