"""Copies among pictures: byte for byte, or the same picture saved again, resized, brightened, cropped or mirrored.

Two pictures are alike if their thumbnails correlate, either of the whole pictures or of what stands out from the dark, which
finds those that were cropped differently. Correlation does not see brightness and contrast. On 2,736 tumour slices the pairs
found were looked at: above the threshold stood the same picture or, rarely, the next slice of one patient.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import track

from medseg_se.data.pictures import read_picture
from medseg_se.errors import DataError, UsageError

ALIKE = 0.975  # correlation of thumbnails of `FINE` pixels from which two pictures are one
LIKELY = 0.96  # of `COARSE` pixels, from which the fine ones are compared; smoother thumbnails always correlate more
FINE, COARSE = 64, 32
DARK = 0.1  # share of the bright intensity below which a pixel is taken for background
BLOCK = 1024  # pictures compared with all others at once

Array = npt.NDArray[Any]

_NONE = np.empty((0, FINE, FINE), np.uint8)


@dataclass(frozen=True)
class Print:
    """What tells a picture from others.

    Attributes:
        digest: Of the file's bytes.
        whole: Thumbnail (FINE, FINE) of the picture, uint8.
        inner: Thumbnail (FINE, FINE) of the part that is not dark, uint8.
    """

    digest: str
    whole: Array
    inner: Array


@dataclass(frozen=True)
class Link:
    """Two pictures that show the same.

    Attributes:
        pair: Their places in the sequence that was compared, the lower one first.
        kind: "identical" byte for byte, "similar", or "mirrored" left to right.
        correlation: Of their thumbnails, 1 if they are identical.
    """

    pair: tuple[int, int]
    kind: str
    correlation: float


def print_all(paths: Sequence[Path]) -> tuple[dict[Path, Print], dict[Path, str]]:
    """Return the prints of all pictures, and why those without one cannot be read."""
    prints: dict[Path, Print] = {}
    broken: dict[Path, str] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(_print_or_reason, paths)
        for path, result in track(zip(paths, found, strict=True), "reading pictures", len(paths), transient=True):
            if isinstance(result, Print):
                prints[path] = result
            else:
                broken[path] = result
    return prints, broken


def find_links(prints: Sequence[Print], alike: float = ALIKE) -> list[Link]:
    """Return pairs that connect all pictures which show the same, at least one for each such picture.

    Args:
        prints: The pictures.
        alike: Correlation of thumbnails from which two pictures are one.

    Raises:
        UsageError: `alike` is not between `LIKELY` and 1.
    """
    if not LIKELY <= alike <= 1:
        raise UsageError(f"Expected `alike` to be a correlation between {LIKELY} and 1, but got {alike}.")
    first_of: dict[str, int] = {}
    links = []
    for place, entry in enumerate(prints):
        first = first_of.setdefault(entry.digest, place)
        if first != place:
            links.append(Link((first, place), "identical", 1.0))
    different = sorted(first_of.values())  # each of the others is linked already
    best: dict[tuple[int, int], Link] = {}
    for view in ("whole", "inner"):
        thumbnails = np.stack([getattr(prints[place], view) for place in different]) if different else _NONE
        for a, b, mirrored in _likely(thumbnails):
            others = thumbnails[b][:, :, ::-1] if mirrored else thumbnails[b]
            correlations = (_normalised(thumbnails[a]) * _normalised(others)).sum(axis=1)
            for near in np.flatnonzero(correlations >= alike):
                pair, correlation = (different[a[near]], different[b[near]]), min(1.0, float(correlations[near]))
                if pair not in best or correlation > best[pair].correlation:
                    best[pair] = Link(pair, "mirrored" if mirrored else "similar", correlation)
    return [*links, *(best[pair] for pair in sorted(best))]


def connected(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return the sets of 0 … `count` - 1 that `pairs` connect, also those of one member, in order of their first."""
    leader = list(range(count))

    def lead(member: int) -> int:
        while leader[member] != member:
            leader[member] = leader[leader[member]]
            member = leader[member]
        return member

    for a, b in pairs:
        low, high = sorted((lead(a), lead(b)))
        leader[high] = low
    members: Mapping[int, list[int]] = defaultdict(list)
    for member in range(count):
        members[lead(member)].append(member)
    return [members[first] for first in sorted(members)]


def _print_or_reason(path: Path) -> Print | str:
    try:
        grey = read_picture(path).array[0, :, :, 0]
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except (DataError, OSError) as error:
        return str(error)
    scaled = grey * np.float32(255 / max(float(grey.max()), 1e-6))
    picture = Image.fromarray(scaled)
    return Print(digest, _thumbnail(picture, None), _thumbnail(picture, _bright_box(scaled)))


def _thumbnail(picture: Image.Image, box: tuple[int, int, int, int] | None) -> Array:
    small = picture.resize((FINE, FINE), Image.Resampling.BOX, box=box)
    return np.asarray(small).round().clip(0, 255).astype(np.uint8)


def _bright_box(grey: Array) -> tuple[int, int, int, int] | None:
    """Return (left, upper, right, lower) around the rows and columns with at least 2 % of bright pixels."""
    bright = grey > DARK * np.percentile(grey, 99.5)
    rows, columns = (np.flatnonzero(bright.mean(axis) > 0.02) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _likely(thumbnails: Array) -> Iterator[tuple[Array, Array, bool]]:
    """Yield pairs whose coarse thumbnails correlate: places a and b > a, a few thousand at once, and whether b is mirrored."""
    ratio = FINE // COARSE
    coarse = thumbnails.reshape(-1, COARSE, ratio, COARSE, ratio).mean((2, 4), dtype=np.float32)
    straight, mirrored = _normalised(coarse), _normalised(coarse[:, :, ::-1])
    for start in range(0, len(coarse), BLOCK):
        rows = straight[start : start + BLOCK]
        for others, is_mirrored in ((straight, False), (mirrored, True)):
            a, b = np.nonzero(rows @ others[start:].T >= LIKELY)
            later = b > a
            a, b = a[later] + start, b[later] + start
            for first in range(0, len(a), BLOCK):
                yield a[first : first + BLOCK], b[first : first + BLOCK], is_mirrored


def _normalised(pictures: Array) -> Array:
    """Return each of (N, H, W) as a row of mean 0 and length 1, or of zeros if it has no contrast."""
    rows = pictures.reshape(len(pictures), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)
