"""From a checkpoint to a model that segments scans: everything it needs is in the checkpoint, as tensors and plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg_se.checkpoints import read_checkpoint, reason
from medseg_se.data.preprocessing import Prepared, Preprocessing
from medseg_se.data.regions import Regions
from medseg_se.errors import CheckpointError, DataError, MedsegError, UsageError
from medseg_se.execution import lay_out_weights
from medseg_se.hardware import best_device, free_memory, has_bfloat16
from medseg_se.inference.postprocessing import PostProcessing
from medseg_se.inference.tiling import tiled_logits
from medseg_se.networks import build_network
from medseg_se.structures import Structures
from medseg_se.volumes import Volume

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Prediction:
    """What a model says of a scan, on the scan's own grid.

    Attributes:
        labels: Label values of the dataset the model was trained on, in its type, (1, I, J, K), post-processed.
        probabilities: float32 (classes, I, J, K), background first, which sum to 1; or (regions, I, J, K) of a model that finds
            regions. None unless asked for.
    """

    labels: Volume
    probabilities: Volume | None = None


class Model:
    """A trained network with its preprocessing and structures. Make one with `Model.load`.

    Attributes:
        structures: What it segments.
        regions: What its network finds, where that is regions; None where it is structures.
        maps: Maps that its network returns: one for each class, or region.
        channels: Names of the channels it expects.
        preprocessing: What is done to a scan first.
        postprocessing: What is done to its label maps, and never to probabilities.
        digest: Digest of the checkpoint file, followed by "raw" if its post-processing is left out.
        path: The checkpoint file, for messages.
        training: Digests of the image files it was trained on.
        validation: Digests of the image files that chose the checkpoint.
    """

    def __init__(
        self, network: nn.Module, description: dict[str, Any], digest: str, device: torch.device, precision: Precision
    ) -> None:
        data = description["data"]
        self.network = network.to(device).eval()
        lay_out_weights(self.network)
        self.device, self.precision, self.digest = device, precision, digest
        self.path: Path | None = None
        self.structures = Structures.from_dict(data["structures"])
        targets = data.get("targets")  # versions before regions did not say
        self.regions = Regions.named(targets, self.structures) if targets else None
        self.maps = self.structures.num_classes if self.regions is None else len(self.regions.names)
        self.postprocessing = PostProcessing.from_dict(description.get("postprocessing"), self.structures)
        self.channels: tuple[str, ...] = tuple(data["channels"])
        self.preprocessing = Preprocessing.from_dict(data["preprocessing"])
        self.label_dtype: str = data["label_dtype"]
        self.training, self.validation = frozenset(data["training"]), frozenset(data["validation"])
        self.flat_axis: int | None = data["flat_axis"]
        self.tile: tuple[int, ...] = tuple(data["tile"])

    @classmethod
    def load(cls, path: Path | str, device: str = "auto", precision: Precision = "fp32") -> Model:
        """Load a checkpoint; nothing in the file is executed.

        Args:
            path: A checkpoint written by `medseg-se fit` or `medseg-se cv`.
            device: "auto", "cpu", "cuda", "cuda:1" or "mps".
            precision: "bf16" is faster where the hardware has it, and rounds.

        Raises:
            CheckpointError: The file is missing, damaged, holds code, or was written by another program.
            UsageError: The device does not exist, or cannot compute in that precision.
        """
        path = Path(path)
        description, state, digest = read_checkpoint(path)
        if (task := description.get("task", "segmentation")) != "segmentation":
            raise CheckpointError(
                f"Expected a checkpoint of a segmentation, but {path} is of a {task}. Judge it with `medseg-se validate` or "
                "`medseg-se test`."
            )
        target = best_device(device)
        if precision not in ("fp32", "bf16"):
            raise UsageError(f"Expected `precision` to be fp32 or bf16, but got {precision!r}.")
        if precision == "bf16" and not has_bfloat16(target):
            raise UsageError(f"The device {target} does not compute in bfloat16. Leave out the precision.")
        try:
            parts = description["network"]
            network = build_network(
                parts["name"], parts["in_channels"], parts["num_classes"], parts["spatial_dims"], **parts["options"]
            )
            network.load_state_dict(state)
            model = cls(network, description, digest, target, precision)
            model.path = path
            _check_agreement(model, parts)
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError, MedsegError) as error:
            raise CheckpointError(
                f"Cannot make the model that {path} describes: {reason(error)}. The checkpoint is damaged, was edited, or "
                "needs a network that is not in NETWORKS here."
            ) from error
        return model

    def leave_raw(self) -> None:
        """Leave out the post-processing that is stored with the model, from now on."""
        if self.postprocessing:
            self.postprocessing, self.digest = PostProcessing(), f"{self.digest} raw"

    def predict(self, image: Volume, overlap: float = 0.5, probabilities: bool = False) -> Prediction:
        """Segment a scan (C, I, J, K) as read from its file.

        Raises:
            DataError: Wrong number of channels, voxels that are not finite, an answer of the network that is not, or a scan too
                large for the memory.
        """
        prepared, logits = self._answer(image, overlap, probabilities)
        indices = self._decide(logits, prepared.cut_shape).cpu().numpy()
        values = self.structures.decode(indices, self.label_dtype or None)
        labels = self.postprocessing(prepared.restore(values[None], self.structures.background[0]), self.structures)
        if not probabilities:
            return Prediction(labels)
        return Prediction(labels, _probabilities(logits, prepared, self.regions))

    def probabilities(self, image: Volume, overlap: float = 0.5) -> Volume:
        """Return the probabilities of a scan (C, I, J, K) that `predict` would, without its labels.

        Raises:
            DataError: As `predict`.
        """
        prepared, logits = self._answer(image, overlap, probabilities=True)
        return _probabilities(logits, prepared, self.regions)

    def _decide(self, logits: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Return the structure index of every voxel after linear resampling of the logits to `shape`."""
        if self.regions is None:
            return _largest(logits, shape)
        return self.regions.label_map(lambda place: _resized(logits[place], shape) > 0)

    def _answer(self, image: Volume, overlap: float, probabilities: bool) -> tuple[Prepared, Tensor]:
        """Return the prepared scan and its logits (classes, I, J, K), both of which are as they should be."""
        if image.array.shape[0] != len(self.channels):
            raise DataError(
                f"Expected {len(self.channels)} channels ({', '.join(self.channels)}), but "
                f"{image.path or 'the scan'} has {image.array.shape[0]}."
            )
        prepared = self.preprocessing(image)
        self._check_memory(prepared, probabilities)
        logits = self.logits(torch.from_numpy(prepared.image.array).to(self.device), overlap)
        if not torch.isfinite(logits.sum()):
            raise DataError(
                f"The network's answer to {image.path or 'the scan'} is not finite. Its intensities are out of the ordinary"
                f"{', or bf16 is too coarse for this model' if self.precision == 'bf16' else ''}, or the checkpoint is damaged."
            )
        return prepared, logits

    def _check_memory(self, case: Prepared, probabilities: bool) -> None:
        """Refuse a scan whose logits exceed the memory: the system would end the program, and with it the other scans."""
        classes, prepared = self.maps, case.image
        needed, free = 4 * math.prod(prepared.shape) * (classes + 2), free_memory()
        if probabilities:  # on the scan's own grid, with the copies of restoring and writing
            needed += 3 * 4 * math.prod(case.original.shape) * classes
        if self.device.type == "cpu" and needed > free:
            raise DataError(
                f"Expected {needed / 2**30:.1f} GiB of free memory for the {classes} classes of {prepared.path or 'the scan'} "
                f"on {case.original.shape} voxels, but got {free / 2**30:.1f} GiB. Cut the scan, or take a machine with more."
            )

    def logits(self, image: Tensor, overlap: float = 0.5) -> Tensor:
        """Return the logits (classes, I, J, K) of a prepared scan (C, I, J, K)."""
        batch = 1 if self.flat_axis is None else 8
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return tiled_logits(self.network, image, self.tile, overlap, batch, self.flat_axis)


