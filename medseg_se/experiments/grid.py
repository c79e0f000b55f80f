"""The grid of an experiment as its YAML file states it: networks × blocks × reductions × places × folds × seeds, run by run."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from medseg_se.attention import ATTENTION, attention_names
from medseg_se.errors import UsageError, unknown_name
from medseg_se.networks import find_network

NONE = "none"
Judged = Literal["last", "best"]
_AXES = ("networks", "blocks", "reductions", "places", "folds", "seeds")
_KEYS = ("data", "test", "budget", "judged", "configs", "fit", "also", *_AXES)


@dataclass(frozen=True)
class Variant:
    """What runs of several folds and seeds have in common.

    Attributes:
        network: The name that the experiment gives a network.
        block: Name of the attention block, or "none".
        reduction: Its reduction ratio; None for its own, or if it has none.
        places: Where it sits; None for the network's own places.
    """

    network: str
    block: str
    reduction: int | None = None
    places: tuple[str, ...] | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """What it is called, part by part."""
        ratio = () if self.reduction is None else (f"r{self.reduction}",)
        return (self.network, self.block, *ratio, *(() if self.places is None else ("+".join(self.places),)))

    @property
    def name(self) -> str:
        """Its whole name."""
        return " ".join(self.parts)

    @property
    def reference(self) -> Variant:
        """The same network without attention."""
        return Variant(self.network, NONE)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the network that make it this variant."""
        if self.block == NONE:
            return {"attention": NONE}
        places = {} if self.places is None else {"attention_at": list(self.places)}
        options = {name: {"reduction": self.reduction} for name in _with_reduction(self.block)}
        ratio = {} if self.reduction is None else {"attention_options": options}
        return {"attention": self.block, **places, **ratio}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        seed: Of the weights at the start, the patches and all else that is random.
        fold: The fold that is left out; None to train on all that is not held out.
        variant: What is trained.
    """

    seed: int
    fold: int | None
    variant: Variant

    @property
    def repeat(self) -> str:
        """Which of the trainings of its variant it is."""
        return f"seed {self.seed}" if self.fold is None else f"fold {self.fold}, seed {self.seed}"

    @property
    def name(self) -> str:
        """The name of its folder."""
        fold = () if self.fold is None else (f"fold{self.fold}",)
        parts = (*self.variant.parts, *fold, f"seed{self.seed}")
        return "-".join("".join(letter if letter.isalnum() or letter in "_+" else "_" for letter in part) for part in parts)


@dataclass(frozen=True)
class Budget:
    """How long each run trains: either steps, the same whatever the machine, or a time, in which cheaper networks do more.

    Attributes:
        steps: Optimiser steps.
        time: DD:HH:MM:SS.
    """

    steps: int | None = None
    time: str | None = None

    def trainer(self) -> dict[str, Any]:
        """Return the arguments of the trainer."""
        return {"max_steps": self.steps or -1, "max_epochs": -1, "max_time": self.time}


@dataclass(frozen=True)
class Experiment:
    """What is trained on what, for how long, and judged on what.

    Attributes:
        path: The file.
        data: The dataset.
        test: How many of its cases are held out for the test, or a dataset of them; None if every fold is judged on what it
            left out.
        budget: How long each run trains.
        judged: The weights that are judged: those of the last step, which no case chose; or those of the best validation.
        configs: Configs of `medseg-se fit` that `fit` lies over.
        fit: The config of every run.
        networks: Name → arguments of the model; `network` is the name where it is not among them.
        runs: All trainings, a seed and fold after the other.
    """

    path: Path
    data: str
    test: int | str | None
    budget: Budget
    judged: Judged
    configs: tuple[str, ...]
    fit: Mapping[str, Any]
    networks: Mapping[str, Mapping[str, Any]]
    runs: tuple[Run, ...]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants, each network's reference first."""
        distinct = dict.fromkeys(run.variant for run in self.runs)
        order = list(self.networks)
        return tuple(sorted(distinct, key=lambda one: (order.index(one.network), one.block != NONE)))

    def title(self, variant: Variant) -> str:
        """Return what a variant is called in tables: where all blocks sit at the same places, these go without saying."""
        placed = {one.places for one in self.variants if one.block != NONE}
        return replace(variant, places=None).name if len(placed) == 1 else variant.name


def read_experiment(path: Path, data: str | None = None) -> Experiment:
    """Read the file of an experiment.

    Args:
        path: The YAML file.
        data: The dataset, if not the one that the file names.

    Raises:
        UsageError: It cannot be read, or holds what makes no sense.
    """
    content = _content(path)
    for key in content:
        if key not in _KEYS:
            raise unknown_name(f"key in {path}", str(key), _KEYS)
    source = data or content.get("data")
    if not isinstance(source, str):
        raise UsageError(f"Expected `data` in {path} to name a dataset, but got {source!r}.")
    judged = content.get("judged", "last")
    if judged not in get_args(Judged):
        raise unknown_name(f"`judged` in {path}", str(judged), get_args(Judged))
    fit, also = content.get("fit", {}), content.get("also", [])
    if not isinstance(fit, Mapping):
        raise UsageError(f"Expected `fit` in {path} to be a config with `trainer`, `model` and `data`, but got {fit!r}.")
    if not isinstance(also, list) or not all(isinstance(one, Mapping) and set(one) <= set(_AXES) for one in also):
        raise UsageError(f"Expected `also` in {path} to be a list of further grids, with some of {', '.join(_AXES)}.")
    networks = _networks(content.get("networks"), path)
    test = _test(content.get("test"), path)
    grids = [{**content, "networks": list(networks)}, *({**content, "networks": list(networks), **one} for one in also)]
    runs = tuple(dict.fromkeys(run for grid in grids for run in _runs(grid, networks, test is not None, path)))
    blockless = {run.variant.reference for run in runs} - {run.variant for run in runs}
    if blockless:
        lacking = ", ".join(sorted(variant.network for variant in blockless))
        raise UsageError(f"Expected `blocks` in {path} to hold {NONE}, which others are compared with, also for {lacking}.")
    if all(run.variant.block == NONE for run in runs):
        raise UsageError(f"Expected `blocks` in {path} to hold something besides {NONE}, to be compared with it.")
    ordered = tuple(sorted(runs, key=lambda run: (run.seed, -1 if run.fold is None else run.fold)))
    return Experiment(
        path,
        source,
        test,
        _budget(content.get("budget"), path),
        judged,
        tuple(_listed(content.get("configs", []), "configs", path)),
        fit,
        networks,
        ordered,
    )


