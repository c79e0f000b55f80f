"""What becomes of a finished label map: of structures that are one piece in the body, only the largest piece is kept.

After nnU-Net, Isensee et al., 2021, https://doi.org/10.1038/s41592-020-01008-z: first for all structures taken as one, then
for each by itself, and only where a cross-validation has shown that it helps; see `medseg_se.inference.choice`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from medseg_se.errors import CheckpointError, unknown_name
from medseg_se.structures import Structures
from medseg_se.volumes import Volume

Indices = npt.NDArray[np.int16]
_TOUCHING = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class PostProcessing:
    """What is done to a label map on the scan's own grid, stored with the model.

    Attributes:
        largest_component: Groups of structures, in the order in which they are dealt with. Of the union of a group, only the
            largest component stays; the rest becomes background.
    """

    largest_component: tuple[tuple[str, ...], ...] = ()

    def __bool__(self) -> bool:
        """Tell whether anything is done at all."""
        return bool(self.largest_component)

    def __call__(self, labels: Volume, structures: Structures) -> Volume:
        """Return the label map (1, I, J, K), which holds label values of `structures`, as it is afterwards."""
        if not self:
            return labels
        indices = self.on_indices(structures.encode(labels.array[0]), structures)
        return replace(labels, array=structures.decode(indices, labels.array.dtype)[None])

    def on_indices(self, indices: Indices, structures: Structures) -> Indices:
        """Return a map of indices (I, J, K) as it is afterwards."""
        together: list[list[int]] = []  # groups without a common structure do not touch each other's voxels
        for group in ([structures.index(name) for name in names] for names in self.largest_component):
            if any(index in other for other in together for index in group):
                indices, together = keep_largest(indices, together), []
            together.append(group)
        return keep_largest(indices, together)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data from which `from_dict` makes an equal object."""
        return {"largest_component": [list(group) for group in self.largest_component]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any] | None, structures: Structures) -> PostProcessing:
        """Make the object that `to_dict` described, for a model of these structures; None is nothing to do.

        Raises:
            CheckpointError: The description is not of this form.
            UsageError: It names a structure that the model has not.
        """
        if content is None:
            return cls()
        groups: Any = content.get("largest_component") if isinstance(content, Mapping) else None
        fits = isinstance(groups, list) and all(isinstance(group, list) and group for group in groups)
        if not fits or set(content) != {"largest_component"}:
            raise CheckpointError(f"its post-processing is {content!r}, not groups of structures of which one component stays")
        for name in (name for group in groups for name in group):
            if name not in structures.names:
                raise unknown_name("structure", str(name), structures.names)
        return cls(tuple(tuple(group) for group in groups))


def keep_largest(indices: npt.NDArray[Any], groups: Sequence[Sequence[int]]) -> npt.NDArray[Any]:
    """Return a map in which only the largest connected component of each group is left; the rest is background, 0.

    Voxels that share a face, an edge or a corner are connected (26 neighbours). Of components with as many voxels, the one
    that is met first in the order of the array stays.

    Args:
        indices: (I, J, K), 0 … N; not changed.
        groups: Indices above 0 whose union is taken as one; no index is in two groups.
    """
    result = indices.copy()
    boxes = scipy.ndimage.find_objects(indices)
    for group in groups:
        present = [boxes[index - 1] for index in group if index <= len(boxes) and boxes[index - 1] is not None]
        if not present:
            continue
        box = tuple(
            slice(min(one[axis].start for one in present), max(one[axis].stop for one in present))
            for axis in range(indices.ndim)
        )
        inside = indices[box]
        mask = inside == group[0] if len(group) == 1 else np.isin(inside, group)
        result[box][mask & ~_largest_component(mask)] = 0
    return result


def _largest_component(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the largest component of a mask that is not empty, of equal ones the first."""
    components, count = scipy.ndimage.label(mask, _TOUCHING)
    if count == 1:
        return mask
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    largest = np.flatnonzero(sizes == sizes.max())
    flat = components.ravel()
    first = largest[0] if len(largest) == 1 else flat[np.isin(flat, largest).argmax()]
    kept: npt.NDArray[np.bool_] = components == first
    return kept
