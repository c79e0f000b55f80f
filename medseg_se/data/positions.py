"""Where structures are: some voxels of each, found once, so that patches around a structure need not search for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
MOST_POSITIONS = 20_000  # voxels remembered per structure and case, enough for sampling
SLAB = 2**22  # voxels looked at together; bounds the memory


def find_positions(labels: Array) -> dict[int, npt.NDArray[np.int32]]:
    """Return structure index → at most `MOST_POSITIONS` evenly chosen voxel positions (n, 3), in order of index.

    Args:
        labels: Structure indices (I, J, K); 0 and less are none.
    """
    counts: dict[int, int] = {}
    for _, value, run in _runs(labels):
        counts[value] = counts.get(value, 0) + len(run)
    wanted = {value: np.linspace(0, count - 1, min(count, MOST_POSITIONS)).astype(np.int64) for value, count in counts.items()}
    found: dict[int, list[Array]] = {value: [] for value in sorted(counts)}
    seen = dict.fromkeys(counts, 0)
    for start, value, run in _runs(labels):
        first, last = np.searchsorted(wanted[value], [seen[value], seen[value] + len(run)])
        found[value].append(run[wanted[value][first:last] - seen[value]] + start)
        seen[value] += len(run)
    return {
        value: np.stack(np.unravel_index(np.concatenate(parts), labels.shape), axis=1).astype(np.int32)
        for value, parts in found.items()
    }


def _runs(labels: Array) -> Iterator[tuple[int, int, Array]]:
    """Yield (start of a slab, structure index, its voxels' places in the slab) for every structure of every slab."""
    flat = labels.reshape(-1)
    for start in range(0, flat.size, SLAB):
        slab = flat[start : start + SLAB]
        places = np.flatnonzero(slab > 0)
        places = places[np.argsort(slab[places], kind="stable")]
        values, firsts = np.unique(slab[places], return_index=True)
        for value, run in zip(values, np.split(places, firsts[1:]), strict=False):
            yield start, int(value), run
