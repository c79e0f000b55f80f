"""`medseg-se cv`: a training for every fold, each case judged by the fold that left it out, and the folds as one model.

In the folder of a cross-validation: `config.yaml` and `folds.json`, what is trained on what; `fold_K/` with the run, its
`fit.log` and its out-of-fold `predictions/`; `cross_validation.csv` and `.json`; `postprocessing.json`; and `model/`, the
checkpoints that predict together. Whatever is there already is not done again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from medseg_se.cli.fold_plan import FORMAT, Plan
from medseg_se.cli.jobs import Job, run_jobs
from medseg_se.cli.train import TrainingCLI, quieten, with_configs
from medseg_se.data.segmentation import SegmentationData
from medseg_se.errors import DataError, UsageError
from medseg_se.evaluation.evaluate import evaluate
from medseg_se.evaluation.folds import CrossValidation
from medseg_se.files import alone, write_json
from medseg_se.inference.choice import Candidate, Judged, choose
from medseg_se.inference.lean import write_lean
from medseg_se.inference.model import Model
from medseg_se.inference.postprocessing import PostProcessing
from medseg_se.inference.predict import predict_cases
from medseg_se.processors import thread_share
from medseg_se.structures import Structures
from medseg_se.tasks import SegmentationTask

_SET_HERE = {
    "--config": "name configs before `--output`",
    "-c": "name configs before `--output`",
    "--ckpt_path": "a fold goes on from its last checkpoint by itself",
    "--data.fold": "every fold has its turn",
    "--data.init_args.fold": "every fold has its turn",
    "--data.folds": "give `--folds` instead",
    "--data.init_args.folds": "give `--folds` instead",
    "--trainer.default_root_dir": "every fold has a folder in `--output`",
}


class CheckedTraining(TrainingCLI):
    """A training whose settings are read and built, so that what is wrong with them is said now; it does not run.

    Attributes:
        settings: Its config.

    Args:
        arguments: Those of `fit`, with the word itself.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.settings: dict[str, Any] = {}
        super().__init__(arguments)

    def _set_seed(self) -> None:
        """Leave the seeds of this process alone."""

    def before_instantiate_classes(self) -> None:
        """Keep the config without what each fold gets."""
        config = self.config["fit"]
        self.settings = yaml.safe_load(self._parser("fit").dump(config, skip_none=False))
        self.settings.pop("config", None)
        self.settings.pop("ckpt_path", None)
        self.settings["trainer"].pop("default_root_dir")
        config.trainer.default_root_dir = "."

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def run_cross_validation(
    configs: Sequence[str],
    training: Sequence[str],
    output: Path,
    folds: int | None,
    source: str | None,
    devices: str | None,
    jobs: int,
) -> int:
    """Train, judge and keep every fold as `medseg-se cv` says; returns the exit code."""
    quieten()
    places, device = places_for(devices, jobs)
    checked = _check(configs, training, source)
    data = cast(SegmentationData, checked.datamodule)
    plan = _plan(checked, data, folds, output)
    if plan.settings["trainer"].get("accelerator") == "cpu":
        device = "cpu"
    notices, console = Console(stderr=True, highlight=False), Console(highlight=False)
    with alone(output / ".lock"):
        plan.keep()
        if not all(map(plan.finished, range(len(plan.folds)))):
            data.setup("fit")  # once, for all folds
            if not _train(plan, places, notices):
                return 1
        result, label_dtype = _judge(plan, data.structures, device, notices)
        result.write_csv(output / "cross_validation.csv")
        result.write_json(output / "cross_validation.json")
        result.render(console)
        chosen = _choose(plan, result, console)
        for fold in range(len(plan.folds)):
            write_lean(plan.checkpoint(fold), output / "model" / f"fold_{fold}.ckpt", chosen, label_dtype)
    console.print(
        f"\nEvery case was judged by the fold that left it out: {output / 'cross_validation.csv'}\n"
        f"Predict with all {len(plan.folds)} folds together: medseg-se predict {output / 'model'} SCANS --output FOLDER",
        soft_wrap=True,
        markup=False,
    )
    return 1 if result.together.failed else 0


# --------------------------------------------------------------------------------------------------------------- before it runs


def _check(configs: Sequence[str], training: Sequence[str], source: str | None) -> CheckedTraining:
    """Return the training, built once, or refuse what cannot be trained."""
    for word in training:
        flag = word.partition("=")[0]
        if flag in _SET_HERE:
            raise UsageError(f"`cv` sets {flag} itself: {_SET_HERE[flag]}.")
    named = [word for config in configs for word in ("--config", config)]
    of_data = ["--data.source", source] if source is not None else []
    checked = CheckedTraining(with_configs(["fit", *named, *training, *of_data, "--data.fold", "0"]))
    if not isinstance(checked.model, SegmentationTask) or not isinstance(checked.datamodule, SegmentationData):
        raise UsageError(f"Expected configs of a segmentation, but {', '.join(configs)} train a {checked.model.task}.")
    return checked


def _plan(checked: CheckedTraining, data: SegmentationData, folds: int | None, output: Path) -> Plan:
    """Return the folds: those that the dataset prescribes, or as many as are asked for."""
    prescribed = {case.fold for case in data.datalist.training if case.fold is not None}
    count = max(prescribed) + 1 if prescribed else data.folds if folds is None else folds
    if folds not in (None, count):
        raise UsageError(f"Expected `folds` to be the {count} that {data.datalist.source} prescribes, but got {folds}.")
    split = [data.datalist.fold(fold, count, data.split_seed)[1] for fold in range(count)]
    for fold, cases in enumerate(split):
        if not any(case.images for case in cases):
            raise DataError(f"Fold {fold} of {data.datalist.source} has label maps alone: there is no scan to judge it on.")
    checked.settings["data"]["init_args"].update(fold=0, folds=count)
    return Plan(checked.settings, data.datalist, tuple(split), output)


