"""The store: every case prepared once, kept as memory-mapped arrays that patches are cut from.

An entry is a folder named by a digest of the input files' content, the preprocessing and the structures: change one of
them and only what changed is made again. An entry is renamed into place when it is complete, so a killed run loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg_se.data.datalist import Case
from medseg_se.data.parallel import for_every_case
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.data.scan import read_channels, read_truth
from medseg_se.errors import DataError, describe_os_error
from medseg_se.files import write_json
from medseg_se.structures import Structures
from medseg_se.volumes import Volume

Array = npt.NDArray[Any]
FORMAT = 1
MOST_POSITIONS = 20_000  # voxel positions remembered per structure and case, enough for sampling


@dataclass(frozen=True)
class StoredCase:
    """A prepared case on disk.

    Attributes:
        id: The case.
        folder: Where its arrays lie.
        digest: Digest of the content of its image files.
        lowest: Lowest intensity per channel, which fills patches that reach beyond the scan.
        spacing: Voxel spacing of the prepared arrays in mm.
    """

    id: str
    folder: Path
    digest: str
    lowest: tuple[float, ...]
    spacing: tuple[float, float, float]

    def image(self) -> Array:
        """Return the prepared scan, float32 (C, I, J, K), memory-mapped."""
        return np.load(self.folder / "image.npy", mmap_mode="r")  # type: ignore[no-any-return]

    def labels(self) -> Array:
        """Return the structure indices, int16 (I, J, K), memory-mapped."""
        return np.load(self.folder / "labels.npy", mmap_mode="r")  # type: ignore[no-any-return]

    def positions(self) -> dict[int, Array]:
        """Return structure index → some of its voxels' positions (n, 3)."""
        with np.load(self.folder / "positions.npz") as file:
            return {int(name): file[name] for name in file.files}


def digest_of(paths: Sequence[Path]) -> str:
    """Return a digest of the content of `paths`, 32 hexadecimal digits.

    Raises:
        DataError: A file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            digest.update(hashlib.blake2b(path.read_bytes(), digest_size=16).digest())
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    return digest.hexdigest()


def prepare_cases(
    cases: Sequence[Case],
    preprocessing: Preprocessing,
    structures: Structures,
    store: Path,
    channels: int,
    workers: int | None = None,
    progress: bool = True,
) -> list[StoredCase]:
    """Prepare every case that the `store` does not hold yet, in parallel, and return all of them in order.

    Raises:
        DataError: Cases cannot be used; says how many, and what ails the first. Those that can are kept in the store.
        OutputError: The store cannot be written.
    """
    return for_every_case(
        cases,
        lambda case: _prepare_case(case, preprocessing, structures, store, channels),
        progress,
        workers,
        "`medseg-se check` lists every fault.",
    )


def _prepare_case(case: Case, preprocessing: Preprocessing, structures: Structures, store: Path, channels: int) -> StoredCase:
    if case.label is None:
        raise DataError(f"Case {case.id} has no label map.")
    digest = digest_of(case.images)
    meaning = [list(structures.values.items()), structures.background, structures.ignore]  # the order gives the indices
    recipe = json.dumps([FORMAT, preprocessing.to_dict(), meaning, channels])
    key = hashlib.blake2b(f"{digest}:{digest_of([case.label])}:{recipe}".encode(), digest_size=16).hexdigest()
    folder = store / key
    if not (folder / "case.json").is_file():
        image = read_channels(case.images, channels)
        prepared = preprocessing(image)
        labels = prepared.apply_to_labels(read_truth(case, structures, image)).array[0]
        _write_entry(folder, prepared.image, labels)
    described = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    return StoredCase(case.id, folder, digest, tuple(described["lowest"]), tuple(described["spacing"]))


def _write_entry(folder: Path, image: Volume, labels: Array) -> None:
    partial: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        np.save(partial / "image.npy", image.array)
        np.save(partial / "labels.npy", labels.astype(np.int16))
        positions: dict[str, Any] = {str(index): places for index, places in _positions(labels).items()}
        np.savez(partial / "positions.npz", **positions)
        lowest = [float(channel.min()) for channel in image.array]
        write_json(partial / "case.json", {"lowest": lowest, "spacing": list(image.spacing)})
        if folder.exists():  # another process was faster
            return
        partial.rename(folder)
        partial = None
    except OSError as error:
        if not folder.exists():
            raise describe_os_error(folder, error) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _positions(labels: Array) -> dict[int, Array]:
    """Return structure index → at most `MOST_POSITIONS` evenly chosen voxel positions (n, 3)."""
    flat = labels.reshape(-1)
    places = np.flatnonzero(flat > 0)
    places = places[np.argsort(flat[places], kind="stable")]
    values, starts, counts = np.unique(flat[places], return_index=True, return_counts=True)
    found = {}
    for value, start, count in zip(values, starts, counts, strict=True):
        run = places[start : start + count]
        chosen = run[np.linspace(0, len(run) - 1, min(len(run), MOST_POSITIONS)).astype(np.int64)]
        found[int(value)] = np.stack(np.unravel_index(chosen, labels.shape), axis=1).astype(np.int32)
    return found
