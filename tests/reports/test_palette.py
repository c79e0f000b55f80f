from itertools import combinations

import numpy as np
import pytest

from medseg_se.reports.palette import colours, hexadecimal
from medseg_se.structures import Structures

# Machado, Oliveira and Fernandes 2009, doi.org/10.1109/TVCG.2009.113: linear RGB as seen without one kind of cones.
SEEN = {
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(linear):
    """CIE L*a*b* under D65."""
    xyz = np.clip(linear, 0, 1) @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    f = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], (6 / 29) ** 3))
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("kind", SEEN)
def test_the_first_colours_stay_apart_and_leave_black_whatever_cones_an_eye_lacks(kind):
    found = np.array(list(colours(Structures({f"organ {number}": (number,) for number in range(1, 8)})).values()))
    linear = np.where(found <= 0.04045, found / 12.92, ((found + 0.055) / 1.055) ** 2.4)
    seen = lab(linear @ np.array(SEEN[kind]).T)
    nearest = min(np.linalg.norm(first - second) for first, second in combinations(seen, 2))
    assert nearest > 15  # of which 2 can be told apart when they touch
    assert seen[:, 0].min() > 45


def test_many_structures_have_colours_of_their_own_that_css_reads():
    found = colours(Structures({f"organ {number}": (number,) for number in range(1, 60)}))
    assert len(set(map(hexadecimal, found.values()))) == 59
    assert hexadecimal((1.0, 0.5, 0.0)) == "#ff8000"


def test_colours_come_in_the_order_of_the_indices_whichever_side_is_first():
    structures = Structures({"left lung": (5,), "heart": (3,), "right lung": (1,), "right eye": (2,), "left eye": (4,)})
    assert tuple(colours(structures)) == structures.names
