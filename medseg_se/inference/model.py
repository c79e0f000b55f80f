"""From a checkpoint to a model that segments scans: everything it needs is in the checkpoint, as tensors and plain data."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medseg_se.checkpoints import read_checkpoint, reason
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.data.regions import Regions
from medseg_se.data.scan import read_channels
from medseg_se.errors import CheckpointError, DataError, MedsegError, UnknownNameError, UsageError
from medseg_se.execution import Uninitialised, lay_out_weights
from medseg_se.hardware import best_device
from medseg_se.inference.answering import Prediction, Voice, answer
from medseg_se.inference.engines.base import EngineName, EnginePrecision, best_engine, check_engine
from medseg_se.inference.engines.cache import cache_beside
from medseg_se.inference.engines.checked import CheckedEngine
from medseg_se.inference.frame import Frame
from medseg_se.inference.passage import Ready
from medseg_se.inference.postprocessing import PostProcessing
from medseg_se.inference.published import read_published
from medseg_se.inference.settings import Settings
from medseg_se.inference.streaming import Sweep, tiled_logits
from medseg_se.inference.tiling import at_least
from medseg_se.networks import build_network
from medseg_se.structures import Structures
from medseg_se.volumes import Volume

Precision = EnginePrecision
_SLICES = 8  # that go through a 2D network together
_CALIBRATION_TILES = 8  # of each scan
_RAW = " raw"


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
        seen: What the scans were like that it was trained on, if the checkpoint says so.
        mirror: Directions along which patches were mirrored in training.
        batch: Tiles that go through the network together.
        engine: What computes, as it was asked for.
        precision: The precision that was asked for.
        calibration: Scans that int8 is calibrated with.
        least_dice: The lowest Dice between int8 and float32 that is accepted for any class.
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
        self.batch = 1 if self.flat_axis is None else _SLICES
        self.seen: dict[str, Any] | None = data.get("seen")
        self.mirror: tuple[str, ...] = tuple(data.get("mirror") or ())
        self.engine: EngineName = "torch"
        self.calibration: tuple[Path, ...] = ()
        self.least_dice = 0.99
        self._engines: dict[tuple[int, ...], CheckedEngine] = {}
        self._making = threading.Lock()

    @classmethod
    def load(
        cls,
        path: Path | str,
        device: str = "auto",
        precision: Precision = "fp32",
        engine: EngineName = "torch",
        calibration: Sequence[Path | str] = (),
        least_dice: float = 0.99,
    ) -> Model:
        """Load a checkpoint; nothing in the file is executed.

        Args:
            path: A checkpoint written by `medseg-se fit` or `medseg-se cv`, or safetensors written by `medseg-se export`.
            device: "auto", "cpu", "cuda", "cuda:1" or "mps".
            precision: "bf16" and "fp16" are faster where the hardware has them, and round; "auto" takes one where it has. They
                are used as long as they decide as float32 does on the first tiles. "int8" is calibrated with scans.
            engine: "torch", "compiled", "openvino" or "onnx"; "auto" takes what is fastest on the device and installed. What is
                converted for it is kept beside the checkpoint, in `.medseg_cache`.
            calibration: Scans for "int8".
            least_dice: The lowest Dice between int8 and float32 that is accepted for any class.

        Raises:
            CheckpointError: The file is missing, damaged, holds code, or was written by another program.
            UsageError: The device does not exist, or cannot compute in that precision.
        """
        path = Path(path)
        published = path.suffix == ".safetensors"
        description, state, digest = read_published(path) if published else read_checkpoint(path)
        if (task := description.get("task", "segmentation")) != "segmentation":
            raise CheckpointError(
                f"Expected a checkpoint of a segmentation, but {path} is of a {task}. Load it with "
                f"`medseg_se.{'Classifier' if task == 'classification' else 'Regressor'}.load`, or use `medseg-se predict`."
            )
        target = best_device(device)
        _check_engine(engine, precision, target, calibration)
        try:
            parts = description["network"]
            with Uninitialised():
                network = build_network(
                    parts["name"], parts["in_channels"], parts["num_classes"], parts["spatial_dims"], **parts["options"]
                )
            network.load_state_dict(state)
            model = cls(network, description, digest, target, precision)
            model.path, model.engine, model.least_dice = path, engine, least_dice
            model.calibration = tuple(map(Path, calibration))
            _check_agreement(model, parts)
        except UnknownNameError as error:
            if error.kind not in ("attention", "network"):
                raise _unmade(path, error) from error
            raise CheckpointError(
                f"Cannot make the model that {path} describes: {reason(error)}. If it is of your own making, name its file by "
                "--plugins FILE.py, or in Python run that file before the checkpoint is loaded. Otherwise the checkpoint was "
                "edited."
            ) from error
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError, MedsegError) as error:
            raise _unmade(path, error) from error
        return model

    def leave_raw(self) -> None:
        """Leave out the post-processing that is stored with the model, from now on."""
        if self.postprocessing:
            self.postprocessing, self.digest = PostProcessing(), f"{self.digest}{_RAW}"

    def prepare(self, image: Volume) -> Ready:
        """Prepare a scan (C, I, J, K) as read from its file; the result does not hold on to `image`.

        Raises:
            DataError: Wrong number of channels, or voxels that are not finite.
        """
        if image.array.shape[0] != len(self.channels):
            raise DataError(
                f"Expected {len(self.channels)} channels ({', '.join(self.channels)}), but "
                f"{image.path or 'the scan'} has {image.array.shape[0]}."
            )
        prepared = self.preprocessing(image)
        return Ready(torch.from_numpy(prepared.image.array), Frame.of(prepared), _without_voxels(image))

    def answer(
        self,
        ready: Ready,
        settings: Settings = Settings(),  # noqa: B008 - frozen
        probabilities: bool | Path = False,
        uncertainty: bool = False,
    ) -> Prediction:
        """Segment a prepared scan, slab by slab.

        Args:
            ready: What `prepare` returned.
            settings: How the scan is looked at.
            probabilities: Whether they are returned too, or the file they are written to, slab by slab.
            uncertainty: Whether the entropy over each structure is measured.

        Raises:
            DataError: An answer of the network that is not finite, or a scan too large for the memory.
            UsageError: The scan cannot be mirrored as the settings say.
            OutputError: The probabilities cannot be written.
        """
        return answer(self, [Voice(self, ready, 1.0, tuple(range(self.maps)))], settings, probabilities, uncertainty)

    def predict(
        self,
        image: Volume,
        settings: Settings = Settings(),  # noqa: B008 - frozen
        probabilities: bool | Path = False,
        uncertainty: bool = False,
    ) -> Prediction:
        """Segment a scan (C, I, J, K) as read from its file; see `answer`. Safe to call from several threads at a time.

        Raises:
            DataError: As `prepare` and `answer`.
        """
        return self.answer(self.prepare(image), settings, probabilities, uncertainty)

    def logits(self, image: Tensor, overlap: float = 0.5) -> Tensor:
        """Return the logits (maps, I, J, K) of a whole prepared scan (C, I, J, K)."""
        return tiled_logits(self.network_answer, image, self.tile, overlap, self.batch, self.flat_axis)

    def network_answer(self, tiles: Tensor) -> Tensor:
        """Return the logits (N, maps, *tile) of tiles (N, C, *tile), without the flat axis where there is one."""
        if self._is_plain:
            logits: Tensor = self.network(tiles)
            return logits
        return self._engine_for(tiles)(tiles)

    def warm_up(self, tiles: Tensor) -> tuple[str, ...]:
        """Make the engine for tiles (N, C, *tile) of this shape and check it on them, unless that has been done.

        Returns what a person should know about how it computes.
        """
        if self._is_plain:
            return ()
        engine = self._engine_for(tiles)
        engine.prepare(tiles)
        return engine.notes

    @property
    def _is_plain(self) -> bool:
        """Whether the network itself answers, in float32."""
        return (self.engine, self.precision) == ("torch", "fp32")

    def _engine_for(self, tiles: Tensor) -> CheckedEngine:
        """Return the engine for tiles of this shape."""
        shape = tuple(tiles.shape[1:])
        with self._making:
            if shape not in self._engines:
                self._engines[shape] = self._make_engine(shape)
            return self._engines[shape]

    def _make_engine(self, shape: tuple[int, ...]) -> CheckedEngine:
        return CheckedEngine(
            self.network,
            self.engine,
            self.precision,
            shape=shape,
            batch=self.batch,
            device=self.device,
            cache=cache_beside(self.path) if self.path else None,
            digest=self.digest.removesuffix(_RAW),
            regions=self.regions is not None,
            calibration=self._calibration_tiles(shape) if self.calibration else None,
            least_dice=self.least_dice,
        )

    def _calibration_tiles(self, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """Yield batches (N, C, *tile) from the scans that int8 is calibrated with, those that vary most first."""
        size = list(shape[1:])
        if self.flat_axis is not None:
            size.insert(self.flat_axis, 1)
        for path in self.calibration:
            prepared = self.prepare(read_channels([path], len(self.channels))).image
            image, _ = at_least(prepared, size)
            corners = [corner for batch in Sweep.over(image.shape[1:], size, 0.0, 0).batches for corner in batch]
            tiles = [image[(slice(None), *(slice(s, s + n) for s, n in zip(c, size, strict=True)))] for c in corners]
            tiles.sort(key=lambda tile: -float(tile.std()))
            chosen = torch.stack(tiles[:_CALIBRATION_TILES])
            yield from torch.split(chosen if self.flat_axis is None else chosen.squeeze(self.flat_axis + 2), self.batch)

    def watched(self, slabs: Iterator[Tensor], axis: int, reverse: bool) -> Iterator[Tensor]:
        """Return slabs of logits (A, B, maps) as they are; a class that looks into its network takes from them what it added.

        Args:
            slabs: One after another.
            axis: The axis of the prepared scan along which they lie.
            reverse: Whether they come from its end.
        """
        return slabs


def _unmade(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"Cannot make the model that {path} describes: {reason(error)}. The checkpoint is damaged, or was edited."
    )


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


def _check_engine(engine: str, precision: str, device: torch.device, calibration: Sequence[Path | str]) -> None:
    """Refuse an engine or precision that is not to be had, before anything large is read."""
    if (engine, precision) == ("torch", "fp32"):
        return
    name = ("openvino" if precision == "int8" else best_engine(device)) if engine == "auto" else engine
    check_engine(name, "fp32" if precision == "auto" else precision, device)
    if precision == "int8" and not calibration:
        raise UsageError("Expected scans to calibrate int8 with, but got none. Name some with --calibrate.")


def _without_voxels(image: Volume) -> Volume:
    """Return a scan of which only the grid is left, so that nothing holds on to its voxels."""
    return replace(image, array=np.broadcast_to(np.uint8(0), image.array.shape))
