"""What the names of structures say about their looks: which look alike, and how bright they are in a T1-weighted scan."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.structures import Structures

Array = npt.NDArray[Any]

T1_BRIGHTNESS: tuple[tuple[str, float, float], ...] = (
    (r"hypointens|lesion", 75, 10),
    (r"cerebell\w* (white|wm)", 98, 6),
    (r"cerebell", 68, 9),
    (r"white matter|\bwm\b|corpus callosum|\bcc\b|fornix|commissure|capsule", 105, 6),
    (r"choroid", 55, 12),
    (r"ventric|\bvent\b", 32, 9),
    (r"\bcsf\b|cerebrospinal|subarachnoid|cistern", 35, 10),
    (r"thalam", 90, 8),
    (r"caudate", 80, 7),
    (r"putamen", 85, 6),
    (r"pallid", 98, 5),
    (r"accumbens", 77, 7),
    (r"amygdal", 74, 6),
    (r"hippocamp|subicul|dentate|\bca\d", 74, 8),
    (r"ventral ?dc|diencephal", 95, 8),
    (r"brain ?stem|midbrain|\bpons\b|medulla", 95, 7),
    (r"vessel|arter|vein|sinus", 60, 15),
    (r"cortex|cortical|\bctx\b|gr[ae]y|\bgm\b|gyrus|lobe", 75, 9),
)
"""What a name says of a tissue's brightness in a T1-weighted scan: pattern, mean and deviation; the first that fits counts.

On the scale on which FreeSurfer puts white matter near 110 (https://surfer.nmr.mgh.harvard.edu/fswiki/mri_normalize); rounded,
typical values of adults. Names are matched in lower case with blanks between words.
"""

T1_HEAD = {"csf": (35, 10), "bone": (12, 6), "marrow": (85, 20), "fat": (150, 15), "muscle": (60, 10), "air": (3, 2)}


@dataclass(frozen=True)
class Tissues:
    """What the names of the structures say about their looks.

    Attributes:
        classes: (N + 1,) index of a structure → number of what it looks like; left and right look alike, background is 0.
        t1: (N + 1, 2) mean and standard deviation in a T1-weighted scan, NaN where the name says nothing.
    """

    classes: Array
    t1: Array


def tissues_of(structures: Structures) -> Tissues:
    """Look the structures up once for all scans of a run."""
    known = [_t1_brightness(name) for name in structures.names]
    return Tissues(generation_classes(structures), np.array([T1_HEAD["csf"], *known], dtype=np.float64))


def generation_classes(structures: Structures) -> npt.NDArray[np.int64]:
    """Return index → number of the class whose brightness it shares: one number a pair of left and right, 0 the background."""
    lowest = np.minimum(np.arange(structures.num_classes), structures.mirrored())
    return np.unique(lowest, return_inverse=True)[1].astype(np.int64)


def _t1_brightness(name: str) -> tuple[float, float]:
    words = " ".join(re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))
    return next(((mean, spread) for pattern, mean, spread in T1_BRIGHTNESS if re.search(pattern, words)), (math.nan, math.nan))
