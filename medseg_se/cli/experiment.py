"""`medseg-se compare EXPERIMENT.yaml`: the trainings of a grid, alike in all but what is compared, and what is made of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from rich.console import Console
from rich.text import Text

from medseg_se.attention import ATTENTION, attention_names
from medseg_se.cli.cross_validation import CheckedTraining, places_for
from medseg_se.cli.experiment_run import command
from medseg_se.cli.jobs import Job, run_jobs
from medseg_se.cli.train import quieten, with_configs
from medseg_se.data.datalist import read_structures
from medseg_se.data.segmentation import SegmentationData
from medseg_se.errors import UsageError
from medseg_se.evaluation.compare import Correction, Seeds
from medseg_se.evaluation.comparison import Comparison
from medseg_se.experiments.cases import TRAINING, Cases, find_cases, keep_cases
from medseg_se.experiments.contents import keep_contents
from medseg_se.experiments.costs import measure_costs
from medseg_se.experiments.folder import RunFolder, Settings, keep_runs
from medseg_se.experiments.grid import Experiment, Run, read_experiment
from medseg_se.experiments.results import compare_finished
from medseg_se.experiments.sweep import Sweep, fan_out
from medseg_se.files import alone, digest_of, write_text
from medseg_se.networks import NETWORKS, build_network
from medseg_se.plugins import plugin_of
from medseg_se.tasks import SegmentationTask

_SET_HERE = {
    "config": "name it under `configs`",
    "ckpt_path": "a run goes on from its last checkpoint by itself",
    "seed_everything": "see `seeds`",
    "data.seed": "see `seeds`",
    "data.fold": "see `folds`",
    "data.source": "give `data`",
    "model.network": "see `networks`",
    "model.attention": "see `blocks`",
    "model.attention_at": "see `places`",
    "model.attention_options": "see `reductions`",
    "model.start_from": "all variants of a network and seed begin alike",
    "trainer.default_root_dir": "every run has a folder in `--output`",
    "trainer.max_steps": "see `budget`",
    "trainer.max_epochs": "see `budget`",
    "trainer.max_time": "see `budget`",
}


def run_experiment(
    path: Path,
    training: Sequence[str],
    output: Path,
    data: str | None,
    devices: str | None,
    jobs: int,
    sweep: Sweep | None,
    judging: tuple[str, Correction, Seeds],
) -> Comparison | None:
    """Do what is missing of an experiment and compare its runs; None if a run failed.

    Args:
        path: The experiment.
        training: Further arguments of `medseg-se fit`, for every run.
        output: Folder of the experiment.
        data: The dataset, if not the one that the file names.
        devices: CUDA devices, each of which does a run at a time.
        jobs: Runs side by side without such devices.
        sweep: Where runs are fanned out to; None to do them here.
        judging: What is compared, how p-values are corrected, and what is done with several seeds.

    Raises:
        UsageError: The experiment makes no sense, or the folder holds another one, or one on files that were replaced since.
        DataError: The data cannot be used.
    """
    quieten()
    places, _ = places_for(devices, jobs)
    experiment, notices = read_experiment(path, data), Console(stderr=True, highlight=False)
    base = _base(experiment, training)
    with alone(output / ".lock"):
        structures = base["data"].get("init_args", {}).get("structures")
        found = find_cases(experiment.data, experiment.test, read_structures(structures) if structures else None)
        cases = keep_cases(found, output)
        keep_contents(cases, output)
        checked = _checked(experiment, base, training, output)
        settings = {run.name: _settings(experiment, run, checked[run.variant.network]) for run in experiment.runs}
        _check(experiment, cases, checked)
        keep_runs(output, settings)
        write_text(output / "experiment.yaml", path.read_text(encoding="utf-8"))
        if not _train(experiment, checked, places, sweep, output, notices):
            return None
        tasks = {name: cast(SegmentationTask, one.model) for name, one in checked.items()}
        first = next(iter(checked.values()))
        costs = measure_costs(
            experiment, tasks, cast(SegmentationData, first.datamodule), first.settings["trainer"], output / "costs.json"
        )
        return compare_finished(experiment, output, costs, *judging)


# --------------------------------------------------------------------------------------------------------------- before it runs


def _base(experiment: Experiment, training: Sequence[str]) -> Settings:
    """Return the config that all runs share, the configs that it lies over among it."""
    _refuse_set_here([word.partition("=")[0].lstrip("-") for word in training if word.startswith("-")], "what follows `--`")
    _refuse_set_here(_dotted(experiment.fit), f"`fit` of {experiment.path}")
    base: Settings = {"trainer": {}, "model": {}, "data": {}}
    named = with_configs([word for config in experiment.configs for word in ("--config", config)])
    for config in named[1::2]:
        base = _over(base, yaml.safe_load(Path(config).read_text(encoding="utf-8")))
    base = _over(base, experiment.fit)
    base["model"].setdefault("class_path", f"{SegmentationTask.__module__}.{SegmentationTask.__name__}")
    base["data"].setdefault("class_path", f"{SegmentationData.__module__}.{SegmentationData.__name__}")
    for part in ("model", "data"):
        base[part].setdefault("init_args", {})
    base["trainer"] = {name: value for name, value in base["trainer"].items() if f"trainer.{name}" not in _SET_HERE}
    return base


def _refuse_set_here(keys: Sequence[str], where: str) -> None:
    for key in keys:
        plain = key.replace(".init_args", "")
        if plain in _SET_HERE:
            raise UsageError(f"The experiment sets {plain} itself, but it stands in {where}: {_SET_HERE[plain]}.")


def _dotted(content: Mapping[str, Any], before: str = "") -> list[str]:
    """Return the dotted keys of nested tables."""
    keys = []
    for name, value in content.items():
        keys.append(f"{before}{name}")
        keys += _dotted(value, f"{before}{name}.") if isinstance(value, Mapping) else []
    return keys


def _over(under: Mapping[str, Any], over: Mapping[str, Any]) -> Settings:
    """Return one nested table laid over another."""
    merged = {**under}
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(under.get(name), Mapping)
        merged[name] = _over(under[name], value) if both else copy.deepcopy(value)
    return merged


def _checked(experiment: Experiment, base: Settings, training: Sequence[str], output: Path) -> dict[str, CheckedTraining]:
    """Return the training of every network without attention, built once, or refuse what cannot be trained."""
    checked = {}
    for name, arguments in experiment.networks.items():
        config = copy.deepcopy(base)
        config["trainer"] |= experiment.budget.trainer()
        for key in ("attention", "attention_at", "attention_options", "start_from"):
            config["model"]["init_args"].pop(key, None)
        config["model"]["init_args"] |= {**arguments, "attention": "none"}
        config["data"]["init_args"]["fold"] = experiment.runs[0].fold
        written = output / ".checked.yaml"
        write_text(written, yaml.safe_dump(config, sort_keys=False))
        one = CheckedTraining(["fit", "--config", str(written), *training, "--data.source", str(output / TRAINING)])
        written.unlink()
        if not isinstance(one.model, SegmentationTask) or not isinstance(one.datamodule, SegmentationData):
            raise UsageError(f"Expected an experiment of segmentations, but {experiment.path} trains a {one.model.task}.")
        checked[name] = one
    return checked


def _settings(experiment: Experiment, run: Run, checked: CheckedTraining) -> Settings:
    """Return the config of a run, and which of its weights are judged."""
    fit = copy.deepcopy(checked.settings)
    fit["seed_everything"] = run.seed
    fit["model"]["init_args"] |= run.variant.arguments()
    data = fit["data"]["init_args"]
    data |= {
        "seed": run.seed,
        "fold": run.fold,
        "source": TRAINING,
        "store": str(Path(data["store"]).absolute()),
        "progress": False,
    }
    network = checked.model.network_name
    made_by = [NETWORKS.get(network), *(ATTENTION.get(block) for block in attention_names(run.variant.block))]
    files = {path for one in made_by if (path := plugin_of(one)) is not None}
    plugins = {path.name: digest_of([path]) for path in sorted(files)}  # another block of the same name is another run
    return {"judged": experiment.judged, "fit": fit, **({"plugins": plugins} if plugins else {})}


def _check(experiment: Experiment, cases: Cases, checked: Mapping[str, CheckedTraining]) -> None:
    """Refuse variants that cannot be built and folds that leave nothing to judge on, before anything runs."""
    for variant in experiment.variants:
        task = cast(SegmentationTask, checked[variant.network].model)
        with torch.device("meta"):
            arguments = {**task.network_arguments, **variant.arguments()}
            build_network(task.network_name, task.in_channels, task.num_classes, task.spatial_dims, **arguments)
    data = cast(SegmentationData, next(iter(checked.values())).datamodule)
    for fold in {run.fold for run in experiment.runs}:
        training = cases.training.training
        cases.judged(training if fold is None else data.datalist.fold(fold, data.folds, data.split_seed)[0])


# --------------------------------------------------------------------------------------------------------------------- training


def _train(
    experiment: Experiment,
    checked: Mapping[str, CheckedTraining],
    places: Sequence[Mapping[str, str]],
    sweep: Sweep | None,
    output: Path,
    console: Console,
) -> bool:
    """Do the runs that are not finished; returns whether all are now."""
    jobs = []
    for run in experiment.runs:
        folder = RunFolder.of(output, run.name)
        jobs.append(Job(run.name, command(output, run.name), folder.log, "finished" if folder.finished() else "waiting"))
    waiting = [job for job in jobs if job.state == "waiting"]
    console.print(f"{len(jobs)} runs, {len(jobs) - len(waiting)} of them finished before.", soft_wrap=True)
    _say_others(experiment, output, console)
    if not waiting:
        return True
    cast(SegmentationData, next(iter(checked.values())).datamodule).setup("fit")  # once, for all runs
    if sweep is None:
        run_jobs(jobs, places, console)
    else:
        fan_out(sweep, output, waiting)
    failed = [job for job in jobs if not RunFolder.of(output, job.name).finished()]
    for job in failed:
        console.print(Text(f"{job.name} failed: {job.last_line()} (see {job.log})", "red"), soft_wrap=True)
    if failed:
        console.print("Nothing is compared before all runs have finished. The same command does those that have not.")
    return not failed


def _say_others(experiment: Experiment, output: Path, console: Console) -> None:
    names = {run.name for run in experiment.runs}
    others = sorted(path.name for path in (output / "runs").iterdir() if path.is_dir() and path.name not in names)
    if others:
        console.print(f"Left out, as the grid has them no more: {', '.join(others)}.", soft_wrap=True)