def _check_agreement(model: Model, network: dict[str, Any]) -> None:
    """Refuse a network that does not fit the channels, structures and tiles of its data."""
    agreed = {
        "channels": (network["in_channels"], len(model.channels)),
        "classes": (network["num_classes"], model.maps),
        "spatial axes": (network["spatial_dims"], 3 if model.flat_axis is None else 2),
    }
    for what, (of_network, of_data) in agreed.items():
        if of_network != of_data:
            raise CheckpointError(f"its network has {of_network} {what}, its data {of_data}")
    if len(model.tile) != 3 or min(model.tile) < 1 or (model.flat_axis is not None and model.tile[model.flat_axis] != 1):
        raise CheckpointError(f"its tiles have the impossible shape {model.tile}")
    if model.label_dtype and np.dtype(model.label_dtype).kind not in "iu":
        raise CheckpointError(f"its label values are of type {model.label_dtype!r}")
    voxel = Volume(np.zeros((len(model.channels), 1, 1, 1), dtype=np.float32), np.eye(4))
    model.preprocessing(voxel).restore(
        model.structures.decode(np.zeros((1, 1, 1, 1), dtype=np.int64), model.label_dtype or None)
    )


def _largest(logits: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the class with the largest logit after linear resampling to `shape`, one class in memory at a time."""
    if tuple(logits.shape[1:]) == shape:
        return logits.argmax(0)
    best = _resized(logits[0], shape)
    winner = torch.zeros(shape, dtype=torch.int64, device=logits.device)
    for index in range(1, len(logits)):
        candidate = _resized(logits[index], shape)
        better = candidate > best
        best = torch.where(better, candidate, best)
        winner[better] = index
    return winner


def _resized(channel: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return F.interpolate(channel[None, None], size=shape, mode="trilinear", align_corners=False)[0, 0]


def _probabilities(logits: Tensor, prepared: Prepared, regions: Regions | None) -> Volume:
    """Return probabilities on the scan's own grid, of the same resampled logits that decide the labels.

    What was cropped away is background for certain, and in no region.
    """
    resized = torch.empty((len(logits), *prepared.cut_shape))  # computed in place: the largest array of all
    for index, channel in enumerate(logits):
        resized[index] = _resized(channel, prepared.cut_shape).cpu()
    if regions is not None:
        return prepared.restore(resized.sigmoid_().numpy())
    resized -= resized.amax(0)
    resized.exp_()
    resized /= resized.sum(0)
    restored = prepared.restore(resized.numpy())
    inside = prepared.restore(np.ones((1, *prepared.cut_shape), dtype=np.uint8)).array[0]
    restored.array[0][inside == 0] = 1.0
    return restored
