"""Synthesiser: the synthetic scans of a training run, drawn and made for one patch or one case at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg_se.data.augmentation import SpatialChange
from medseg_se.data.intensity import Scaling
from medseg_se.data.store import StoredCase
from medseg_se.data.synthesis import Synthesis, SyntheticChange, draw_deformation, draw_synthesis
from medseg_se.data.synthetic_scan import rescale, synthesise
from medseg_se.data.tissues import Tissues
from medseg_se.errors import UsageError, unknown_name


@dataclass(frozen=True)
class Synthesiser:
    """How synthetic scans of a run are made.

    Attributes:
        ranges: What they are drawn from.
        tissues: What is known of the structures.
        scalings: How each channel of a real scan is scaled, whose place they take.
        share: Share of the training patches of real scans whose intensities are replaced by synthetic ones. Those of cases
            of a label map alone always are.
    """

    ranges: Synthesis
    tissues: Tissues
    scalings: tuple[Scaling, ...]
    share: float

    def takes(self, case: StoredCase, rng: np.random.Generator) -> bool:
        """Decide whether a patch of `case` is synthetic; draws only where that is open."""
        return case.channels == 0 or (self.share > 0 and bool(rng.random() < self.share))

    def draw(self, rng: np.random.Generator, size: Sequence[int], spacing: Sequence[float]) -> SyntheticChange:
        """Draw all that makes the intensities of a patch of `size` voxels of `spacing` mm."""
        return draw_synthesis(self.ranges, rng, self.tissues, size, spacing, len(self.scalings))

    def deform(
        self,
        rng: np.random.Generator,
        size: Sequence[int],
        spacing: Sequence[float],
        flat_axis: int | None,
        mirrored: tuple[int, ...],
    ) -> SpatialChange:
        """Draw how the label map is bent while a patch is cut from it; see `draw_deformation`."""
        return draw_deformation(self.ranges, rng, size, spacing, flat_axis, mirrored)

    def make(self, labels: Tensor, change: SyntheticChange) -> Tensor:
        """Return the scan float32 (C, I, J, K) of a label map (I, J, K), scaled as a network sees real ones."""
        return rescale(synthesise(labels[None], [change]), self.scalings)[0]

    def whole(self, case: StoredCase) -> Tensor:
        """Return a scan float32 (C, I, J, K) of a case of a label map alone, always the same one."""
        rng = np.random.default_rng(int(case.digest, 16))
        labels = torch.from_numpy(np.array(case.labels()))
        return self.make(labels, self.draw(rng, case.shape, case.spacing))


def read_ranges(options: Mapping[str, Any] | None) -> Synthesis:
    """Make the ranges from plain values; those not named are as by default.

    Raises:
        UsageError: A name that no range has, or a value that makes no sense.
    """
    given = dict(options or {})
    kinds = {item.name: item.default for item in fields(Synthesis)}
    for name, value in given.items():
        if name not in kinds:
            raise unknown_name("range in `synthesis`", name, kinds)
        wanted = kinds[name]
        pair = isinstance(wanted, tuple)
        numbers = value if pair and isinstance(value, (list, tuple)) else [value]
        fits = isinstance(value, str) if isinstance(wanted, str) else all(_is_number(number) for number in numbers)
        if not fits or (pair and len(numbers) != 2):
            what = "a name" if isinstance(wanted, str) else "a lower and a higher number" if pair else "a number"
            raise UsageError(f"Expected `{name}` of synthetic scans to be {what}, but got {value!r}.")
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return Synthesis(**plain)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
