"""Rules: from a candidate, the machine and the timetable to the settings of network, patches and trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medseg_se.planning.budget import Costs, Timetable, clock, preferred, spoken_time
from medseg_se.planning.candidates import Candidate
from medseg_se.planning.facts import Fingerprint
from medseg_se.planning.machine import Machine
from medseg_se.planning.rules import Decision, Grid

_SLICES = ("sagittal", "coronal", "axial")


def machine_settings(machine: Machine) -> list[Decision]:
    """Decide device and precision."""
    settings, fast = machine.trainer(), machine.precision == "bf16-mixed"
    why = f"this device {'multiplies' if fast else 'does not multiply'} in bfloat16"
    return [
        Decision("trainer.accelerator", settings["accelerator"], machine.name),
        Decision("trainer.devices", settings["devices"], "the one that was measured"),
        Decision("trainer.precision", settings["precision"], why),
    ]


def network_settings(candidate: Candidate, options: Mapping[str, Any], own: Mapping[str, Any]) -> list[Decision]:
    """Decide depth, width, strides and kernels, loss and optimiser.

    Args:
        candidate: What was chosen.
        options: Every option of the network with its value; what it does not have is not decided.
        own: What the recipe has as `network_options`.
    """
    levels, decisions = len(candidate.channels), []
    strides, kernels = _shortest(candidate.strides), _shortest(candidate.kernels)
    if "channels" in options:
        smallest = [size // math.prod(steps) for size, *steps in zip(candidate.patch, *candidate.strides, strict=True)]
        depth = f"{levels} levels, down to {by(smallest)} voxels" if "strides" in options else f"{levels} levels"
        reason = f"as wide as the steps that fit into the time allow; {depth}"
        decisions.append(Decision("model.channels", list(candidate.channels), reason))
    if "strides" in options and "channels" in options:
        reason = "each level halves every axis" if strides == 2 else "fine and long axes are halved first"
        decisions.append(Decision("model.strides", strides, reason))
    if "kernel_size" in options and "channels" in options and kernels != 3:
        decisions.append(Decision("model.kernel_size", kernels, "none reaches across slices much thicker than a voxel is wide"))
    blocks = options.get("blocks")
    if isinstance(blocks, Sequence) and len(blocks) != levels:
        fitted = [*blocks, *[blocks[-1]] * levels][:levels]
        decisions.append(Decision("model.network_options", {**own, "blocks": fitted}, "one entry a level"))
    if "deep_supervision" in options:
        decisions.append(Decision("model.deep_supervision", levels > 2, "every level of the decoder is told what is right"))
    lr, size = (2e-3, "small") if candidate.channels[0] <= 16 else (1e-3, "large")
    return [
        *decisions,
        Decision("model.dice_weight", 1.0, "Dice, for structures are small beside the background"),
        Decision("model.ce_weight", 1.0, "and cross-entropy, whose gradient is steadier"),
        Decision("model.optimizer", "adamw", "needs no tuning for short runs"),
        Decision("model.lr", lr, f"for a {size} network"),
        Decision("model.schedule", "cosine", "falls to 1 % as the time ends"),
    ]


def patch_settings(candidate: Candidate, fingerprint: Fingerprint, grid: Grid, machine: Machine) -> list[Decision]:
    """Decide slices or volumes, patch and batch."""
    typical, axis = fingerprint.median_shape(grid.spacing), grid.flat_axis
    patch = whole_patch(candidate.patch, axis)
    extent = " x ".join(f"{size * mm:.0f}" for size, mm in zip(patch, grid.spacing, strict=True))
    flat = "the scans are volumes" if axis is None else f"a 2D network: {typical[axis]} slices, {grid.spacing[axis]:g} mm thick"
    if machine.kind == "cpu":
        batch = "small: on a CPU, more steps beat larger ones"
    else:
        batch = "of no more than a twentieth of all voxels" if candidate.batch > 4 else "small, for patches are large"
    return [
        Decision("data.slice_axis", None if axis is None else _SLICES[axis], flat),
        Decision("data.patch_size", list(candidate.patch), f"{extent} mm, {seen_share(patch, typical):.0%} of a typical scan"),
        Decision("data.batch_size", candidate.batch, batch),
    ]


def time_settings(costs: Costs, table: Timetable, budget: float, size: str) -> list[Decision]:
    """Decide how long the run is and how often it is validated.

    Args:
        costs: What its parts take.
        table: How the budget is spent.
        budget: Seconds.
        size: Which of the candidates was chosen, in words.
    """
    less = {"starting": costs.startup, "preparing": costs.preparing, "judging": costs.judging + costs.validation}
    words = ", ".join(f"{spoken_time(seconds)} for {what}" for what, seconds in less.items())
    step, validation = spoken_time(costs.step), spoken_time(costs.validation)
    return [
        Decision("trainer.max_time", clock(table.training), f"{spoken_time(budget)} less {words}; {size}"),
        Decision("trainer.max_epochs", -1, f"the clock ends the run, after about {preferred(table.epochs):g} epochs"),
        Decision("data.batches_per_epoch", table.batches_per_epoch, f"a step takes about {step}, a validation {validation}"),
    ]


def whole_patch(patch: Sequence[int], flat_axis: int | None) -> tuple[int, ...]:
    """Return a patch along all three axes, of one voxel across slices."""
    return tuple(patch) if flat_axis is None else (*patch[:flat_axis], 1, *patch[flat_axis:])


def seen_share(patch: Sequence[int], shape: Sequence[int]) -> float:
    """Return the share of a scan that a patch sees at once."""
    return math.prod(min(1.0, size / length) for size, length in zip(patch, shape, strict=True))


def by(sizes: Sequence[int]) -> str:
    """Return "40 x 56 x 40"."""
    return " x ".join(map(str, sizes))


def _shortest(levels: Sequence[Sequence[int]]) -> int | list[list[int]]:
    """Return one number where all levels and axes have the same."""
    distinct = np.unique(np.array(levels))
    return int(distinct[0]) if len(distinct) == 1 else [list(level) for level in levels]
