"""`medseg-se compare`: finished folders, or a whole experiment, become a table, figures and a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from medseg_se.errors import UsageError


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
    of them. `NAME=SEED_1,SEED_2` is one run of several seeds, which are averaged within each case. Of classifiers, what each
    gets right is compared, class by class, and the areas under the ROC curves.

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
    from medseg_se.cli.compared_answers import are_answers, compare_answers
    from medseg_se.cli.compared_folders import compare_folders, read_folders, write

    experiment = _experiment(runs)
    folders_only = {"truth": truth, "reference": reference, "structures": structures}
    experiments_only: dict[str, object] = {
        "data": data,
        "devices": devices,
        "executor": executor,
        "cluster": cluster,
        "--": training or None,
        "jobs": jobs if jobs > 1 else None,
        "workers": workers if workers > 1 else None,
    }
    wrong = [name for name, value in (folders_only if experiment else experiments_only).items() if value is not None]
    if wrong:
        kind = "folders, but an experiment is given" if experiment else "an experiment, but folders are given"
        raise UsageError(f"`{wrong[0]}` is for a comparison of {kind}.")
    if experiment is None and are_answers(runs):
        if structures is not None or measure != "dice" or correction != "holm" or seeds != "average":
            raise UsageError("`structures`, `measure`, `correction` and `seeds` are for label maps, but these are classifiers.")
        compare_answers(runs, truth, reference, Path(output) if output else None)
        return 0
    if experiment is None:
        folders = read_folders(runs, truth, structures, measure)
        result = compare_folders(folders, reference, measure, correction, seeds)
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
    write(result, Path(output) if output else None)
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
