import re

import numpy as np
import pytest

from medseg_se.reports.outlines import outline


def loops(path):
    """Return the corners of each closed loop of a path, in pixels."""
    found = []
    for part in re.findall(r"M[^z]*z", path):
        numbers = [int(number) for number in re.findall(r"-?\d+", part)]
        steps = np.array(numbers).reshape(-1, 2)
        found.append(steps.cumsum(axis=0) / 2)
    return found


def area(path):
    """Return the signed area by the shoelace formula: holes count as negative."""
    total = 0.0
    for corners in loops(path):
        x, y = corners.T
        total += 0.5 * float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))
    return total


def test_a_rectangle_loses_a_triangle_at_each_corner():
    mask = np.zeros((7, 9), dtype=bool)
    mask[2:5, 1:7] = True
    (corners,) = loops(outline(mask))
    assert len(corners) == 8
    assert (corners.min(axis=0), corners.max(axis=0)) == (pytest.approx([1, 2]), pytest.approx([7, 5]))
    assert area(outline(mask)) == pytest.approx(3 * 6 - 4 / 8)


def test_a_hole_is_a_loop_of_its_own_the_other_way_round():
    mask = np.ones((5, 5), dtype=bool)
    mask[2, 2] = False
    assert len(loops(outline(mask))) == 2
    assert area(outline(mask)) == pytest.approx((25 - 4 / 8) - 4 / 8)


def test_pieces_that_touch_at_a_corner_are_kept_apart():
    paths = loops(outline(np.eye(3, dtype=bool)))
    assert len(paths) == 3
    assert area(outline(np.eye(3, dtype=bool))) == pytest.approx(3 * 0.5)


def test_the_path_meets_the_middle_of_every_edge_between_structure_and_background_once():
    mask = np.random.default_rng(0).random((30, 40)) > 0.5
    padded = np.pad(mask, 1)
    borders = {(float(x), y + 0.5) for y, x in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])}
    borders |= {(x + 0.5, float(y)) for y, x in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])}
    visited = []
    for corners in loops(outline(mask)):
        for start, stop in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            # A straight step goes by whole pixels, a slanting one by halves.
            count = round(np.abs(stop - start).max() / (1.0 if 0 in (stop - start) else 0.5))
            visited += [tuple((start + (stop - start) * part / count).tolist()) for part in range(count)]
    assert len(visited) == len(set(visited)) == len(borders)
    assert set(visited) == borders


def test_nothing_has_no_outline():
    assert outline(np.zeros((4, 4), dtype=bool)) == ""
