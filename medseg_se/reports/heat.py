"""Pictures of scans with what speaks for an answer laid over them, as HTML that needs no script."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from medseg_se.reports.page import data_uri, safe
from medseg_se.reports.pictures import PLANES
from medseg_se.volumes import Volume, reorient

Array = npt.NDArray[Any]

_SIDE = 320  # pixels, the longer side of a picture as it is embedded
_HEAT = 80  # pixels, the longer side of an overlay: the maps behind it have a few voxels a side
_QUALITY = 85  # of JPEG
_STRONGEST = 0.72  # opacity at the largest evidence
# Lightness rises with the evidence; told apart without cones for red, green or blue too.
_FOR = ((0.0, (120, 28, 109)), (0.5, (237, 105, 37)), (1.0, (252, 255, 164)))
_AGAINST = ((0.0, (23, 55, 120)), (0.5, (60, 140, 220)), (1.0, (205, 240, 255)))


@dataclass(frozen=True)
class Section:
    """A slice as it lies on a screen.

    Attributes:
        name: What it is called; empty for a picture.
        values: Grey (rows, columns), or colours (rows, columns, 3), 0 to 255.
        heat: Evidence on the same grid, (K, rows, columns); NaN where nothing was seen. None without a model.
        aspect: Width over height.
        borders: Letters at left, right, bottom and top; none for a picture.
    """

    name: str
    values: Array
    heat: Array | None
    aspect: float
    borders: Sequence[str]


def sections(image: Volume, evidence: Volume | None, is_picture: bool) -> list[Section]:
    """Return what is shown of a scan: a picture as it is, the slice that a network saw, or three planes of a volume.

    Planes meet where the evidence is largest in either direction, in the middle without any.

    Args:
        image: The scan (C, I, J, K).
        evidence: (K, I, J, K) on its grid.
        is_picture: Whether it lies as a picture does: (C, height, width, 1).
    """
    if is_picture:
        heat = None if evidence is None else evidence.array[..., 0]
        return [Section("", _bytes(np.moveaxis(image.array[..., 0], 0, -1), False), heat, image.shape[1] / image.shape[0], ())]
    turned = reorient(replace(image, array=image.array[:1]), "RAS")
    heat = None if evidence is None else reorient(evidence, "RAS").array
    shown, place = list(PLANES), [length // 2 for length in turned.shape]
    if heat is not None and np.isfinite(heat).any():
        strength = np.nan_to_num(np.abs(heat)).max(axis=0)
        if strength.any():
            place = [int(number) for number in np.unravel_index(int(strength.argmax()), strength.shape)]
        seen: npt.NDArray[np.bool_] = np.asarray(np.isfinite(heat).all(axis=0))
        for axis in range(3):
            first, second = (other for other in range(3) if other != axis)
            slices = np.flatnonzero(seen.any(axis=(first, second)))
            if len(slices) < min(3, turned.shape[axis]):  # a network on slices, which saw this one
                shown, place[axis] = [plane for plane in PLANES if plane.across == axis], int(slices[len(slices) // 2])
    shown = [plane for plane in shown if min(turned.shape[plane.horizontal], turned.shape[plane.vertical]) > 1] or [PLANES[2]]
    values, found = _bytes(turned.array[0], True), []
    for plane in shown:
        across, up = (turned.shape[axis] * turned.spacing[axis] for axis in (plane.horizontal, plane.vertical))
        cut = [_cut(array, plane.across, place[plane.across]) for array in (values, *(() if heat is None else heat))]
        layers = None if heat is None else np.stack(cut[1:])
        found.append(Section(plane.name, cut[0], layers, across / up, plane.borders))
    return found


def _cut(array: Array, axis: int, place: int) -> Array:
    """Return a slice as it lies on paper, (rows, columns): both axes run against the array's."""
    return np.ascontiguousarray(np.take(array, place, axis).T[::-1, ::-1])


def _bytes(values: Array, windowed: bool) -> Array:
    """Return intensities as bytes: between percentiles 0.5 and 99.5 of a scan, and of a picture that is no plain one."""
    if values.ndim == 3 and not windowed and values.shape[-1] == 1:
        values = values[..., 0]
    low, high = (0.0, 255.0)
    if windowed or values.max() > 255 or values.min() < 0 or values.max() <= 1:
        low, high = (float(value) for value in np.percentile(values[np.isfinite(values)], [0.5, 99.5]))
    scaled = (np.nan_to_num(values, nan=low) - low) * (255 / max(high - low, 1e-9))
    result: Array = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return result


def view(section: Section, number: int | None, caption: str, most: float, both: bool = False) -> str:
    """Return a slice as a figure.

    Args:
        section: What is shown.
        number: Which evidence is laid over it; None for the slice alone.
        caption: Words below.
        most: Evidence that is shown at its strongest.
        both: Whether evidence against an answer is shown too, in blue.
    """
    layer = ""
    if number is not None and section.heat is not None:
        layer = f'<img class="heat" alt="" src="{data_uri(_overlay(section.heat[number], most, both))}">'
    words = " ".join(part for part in (section.name, caption) if part)
    letters = "".join(f'<span class="e{place}">{letter}</span>' for place, letter in enumerate(section.borders))
    stream = io.BytesIO()
    picture = Image.fromarray(section.values)
    _shrunk(picture, section.aspect, _SIDE).save(stream, "JPEG", quality=_QUALITY)
    image = f'<img alt="{safe(words)}" src="{data_uri(stream.getvalue(), "jpeg")}">'
    return (
        f'<figure class="view"><div class="stack">{image}{layer}{letters}</div><figcaption>{safe(words)}</figcaption></figure>'
    )


def _shrunk(picture: Image.Image, aspect: float, side: int) -> Image.Image:
    """Return a picture with square pixels, at most `side` of them along its longer side, at least half as many."""
    longest = max(picture.width, picture.height)
    longer = side if longest > side else max(longest, side // 2)
    size = (longer, max(1, round(longer / aspect))) if aspect >= 1 else (max(1, round(longer * aspect)), longer)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)


def _overlay(evidence: Array, most: float, both: bool) -> bytes:
    """Return evidence as PNG, transparent where there is none."""
    rows, columns = (max(1, round(length * min(1, _HEAT / max(evidence.shape)))) for length in evidence.shape)
    small = Image.fromarray(np.nan_to_num(evidence).astype(np.float32)).resize((columns, rows), Image.Resampling.BILINEAR)
    share = np.asarray(small) / max(most, 1e-12)
    strength = np.clip(np.abs(share) if both else share, 0, 1)
    colours = np.where((share < 0)[..., None], _ramp(strength, _AGAINST), _ramp(strength, _FOR))
    alpha = 255 * _STRONGEST * strength[..., None]
    pixels = np.concatenate([colours, alpha], axis=-1)
    stream = io.BytesIO()
    Image.fromarray(np.rint(pixels).astype(np.uint8), "RGBA").save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _ramp(strength: Array, stops: Sequence[tuple[float, tuple[int, int, int]]]) -> Array:
    places = [place for place, _ in stops]
    return np.stack([np.interp(strength, places, [colour[part] for _, colour in stops]) for part in range(3)], axis=-1)