def places_for(devices: str | None, jobs: int) -> tuple[list[dict[str, str]], str]:
    """Return the environment of every training that may run at the same time, and the device that predicts.

    Raises:
        UsageError: Devices that are not there, or numbers that make no sense.
    """
    if jobs < 1:
        raise UsageError(f"Expected `jobs` to be at least 1, but got {jobs}.")
    if devices is None:
        return [thread_share(jobs) for _ in range(jobs)], "auto"
    if jobs > 1:
        raise UsageError("Expected `devices` or `jobs`, but got both. A device named twice trains two folds side by side.")
    named = devices.strip("[]").split(",")
    if not all(re.fullmatch(r"[\w/-]+", name.strip()) for name in named):
        raise UsageError(f"Expected `devices` to be numbers of CUDA devices such as 0,1,2,3, but got {devices!r}.")
    import torch

    if not torch.cuda.is_available():
        raise UsageError(f"Expected CUDA devices where `devices` is {devices}, but there is none. Give --jobs for processors.")
    first = named[0].strip()
    known = first.isdigit() and int(first) < torch.cuda.device_count()
    places = [{"CUDA_VISIBLE_DEVICES": name.strip(), **thread_share(len(named))} for name in named]
    return places, f"cuda:{first}" if known else "auto"


# --------------------------------------------------------------------------------------------------------------------- training


def _train(plan: Plan, places: Sequence[Mapping[str, str]], console: Console) -> bool:
    """Train the folds that are not finished; returns whether all are now."""
    jobs = [Job(f"fold {fold}", _fit(plan, fold), plan.folder(fold) / "fit.log") for fold in range(len(plan.folds))]
    number = {job.name: fold for fold, job in enumerate(jobs)}
    for job in jobs:
        job.state = "finished" if plan.finished(number[job.name]) else "waiting"
    limit = plan.settings["trainer"].get("max_time")
    if limit:
        console.print(f"`max_time` {limit} is the time that each fold may take, not all {len(jobs)} together.", soft_wrap=True)

    def mark(job: Job) -> None:
        fold = number[job.name]
        if plan.checkpoint(fold).is_file():
            marker = {"format": FORMAT, "digest": plan.digest, "seconds": round(job.seconds, 1)}
            write_json(plan.folder(fold) / "finished.json", marker)
        else:
            job.state = "failed"

    run_jobs(jobs, places, console, mark)
    failed = [job for job in jobs if job.state == "failed"]
    for job in failed:
        console.print(Text(f"{job.name} failed: {job.last_line()} (see {job.log})", "red"), soft_wrap=True)
    if failed:
        console.print("Nothing is judged before all folds have finished. The same command trains those that have not.")
    return not failed


def _fit(plan: Plan, fold: int) -> list[str]:
    """Return the command that trains a fold, from where it stands."""
    folder = plan.folder(fold)
    command = [sys.executable, "-m", "medseg_se", "fit", "--config", str(plan.output / "config.yaml")]
    command += ["--data.fold", str(fold), "--trainer.default_root_dir", str(folder)]
    return [*command, "--ckpt_path", "last"] if (folder / "checkpoints" / "last.ckpt").is_file() else command


# ---------------------------------------------------------------------------------------------------------------------- judging


def _judge(plan: Plan, structures: Structures, device: str, console: Console) -> tuple[CrossValidation, str]:
    """Let every fold predict what it was not trained on, and judge all of it; returns also a type for all label values."""
    results, types = [], []
    for fold, cases in enumerate(plan.folds):
        predictions = plan.folder(fold) / "predictions"
        model = Model.load(plan.checkpoint(fold), device)
        types.append(model.label_dtype)
        scans = [case for case in cases if case.images]
        predict_cases(model, scans, predictions, overwrite=True, progress=console.is_terminal)
        results.append(evaluate(predictions, plan.datalist.source, structures, progress=console.is_terminal))
    kind = np.result_type(*(np.dtype(name) for name in types if name)) if any(types) else ""
    return CrossValidation(results), str(kind)


def _choose(plan: Plan, result: CrossValidation, console: Console) -> PostProcessing:
    """Choose the post-processing, and write and show why."""
    truths = {case.id: case.label for case in plan.datalist.training}
    judged = [
        Judged(truth, None if case.failure else plan.folder(fold) / "predictions" / f"{case.id}.nii.gz")
        for fold, evaluation in enumerate(result.folds)
        for case in evaluation.cases
        if (truth := truths[case.id]) is not None
    ]
    chosen, candidates = choose(judged, result.together.structures)
    content = {
        "format": FORMAT,
        "connectivity": 26,
        "cases": len(judged),
        "chosen": chosen.to_dict(),
        "candidates": [candidate.to_dict() for candidate in candidates],
    }
    write_json(plan.output / "postprocessing.json", content)
    _show(candidates, console)
    return chosen


def _show(candidates: Sequence[Candidate], console: Console) -> None:
    table = Table("keep the largest component of", "Dice before", "after", "", title="Post-processing", title_justify="left")
    for candidate in candidates:
        several = len(candidate.structures) > 1
        name = "all structures together" if several else candidate.structures[0]
        before, after = candidate.means
        done = "chosen" if candidate.accepted else ""
        table.add_row(Text(name), f"{before:.4f}", f"{after:.4f}", done, style="green" if done else "")
    console.print(table)
    console.print(
        "What raises the mean Dice over the cases is stored with the model; `predict --raw` leaves it out.", style="dim"
    )
