"""Where a model comes from, as plain data: what other processes and machines need to load the same one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from medseg_se.plugins import load_plugins, loaded_plugins

if TYPE_CHECKING:
    from medseg_se.inference.engines.base import EngineName, EnginePrecision
    from medseg_se.inference.ensemble import Ensemble
    from medseg_se.inference.model import Model


@dataclass(frozen=True)
class ModelSource:
    """What `load_model` is told.

    Attributes:
        checkpoints: Checkpoints, or folders of them.
        weights: A number for each, if they are not equal.
        device: See `Model.load`.
        precision: See `Model.load`.
        engine: See `Model.load`.
        raw: Whether the post-processing of the checkpoints is left out.
        calibration: See `Model.load`.
        least_dice: See `Model.load`.
        plugins: Files that are run first, by default those that were run in this process.
    """

    checkpoints: tuple[Path | str, ...]
    weights: tuple[float, ...] | None = None
    device: str = "auto"
    precision: str = "fp32"
    engine: str = "torch"
    raw: bool = False
    calibration: tuple[Path | str, ...] = ()
    least_dice: float = 0.99
    plugins: tuple[Path, ...] = field(default_factory=loaded_plugins)

    def load(self) -> Model | Ensemble:
        """Load the model.

        Raises:
            CheckpointError: See `load_model`.
            UsageError: See `load_model`.
        """
        from medseg_se.inference.ensemble import load_model

        load_plugins(self.plugins)
        return load_model(
            self.checkpoints,
            self.weights,
            self.device,
            cast("EnginePrecision", self.precision),  # what is neither is refused there
            engine=cast("EngineName", self.engine),
            raw=self.raw,
            calibration=self.calibration,
            least_dice=self.least_dice,
        )

    def on_card(self, number: int) -> ModelSource:
        """Return the source for the worker `number`, so that all graphics cards are used where no single one was named."""
        import torch

        if self.device not in ("auto", "cuda") or not torch.cuda.is_available():
            return self
        return replace(self, device=f"cuda:{number % torch.cuda.device_count()}")
