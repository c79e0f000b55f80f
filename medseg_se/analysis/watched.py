"""A model that segments a scan as ever, and records meanwhile what its attention blocks do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from medseg_se.analysis.gate_statistics import GateStatistics, GateSummary
from medseg_se.analysis.gates import InsertionPoint, Recorder, Seen, enlarged, gate_maps, is_channel_gate
from medseg_se.errors import DataError, UsageError
from medseg_se.hardware import free_memory
from medseg_se.inference.answering import Prediction
from medseg_se.inference.engines.base import EngineName
from medseg_se.inference.model import Model, Precision
from medseg_se.inference.settings import Settings
from medseg_se.volumes import Volume


@dataclass(frozen=True)
class Recording:
    """What the attention blocks did on one scan.

    Attributes:
        points: The insertion points in the order of the data flow.
        statistics: Name of the point → kind of gate → statistics. Voxels where tiles overlap count once a tile; what was
            added around a scan smaller than a tile does not count.
        maps: (name of the point, kind of gate) → map (I, J, K) on the grid of the prepared scan, blended over the tiles with
            the weights of the prediction.
        stride: Stride (I, J, K) of the network's coarsest map.
    """

    points: tuple[InsertionPoint, ...]
    statistics: Mapping[str, Mapping[str, GateStatistics]]
    maps: Mapping[tuple[str, str], Tensor]
    stride: tuple[int, int, int]


class WatchedModel(Model):
    """A model whose predictions leave a `recording`. Make one with `WatchedModel.load`.

    Attributes:
        recording: What happened at the latest prediction.
    """

    recording: Recording
    _blended: Tensor

    @classmethod
    def load(
        cls,
        path: Path | str,
        device: str = "auto",
        precision: Precision = "fp32",
        engine: EngineName = "torch",
        calibration: Sequence[Path | str] = (),
        least_dice: float = 0.99,
    ) -> WatchedModel:
        """Load a checkpoint as `Model.load` does.

        Raises:
            CheckpointError: As `Model.load`.
            UsageError: As `Model.load`, the network has no attention block to look at, or it is another one than the network
                itself that would compute.
        """
        if (engine, precision) != ("torch", "fp32"):
            raise UsageError(f"Expected the engine torch in fp32, whose inside can be seen, but got {engine} in {precision}.")
        model = cast(WatchedModel, super().load(path, device, precision, engine, calibration, least_dice))
        if not Recorder(model.network).blocks:
            raise UsageError(
                f"Expected a network with attention, but that of {path} has none: there is nothing to inspect. Train one with "
                "`attention`, for example scse."
            )
        return model

    def watch(self, image: Volume, overlap: float = 0.5) -> tuple[Prediction, Recording]:
        """Segment a scan (C, I, J, K) as `predict` does, and return what happened too. Not for several threads at a time.

        The gates' maps ride along as further classes, so that they are tiled and blended exactly as the logits are.

        Raises:
            DataError: As `predict`, or there is not enough memory for the maps of the gates.
        """
        ready = self.prepare(image)
        network = self.network
        missing = [max(0, size - have) for size, have in zip(self.tile, ready.image.shape[1:], strict=True)]
        inside = [slice(m // 2, size - (m - m // 2)) for m, size in zip(missing, self.tile, strict=True)]
        if self.flat_axis is not None:
            del inside[self.flat_axis]
        with Recorder(network) as recorder:
            self._check_room(ready.image, len(recorder.blocks))
            self.network = watched = _Watched(network, recorder, inside)
            try:
                prediction = self.answer(ready, Settings(overlap, skip="none"))
            finally:
                self.network = network
        maps = dict(zip(watched.names, self._blended, strict=True))
        statistics = {
            point.name: {kind: summary.result() for kind, summary in watched.summaries[point.path].items()}
            for point in watched.points
        }
        stride = list(recorder.total_stride(watched.shape))
        if self.flat_axis is not None:
            stride.insert(self.flat_axis, 1)
        self.recording = Recording(tuple(watched.points), statistics, maps, (stride[0], stride[1], stride[2]))
        return prediction, self.recording

    def watched(self, slabs: Iterator[Tensor], axis: int, reverse: bool) -> Iterator[Tensor]:
        """Take the maps of the gates from slabs (A, B, classes + maps), and yield the logits."""
        gathered = []
        for slab in slabs:
            gathered.append(slab[..., self.maps :].cpu().permute(2, 0, 1))
            yield slab[..., : self.maps]
        self._blended = torch.stack(gathered[::-1] if reverse else gathered, dim=axis + 1)

    def _check_room(self, image: Tensor, blocks: int) -> None:
        """Refuse a scan whose maps, about one a block, exceed the memory."""
        needed, free = 4 * math.prod(image.shape[1:]) * (self.maps + 2 * blocks + 2), free_memory()
        if self.device.type == "cpu" and needed > free:
            raise DataError(
                f"Expected {needed / 2**30:.1f} GiB of free memory for the gates of {blocks} attention blocks on "
                f"{tuple(image.shape[1:])} voxels, but got {free / 2**30:.1f} GiB. Cut the scan, or take a machine with more."
            )


class _Watched(nn.Module):
    """A network that returns the maps of its gates behind its logits, and sums up all gates."""

    def __init__(self, network: nn.Module, recorder: Recorder, inside: list[slice]) -> None:
        super().__init__()
        self.network, self.recorder, self.inside = network, recorder, inside
        self.points: list[InsertionPoint] = []
        self.names: list[tuple[str, str]] = []
        self.shape: tuple[int, ...] = ()
        self.summaries: dict[str, dict[str, GateSummary]] = {}

    def forward(self, tiles: Tensor) -> Tensor:
        """Map tiles (N, C, *tile) to logits and maps (N, classes + maps, *tile)."""
        logits: Tensor = self.network(tiles)
        seen, shape = self.recorder.take(), tuple(tiles.shape[2:])
        if not self.points:
            self.points, self.shape = self.recorder.points(seen, shape), shape
            self.names = [(point.name, kind) for point in self.points for kind in gate_maps(seen[point.path])]
        maps = [enlarged(gate, point.stride, shape) for point in self.points for gate in gate_maps(seen[point.path]).values()]
        for point in self.points:
            self._count(point, seen[point.path])
        return torch.cat([logits.float(), *maps], dim=1)

    def _count(self, point: InsertionPoint, seen: Seen) -> None:
        summaries = self.summaries.setdefault(point.path, {})
        box = [slice(cut.start // step, -(-cut.stop // step)) for cut, step in zip(self.inside, point.stride, strict=True)]
        for name, gate in seen.gates.items():
            if not is_channel_gate(name):
                lengths = gate.shape[2:]
                cut = tuple(slice(None) if length == 1 else one for one, length in zip(box, lengths, strict=True))
                gate = gate[(slice(None), slice(None), *cut)]
            summaries.setdefault(name, GateSummary()).add(gate)
