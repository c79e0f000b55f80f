"""The recipe that a plan begins with: which network it names, what that network can be told, and what a decision changes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl

from medseg_se.data.loading import axis_across
from medseg_se.data.segmentation import SegmentationData
from medseg_se.errors import UsageError, unknown_name
from medseg_se.networks import NETWORKS
from medseg_se.planning.rules import Decision, Grid
from medseg_se.tasks import SegmentationTask

WITH_ARGUMENTS = ("model", "data")
"""The parts of a config that are a class and its arguments."""
_CLASSES = {"trainer": pl.Trainer, "model": SegmentationTask, "data": SegmentationData}


def check_recipe(recipe: Mapping[str, Any]) -> None:
    """Refuse a recipe that is not one of segmentation, or has keys that do not exist.

    Raises:
        UsageError: It is such a recipe.
    """
    for part in WITH_ARGUMENTS:
        name = _CLASSES[part].__name__
        found = str((recipe.get(part) or {}).get("class_path"))
        if found.rsplit(".", 1)[-1] != name:
            raise UsageError(f"Expected a recipe of segmentation to plan with, whose `{part}` is {name}, but it is {found}.")
    for part, kind in _CLASSES.items():
        valid = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
        for name in arguments_of(recipe, part):
            if name not in valid:
                raise unknown_name(f"key of `{part}`", name, valid)


def arguments_of(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return the arguments of the trainer, the model or the data of a config."""
    table = config.get(part) or {}
    return dict((table.get("init_args") or {}) if part in WITH_ARGUMENTS else table)


def sliced(grid: Grid, recipe: Mapping[str, Any]) -> Grid:
    """Return `grid` with the slices that the recipe asks for, if it is one of a 2D network."""
    axis = axis_across(arguments_of(recipe, "data").get("slice_axis"), "RAS")
    return grid if axis is None else replace(grid, flat_axis=axis)


def network_options(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option of a recipe's network, as the recipe or else the network itself has it; none for one of MONAI's.

    Raises:
        UsageError: There is no such network.
    """
    model = arguments_of(recipe, "model")
    name = model.get("network", "unet")
    if name.startswith("monai:"):
        return {}
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    own = {key: item.default for key, item in inspect.signature(NETWORKS[name]).parameters.items()}
    given = {**model, **(model.get("network_options") or {})}
    return {**own, **{key: value for key, value in given.items() if key in own}}


def changed(recipe: Mapping[str, Any], decisions: Sequence[Decision]) -> dict[str, Any]:
    """Return the recipe with what was decided."""
    config: dict[str, Any] = copy.deepcopy(dict(recipe))
    for decision in decisions:
        part, _, name = decision.key.partition(".")
        table = config.setdefault(part, {})
        if part in WITH_ARGUMENTS:
            table = table.setdefault("init_args", {})
        table[name] = decision.value
    return config
