"""How well one case was predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CaseResult:
    """How well one case was predicted.

    Attributes:
        id: The case's name.
        scores: Measure → judged structure or region → value; NaN where it is not counted, infinite for the distances of a
            structure that only one of truth and prediction has.
        group: Whose scan it is, where the dataset says so; intervals resample groups.
        failure: Why the prediction could not be used, or None.
        truth: The label map it was judged against.
        prediction: The predicted label map; None where there is none.
        resampled: How the prediction's grid differs from that of the truth, where it was resampled; else None.
    """

    id: str
    scores: Mapping[str, Mapping[str, float]]
    group: str | None = None
    failure: str | None = None
    truth: Path | None = None
    prediction: Path | None = None
    resampled: str | None = None

    @property
    def dice(self) -> Mapping[str, float]:
        """Judged structure or region → Dice; NaN where it is not counted."""
        return self.scores["dice"]

    @property
    def truth_ml(self) -> Mapping[str, float]:
        """Judged structure or region → volume in the truth in ml."""
        return self.scores["truth_ml"]

    @property
    def predicted_ml(self) -> Mapping[str, float]:
        """Judged structure or region → volume in the prediction in ml."""
        return self.scores["predicted_ml"]
