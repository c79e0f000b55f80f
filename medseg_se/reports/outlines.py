"""Outlines of structures in a slice, as paths of SVG: they stay sharp at any size and can be shown and hidden one by one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # along a border with the structure on its right: in x, y that runs down


def outline(mask: Array) -> str:
    """Return the `d` of a path around `mask`, in units of half a pixel from its upper left corner; empty if it is.

    The path goes through the middles of the pixels' edges that part structure and background, which is where the level 0.5
    lies between pixel centres (marching squares). Every border is a closed loop, holes included; the pieces of a structure
    that touch at a corner alone are kept apart.

    Args:
        mask: Booleans (rows, columns), the upper row first.
    """
    edges = _edges(mask)
    parts: list[str] = []
    while edges:
        start = place = next(iter(edges))
        loop: list[tuple[int, int, int]] = []
        while place in edges:
            loop.append(place)
            del edges[place]
            place = _next(place, edges, start)
        parts.append(_path(loop))
    return "".join(parts)


def _edges(mask: Array) -> dict[tuple[int, int, int], None]:
    """Return the border as directed edges (x, y of the corner it starts from, direction)."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    found: dict[tuple[int, int, int], None] = {}
    # Direction → the neighbour that must be background, and the pixel's corner where the edge starts.
    sides = {
        0: (padded[:-2, 1:-1], 0, 0),
        1: (padded[1:-1, 2:], 1, 0),
        2: (padded[2:, 1:-1], 1, 1),
        3: (padded[1:-1, :-2], 0, 1),
    }
    for direction, (neighbour, right, down) in sides.items():
        rows, columns = np.nonzero(inside & ~neighbour)
        found.update(
            dict.fromkeys(zip((columns + right).tolist(), (rows + down).tolist(), [direction] * len(rows), strict=True))
        )
    return found


def _next(
    place: tuple[int, int, int], edges: dict[tuple[int, int, int], None], start: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Return the edge that goes on from the end of `place`: where two do, the one that stays at the same pixel."""
    x, y, direction = place
    x, y = x + _STEPS[direction][0], y + _STEPS[direction][1]
    for turn in (1, 0, 3):
        following = (x, y, (direction + turn) % 4)
        if following in edges or following == start:
            return following
    return start


def _path(loop: list[tuple[int, int, int]]) -> str:
    """Return a closed path through the middles of the edges; steps in one direction are one."""
    middles = [(2 * x + _STEPS[direction][0], 2 * y + _STEPS[direction][1]) for x, y, direction in loop]
    steps: list[list[int]] = []
    for (x, y), (next_x, next_y) in pairwise(middles):
        step = [next_x - x, next_y - y]
        if steps and steps[-1][0] * step[1] == steps[-1][1] * step[0] and _same_way(steps[-1], step):
            steps[-1] = [steps[-1][0] + step[0], steps[-1][1] + step[1]]
        else:
            steps.append(step)
    moves = "".join(f"l{x} {y}" for x, y in steps)
    return f"M{middles[0][0]} {middles[0][1]}{moves}z"


def _same_way(first: list[int], second: list[int]) -> bool:
    return first[0] * second[0] + first[1] * second[1] > 0
