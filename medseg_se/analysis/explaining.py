"""A trained classifier or regression that shows where in a scan its answer comes from, and what its gates do by class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medseg_se.analysis.feature_grid import on_scan
from medseg_se.analysis.gate_statistics import GateStatistics, GateSummary
from medseg_se.analysis.gates import InsertionPoint, Recorder, is_channel_gate
from medseg_se.analysis.grad_cam import grad_cam, last_maps
from medseg_se.analysis.selectivity import Selectivity, selectivity
from medseg_se.checkpoints import read_checkpoint, reason
from medseg_se.data.datalist import Case, read_datalist
from medseg_se.data.pictures import NO_STRUCTURES, SUFFIXES, is_picture, read_picture
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.data.scan import read_channels
from medseg_se.data.whole_scan import WholeScan
from medseg_se.errors import CheckpointError, DataError, MedsegError
from medseg_se.files import files_below
from medseg_se.hardware import best_device
from medseg_se.inference.inputs import find_cases
from medseg_se.inference.published import read_published
from medseg_se.networks import build_network
from medseg_se.volumes import Volume

_BATCH = 8
_KEYS = {"classification": "classes", "regression": "values"}


@dataclass(frozen=True)
class ClassGates:
    """What the attention blocks did on scans of several classes.

    Attributes:
        points: The insertion points in the order of the data flow.
        statistics: Name of the point → kind of gate → statistics over all scans.
        groups: Class → number of scans that were looked at.
        selectivity: (name of the point, kind) of channel gates → how far they differ between classes; its `means` have a row
            a class.
    """

    points: tuple[InsertionPoint, ...]
    statistics: Mapping[str, Mapping[str, GateStatistics]]
    groups: Mapping[str, int]
    selectivity: Mapping[tuple[str, str], Selectivity]


class Explainer:
    """A network that answers for whole scans, in float32, with what its checkpoint says of it. Make one with `load`.

    Attributes:
        network: The network, in eval mode.
        scan: How a scan becomes its input.
        task: "classification" or "regression".
        names: Names of its classes, or of its numbers.
        path: The checkpoint.
    """

    def __init__(self, network: nn.Module, description: Mapping[str, Any], device: torch.device, path: Path) -> None:
        data = description["data"]
        self.network, self.device, self.path = network.to(device).eval(), device, path
        self.task: str = description["task"]
        self.names: tuple[str, ...] = tuple(data[_KEYS[self.task]])
        targets = description.get("targets") or {"mean": [0.0], "std": [1.0]}  # of a regression, whose network knows neither
        self._mean, self._spread = (np.array(targets[name], dtype=np.float64) for name in ("mean", "std"))
        preprocessing = Preprocessing.from_dict(data["preprocessing"])
        self.scan = WholeScan(preprocessing, tuple(data["size"]), network.in_channels, data["flat_axis"], data["colour"])  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path | str, device: str = "auto") -> Explainer:
        """Load a checkpoint of a classification or regression; nothing in the file is executed.

        Args:
            path: A checkpoint written by `medseg-se fit`, or safetensors.
            device: "auto", "cpu", "cuda", "cuda:1" or "mps".

        Raises:
            CheckpointError: It is missing, damaged, or of another task.
            UsageError: The device does not exist, or the network has no maps to look at.
        """
        path = Path(path)
        description, state, _ = _read(path)
        task = description.get("task", "segmentation")
        if task not in _KEYS:
            raise CheckpointError(f"Expected a checkpoint of a classification or regression, but {path} is of a {task}.")
        target = best_device(device)
        try:
            parts = description["network"]
            sizes = parts["in_channels"], parts["num_classes"], parts["spatial_dims"]
            network = build_network(parts["name"], *sizes, **parts["options"])
            network.load_state_dict(state)
            found = cls(network, description, target, path)
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError, MedsegError) as error:
            raise CheckpointError(
                f"Cannot make the model that {path} describes: {reason(error)}. The checkpoint is damaged, was edited, or "
                "needs a network that is not in NETWORKS here."
            ) from error
        last_maps(found.network)
        return found

    def answers(self, case: Case) -> npt.NDArray[np.float64]:
        """Return the scores of the classes before the softmax, or the numbers in their own units.

        Raises:
            DataError: The scan cannot be used.
        """
        with torch.inference_mode():
            found: Tensor = self.network(self.scan.read(case)[None].to(self.device)).double()[0].cpu()
        return found.numpy() * self._spread + self._mean

    def evidence(self, case: Case, wanted: Sequence[int]) -> Volume:
        """Return the evidence for some answers on the scan's own grid, float32 (K, I, J, K); NaN where nothing was seen.

        Grad-CAM is what of it is above 0; see `medseg_se.analysis.grad_cam.GradCam.evidence`.

        Args:
            case: The case with its files.
            wanted: Numbers of the answers.

        Raises:
            DataError: The scan cannot be used.
        """
        image = self._image(case)
        found = grad_cam(self.network, self.scan.read(case)[None].to(self.device), torch.tensor([list(wanted)]).to(self.device))
        return on_scan(found.evidence[0].cpu().numpy(), found.grid, self.scan, self.scan.preprocessing(image))

    def _image(self, case: Case) -> Volume:
        if self.scan.colour is None:
            return read_channels(case.images, self.scan.channels)
        return read_picture(case.images[0], self.scan.colour)

    @property
    def has_gates(self) -> bool:
        """Whether the network has attention blocks to look at."""
        return bool(Recorder(self.network).blocks)

    def gates(self, cases: Sequence[Case], classes: Sequence[int]) -> ClassGates | None:
        """Look at what the attention blocks do on scans of known classes; those that cannot be read are left out.

        Args:
            cases: The cases.
            classes: The class of each.

        Returns:
            None if no scan can be read.

        Raises:
            DataError: A gate is not finite.
        """
        points: list[InsertionPoint] = []
        summaries: dict[str, dict[str, GateSummary]] = {}
        gates: dict[tuple[str, str], list[npt.NDArray[Any]]] = {}
        numbers: list[int] = []
        with Recorder(self.network) as recorder, torch.inference_mode():
            for scans, labels in self._batches(cases, classes):
                self.network(scans)
                seen = recorder.take()
                points = points or recorder.points(seen, tuple(scans.shape[2:]))
                numbers += labels
                for point in points:
                    for kind, gate in seen[point.path].gates.items():
                        summaries.setdefault(point.name, {}).setdefault(kind, GateSummary()).add(gate)
                        if is_channel_gate(kind):
                            gates.setdefault((point.name, kind), []).append(gate.flatten(1).float().cpu().numpy())
        if not numbers:
            return None
        found = {key: selectivity(np.concatenate(rows), np.array(numbers)) for key, rows in gates.items()}
        statistics = {
            point.name: {kind: one.result() for kind, one in summaries.get(point.name, {}).items()} for point in points
        }
        present, counts = np.unique(numbers, return_counts=True)
        groups = {self.names[number]: int(count) for number, count in zip(present, counts, strict=True)}
        return ClassGates(tuple(points), statistics, groups, found)

    def _batches(self, cases: Sequence[Case], classes: Sequence[int]) -> Iterator[tuple[Tensor, list[int]]]:
        held: list[tuple[Tensor, int]] = []
        for case, label in zip(cases, classes, strict=True):
            try:
                held.append((self.scan.read(case), label))
            except DataError:
                continue
            if len(held) == _BATCH:
                yield self._batch(held)
                held = []
        if held:
            yield self._batch(held)

    def _batch(self, held: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, list[int]]:
        return torch.stack([scan for scan, _ in held]).to(self.device), [label for _, label in held]


def task_of(path: Path) -> str:
    """Return the task of a checkpoint: segmentation, classification or regression.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    description, _, _ = _read(path)
    return str(description.get("task", "segmentation"))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    return read_published(path) if path.suffix == ".safetensors" else read_checkpoint(path)


def find_whole_scans(names: Sequence[str], explainer: Explainer) -> list[Case]:
    """Return the cases that files, folders and datasets name, as the network takes them: pictures, or scans.

    Raises:
        DataError: Something does not exist, or holds no picture or scan.
    """
    if explainer.scan.colour is None:
        return find_cases(names, explainer.scan.channels)
    cases: list[Case] = []
    for name in names:
        path = Path(name)
        if not path.is_dir():
            listed = path.suffix.lower() in (".json", ".csv")
            cases += read_datalist(path, NO_STRUCTURES).training if listed else [Case(path.as_posix(), (path,))]
            continue
        pictures = [one for one in files_below(path) if is_picture(one)]
        if not pictures:
            raise DataError(f"Expected {path} to hold pictures ({', '.join(SUFFIXES)}), but it holds none.")
        cases += [Case(one.as_posix(), (one,)) for one in pictures]
    return cases
