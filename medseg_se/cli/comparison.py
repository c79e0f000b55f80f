"""`medseg-se compare`: finished folders, or a whole experiment, become a table, figures and a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medseg_se.errors import DataError, UsageError

if TYPE_CHECKING:
    from medseg_se.evaluation.compare import Compared
    from medseg_se.evaluation.comparison import Comparison
    from medseg_se.evaluation.result import Evaluation
    from medseg_se.structures import Structures


def compare(
    runs: list[str],
    *training: str,
    output: str | None = None,
    truth: str | None = None,
    reference: str | None = None,
    structures: str | None = None,
    measure: str = "dice",
    correction: Literal["holm", "bh"] = "holm",
    seeds: Literal["average", "random"] = "average",
    data: str | None = None,
    devices: str | None = None,
    jobs: int = 1,
    executor: Literal["slurm", "local", "debug"] | None = None,
    workers: int = 1,
    cluster: str | None = None,
) -> int:
    """Tell whether runs differ: paired differences with intervals and corrected tests, costs, figures, and a verdict in words.

    `medseg-se compare A B C --truth DATA` compares finished folders, of predictions or with an evaluation.json, with the first
    of them. `NAME=SEED_1,SEED_2` is one run of several seeds, which are averaged within each case.

    `medseg-se compare EXPERIMENT.yaml --output FOLDER` trains a grid of networks, blocks, reductions, places, folds and seeds,
    alike in data order, augmentation, weights at the start and budget, judges every run on held-out cases, and compares each
    with the same network without attention. Run again, it does what is missing. What follows `--` goes to every `medseg-se
    fit`. `medseg-se configs` lists the shipped experiments.

    Args:
        runs: Folders, each as FOLDER, NAME=FOLDER or NAME=FOLDER,FOLDER; or one experiment, a YAML file or a shipped one.
        training: After `--`: further arguments of `medseg-se fit`, for every run of an experiment.
        output: Folder for table.csv, comparison.json, report.html and the figures; of an experiment, for its runs too.
        truth: Folder of label maps, or a dataset, for folders that are not judged yet.
        reference: The run that the others are compared with; the first if not given.
        structures: JSON file or dataset that gives the label values, where the truth does not.
        measure: What is compared, such as dice, nsd, hd95_mm or bias_ml.
        correction: holm, or bh (Benjamini–Hochberg).
        seeds: Several trainings of a run: average them for each subject, or take seeds as a random effect beside subjects.
        data: Dataset of an experiment, if not the one that it names.
        devices: CUDA devices, such as 0,1, each of which does a run at a time.
        jobs: Runs done side by side on a machine without such devices, each with its share of the processors.
        executor: Fan the runs out with Optuna and submitit: slurm, or local and debug for one machine.
        workers: How many workers take runs at the same time, with an executor.
        cluster: Parameters of submitit, such as timeout_min=600,slurm_partition=gpu,gpus_per_node=1.
    """
    experiment = _experiment(runs)
    folders_only = {"truth": truth, "reference": reference, "structures": structures}
    experiments_only = {"data": data, "devices": devices, "executor": executor, "cluster": cluster, "--": training or None}
    wrong = [name for name, value in (folders_only if experiment else experiments_only).items() if value is not None]
    if wrong:
        kind = "folders, but an experiment is given" if experiment else "an experiment, but folders are given"
        raise UsageError(f"`{wrong[0]}` is for a comparison of {kind}.")
    if experiment is None:
        folders = _folders(runs, truth, structures, measure)
        result = _compare_folders(folders, reference, measure, correction, seeds)
    else:
        from medseg_se.cli.experiment import run_experiment
        from medseg_se.experiments.sweep import Sweep

        if output is None:
            raise UsageError("Expected `output`, a folder for the experiment, but got none.")
        sweep = Sweep(executor, workers, _parameters(cluster)) if executor else None
        if sweep is None and (workers > 1 or cluster):
            raise UsageError("Expected `executor` where `workers` or `cluster` is given; `jobs` are runs side by side.")
        found = run_experiment(experiment, training, Path(output), data, devices, jobs, sweep, (measure, correction, seeds))
        if found is None:
            return 1
        result = found
    _write(result, Path(output) if output else None)
    return 0


def _experiment(runs: list[str]) -> Path | None:
    """Return the file of the experiment that is meant, or None where folders are."""
    from medseg_se.cli.recipes import experiment_names, experiment_path

    word = runs[0]
    if len(runs) == 1 and not Path(word).exists() and (word in experiment_names() or "=" not in word):
        return experiment_path(word)
    files = [word for word in runs if Path(word).is_file()]
    if files and len(runs) > 1:
        raise UsageError(f"Expected folders, or one experiment alone, but got {files[0]} among {len(runs)} words.")
    return Path(files[0]) if files else None


def _parameters(text: str | None) -> dict[str, Any]:
    import yaml

    words = [word.partition("=") for word in (text or "").split(",") if word]
    if not all(equals and value for _, equals, value in words):
        raise UsageError(f"Expected `cluster` to be parameters such as timeout_min=600,slurm_partition=gpu, but got {text!r}.")
    return {name.strip(): yaml.safe_load(value) for name, _, value in words}


# ---------------------------------------------------------------------------------------------------------------------- folders


def _folders(words: list[str], truth: str | None, structures: str | None, measure: str) -> list[Compared]:
    """Return the runs in folders, judged where they are not yet."""
    from medseg_se.data.datalist import read_structures
    from medseg_se.evaluation.compare import Compared

    known, named = read_structures(structures) if structures else None, dict[str, list[Path]]()
    for word in words:
        name, equals, listed = word.partition("=")
        whole = not equals or Path(word).exists()
        folders = [Path(word)] if whole else [Path(part) for part in listed.split(",")]
        own = _short(Path(word), words) if whole else name
        if own in named:
            raise UsageError(f"Expected every run to have a name of its own, but two are called {own}. Write NAME=FOLDER.")
        named[own] = folders
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


def _short(folder: Path, words: list[str]) -> str:
    """Return a folder's own name, or its whole path where others have that name too."""
    others = [Path(word) for word in words if Path(word) != folder]
    return str(folder) if any(other.name == folder.name for other in others) else folder.name


def _judged(folder: Path, truth: str | None, structures: Structures | None, measure: str) -> Evaluation:
    """Return what a folder's predictions are worth, as its evaluation.json says or, if that does not do, judged now."""
    from medseg_se.evaluation.evaluate import evaluate
    from medseg_se.evaluation.result import Evaluation

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
    result.write_csv(folder / "evaluation.csv")
    result.write_json(found)
    return result


def _compare_folders(
    runs: list[Compared],
    reference: str | None,
    measure: str,
    correction: Literal["holm", "bh"],
    seeds: Literal["average", "random"],
) -> Comparison:
    from dataclasses import replace

    from medseg_se.errors import unknown_name
    from medseg_se.evaluation.compare import compare as compare_runs

    names = [run.name for run in runs]
    first = reference or names[0]
    if first not in names:
        raise unknown_name("reference", first, names)
    ordered = [
        run if run.name == first else replace(run, reference=first) for run in sorted(runs, key=lambda run: run.name != first)
    ]
    return compare_runs(ordered, measure, correction, seeds)


# ----------------------------------------------------------------------------------------------------------------------- result


def _write(result: Comparison, output: Path | None) -> None:
    """Print the comparison, and write it and its figures to a folder."""
    import importlib.util

    from rich.console import Console

    from medseg_se.evaluation.comparison_table import render
    from medseg_se.reports.comparison_page import write_comparison_report

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
