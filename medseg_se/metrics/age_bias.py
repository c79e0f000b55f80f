"""The bias of predicted ages, or of any other number: the young are taken for older, the old for younger.

A predictor with the least error shrinks what it is unsure of towards the mean of its training cases, so that its error falls
with the true value. Both corrections need the line

    predicted = intercept + slope · true,

fitted on cases that neither trained the model nor are corrected, such as the validation cases:

- Cole et al., 2018 (https://doi.org/10.1038/mp.2017.62): corrected = (predicted - intercept) / slope. It needs no true age of
  the person. On average the line then is the identity, but the spread about it grows by 1 / slope, and usually the error.
- de Lange and Cole, 2020 (https://doi.org/10.1016/j.nicl.2020.102229); Beheshti et al., 2019
  (https://doi.org/10.1016/j.nicl.2019.102063): the difference to the true age, less what the line expects at that age. It uses
  the true age: it is for brain-age differences to be compared between groups, and no age is predicted by it. A mean absolute
  error after it is no accuracy: a model that always says the same age reaches zero (Butler et al., 2021,
  https://doi.org/10.1002/hbm.25533).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BiasLine:
    """Predicted against true values, as a straight line.

    Attributes:
        slope: Of the predictions on the truth; 1 without a bias.
        intercept: Prediction where the truth is 0.
    """

    slope: float
    intercept: float

    @classmethod
    def fit(cls, predicted: npt.ArrayLike, truth: npt.ArrayLike) -> BiasLine:
        """Return the line of least squares; NaN where all true values are the same.

        Args:
            predicted: (N,).
            truth: (N,).
        """
        y, x = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
        if x.size < 2 or x.min() == x.max():
            return cls(float("nan"), float("nan"))
        away = x - x.mean()
        slope = float(away @ (y - y.mean()) / (away @ away))
        return cls(slope, float(y.mean() - slope * x.mean()))

    def corrected(self, predicted: npt.ArrayLike) -> Array:
        """Return predictions without the bias, (N,), which need no truth (Cole); NaN for a line that does not rise."""
        values = np.asarray(predicted, dtype=np.float64)
        return (values - self.intercept) / self.slope if self.slope > 0 else np.full(values.shape, np.nan)

    def difference(self, predicted: npt.ArrayLike, truth: npt.ArrayLike) -> Array:
        """Return how far predictions lie above what is expected of cases of that true value, (N,) (de Lange and Cole)."""
        x = np.asarray(truth, dtype=np.float64)
        return np.asarray(predicted, dtype=np.float64) - (self.intercept + self.slope * x)
