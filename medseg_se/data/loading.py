"""What data modules do alike: checks, and loaders that go on where an interrupted run stood."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, get_args

import pytorch_lightning as pl
import torch

from medseg_se.data.sampling import EpochSampler
from medseg_se.errors import UsageError

SliceAxis = Literal["sagittal", "coronal", "axial"]
_LETTERS = {"sagittal": "LR", "coronal": "AP", "axial": "IS"}


def axis_across(slices: SliceAxis | None, orientation: str) -> int | None:
    """Return the axis across the slices of scans that lie as `orientation` says; None for volumes.

    Raises:
        UsageError: There are no such slices.
    """
    if slices is None:
        return None
    if slices not in get_args(SliceAxis):
        raise UsageError(f"Expected `slice_axis` to be one of {', '.join(get_args(SliceAxis))}, but got {slices!r}.")
    return next(axis for axis, letter in enumerate(orientation) if letter in _LETTERS[slices])


def checked_spacing(spacing: Sequence[float] | None) -> tuple[float, float, float] | None:
    """Return `spacing` as three numbers, or None where there is none.

    Raises:
        UsageError: There are not three.
    """
    if spacing is None:
        return None
    if len(spacing) != 3:
        raise UsageError(f"Expected `spacing` to be three positive numbers in mm, but got {list(spacing)}.")
    return float(spacing[0]), float(spacing[1]), float(spacing[2])


def epoch_sampler(trainer: pl.Trainer | None, batch_size: int, batches_per_epoch: int) -> EpochSampler:
    """Return a sampler that begins where the run stands, so that a resumed one sees no sample twice and skips none.

    Args:
        trainer: The trainer of the run, if there is one.
        batch_size: Samples a batch on each device.
        batches_per_epoch: Batches an epoch on each device.
    """
    if trainer is None:
        return EpochSampler(batch_size * batches_per_epoch)
    devices, loop = trainer.world_size, trainer.fit_loop
    batch, length = batch_size * devices, batch_size * devices * batches_per_epoch
    epoch, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress
    first = epoch.processed * length
    if epoch.ready > epoch.processed:  # within an epoch
        over = batches.is_last_batch and batches.current.processed == batches.current.ready
        first += length if over else batches.current.processed * batch
    return EpochSampler(length, first, trainer.global_rank, devices)


def worker_count(wanted: int | None) -> int:
    """Return the processes that make batches: as many as wanted; else none on a CPU, and up to 8 beside a GPU."""
    if wanted is not None:
        return wanted
    return min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 0