def _content(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"Cannot read the experiment {path}: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise UsageError(f"Expected the experiment {path} to hold keys such as `networks:` and `blocks:`, but it holds none.")
    return content


def _networks(given: Any, path: Path) -> dict[str, dict[str, Any]]:
    named = dict.fromkeys(given) if isinstance(given, list) else given
    if not isinstance(named, Mapping) or not named:
        raise UsageError(f"Expected `networks` in {path} to be names, or a table of names and arguments, but got {given!r}.")
    networks = {}
    for name, arguments in named.items():
        if not isinstance(arguments, (Mapping, type(None))):
            raise UsageError(f"Expected the arguments of network {name} in {path} to be a table, but got {arguments!r}.")
        networks[str(name)] = {"network": str(name), **(arguments or {})}
        find_network(networks[str(name)]["network"])
        if taken := [key for key in networks[str(name)] if key.startswith("attention")]:
            raise UsageError(
                f"Expected `blocks` and `places` in {path} to say what differs, but network {name} sets {taken[0]}."
            )
    return networks


def _test(given: Any, path: Path) -> int | str | None:
    sound = given is None or isinstance(given, str) or (isinstance(given, int) and not isinstance(given, bool) and given > 0)
    if not sound:
        raise UsageError(f"Expected `test` in {path} to be a number of cases or a dataset, but got {given!r}.")
    return given  # type: ignore[no-any-return]


def _budget(given: Any, path: Path) -> Budget:
    if isinstance(given, Mapping) and len(given) == 1:
        steps, time = given.get("steps"), given.get("time")
        if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0:
            return Budget(steps=steps)
        if isinstance(time, str):
            return Budget(time=time)
    raise UsageError(f"Expected `budget` in {path} to be `steps: NUMBER` or `time: DD:HH:MM:SS` in quotes, but got {given!r}.")


def _runs(grid: Mapping[str, Any], networks: Mapping[str, Any], tested: bool, path: Path) -> Iterator[Run]:
    """Yield the runs of one grid; what a block does not have, such as a reduction ratio, does not multiply it."""
    folds = _listed(grid.get("folds", [None] if tested else []), "folds", path)
    if not folds:
        raise UsageError(f"Expected `test` or `folds` in {path}: something must be held out to judge on.")
    if None in folds and not tested:
        raise UsageError(f"Expected `test` in {path} where a fold is null: such a run leaves out nothing to judge it on.")
    chosen, blocks = _listed(grid["networks"], "networks", path), _listed(grid.get("blocks"), "blocks", path)
    seeds = _listed(grid.get("seeds", [0]), "seeds", path)
    for key, values in (("folds", [fold for fold in folds if fold is not None]), ("seeds", seeds)):
        if not all(isinstance(value, int) and not isinstance(value, bool) and value >= 0 for value in values):
            raise UsageError(f"Expected `{key}` in {path} to be whole numbers from 0, but got {values}.")
    for network in chosen:
        if network not in networks:
            raise unknown_name(f"network in {path}", str(network), networks)
    for network, block, fold, seed in itertools.product(chosen, blocks, folds, seeds):
        for variant in _variants(grid, network, str(block), path):
            yield Run(seed, fold, variant)


def _variants(grid: Mapping[str, Any], network: str, block: str, path: Path) -> Iterator[Variant]:
    attention_names(block)
    reductions = _listed(grid.get("reductions", [None]), "reductions", path) if _with_reduction(block) else [None]
    places = _listed(grid.get("places", [None]), "places", path) if block != NONE else [None]
    for reduction, place in itertools.product(reductions, places):
        if reduction is not None and (not isinstance(reduction, int) or isinstance(reduction, bool)):
            raise UsageError(f"Expected `reductions` in {path} to be whole numbers, but got {reduction!r}.")
        at = None if place is None else (place,) if isinstance(place, str) else tuple(map(str, place))
        yield Variant(network, block, reduction, at)


def _with_reduction(block: str) -> list[str]:
    """Return those blocks of a name, which may be several joined, that have a reduction ratio."""
    return [
        name for name in attention_names(block) if name != NONE and "reduction" in inspect.signature(ATTENTION[name]).parameters
    ]


def _listed(given: Any, key: str, path: Path) -> Sequence[Any]:
    if not isinstance(given, list) or (not given and key in ("blocks", "seeds", "places", "reductions")):
        raise UsageError(f"Expected `{key}` in {path} to be a list, but got {given!r}.")
    return given
