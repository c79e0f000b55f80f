"""The colours of structures, the same in every picture, plot and viewer.

The first ones are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), their blue and orange moved for a black ground:
people who see no red, green or blue tell them apart too.
"""

from __future__ import annotations

import colorsys

from medseg_se.structures import Structures

Colour = tuple[float, float, float]

_FIRST = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#3f7fe0", "#d55e00", "#cc79a7")
_TURN = 0.035  # of the wheel of hues, between one round of the colours and the next
_LIGHTER = 0.5  # of what is missing to white, for the left of a pair


def colours(structures: Structures) -> dict[str, Colour]:
    """Return a colour (red, green, blue in 0 … 1) per structure, in the order of their indices.

    Left and right share a hue, the left one is lighter.
    """
    chosen: dict[str, Colour] = {}
    side = dict(structures.pairs())
    partner = {right: left for left, right in side.items()}
    names = (None, *structures.names)
    count = 0
    for index, name in enumerate(structures.names, start=1):
        if name in chosen:
            continue
        left, right = (index, side[index]) if index in side else (partner.get(index, index), index)
        hue, lightness, saturation = _colour(count)
        count += 1
        chosen[str(names[right])] = colorsys.hls_to_rgb(hue, lightness, saturation)
        if left != right:
            lighter = lightness + _LIGHTER * (1 - lightness)
            chosen[str(names[left])] = colorsys.hls_to_rgb(hue, lighter, saturation)
    return {name: chosen[name] for name in structures.names}


def class_colours(count: int) -> list[str]:
    """Return so many colours that are told apart, as CSS writes them, for things that are no structures."""
    return [hexadecimal(colorsys.hls_to_rgb(*_colour(number))) for number in range(count)]


def hexadecimal(colour: Colour) -> str:
    """Return a colour as CSS writes it."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def _colour(number: int) -> tuple[float, float, float]:
    """Return hue, lightness and saturation of the colour `number`, from 0."""
    turns, place = divmod(number, len(_FIRST))
    red, green, blue = (int(_FIRST[place][start : start + 2], 16) / 255 for start in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    return (hue + _TURN * turns) % 1, lightness, saturation
