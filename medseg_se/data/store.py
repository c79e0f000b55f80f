"""The store: every case prepared once, kept as arrays in files that patches are cut from.

A case has two entries, one for its scan and one for its label map. An entry is a folder named by a digest of what its content
follows from: the scan by the content of the image files and the preprocessing; the label map by the content of its own
file, the meaning of its values, and of scan and preprocessing only what decides on the grid. Change one of them and only what
follows from it is made again. An entry is renamed into place when it is complete, so a killed run loses nothing but what it
was at work on; one that is no longer whole is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.data.arrays import Storage, check_storage, compresses, file_name, open_array
from medseg_se.data.datalist import Case
from medseg_se.data.entries import Content, Facts, amend, entry, remove_leftovers
from medseg_se.data.parallel import for_every_case
from medseg_se.data.positions import find_positions
from medseg_se.data.preprocessing import Preprocessing, labels_on
from medseg_se.data.scan import read_channels, read_truth
from medseg_se.data.seen import ScanFacts, facts_of
from medseg_se.errors import DataError, OutputError
from medseg_se.files import digest_of
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, read_labels

Array = npt.NDArray[Any]
FORMAT = 3
POSITIONS = "positions.npy"


@dataclass(frozen=True)
class StoredCase:
    """A prepared case on disk. Small: nothing of its arrays is held in memory, and it goes into other processes as it is.

    Attributes:
        id: The case.
        digest: Digest of the content of its image files; of its label map, where that is all there is.
        image_file: The prepared scan; None for a case of a label map alone.
        labels_file: The prepared label map.
        shape: Voxels (I, J, K) of the prepared arrays.
        spacing: Voxel spacing of the prepared arrays in mm.
        lowest: Lowest intensity per channel, which fills patches that reach beyond the scan.
        runs: Structure index, first and last + 1 of its rows in the table of positions.
        raw: What the scan was like before it was prepared; the label map, where that is all there is.
    """

    id: str
    digest: str
    image_file: Path | None
    labels_file: Path
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    lowest: tuple[float, ...]
    runs: tuple[tuple[int, int, int], ...]
    raw: ScanFacts

    @property
    def channels(self) -> int:
        """Number of channels; 0 for a case of a label map alone."""
        return len(self.lowest)

    def without_image(self) -> StoredCase:
        """Return the same case as one of a label map alone, whose scan is not read."""
        return replace(self, image_file=None, lowest=())

    def image(self) -> Array:
        """Return the prepared scan, float32 (C, I, J, K), which is read where it is sliced.

        Raises:
            DataError: The file is gone, or there is none.
        """
        if self.image_file is None:
            raise DataError(f"Case {self.id} is a label map alone and has no scan.")
        return open_array(self.image_file, np.float32, (self.channels, *self.shape))

    def labels(self) -> Array:
        """Return the structure indices, int16 (I, J, K), which are read where they are sliced."""
        return open_array(self.labels_file, np.int16, self.shape)

    def read(self, box: Sequence[slice]) -> tuple[Array, Array]:
        """Return scan, float32 (C, *box), and structure indices, int16 (*box); nothing but the box is read.

        Args:
            box: Three slices with a start and a stop inside of the scan.

        Raises:
            DataError: A file is gone or damaged.
        """
        within = tuple(box)
        try:
            labels = np.array(self.labels()[within])
            if self.image_file is None:
                return np.empty((0, *labels.shape), dtype=np.float32), labels
            return np.array(self.image()[(slice(None), *within)]), labels
        except RuntimeError as error:  # of blosc2, which decompresses here
            raise DataError(f"The prepared scan of {self.id} in {self.labels_file.parents[1]} is damaged: {error}.") from error

    def present(self) -> tuple[int, ...]:
        """Return the indices of the structures that the case shows, in order."""
        return tuple(index for index, _, _ in self.runs)

    def positions(self, index: int) -> Array:
        """Return positions (n, 3) of some of the voxels of structure `index`, int32, memory-mapped; n is 0 if it is absent."""
        for present, first, stop in self.runs:
            if present == index:
                return open_array(self.labels_file.with_name(POSITIONS), np.int32, (self.runs[-1][2], 3))[first:stop]
        return np.empty((0, 3), dtype=np.int32)


def prepare_cases(
    cases: Sequence[Case],
    preprocessing: Preprocessing,
    structures: Structures,
    store: Path,
    channels: int,
    workers: int | None = None,
    progress: bool = True,
    storage: Storage = "auto",
) -> list[StoredCase]:
    """Prepare every case that the `store` does not hold yet, in parallel, and return all of them in order.

    Args:
        cases: Cases with label maps; those without images become cases of a label map alone.
        preprocessing: What happens to the scans.
        structures: What the label values mean.
        store: The folder of the store.
        channels: Channels of a scan.
        workers: Cases prepared at the same time.
        progress: Whether to show a progress bar.
        storage: How arrays are kept: "npy", "blosc2" or, by their size, "auto"; see `arrays.file_name`.

    Raises:
        DataError: Cases cannot be used; says how many, and what ails the first. Those that can are kept in the store.
        OutputError: The store cannot be written.
        UsageError: The preprocessing is for another number of channels, or blosc2 is asked for and not installed.
    """
    check_storage(storage)
    if any(case.images for case in cases):
        preprocessing.for_channels(channels)
    remove_leftovers(store)
    recipe = _Recipe(preprocessing, structures, store, channels, storage)
    return for_every_case(cases, recipe.prepare, progress, workers, "`medseg-se check` lists every fault.")


@dataclass(frozen=True)
class _Recipe:
    """What is made of every case; see `prepare_cases`."""

    preprocessing: Preprocessing
    structures: Structures
    store: Path
    channels: int
    storage: Storage

    def prepare(self, case: Case) -> StoredCase:
        if case.label is None:
            raise DataError(f"Case {case.id} has no label map.")
        of_label = digest_of([case.label])
        if not case.images:
            folder, truth = self._labels(case, [of_label], None)
            raw = _raw(folder, truth, lambda: facts_of(read_labels(case.label or ""), label_map=True))
            return _stored(case, of_label, None, folder, truth, truth, raw)
        of_image = digest_of(case.images)
        image_folder, scan = self._image(case, of_image)
        folder, truth = self._labels(case, [of_label, of_image, self.channels], scan)
        raw = _raw(image_folder, scan, lambda: facts_of(read_channels(case.images, self.channels)))
        return _stored(case, of_image, image_folder / scan["file"], folder, scan, truth, raw)

    def _image(self, case: Case, of_image: str) -> tuple[Path, Facts]:
        def make() -> Content:
            original = read_channels(case.images, self.channels)
            prepared = self.preprocessing(original)
            array = prepared.image.array
            file = file_name("image", self.storage, array.shape)
            return {file: array}, {
                "file": file,
                "shape": prepared.image.shape,
                "spacing": prepared.image.spacing,
                "lowest": [float(channel.min()) for channel in array],
                "box": prepared.box,
                "scan": {"shape": original.shape, "affine": original.affine.tolist()},
                "raw": facts_of(original).to_dict(),
            }

        folder = self._folder("image", [of_image, self.channels, self.preprocessing.to_dict()])
        return folder, entry(folder, make)

    def _labels(self, case: Case, follows_from: list[Any], scan: Facts | None) -> tuple[Path, Facts]:
        def make() -> Content:
            placed, raw = self._placed(case, scan)
            labels = placed.array[0].astype(np.int16, copy=False)
            file, found = file_name("labels", self.storage, labels.shape), find_positions(labels)
            stops = np.cumsum([len(places) for places in found.values()]).tolist()
            runs = [[index, stop - len(found[index]), stop] for index, stop in zip(found, stops, strict=True)]
            positions = np.concatenate([np.empty((0, 3), np.int32), *found.values()])
            facts = {"file": file, "shape": placed.shape, "spacing": placed.spacing, "runs": runs}
            return {file: labels, POSITIONS: positions}, {**facts, **raw}

        recipe = self.preprocessing.to_dict()
        grid = [recipe[name] for name in ("orientation", "crop", "spacing")]
        # The order of the structures gives the indices; regions are only judged.
        meaning = [list(self.structures.values.items()), self.structures.background, self.structures.ignore]
        folder = self._folder("labels", [*follows_from, grid, meaning])
        return folder, entry(folder, make)

    def _placed(self, case: Case, scan: Facts | None) -> tuple[Volume, Facts]:
        """Read a label map and bring it to where its scan was brought, or where it would be if there is none.

        Returns:
            It, and where there is no scan, what it was like.
        """
        if scan is None:
            labels = read_labels(case.label or "")
            encoded = self.structures.encode(labels.array, where=str(case.label))
            raw = {"raw": facts_of(labels, label_map=True).to_dict()}
            return self.preprocessing.prepare_labels(replace(labels, array=encoded)), raw
        original = scan["scan"]  # its grid is all that counts, so that the scan itself need not be read for this
        grid = Volume(np.broadcast_to(np.float32(0), (1, *original["shape"])), np.array(original["affine"]))
        labels = read_truth(case, self.structures, grid)
        box = tuple((start, stop) for start, stop in scan["box"])
        return labels_on(labels, self.preprocessing.orientation, box, _three(scan["shape"])), {}

    def _folder(self, kind: str, follows_from: list[Any]) -> Path:
        recipe = json.dumps([FORMAT, compresses(self.storage), self.storage == "blosc2", follows_from])
        return self.store / f"{kind}-{hashlib.blake2b(recipe.encode(), digest_size=16).hexdigest()}"


def _raw(folder: Path, facts: Facts, measure: Callable[[], ScanFacts]) -> ScanFacts:
    """Return what a scan was like; an entry that does not say so, as those of versions before, is completed."""
    found = ScanFacts.from_dict(facts.get("raw"))
    if found is None:
        found = measure()
        with suppress(OutputError):  # a store that is only read serves as before, and the scan is read again next time
            amend(folder, {**facts, "raw": found.to_dict()})
    return found


def _stored(
    case: Case, digest: str, image_file: Path | None, folder: Path, scan: Facts, truth: Facts, raw: ScanFacts
) -> StoredCase:
    return StoredCase(
        id=case.id,
        digest=digest,
        image_file=image_file,
        labels_file=folder / truth["file"],
        shape=_three(scan["shape"]),
        spacing=_three(scan["spacing"]),
        lowest=tuple(scan.get("lowest", ())),
        runs=tuple((index, first, stop) for index, first, stop in truth["runs"]),
        raw=raw,
    )


def _three(values: Sequence[Any]) -> tuple[Any, Any, Any]:
    i, j, k = values
    return i, j, k
