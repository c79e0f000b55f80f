"""An engine that has shown on the first scans that it answers as the network does in float32, or that gave way to another."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from medseg_se.inference.engines import make_engine
from medseg_se.inference.engines.base import ConversionError, Engine, best_engine, best_precision, check_engine
from medseg_se.inference.engines.cache import Cache
from medseg_se.inference.engines.conversion import Conversion
from medseg_se.inference.engines.torch_engine import TorchEngine
from medseg_se.networks.witness import Witness

CHECKED = 8
"""Scans on which engines are compared; there the network is computed in float32, too."""
LARGEST_SHIFT = {"fp32": 0.01, "bf16": 0.05, "fp16": 0.05, "int8": 0.1}
"""By how much the probability of a class may differ from that in float32; of numbers, by how many standard deviations."""
CLEAR = 0.02
"""Where the two most probable classes are nearer than this in float32, either may be chosen."""


class ScanEngine:
    """What answers scans; made, and checked, at the first ones.

    An engine passes if it chooses the class that float32 chooses for every scan checked, and no probability is further off
    than `LARGEST_SHIFT`. What does not pass is replaced: less than float32 by the same engine in float32, and that by torch.

    Args:
        witness: The network in evaluation, on `device`, with its features.
        engine: "auto", or as for `make_engine`.
        precision: "auto", or as for `make_engine`, or "int8" of "openvino".
        shape: (C, *size) of a scan.
        batch: The most scans it takes at a time.
        device: Where it computes.
        cache: The folder in which converted models are kept; None keeps nothing.
        digest: What tells the weights apart from all others.
        decides: Whether the answers are logits of classes, and not numbers.
        calibration: Batches (N, C, *size) of typical scans, for "int8"; drawn only if nothing was quantised before.

    Attributes:
        name: The engine that is in use, or will be if it passes.
        precision: That of the engine.

    Raises:
        UsageError: The engine or precision is unknown, not installed, or not to be had on the device.
    """

    def __init__(
        self,
        witness: Witness,
        engine: str = "auto",
        precision: str = "auto",
        *,
        shape: tuple[int, ...],
        batch: int,
        device: torch.device,
        cache: Path | None = None,
        digest: str,
        decides: bool,
        calibration: Iterable[Tensor] | None = None,
    ) -> None:
        wanted = "openvino" if precision == "int8" else best_engine(device)
        self.name = wanted if engine == "auto" else engine
        check_engine(self.name, "fp32" if precision == "auto" else precision, device)
        self.precision = best_precision(self.name, device) if precision == "auto" else precision
        self._answers, self._decides, self._calibration = witness.num_classes, decides, calibration
        self._replaceable = engine in ("auto", "compiled")  # what cannot be converted is not an error then
        self._cache = Cache(cache)
        self._conversion = Conversion(witness, shape, batch, device, self._cache, digest)
        self._engine: Engine | None = None
        self._notes: list[str] = []
        self._lock = threading.Lock()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the choice, one sentence each; complete once there was a scan."""
        return (*self._notes, *self._cache.notes)

    def __call__(self, scans: Tensor) -> Tensor:
        """Return answers and features (N, answers + features) of scans (N, C, *size), at most `batch` of them.

        Raises:
            UsageError: An engine that was asked for by name cannot take over the network.
        """
        return self.prepare(scans)(scans)

    def prepare(self, scans: Tensor) -> Engine:
        """Return the engine, which is made and checked on the first `CHECKED` of `scans` if that was not done yet."""
        if self._engine is None:
            with self._lock:
                if self._engine is None:
                    self._notes.clear()
                    self._engine = self._chosen(scans[:CHECKED].detach().float())
                    self.name, self.precision = self._engine.name, self._engine.precision
        return self._engine

    def _chosen(self, scans: Tensor) -> Engine:
        """Return the first candidate that passes."""
        parts = self._conversion
        reference = TorchEngine(parts.network, "fp32", parts.batch, parts.device)
        expected = reference(scans)[:, : self._answers].float().cpu()
        unusable = ""
        for name, precision in self._candidates():
            if (name, precision) == ("torch", "fp32"):
                break
            if name == unusable:
                continue
            try:
                engine = self._made(name, precision)
            except ConversionError as error:
                if not self._replaceable:
                    raise
                self._notes.append(f"torch answers in place of {name}. {error}".replace(" Choose the engine torch.", ""))
                unusable = name
                continue
            passed, words = self._compared(engine(scans)[:, : self._answers].float().cpu(), expected, precision)
            if passed:
                self._notes.append(f"{name} in {precision} answers as torch in fp32 does: {words}.")
                return engine
            if precision == "int8":
                self._forget_int8()
            self._notes.append(f"{name} in {precision} is not used, for it does not answer as torch in fp32 does: {words}.")
        return reference

    def _candidates(self) -> Iterator[tuple[str, str]]:
        yield self.name, self.precision
        if self.precision != "fp32":
            yield self.name, "fp32"
        yield "torch", "fp32"

    def _compared(self, found: Tensor, expected: Tensor, precision: str) -> tuple[bool, str]:
        """Return whether answers (N, answers) are near enough to those expected, and how near in words."""
        most, count = LARGEST_SHIFT[precision], len(expected)
        if not found.isfinite().all():
            return False, "its answers are not finite"
        if not self._decides:
            shift = float((found - expected).abs().max())
            return shift <= most, f"numbers differ by up to {shift:.2g} standard deviations on {count} scans"
        ours, theirs = found.softmax(dim=1), expected.softmax(dim=1)
        best = theirs.topk(2, dim=1).values
        same = (ours.argmax(dim=1) == theirs.argmax(dim=1)) | (best[:, 0] - best[:, 1] < CLEAR)
        shift = float((ours - theirs).abs().max())
        words = f"the same class for {int(same.sum())} of {count} scans, probabilities differ by up to {shift:.2g}"
        return bool(same.all()) and shift <= most, words

    def _made(self, name: str, precision: str) -> Engine:
        parts = self._conversion
        if precision != "int8":
            return make_engine(
                parts.network, name, precision, parts.shape, parts.batch, parts.device, self._cache, parts.digest
            )
        from medseg_se.inference.engines.openvino_engine import OpenVINOEngine
        from medseg_se.inference.engines.quantise import WHOLE_SCAN, int8_model, kept_int8

        if (path := kept_int8(parts)) is not None:
            self._notes.append(f"int8 was calibrated before, and that is used. Remove {path} to calibrate it anew.")
        return OpenVINOEngine(int8_model(parts, self._calibration, WHOLE_SCAN), "int8", parts.batch)

    def _forget_int8(self) -> None:
        """Let the next calibration, with other scans, start afresh."""
        from medseg_se.inference.engines.quantise import kept_int8

        if (path := kept_int8(self._conversion)) is not None:
            self._cache.remove(path.name)
