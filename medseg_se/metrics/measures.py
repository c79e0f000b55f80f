"""What can be measured of a segmentation: the names, units and directions of all measures, and how they are chosen by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from medseg_se.errors import unknown_name


@dataclass(frozen=True)
class Measure:
    """One number a structure and case.

    Attributes:
        name: Its name in files and on the command line.
        title: What tables call it.
        unit: "mm", "ml", or nothing for shares and counts.
        better: Which way is up: "higher", "lower", or "zero" for a signed difference; None for what only describes.
    """

    name: str
    title: str
    unit: str = ""
    better: Literal["higher", "lower", "zero"] | None = "higher"

    @property
    def limits(self) -> tuple[float, float] | None:
        """The lowest and highest value that there can be, where there are such: of shares 0 and 1."""
        return (0.0, 1.0) if self.better == "higher" else None


OVERLAP = (
    Measure("dice", "Dice"),
    Measure("iou", "IoU"),
    Measure("precision", "precision"),
    Measure("recall", "recall"),
    Measure("volume_similarity", "volume similarity"),
    Measure("bias_ml", "volume bias", "ml", "zero"),
    Measure("truth_ml", "true volume", "ml", None),
    Measure("predicted_ml", "predicted volume", "ml", None),
)
DISTANCES = (
    Measure("hd_mm", "HD", "mm", "lower"),
    Measure("hd95_mm", "HD95", "mm", "lower"),
    Measure("assd_mm", "ASSD", "mm", "lower"),
    Measure("nsd", "NSD"),
)
LESIONS = (
    Measure("truth_lesions", "true lesions", "", None),
    Measure("predicted_lesions", "predicted lesions", "", None),
    Measure("lesion_recall", "lesion recall"),
    Measure("lesion_precision", "lesion precision"),
)
MEASURES: Mapping[str, Measure] = {measure.name: measure for measure in (*OVERLAP, *DISTANCES, *LESIONS)}


def names(measures: Sequence[Measure]) -> tuple[str, ...]:
    """Return their names."""
    return tuple(measure.name for measure in measures)


def choose_measures(wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the measures named in `wanted` in the order of `MEASURES`; Dice is always among them, for it costs nothing.

    Raises:
        UsageError: There is no such measure.
    """
    for name in wanted:
        if name not in MEASURES:
            raise unknown_name("measure", name, MEASURES)
    return tuple(name for name in MEASURES if name in {"dice", *wanted})
