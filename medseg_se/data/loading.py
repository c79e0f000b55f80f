"""What data modules do alike: checks, and loaders that go on where an interrupted run stood."""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medseg_se.data.sampling import EpochSampler, OnceSampler, Sample, one_thread
from medseg_se.data.store import StoredCase
from medseg_se.data.synthesiser import Synthesiser
from medseg_se.errors import UsageError, unknown_name
from medseg_se.processors import at_once
from medseg_se.structures import Structures

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


def structure_weights(given: Mapping[str, float] | None, structures: Structures) -> tuple[float, ...]:
    """Return the weight of every structure; 1 where none is given.

    Raises:
        UsageError: There is no such structure, a weight is below 0, or all are 0.
    """
    weights = dict.fromkeys(structures.names, 1.0)
    for name, weight in (given or {}).items():
        if name not in weights:
            raise unknown_name("structure in `sampling_weights`", name, structures.names)
        if not 0 <= weight < math.inf:
            raise UsageError(f"Expected weights of at least 0 in `sampling_weights`, but got {weight} for {name!r}.")
        weights[name] = float(weight)
    if not any(weights.values()):
        raise UsageError("Expected `sampling_weights` to leave a structure around which patches are drawn, but all are 0.")
    return tuple(weights.values())


def patch_shape(patch_size: Sequence[int], flat_axis: int | None) -> tuple[int, int, int]:
    """Return the voxels (I, J, K) of a patch, 1 along the axis across a slice.

    Raises:
        UsageError: Not as many positive numbers are given as the network has dimensions.
    """
    wanted = 3 if flat_axis is None else 2
    if len(patch_size) != wanted or min(patch_size) < 1:
        what = "three positive numbers" if wanted == 3 else "two positive numbers for a 2D network"
        raise UsageError(f"Expected `patch_size` to be {what}, but got {list(patch_size)}.")
    sizes = list(patch_size)
    if flat_axis is not None:
        sizes.insert(flat_axis, 1)
    return sizes[0], sizes[1], sizes[2]


def by_channel(given: Any) -> Any:
    """Return what is given once, or once for each channel, with tuples in place of the lists of a YAML file."""
    return tuple(by_channel(part) for part in given) if isinstance(given, (list, tuple)) else given


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


def once_sampler(trainer: pl.Trainer | None, length: int) -> OnceSampler:
    """Return a sampler that shares scans out to the devices of the run, if there is one, for judging."""
    return OnceSampler(length) if trainer is None else OnceSampler(length, trainer.global_rank, trainer.world_size)


def prepares_for_others(trainer: pl.Trainer | None) -> bool:
    """Tell whether a process prepares what others on its machine read: if not, there is nobody to wait for."""
    return trainer is not None and trainer.world_size > 1


def speaks(trainer: pl.Trainer | None) -> bool:
    """Tell whether this process is the one of the run that says things."""
    return trainer is None or bool(trainer.is_global_zero)


def leave_signals_to_training(worker: int) -> None:
    """Let a process that makes batches go on when a signal to the whole group asks a run to end.

    The run ends after its step, which may need further batches, and then ends its workers.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def worker_count(wanted: int | None) -> int:
    """Return the processes that make batches: as many as wanted; else none on a CPU, and up to 8 beside a GPU."""
    if wanted is not None:
        return wanted
    return at_once() if torch.cuda.is_available() else 0


class WholeScans(Dataset[Sample]):
    """Whole prepared scans with their labels.

    Args:
        cases: The stored cases.
        synthesiser: Makes the scans of cases of a label map alone.
    """

    def __init__(self, cases: Sequence[StoredCase], synthesiser: Synthesiser | None = None) -> None:
        self.cases, self.synthesiser = cases, synthesiser

    def __len__(self) -> int:
        """Return the number of scans."""
        return len(self.cases)

    def __getitem__(self, place: int) -> Sample:
        """Return "image" float32 (C, I, J, K), "labels" int64 (I, J, K) and "lowest" (C,)."""
        case = self.cases[place]
        read, labels = case.read([slice(0, length) for length in case.shape])
        image, lowest = torch.from_numpy(read), Tensor(case.lowest)
        if case.channels == 0 and self.synthesiser is not None:
            with one_thread():  # a whole scan is the same on any machine, as patches are
                image = self.synthesiser.whole(case)
            lowest = image.amin(dim=(1, 2, 3))
        return {"image": image, "labels": torch.from_numpy(labels.astype(np.int64)), "lowest": lowest}
