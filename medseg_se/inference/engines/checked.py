"""An engine that has shown on the first tiles that it decides as the network does in float32, or that gave way to another."""

from __future__ import annotations

import functools
import json
import platform
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from medseg_se.errors import UsageError
from medseg_se.inference.engines import make_engine
from medseg_se.inference.engines.agreement import Agreement, Decisions, compare, decide
from medseg_se.inference.engines.base import ConversionError, Engine, best_engine, best_precision, check_engine
from medseg_se.inference.engines.cache import Cache
from medseg_se.inference.engines.conversion import Conversion
from medseg_se.inference.engines.torch_engine import TorchEngine

LEAST_AGREEMENT = 0.999
"""Share of the voxels whose decision must be that of the network in float32."""
LEAST_DICE = 0.95
"""The Dice with the network in float32 that every class but the smallest must have; int8 is asked for more."""
CHECK_TILES = 2
"""Tiles on which engines are compared; there the network is computed in float32, too."""


class CheckedEngine:
    """An engine that is made, and checked, at the first tiles; see `Engine`.

    What falls short of `LEAST_AGREEMENT` or `LEAST_DICE` is replaced: less than float32 by the same engine in float32, and that
    by torch.
    The figures are kept in the cache, so that they are measured once for a model, an engine and a machine.

    Args:
        network: In evaluation, on `device`.
        engine: "auto", or as for `make_engine`.
        precision: "auto", or as for `make_engine`, or "int8" of "openvino".
        shape: (C, *spatial) of a tile.
        batch: The most tiles it takes at a time.
        device: Where it computes.
        cache: The folder in which converted models and figures are kept; None keeps nothing.
        digest: What tells the weights apart from all others.
        regions: Whether the network's maps are regions, and not classes.
        calibration: Tiles (N, C, *spatial) of typical scans, for "int8"; drawn only if nothing was quantised before.
        least_dice: The lowest Dice that any class may have between int8 and float32.

    Attributes:
        name: The engine that is in use, or will be if it passes.
        precision: That of the engine.
        batch: The most tiles it takes at a time.

    Raises:
        UsageError: The engine or precision is unknown, not installed, or not to be had on the device.
    """

    def __init__(
        self,
        network: nn.Module,
        engine: str = "auto",
        precision: str = "auto",
        *,
        shape: tuple[int, ...],
        batch: int,
        device: torch.device,
        cache: Path | None = None,
        digest: str,
        regions: bool = False,
        calibration: Iterable[Tensor] | None = None,
        least_dice: float = 0.99,
    ) -> None:
        wanted = "openvino" if precision == "int8" else best_engine(device)
        self.name = wanted if engine == "auto" else engine
        check_engine(self.name, "fp32" if precision == "auto" else precision, device)
        self.precision = best_precision(self.name, device) if precision == "auto" else precision
        if not 0 < least_dice <= 1:
            raise UsageError(f"Expected the lowest Dice of int8 to be above 0 and at most 1, but got {least_dice}.")
        self.batch = batch
        self._replaceable = engine in ("auto", "compiled")  # what cannot be converted is not an error then
        self._calibration, self._least_dice, self._regions = calibration, least_dice, regions
        self._cache = Cache(cache)
        self._conversion = Conversion(network, shape, batch, device, self._cache, digest)
        self._engine: Engine | None = None
        self._notes: list[str] = []
        self._lock = threading.Lock()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the choice, one sentence each; complete once there was a tile."""
        return (*self._notes, *self._cache.notes)

    def __call__(self, tiles: Tensor) -> Tensor:
        """Return logits (N, maps, *spatial) of tiles (N, C, *spatial)."""
        return self.prepare(tiles)(tiles)

    def prepare(self, tiles: Tensor) -> Engine:
        """Return the engine, which is made and checked on the first `CHECK_TILES` of `tiles` if that was not done yet.

        Tiles from the middle of a scan say more than those from its corners. A verdict on tiles in which only one class is
        found counts for this object, but is not kept.

        Raises:
            UsageError: An engine that was asked for by name cannot take over the network, or int8 does not agree.
        """
        engine = self._engine
        if engine is not None:
            return engine
        with self._lock:
            if self._engine is None:
                self._notes.clear()
                self._engine = self._chosen(tiles[:CHECK_TILES].detach().float())
                self.name, self.precision = self._engine.name, self._engine.precision
            return self._engine

    def _chosen(self, tiles: Tensor) -> Engine:
        """Return the first candidate that passes."""
        parts = self._conversion
        reference = TorchEngine(parts.network, "fp32", parts.batch, parts.device)
        expected = functools.cache(lambda: decide(reference, tiles, self._regions))  # once for all candidates, if at all
        unusable = ""
        for name, precision in self._candidates():
            if name == unusable:
                continue
            if (name, precision) == ("torch", "fp32"):
                return reference
            try:
                engine, agreement = self._judged(name, precision, expected, tiles)
            except ConversionError as error:
                if not self._replaceable or precision == "int8":
                    raise
                self._notes.append(f"torch answers in place of {name}. {error}".replace(" Choose the engine torch.", ""))
                unusable = name
                continue
            if engine is not None:
                self._notes.append(f"{name} in {precision} decides as torch in fp32 does: {agreement}.")
                return engine
            if precision == "int8":
                self._forget_int8()
                raise UsageError(
                    f"int8 does not decide as fp32 does: {agreement}, but at least {self._asked(precision)}. "
                    "Calibrate it with other scans, or choose another precision."
                )
            self._notes.append(
                f"{name} in {precision} is not used, for it does not decide as torch in fp32 does: {agreement}, but at least "
                f"{self._asked(precision)}."
            )
        return reference

    def _candidates(self) -> Iterator[tuple[str, str]]:
        yield self.name, self.precision
        if self.precision not in ("fp32", "int8"):
            yield self.name, "fp32"
        yield "torch", "fp32"

    def _judged(
        self, name: str, precision: str, expected: Callable[[], Decisions], tiles: Tensor
    ) -> tuple[Engine | None, Agreement]:
        """Return an engine with its figures, None in its place if they fall short."""
        place = f"{self._verdict_key(name, precision)}.verdict"
        kept = self._cache.read(place)
        agreement = None if kept is None else Agreement(**json.loads(kept))
        if agreement is not None and not self._passes(agreement, precision) and precision != "int8":
            return None, agreement
        engine = self._made(name, precision)
        if agreement is None or precision == "int8":  # int8 depends on the scans it was calibrated with
            agreement = compare(decide(engine, tiles, self._regions), expected())
            if agreement.found > (0 if self._regions else 1) and precision != "int8":
                self._cache.write(place, json.dumps(vars(agreement)).encode())
        return (engine if self._passes(agreement, precision) else None), agreement

    def _passes(self, agreement: Agreement, precision: str) -> bool:
        return agreement.voxels >= LEAST_AGREEMENT and agreement.dice >= self._dice_asked(precision)

    def _dice_asked(self, precision: str) -> float:
        return self._least_dice if precision == "int8" else LEAST_DICE

    def _asked(self, precision: str) -> str:
        return f"{LEAST_AGREEMENT:.1%} of the voxels and a Dice of {self._dice_asked(precision):g} are asked for"

    def _made(self, name: str, precision: str) -> Engine:
        parts = self._conversion
        if precision != "int8":
            return make_engine(
                parts.network, name, precision, parts.shape, parts.batch, parts.device, self._cache, parts.digest
            )
        from medseg_se.inference.engines.openvino_engine import OpenVINOEngine
        from medseg_se.inference.engines.quantise import int8_model, kept_int8

        if self._calibration is not None and (path := kept_int8(parts)) is not None:
            self._notes.append(f"int8 was calibrated before, and that is used. Remove {path} to calibrate it anew.")
        return OpenVINOEngine(int8_model(parts, self._calibration), "int8", parts.batch)

    def _forget_int8(self) -> None:
        """Let the next calibration, with other scans, start afresh."""
        from medseg_se.inference.engines.quantise import kept_int8

        if (path := kept_int8(self._conversion)) is not None:
            self._cache.remove(path.name)

    def _verdict_key(self, name: str, precision: str) -> str:
        decision = "regions" if self._regions else "classes"
        return self._conversion.key(f"{name} {precision} {decision} {_processor(self._conversion.device)}")


def _processor(device: torch.device) -> str:
    """Return the model of what computes: rounding differs between them."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else f"{platform.processor()} {platform.machine()}"
