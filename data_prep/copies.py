"""Copies among pictures: byte for byte, or the same picture saved again, resized, brightened, cropped or mirrored.

Two pictures are alike if their thumbnails correlate, either of the whole pictures or of what stands out from the dark, which
finds those that were cropped differently. Correlation does not see brightness and contrast. On 2,736 tumour slices the pairs
found were looked at: above the threshold stood the same picture or, rarely, the next slice of one patient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
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
from medseg_se.processors import at_once

ALIKE = 0.975  # correlation of thumbnails of `FINE` pixels from which two pictures are one
LIKELY = 0.96  # of `COARSE` pixels, from which the fine ones are compared; coarse ones mostly correlate more, but not always
FINE, COARSE = 64, 32
DARK = 0.1  # share of the bright intensity below which a pixel is taken for background
BLOCK = 1024  # pictures compared with all others at once

Array = npt.NDArray[Any]


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
    with ThreadPoolExecutor(at_once()) as pool:
        found = pool.map(_print_or_reason, paths)
        for path, result in track(zip(paths, found, strict=True), "reading pictures", len(paths), transient=True):
            if isinstance(result, Print):
                prints[path] = result
            else:
                broken[path] = result
    return prints, broken


def find_links(prints: Sequence[Print], alike: float = ALIKE) -> list[Link]:
    """Return pairs that connect all pictures which show the same, one less than each set of them has.

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
    return [*links, *_find_alike(prints, sorted(first_of.values()), alike)]  # each of the others is linked already


def _find_alike(prints: Sequence[Print], places: Sequence[int], alike: float) -> list[Link]:
    """Return pairs among `places` that connect all which are alike, and no more of them than that takes."""
    views = [np.stack([getattr(prints[place], view) for place in places]) for view in ("whole", "inner")] if places else []
    links: list[Link] = []
    sets = np.arange(len(places))  # the set of each; of two in one set nothing is left to be found
    for mirrored, thumbnails in ((mirrored, view) for mirrored in (False, True) for view in views):
        for a, b in _likely(thumbnails, mirrored):
            apart = sets[a] != sets[b]
            a, b = a[apart], b[apart]
            if not len(a):
                continue
            correlations = _correlate(thumbnails, a, b, mirrored)
            for near in np.argsort(-correlations, kind="stable"):
                one, other = int(a[near]), int(b[near])
                if correlations[near] < alike:
                    break
                if sets[one] != sets[other]:
                    sets[sets == sets[other]] = sets[one]
                    best = max(float(_correlate(view, a[[near]], b[[near]], mirrored)[0]) for view in views)
                    kind = "mirrored" if mirrored else "similar"
                    links.append(Link((places[one], places[other]), kind, min(1.0, best)))
    return sorted(links, key=lambda link: link.pair)


def _correlate(thumbnails: Array, a: Array, b: Array, mirrored: bool) -> Array:
    """Return the correlation (N,) of each of the pairs at places `a` and `b`, (N,)."""
    others = thumbnails[b][:, :, ::-1] if mirrored else thumbnails[b]
    correlations: Array = (_normalised(thumbnails[a]) * _normalised(others)).sum(axis=1)
    return correlations


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


def _likely(thumbnails: Array, mirrored: bool) -> Iterator[tuple[Array, Array]]:
    """Yield pairs whose coarse thumbnails correlate, with b `mirrored` or not: places a and b > a, a few thousand at once."""
    ratio = FINE // COARSE
    coarse = thumbnails.reshape(-1, COARSE, ratio, COARSE, ratio).mean((2, 4), dtype=np.float32)
    straight = _normalised(coarse)
    others = _normalised(coarse[:, :, ::-1]) if mirrored else straight
    for start in range(0, len(coarse), BLOCK):
        a, b = np.nonzero(straight[start : start + BLOCK] @ others[start:].T >= LIKELY)
        later = b > a
        a, b = a[later] + start, b[later] + start
        for first in range(0, len(a), BLOCK):
            yield a[first : first + BLOCK], b[first : first + BLOCK]


def _normalised(pictures: Array) -> Array:
    """Return each of (N, H, W) as a row of mean 0 and length 1, or of zeros if it has no contrast."""
    rows = pictures.reshape(len(pictures), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)
