"""One checkpoint or several that answer for whole scans together: the weighted mean of their probabilities, or numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from medseg_se.checkpoints import task_of
from medseg_se.data.datalist import Case
from medseg_se.data.whole_scan import WholeScan
from medseg_se.errors import CheckpointError
from medseg_se.inference.engines.base import EngineName, EnginePrecision
from medseg_se.inference.ensemble import find_checkpoints, shares_of
from medseg_se.inference.scans.inputs import find_scans
from medseg_se.inference.scans.model import LOADERS, ScanModel

CALIBRATION = 256
"""Scans that int8 is calibrated with, spread evenly over those that are named."""


class Panel:
    """Models of one task that answer together.

    Args:
        members: The models.
        weights: A positive number for each; equal if not given. Only their ratios count.

    Attributes:
        names: Classes, or names of the numbers.
        task: "classification" or "regression".
        scan: How the first of them takes a scan.
        digest: Digest and share of every member.
        training: Digests of the files that any member was trained on.
        validation: Digests of the files that chose a checkpoint and trained none.
        mirror: Directions along which scans were mirrored in the training of every member.
        batch: Scans that are answered together.

    Raises:
        CheckpointError: The members have other tasks or names.
        UsageError: There is no member, or the weights are not one positive number a member.
    """

    def __init__(self, members: Sequence[ScanModel], weights: Sequence[float] | None = None) -> None:
        self.weights, self.members = shares_of(weights, len(members)), tuple(members)
        first = self.members[0]
        for member in self.members[1:]:
            if (member.task, member.names) != (first.task, first.names):
                raise CheckpointError(
                    f"Expected checkpoints that answer the same, but {member.path} is of a {member.task} of "
                    f"{', '.join(member.names)}, and {first.path} of a {first.task} of {', '.join(first.names)}."
                )
        self.names, self.task, self.scan = first.names, first.task, first.scan
        together = sorted(
            zip(self.weights, (member.digest for member in self.members), strict=True), key=lambda pair: pair[::-1]
        )
        shares = (f"{share:.9g} * {digest}" for share, digest in together)
        self.digest = first.digest if len(self.members) == 1 else " + ".join(shares)
        self.training = frozenset[str]().union(*(member.training for member in self.members))
        self.validation = frozenset[str]().union(*(member.validation for member in self.members)) - self.training
        self.mirror = tuple(name for name in first.mirror if all(name in member.mirror for member in self.members))
        self.batch = max(member.batch for member in self.members)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of the checkpoints and the engines, complete once there was a scan."""
        told = [note for member in self.members for note in member.notes]
        told += [note for member in self.members if member.engine is not None for note in member.engine.notes]
        return tuple(dict.fromkeys(told))

    def read(self, case: Case) -> tuple[Tensor, ...]:
        """Read and prepare the scan of a case for every member; members that prepare it alike share it.

        Raises:
            DataError: The scan cannot be used.
        """
        made: dict[WholeScan, Tensor] = {}
        for member in self.members:
            if member.scan not in made:
                made[member.scan] = member.read(case)
        return tuple(made[member.scan] for member in self.members)

    def answer(self, scans: Sequence[tuple[Tensor, ...]], mirror: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
        """Answer for scans as `read` returns each; see `ScanModel.answer`.

        How unlike a scan is, is the weighted mean of what those members say that can tell.

        Raises:
            DataError: An answer that is not finite.
            UsageError: See `ScanModel.answer`.
        """
        numbers = torch.zeros((len(scans), len(self.names)), dtype=torch.float64)
        distance, said = torch.zeros(len(scans), dtype=torch.float64), 0.0
        for place, (member, weight) in enumerate(zip(self.members, self.weights, strict=True)):
            found, far = member.answer(torch.stack([scan[place] for scan in scans]), mirror)
            numbers += weight * found
            if member.likeness is not None:
                distance, said = distance + weight * far, said + weight
        return numbers, distance / said if said else torch.full_like(distance, torch.nan)


def load_panel(
    checkpoints: Sequence[Path | str],
    weights: Sequence[float] | None = None,
    device: str = "auto",
    precision: EnginePrecision = "fp32",
    engine: EngineName = "torch",
    calibration: Sequence[Path | str] = (),
) -> Panel:
    """Load checkpoints that answer for whole scans.

    Args:
        checkpoints: Checkpoints, or folders of them; see `find_checkpoints`.
        weights: A positive number for each; equal if not given. Only their ratios count.
        device: See `ScanModel.load`, as the next two.
        precision: What it computes in.
        engine: What computes.
        calibration: Scans for "int8", named as those to be answered for.

    Raises:
        CheckpointError: See `ScanModel.load`; or the checkpoints do not answer the same.
        UsageError: See `ScanModel.load`; or the weights are not one positive number a checkpoint.
    """
    paths = [path for named in checkpoints for path in find_checkpoints(named)]
    shares_of(weights, len(paths))  # before anything large is read
    members = []
    for path in paths:
        loader = LOADERS.get(task_of(path))
        if loader is None:
            raise CheckpointError(f"Expected a checkpoint that answers for whole scans, as the others do, but {path} does not.")
        chosen: list[Case] = []
        if calibration:
            found = find_scans(calibration, loader.load(path, device).scan)
            step = max(1, len(found) // CALIBRATION)
            chosen = found[::step][:CALIBRATION]
        members.append(loader.load(path, device, precision, engine, chosen))
    return Panel(members, weights)
