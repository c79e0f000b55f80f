"""Three planes of a case with the outlines of truth and prediction, as HTML that needs no script.

Planes lie as in `medseg_se.reports.pictures`: the patient's right on the left of coronal and axial planes, anterior on the left
of sagittal ones.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from medseg_se.errors import some_of
from medseg_se.reports.case_view import Array, CaseView, Window
from medseg_se.reports.outlines import outline
from medseg_se.reports.page import data_uri, safe
from medseg_se.reports.pictures import PLANES, Plane

_QUALITY = 90  # of JPEG
_HEIGHT = 26  # rem, the most a plane may take


def planes(view: CaseView, names: Sequence[str], palette: Sequence[str], window: Window) -> str:
    """Return the planes through the slices where truth and prediction differ most.

    The prediction is outlined in the colours of the structures, the truth in dotted white. Each outline has the class `oN` of
    its structure's index N.

    Args:
        view: The case.
        names: Of the structures, from index 1.
        palette: Their colours as CSS writes them.
        window: What is shown as black and white.
    """
    box, slices = view.box, view.slices
    shown = [plane for plane in PLANES if min(view.truth.shape[plane.horizontal], view.truth.shape[plane.vertical]) > 1]
    sizes = [_size(view, plane) for plane in shown or [PLANES[2]]]
    tallest = max(size[1] for size in sizes) / max(1e-9, sum(size[0] for size in sizes))
    total = min(100.0, 100.0 * _HEIGHT / max(1e-9, 74.0 * tallest))  # per cent of the width, no plane too tall for a screen
    figures = []
    for plane, (across, up) in zip(shown or [PLANES[2]], sizes, strict=True):
        place = slices[plane.across]
        image = None if view.image is None else _cut(view.image.array[0], plane, place, box)
        truth, prediction = (_cut(volume.array[0], plane, place, box) for volume in (view.truth, view.prediction))
        width = total * across / sum(size[0] for size in sizes)
        words = f"{plane.name}, {_position(view, plane, place)}"
        said = _alternative(words, truth, prediction, names)
        style = f"width:calc({width:.2f}% - .3rem);aspect-ratio:{across:.1f}/{up:.1f}"
        figures.append(
            f'<figure class="plane" role="img" style="{style}" aria-label="{safe(said)}">'
            f"{_background(image, window)}{_paths(truth, prediction, names, palette)}{_letters(plane)}"
            f'<span class="name">{safe(words)}</span></figure>'
        )
    return f'<div class="planes">{"".join(figures)}</div>'


def _size(view: CaseView, plane: Plane) -> tuple[float, float]:
    """Return width and height of a plane in mm."""
    spans = [(part.stop - part.start) * step for part, step in zip(view.box, view.truth.spacing, strict=True)]
    return spans[plane.horizontal], spans[plane.vertical]


def _cut(array: Array, plane: Plane, place: int, box: tuple[slice, slice, slice]) -> Array:
    """Return a slice as it lies on paper, (rows, columns): both axes run against the array's."""
    section = np.take(
        array[tuple(part if axis != plane.across else slice(None) for axis, part in enumerate(box))], place, plane.across
    )
    return np.ascontiguousarray(section.T[::-1, ::-1])


def _position(view: CaseView, plane: Plane, place: int) -> str:
    """Return where the slice lies in mm of the scanner's axes, as far as the grid follows them."""
    centre = [(length - 1) / 2 for length in view.truth.shape]
    centre[plane.across] = place
    position = float((view.truth.affine @ [*centre, 1])[plane.across])
    return f"{'xyz'[plane.across]} = {position:.0f} mm"


def grey(values: Array, window: Window) -> Array:
    """Return intensities as bytes, black at the window's lower end and white at its upper one."""
    scaled = (np.nan_to_num(values, nan=window.low) - window.low) * (255 / (window.high - window.low))
    result: Array = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return result


def _background(image: Array | None, window: Window) -> str:
    if image is None:
        return ""
    stream = io.BytesIO()
    Image.fromarray(grey(image, window)).save(stream, "JPEG", quality=_QUALITY)
    return f'<img alt="" src="{data_uri(stream.getvalue(), "jpeg")}">'


def _paths(truth: Array, prediction: Array, names: Sequence[str], palette: Sequence[str]) -> str:
    """Return the outlines; truth lies above, so that its dots show on the prediction's line."""
    rows, columns = truth.shape
    layers = []
    for kind, labels, word in (("p", prediction, "prediction"), ("t", truth, "truth")):
        paths = []
        for index in np.unique(labels[labels > 0]).tolist():
            colour = f' stroke="{palette[index - 1]}"' if kind == "p" else ""
            title = f"<title>{safe(names[index - 1])}, {word}</title>"
            paths.append(f'<path class="o{index}"{colour} d="{outline(labels == index)}">{title}</path>')
        layers.append(f'<g class="{kind}">{"".join(paths)}</g>')
    return f'<svg viewBox="0 0 {2 * columns} {2 * rows}" preserveAspectRatio="none" aria-hidden="true">{"".join(layers)}</svg>'


def _letters(plane: Plane) -> str:
    return "".join(f'<span class="e{number}">{letter}</span>' for number, letter in enumerate(plane.borders))


def _alternative(words: str, truth: Array, prediction: Array, names: Sequence[str]) -> str:
    """Return what the picture shows, in words."""
    parts = []
    for labels, word in ((truth, "truth"), (prediction, "prediction")):
        seen = [names[index - 1] for index in np.unique(labels[labels > 0]).tolist()]
        parts.append(f"{word}: {some_of(seen, 8) if seen else 'no structure'}")
    return f"{words}; {'; '.join(parts)}"
