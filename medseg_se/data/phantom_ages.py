"""People of an age for the heads of phantoms: how old a brain looks, and what of it is seen.

The age is uniform over a range. A brain looks as old as its owner plus an individual deviation,

    brain age = age + N(0, deviation²),

and what is drawn follows from the brain age alone: of the age itself, a scan tells no more than the brain age does. So the
least mean absolute error with which the age can be told is known; `medseg_se.metrics.age_floor` computes it.

The signs are those of healthy ageing, somewhat larger than life so that a few hundred heads are enough to learn them: from 20
to 80 years the lateral ventricles become four times as large, the cortex loses a third of its thickness, grey and white matter
come closer in T1-weighted scans (Fjell and Walhovd, 2010, https://doi.org/10.1515/REVNEURO.2010.21.3.187; Salat et al., 2009,
https://doi.org/10.1016/j.neuroimage.2009.06.074). They are no model of ageing: each is one exponential.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from medseg_se.errors import UsageError

MIDDLE = 50.0  # years; the age of a phantom that is drawn without one
HALF = 30.0  # years from the middle to the ages at which the factors below are read
# Natural logarithms of the factors at MIDDLE + HALF; at MIDDLE - HALF they are the reciprocals.
VENTRICLES, CORTEX, CONTRAST = 0.33, -0.20, -0.32
OLDEST = 120.0


@dataclass(frozen=True)
class Signs:
    """What the age changes in a head, as factors: 1 for a brain of 50 years.

    Attributes:
        ventricles: On the radii of the lateral ventricles and the width of the third.
        cortex: On the thickness of the cerebral cortex, and on how far it reaches into white matter along the sulci.
        contrast: On the difference in brightness between cortex and white matter; white matter keeps its own.
        size: On the head as a whole, which differs between men and women.
    """

    ventricles: float = 1.0
    cortex: float = 1.0
    contrast: float = 1.0
    size: float = 1.0


@dataclass(frozen=True)
class Person:
    """Whose head a phantom is.

    Attributes:
        age: Years.
        brain_age: Years; how old the brain looks.
        sex: "female" or "male"; men's heads are 4 % larger.
    """

    age: float
    brain_age: float
    sex: Literal["female", "male"]

    @property
    def signs(self) -> Signs:
        """What is seen of it."""
        old = (self.brain_age - MIDDLE) / HALF
        size = 1.02 if self.sex == "male" else 1 / 1.02
        return Signs(math.exp(VENTRICLES * old), math.exp(CORTEX * old), math.exp(CONTRAST * old), size)

    @property
    def attributes(self) -> dict[str, Any]:
        """What the datalist says of it. The brain age is there for judging, not for learning."""
        return {"age": round(self.age, 2), "sex": self.sex, "brain_age": round(self.brain_age, 2)}


@dataclass(frozen=True)
class Ages:
    """Who the people are.

    Attributes:
        youngest: Years.
        oldest: Years.
        deviation: Standard deviation of the brain age from the age, in years.

    Raises:
        UsageError: No ages.
    """

    youngest: float = 20.0
    oldest: float = 80.0
    deviation: float = 5.0

    def __post_init__(self) -> None:
        """Check that these are ages."""
        if not 0 < self.youngest < self.oldest <= OLDEST:
            raise UsageError(
                f"Expected ages from more than 0 to at most {OLDEST:.0f} years, the younger first, "
                f"but got {self.youngest:g} to {self.oldest:g}."
            )
        if not 0 <= self.deviation <= 20:
            raise UsageError(f"Expected `age_deviation` between 0 and 20 years, but got {self.deviation:g}.")

    def draw(self, rng: np.random.Generator) -> Person:
        """Draw a person."""
        age = float(rng.uniform(self.youngest, self.oldest))
        brain_age = age + self.deviation * float(rng.standard_normal())
        return Person(age, brain_age, "male" if rng.random() < 0.5 else "female")
