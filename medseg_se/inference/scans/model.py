"""From a checkpoint to a model that answers for whole scans: everything it needs is in the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from medseg_se.checkpoints import read_checkpoint, reason
from medseg_se.data.augmentation import MIRRORS
from medseg_se.data.datalist import Case
from medseg_se.data.whole_scan import WholeScan
from medseg_se.errors import CheckpointError, DataError, MedsegError, UsageError
from medseg_se.execution import Uninitialised, lay_out_weights
from medseg_se.hardware import best_device
from medseg_se.inference.engines.base import EngineName, EnginePrecision, best_engine, check_engine
from medseg_se.inference.engines.cache import cache_beside
from medseg_se.inference.scans.engine import ScanEngine
from medseg_se.inference.scans.reading import fitting, read_any
from medseg_se.metrics.likeness import Likeness
from medseg_se.networks import build_network
from medseg_se.networks.witness import Witness
from medseg_se.volumes import Volume

OLD = "The checkpoint was written before models knew their temperature and what they were trained on. Train it again, or go on \
with it, to have both."
_TOGETHER = 8  # slices that go through a 2D network together


@dataclass(frozen=True)
class ScanAnswer:
    """What a model says of one scan.

    Attributes:
        numbers: Class → calibrated probability, or name → number in its own unit.
        distance: How unlike the scans of the training it is, 1 at the limit; NaN where the model cannot tell.
    """

    numbers: dict[str, float]
    distance: float

    @property
    def chosen(self) -> str:
        """The most probable class, the first of several; of numbers, the name of the largest."""
        return max(self.numbers, key=lambda name: self.numbers[name])

    @property
    def unlike(self) -> bool:
        """Whether the scan is unlike those of the training: such an answer is not to be believed."""
        return self.distance > 1


class ScanModel:
    """A trained network that answers for whole scans. Load it as a `Classifier` or a `Regressor`; several threads may ask it.

    Attributes:
        names: Its classes, or the names of its numbers.
        scan: How a scan becomes what the network sees.
        digest: Digest of the checkpoint file.
        path: The checkpoint file.
        training: Digests of the files it was trained on.
        validation: Digests of the files that chose the checkpoint.
        mirror: Directions along which scans were mirrored in training.
        temperature: By what logits are divided.
        likeness: What scans are like those of the training; None where the checkpoint does not say.
        batch: Scans that go through the network together.
        notes: What a person should know of the checkpoint, a sentence each.
    """

    task: ClassVar[str]
    meaning: ClassVar[str]

    def __init__(self, network: nn.Module, description: dict[str, Any], digest: str, path: Path, device: torch.device) -> None:
        data, parts = description["data"], description["network"]
        self.names: tuple[str, ...] = tuple(data[self.meaning])
        self.scan = WholeScan.from_description(data, parts["in_channels"])
        self.digest, self.path, self.device = digest, path, device
        self.training, self.validation = frozenset(data["training"]), frozenset(data["validation"])
        self.mirror: tuple[str, ...] = tuple(data.get("mirror") or ())
        self.batch = _TOGETHER if len(self.scan.size) == 2 else 1
        self.network = network.to(device).eval()
        lay_out_weights(self.network)
        self.witness = Witness(self.network, len(self.names)).eval()
        answers = description.get("answers")
        self.temperature = float(answers["temperature"]) if answers else 1.0
        unlike = answers.get("unlike") if answers else None
        self.likeness = None if unlike is None else Likeness.from_dict(unlike)
        self.notes = _notes(answers, self.task == "classification")
        targets = description.get("targets") or {"mean": [0.0], "std": [1.0]}
        self._mean, self._std = (torch.tensor(targets[name], dtype=torch.float64) for name in ("mean", "std"))
        self.engine: ScanEngine | None = None
        _check_sizes(self, parts)

    @classmethod
    def load(
        cls,
        path: Path | str,
        device: str = "auto",
        precision: EnginePrecision = "fp32",
        engine: EngineName = "torch",
        calibration: Sequence[Case] = (),
    ) -> Self:
        """Load a checkpoint; nothing in the file is executed.

        Args:
            path: A checkpoint written by `medseg-se fit`.
            device: "auto", "cpu", "cuda", "cuda:1" or "mps".
            precision: "fp32"; "bf16" and "fp16" are faster where the hardware has them; "auto" takes one where it has;
                "int8" is calibrated with scans. All are checked on the first scans, see `ScanEngine`.
            engine: "torch", "compiled", "openvino" or "onnx"; "auto" takes what is fastest on the device and installed.
            calibration: Scans for "int8".

        Raises:
            CheckpointError: The file is missing, damaged, holds code, or is of another task.
            UsageError: The device does not exist, or cannot compute in that precision.
        """
        path = Path(path)
        description, state, digest = read_checkpoint(path)
        if (task := description.get("task", "segmentation")) != cls.task:
            raise CheckpointError(f"Expected a checkpoint of a {cls.task}, but {path} is of a {task}: {_loader(task)}.")
        target = best_device(device)
        name = ("openvino" if precision == "int8" else best_engine(target)) if engine == "auto" else engine
        check_engine(name, "fp32" if precision == "auto" else precision, target)
        if precision == "int8" and not calibration:
            raise UsageError("Expected scans to calibrate int8 with, but got none. Name some with --calibrate.")
        try:
            parts = description["network"]
            with Uninitialised():
                network = build_network(
                    parts["name"], parts["in_channels"], parts["num_classes"], parts["spatial_dims"], **parts["options"]
                )
            network.load_state_dict(state)
            model = cls(network, description, digest, path, target)
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError, MedsegError) as error:
            raise CheckpointError(
                f"Cannot make the model that {path} describes: {reason(error)}. The checkpoint is damaged, was edited, or "
                "needs a network that is not in NETWORKS here."
            ) from error
        if (engine, precision) != ("torch", "fp32"):
            model.engine = ScanEngine(
                model.witness,
                engine,
                precision,
                shape=(model.scan.channels, *model.scan.size),
                batch=model.batch,
                device=target,
                cache=cache_beside(path),
                digest=f"{digest} witness",
                decides=model.task == "classification",
                calibration=_batches(model, calibration) if calibration else None,
            )
        return model

    def read(self, case: Case) -> Tensor:
        """Read and prepare the scan of a case, float32 (C, *size), on the CPU; see `read_any`.

        Raises:
            DataError: The scan cannot be used.
        """
        return self.scan.prepare(read_any(case, self.scan))

    def answer(self, scans: Tensor, mirror: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
        """Answer for prepared scans.

        Args:
            scans: (N, C, *size), as `read` returns each.
            mirror: Directions along which mirror images are asked too, each alone and all together; probabilities, or
                numbers, are averaged. How unlike a scan is, is taken from the scan itself.

        Returns:
            Probabilities (N, classes) or numbers in their own units (N, values), and the distances (N,); float64, on the CPU.

        Raises:
            DataError: An answer that is not finite.
            UsageError: A direction that scans are not looked at along.
        """
        numbers, features = self._ask(scans)
        axes = self._axes(mirror)
        images = [(axis,) for axis in axes] + ([axes] if len(axes) > 1 else [])
        for flipped in images:
            numbers = numbers + self._ask(scans.flip(flipped))[0]
        numbers = numbers / (1 + len(images))
        if not numbers.isfinite().all():
            raise DataError("The network answers with numbers that are not finite.")
        distance = torch.full((len(scans),), math.nan, dtype=torch.float64)
        return numbers, distance if self.likeness is None else self.likeness.distance(features)

    def predict(self, image: Volume, mirror: Sequence[str] = ()) -> ScanAnswer:
        """Answer for a scan (C, I, J, K) as `read_image` or `read_picture` returns it.

        Raises:
            DataError: The scan cannot be used.
            UsageError: See `answer`.
        """
        prepared = self.scan.prepare(fitting(image, self.scan))
        numbers, distance = self.answer(prepared[None], mirror)
        return ScanAnswer(dict(zip(self.names, numbers[0].tolist(), strict=True)), float(distance[0]))

    def told(self, answers: Tensor) -> Tensor:
        """Return what the network's answers (N, len(names)) float64 mean."""
        raise NotImplementedError

    def _ask(self, scans: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is told of scans and their features, float64."""
        parts = []
        with torch.inference_mode():
            for some in torch.split(scans, self.batch):
                found = self.witness(some.to(self.device)) if self.engine is None else self.engine(some)
                parts.append(found.double().cpu())
        found = torch.cat(parts).clone()
        return self.told(found[:, : len(self.names)]), found[:, len(self.names) :]

    def _axes(self, mirror: Sequence[str]) -> tuple[int, ...]:
        """Return the axes of prepared scans (N, C, *size) that run along directions."""
        kept = [axis for axis in range(3) if axis != self.scan.flat_axis]
        found = []
        for direction in mirror:
            letters = MIRRORS[direction]
            axis = next(axis for axis, letter in enumerate(self.scan.preprocessing.orientation) if letter in letters)
            if axis not in kept:
                raise UsageError(
                    f"Slices cannot be mirrored from {direction.replace('-', ' to ')}, across which they were cut."
                )
            found.append(kept.index(axis) + 2)
        return tuple(found)


class Classifier(ScanModel):
    """A trained network that says which class a whole scan belongs to, with calibrated probabilities; see `ScanModel`."""

    task, meaning = "classification", "classes"

    def told(self, answers: Tensor) -> Tensor:
        """Return the probabilities."""
        return (answers / self.temperature).softmax(dim=1)


class Regressor(ScanModel):
    """A trained network that says a number of a whole scan, such as an age, or several; see `ScanModel`."""

    task, meaning = "regression", "values"

    def told(self, answers: Tensor) -> Tensor:
        """Return the numbers in their own units."""
        return answers * self._std + self._mean


def _batches(model: ScanModel, cases: Sequence[Case]) -> Iterator[Tensor]:
    """Yield batches (N, C, *size) of prepared scans; those that cannot be read are left out."""
    waiting: list[Tensor] = []
    for case in cases:
        with suppress(DataError):
            waiting.append(model.read(case))
        if len(waiting) == model.batch:
            yield torch.stack(waiting)
            waiting = []
    if waiting:
        yield torch.stack(waiting)


LOADERS: dict[str, type[ScanModel]] = {"classification": Classifier, "regression": Regressor}


def _loader(task: str) -> str:
    return f"use `{LOADERS[task].__name__ if task in LOADERS else 'Model'}.load`"


def _notes(answers: dict[str, Any] | None, calibrated: bool) -> tuple[str, ...]:
    if answers is None:
        return (OLD,)
    told = []
    if calibrated and (note := answers.get("temperature_note")):
        told.append(f"Probabilities are as the network gives them, not calibrated: {note}.")
    if answers.get("unlike") is None:
        told.append(f"Scans unlike those of the training are not recognised: {answers.get('unlike_note')}.")
    return tuple(told)


def _check_sizes(model: ScanModel, network: dict[str, Any]) -> None:
    """Refuse parts of a checkpoint that do not fit each other."""
    if network["num_classes"] != len(model.names):
        raise CheckpointError(f"its network has {network['num_classes']} outputs, but its data {len(model.names)} names")
    if len(model.scan.size) != network["spatial_dims"]:
        raise CheckpointError(f"its network has {network['spatial_dims']} axes, but its scans have {len(model.scan.size)}")
    if not (math.isfinite(model.temperature) and model.temperature > 0):
        raise CheckpointError(f"its temperature is {model.temperature}")
    if model.likeness is not None:
        blank = torch.zeros((1, model.scan.channels, *model.scan.size), device=model.device)
        found = sum(model.witness.sizes(blank))
        if found != model.likeness.features:
            raise CheckpointError(f"its network has {found} features, but what is known of them is {model.likeness.features}")
