"""The command that plans a training. Torch is imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from medseg_se.data.datalist import Datalist
    from medseg_se.planning.facts import Fingerprint
    from medseg_se.planning.plan import Plan

_BUSY = 0.25  # share of the processor that others take, from which what is measured is too slow


def plan(
    data: str,
    *,
    output: str = "plan",
    budget: str = "1h",
    memory: str | None = None,
    device: str = "auto",
    recipe: str = "generic",
    structures: str | None = None,
    folds: int | None = None,
    fold: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> int:
    """Measure a dataset and this machine, and write a config for a training that ends within the time and the memory.

    `medseg-se fit --config plan/plan.yaml` then trains. Every decision is shown and written with its reason. What was measured
    is kept beside the plan: made again, it is the same, and takes seconds; delete measurements.json to measure anew.

    Args:
        data: Dataset folder, dataset.json or CSV.
        output: Folder for plan.yaml, fingerprint.json, fingerprint.html and measurements.json, and later for the run itself.
        budget: Time that `fit` may take from the command to its last line: 30m, 2h, 1d.
        memory: Memory that it may take, of the process or of the graphics card: 8GB; most of what there is if not given.
        device: auto, cpu, cuda, cuda:1 or mps.
        recipe: Recipe or YAML file to begin with; it says which network and which attention, and whether it sees slices.
        structures: JSON file with the label values, where the dataset has none or others are wanted.
        folds: Number of folds; five if not given, or as many as there are groups.
        fold: Which fold is validated; the first if not given.
        workers: Scans read at the same time.
        overwrite: Replace a plan that was edited by hand.
    """
    import yaml
    from rich.console import Console

    from medseg_se.cli.train import with_configs
    from medseg_se.data.datalist import read_datalist, read_structures
    from medseg_se.errors import UsageError
    from medseg_se.planning.budget import parse_budget, parse_memory
    from medseg_se.planning.document import refuse_edited, to_yaml, write_plan
    from medseg_se.planning.machine import busy_share, describe_machine
    from medseg_se.planning.measurements import Measurements
    from medseg_se.planning.plan import Planner, Wishes
    from medseg_se.planning.recipe import check_recipe

    wishes = Wishes(parse_budget(budget), parse_memory(memory) if memory else None, folds, fold)
    beginning = yaml.safe_load(Path(with_configs(["--config", recipe])[1]).read_text(encoding="utf-8"))
    check_recipe(beginning)
    machine, folder = describe_machine(device), Path(output).resolve()
    own = beginning["data"].setdefault("init_args", {})
    if named := structures or own.get("structures"):
        own["structures"] = str(Path(named).resolve())
    datalist = read_datalist(data, read_structures(named) if named else None)
    path = folder / "plan.yaml"
    refuse_edited(path, overwrite)
    if workers is not None and workers < 1:
        raise UsageError(f"Expected `workers` to be at least 1, but got {workers}.")
    console = Console(highlight=False)
    fingerprint = _fingerprint(datalist, folder, workers, console)
    busy = busy_share() > _BUSY
    measurements = Measurements(folder / "measurements.json", [machine.key, fingerprint.digest], busy=busy)
    with console.status(f"trying networks on {machine.name}"):
        made = Planner(datalist, fingerprint, beginning, machine, wishes, folder, measurements).plan()
    write_plan(path, to_yaml(made.config, made.decisions, _header(made, fingerprint, machine.name, recipe, path)), overwrite)
    _show(made, console)
    console.print(f"\nTrain with: medseg-se fit --config {path}", soft_wrap=True, markup=False)
    return 0


def _fingerprint(datalist: Datalist, folder: Path, workers: int | None, console: Console) -> Fingerprint:
    """Return what the data are like: as it was measured before if no file has changed since, else measured now."""
    from medseg_se.errors import DataError
    from medseg_se.planning.fingerprint import Fingerprint, inputs_key, measure

    path, found = folder / "fingerprint.json", None
    if path.is_file():
        try:
            found = Fingerprint.read(path)
        except DataError:
            found = None  # of an older version, or damaged: measured anew
    if found is None or found.inputs != inputs_key(datalist):
        found = measure(datalist, workers)
        found.write(path)
        (folder / "fingerprint.html").unlink(missing_ok=True)  # of other data
    if not (folder / "fingerprint.html").is_file():
        _write_page(found, folder / "fingerprint.html", console)
    return found


def _write_page(fingerprint: Fingerprint, path: Path, console: Console) -> None:
    from medseg_se.errors import UsageError
    from medseg_se.reports.fingerprint import fingerprint_page

    try:
        fingerprint_page(fingerprint, path)
    except UsageError as error:  # a package for pictures is missing
        console.print(f"No page of the fingerprint: {error}", soft_wrap=True, markup=False)


def _header(made: Plan, fingerprint: Fingerprint, machine: str, recipe: str, path: Path) -> list[str]:
    """Return what stands above the plan."""
    from medseg_se.planning.budget import spoken_time
    from medseg_se.version import __version__

    table, costs = made.chosen.table, made.chosen.costs
    return [
        f"{fingerprint.name}: {len(fingerprint.cases)} cases, {len(fingerprint.structures)} structures, fitted to the machine "
        f"and the time by medseg-se {__version__}.",
        f"medseg-se fit --config {path}",
        f"Machine: {machine}. Data: {fingerprint.digest}. Recipe: {recipe}.",
        f"Time: {spoken_time(costs.startup)} to start, {spoken_time(costs.preparing)} to prepare the scans (once), "
        f"{spoken_time(int(table.training))} to train, {spoken_time(costs.judging + costs.validation)} to judge.",
        *(f"Warning: {warning}" for warning in made.warnings),
    ]


def _show(made: Plan, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from medseg_se.planning.budget import spoken_memory

    table = Table(title="The plan", title_justify="left")
    for heading in ("decision", "value", "reason"):
        table.add_column(heading, overflow="fold")
    for decision in made.decisions:
        value = "none" if decision.value is None else str(decision.value)
        table.add_row(Text(decision.key), Text(value), Text(decision.reason))
    console.print(table)
    found, times = made.chosen.measurement, made.chosen.table
    console.print(
        f"Measured: {1000 * found.step:.0f} ms a step, {spoken_memory(round(made.chosen.memory))} at most. "
        f"About {times.steps:,} steps in {times.epochs} epochs of {times.batches_per_epoch}."
    )
    for warning in made.warnings:
        console.print(Text(f"Warning: {warning}", "yellow"), soft_wrap=True)
