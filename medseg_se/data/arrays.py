"""Arrays in files, of which a box is read without the rest: memory-mapped as they are, or compressed in small blocks."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from medseg_se.errors import DataError, unknown_name
from medseg_se.optional import load_optional

Array = npt.NDArray[Any]
Storage = Literal["auto", "npy", "blosc2"]
LARGE = 2**23  # voxels from which "auto" compresses: 32 MiB as float32
CHUNK, BLOCK = 64, 16  # voxels along an axis that are kept together in a file, and that are decompressed together


def check_storage(storage: str) -> None:
    """Refuse a storage that there is not, or whose package is not installed.

    Raises:
        UsageError: It is one of these.
    """
    if storage not in get_args(Storage):
        raise unknown_name("storage", storage, get_args(Storage))
    if storage == "blosc2":
        load_optional("blosc2")


def compresses(storage: Storage) -> bool:
    """Tell whether large arrays are compressed."""
    return storage == "blosc2" or (storage == "auto" and find_spec("blosc2") is not None)


def file_name(stem: str, storage: Storage, shape: Sequence[int]) -> str:
    """Return the name of the file for an array of `shape`; its ending says how it is kept.

    "npy" is the array as it is, memory-mapped: a patch is a copy out of the page cache. "blosc2" is compressed (scans to
    about three quarters, label maps to a hundredth) in blocks, of which only those that a patch touches are decompressed.
    "auto" takes blosc2, where it is installed, for large arrays alone: a patch then costs a millisecond or two more, which
    nobody notices beside a training step, while twice as many cases fit on the disk and in the page cache. Many small
    scans fit there anyway, and each patch would cost more to decompress than to copy.
    """
    large = math.prod(shape[-3:]) >= LARGE
    compressed = storage == "blosc2" or (large and compresses(storage))
    return f"{stem}.{'b2nd' if compressed else 'npy'}"


def write_array(path: Path, array: Array) -> None:
    """Write `array` as the ending of `path` says.

    Raises:
        OSError: It could not be written.
    """
    array = np.ascontiguousarray(array)
    with path.open("wb") as stream:  # np.save would hide a full disk behind an error without a cause
        if path.suffix == ".npy":
            np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
            stream.write(array.data)
        else:
            stream.write(_compressed(array))
        stream.flush()
        os.fsync(stream.fileno())  # or a power cut could leave zeros under a description that says all is well


def open_array(path: Path, dtype: npt.DTypeLike, shape: Sequence[int]) -> Array:
    """Return what `write_array` wrote, an array of `shape` that is read where it is sliced and takes no memory before.

    It takes 0.05 ms, so that nothing need be kept open between patches, shared between threads or carried into processes.

    Raises:
        DataError: The file is gone or is not whole.
        UsageError: It is compressed, and blosc2 is not installed.
    """
    try:
        if path.suffix == ".npy":
            start = _start_of(path, np.dtype(dtype).itemsize * math.prod(shape))
            if 0 in shape:  # no part of a file can be mapped that has no bytes
                return np.empty(tuple(shape), dtype)
            return np.memmap(path, dtype, mode="r", offset=start, shape=tuple(shape))
        # Without threads of its own: each worker has a processor, and threads do not survive a fork.
        return load_optional("blosc2").open(str(path), mode="r", dparams={"nthreads": 1})  # type: ignore[no-any-return]
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"Cannot read {path}: {error}. It was changed since it was prepared; start the same run again."
        ) from error


def _start_of(path: Path, length: int) -> int:
    """Return where the bytes of an array of `length` bytes begin.

    Raises:
        ValueError: The file is longer or shorter than that.
    """
    with path.open("rb") as stream:
        start = 10 + int.from_bytes(stream.read(10)[8:], "little")  # the header of .npy says how long it is
    if path.stat().st_size != start + length:
        raise ValueError(f"it has {path.stat().st_size} bytes instead of {start + length}")
    return start


def _compressed(array: Array) -> bytes:
    blosc2 = load_optional("blosc2")
    outer = [1] * (array.ndim - 3)
    chunks, blocks = ([*outer, *(min(edge, length) for length in array.shape[-3:])] for edge in (CHUNK, BLOCK))
    parameters = {"codec": blosc2.Codec.LZ4, "clevel": 5, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
    return blosc2.asarray(array, chunks=chunks, blocks=blocks, cparams=parameters).to_cframe()  # type: ignore[no-any-return]
