"""What is gathered while slabs come in: the label map, probabilities in memory or on the disk, and how sure they are."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg_se.data.regions import Regions
from medseg_se.errors import describe_os_error
from medseg_se.inference.frame import across
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, write_blocks


class Labels:
    """A label map that is filled slab by slab.

    Args:
        source: The scan, of which only the grid is needed.
        structures: What the label values mean.
        dtype: Type of the label values, if it holds them all.
    """

    def __init__(self, source: Volume, structures: Structures, dtype: str) -> None:
        self.source, self.structures = source, structures
        self.dtype = structures.dtype(dtype or None)
        # In the order in which NIfTI writes it.
        self.array = np.full(source.shape, structures.background[0], dtype=self.dtype, order="F")

    def put(self, axis: int, place: int, indices: Tensor, box: tuple[slice, slice] | None = None) -> None:
        """Set slab `place` along `axis`, or the part `box` of it, to structure indices."""
        target = self.array[across(axis, place)]
        (target if box is None else target[box])[...] = self.structures.decode(indices.numpy(), self.dtype)

    def volume(self) -> Volume:
        """Return the label map."""
        return replace(self.source, array=self.array[None])


class Probabilities:
    """Probabilities that are gathered slab by slab, in memory or in a file beside the one they are written to at last.

    Args:
        source: The scan, of which only the grid is needed.
        maps: How many there are at each voxel.
        path: Where they are written to; None to keep them in memory.

    Raises:
        OutputError: The disk is full or the folder is not writable.
    """

    def __init__(self, source: Volume, maps: int, path: Path | None) -> None:
        self.source, self.path = source, path
        self.beside: Path | None = None
        shape = (maps, *reversed(source.shape))  # in the order in which NIfTI writes it
        if path is None:
            self.array: npt.NDArray[np.float32] = np.empty(shape, dtype=np.float32)
            return
        self.beside = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self.beside.open("xb") as stream:
                _take_room(stream, 4 * math.prod(shape))
            self.array = np.memmap(self.beside, np.float32, "r+", shape=shape)
        except OSError as error:
            self.close()
            raise describe_os_error(path, error) from error

    def put(self, axis: int, place: int, found: Tensor) -> None:
        """Set slab `place` along `axis` to probabilities (X, Y, maps)."""
        self.array[(slice(None), *reversed(across(axis, place)))] = found.permute(2, 1, 0).numpy()

    def finish(self) -> Volume | None:
        """Return them (maps, I, J, K), or write them to the file and return None."""
        if self.path is None:
            return replace(self.source, array=self.array.transpose(0, 3, 2, 1))
        write_blocks(self.path, self.source, len(self.array), np.dtype(np.float32), self._blocks())
        return None

    def _blocks(self) -> Iterator[bytes]:
        for one in self.array:
            for slab in one:
                yield slab.tobytes()

    def close(self) -> None:
        """Remove what lies beside the file."""
        if self.beside is not None:
            self.beside.unlink(missing_ok=True)


def _take_room(stream: IO[bytes], size: int) -> None:
    """Make a file as large as it will be: of a disk that is full later, a mapped file would end the program without a word."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, size)
        return
    for start in range(0, size, 2**24):
        stream.write(bytes(min(2**24, size - start)))


class Entropy:
    """The mean entropy over the voxels of each structure, as a share of the largest there could be."""

    def __init__(self, structures: Structures, regions: Regions | None) -> None:
        self.structures, self.regions = structures, regions
        self.sums = torch.zeros(structures.num_classes, dtype=torch.float64)
        self.counts = torch.zeros_like(self.sums)

    def add(self, found: Tensor, indices: Tensor) -> None:
        """Count a slab of probabilities (X, Y, maps) whose voxels were given `indices` (X, Y)."""
        if self.regions is None:
            entropy = -torch.special.xlogy(found, found).sum(-1) / math.log(max(2, found.shape[-1]))
        else:
            other = 1 - found
            both = torch.special.xlogy(found, found) + torch.special.xlogy(other, other)
            entropy = -both.mean(-1) / math.log(2)
        flat, size = indices.reshape(-1), len(self.sums)
        self.sums += torch.bincount(flat, entropy.reshape(-1).double(), size)
        self.counts += torch.bincount(flat, minlength=size)

    def result(self) -> dict[str, float]:
        """Return structure → mean entropy; NaN for one that has no voxel."""
        means = (self.sums / self.counts).tolist()
        return {name: means[index] for index, name in enumerate(self.structures.names, start=1)}


class Gathering(AbstractContextManager["Gathering"]):
    """All that is gathered of one scan; what lies on the disk besides results goes when the block ends.

    Args:
        source: The scan, of which only the grid is needed.
        structures: What is segmented.
        regions: What the maps mean, where that is regions.
        maps: Maps at each voxel.
        dtype: Type of the label values.
        probabilities: Whether they are wanted, or the file they are written to.
        uncertainty: Whether the entropy is wanted.
    """

    def __init__(
        self,
        source: Volume,
        structures: Structures,
        regions: Regions | None,
        maps: int,
        dtype: str,
        probabilities: bool | Path,
        uncertainty: bool,
    ) -> None:
        self.labels = Labels(source, structures, dtype)
        self.probabilities: Probabilities | None = None
        if probabilities is not False:
            self.probabilities = Probabilities(source, maps, None if probabilities is True else probabilities)
        self.entropy = Entropy(structures, regions) if uncertainty else None

    @property
    def wants_all(self) -> bool:
        """Whether all probabilities are needed, not only what is largest."""
        return self.probabilities is not None or self.entropy is not None

    def put(self, axis: int, place: int, found: Tensor, indices: Tensor) -> None:
        """Set slab `place` along `axis` to probabilities (X, Y, maps) and the indices (X, Y) that follow from them."""
        self.labels.put(axis, place, indices)
        if self.probabilities is not None:
            self.probabilities.put(axis, place, found)
        if self.entropy is not None:
            self.entropy.add(found, indices)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.probabilities is not None:
            self.probabilities.close()

    def __enter__(self) -> Self:
        return self
