"""The 3-D viewer of a page: NiiVue (https://niivue.com, version 0.69.0, BSD-2), which a page carries with it.

A person turns the scan, hides structures, and sees truth and prediction one by one, side by side, or where they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from medseg_se.reports.embedding import Embedded
from medseg_se.reports.page import asset, json_script, number, safe
from medseg_se.reports.palette import Colour, hexadecimal

NIIVUE = "niivue.umd.js"
SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
"""Of the file as npm has it: @niivue/niivue@0.69.0, dist/niivue.umd.js."""

# Codes 1 … of the map of differences, as viewer.js has them. Orange and blue are told apart by everybody.
_DIFFERENCES = (
    ("both agree", (150, 150, 150)),
    ("missed: in the truth alone", (86, 180, 233)),
    ("extra: in the prediction alone", (230, 159, 0)),
    ("another structure", (204, 121, 167)),
)
_SHOW = {"prediction": "Prediction", "truth": "Truth", "both": "Side by side", "differences": "Differences"}
_LAYOUT = {"planes": "Planes and 3-D", "turn": "3-D alone"}
# What is looked at → azimuth and elevation. From the feet, the patient lies as in an axial plane.
_TURNS = {"front": "180,0", "right": "270,0", "left": "90,0", "back": "0,0", "head": "180,90", "feet": "180,-90"}


@dataclass(frozen=True)
class Turnable:
    """A case in the viewer.

    Attributes:
        rank: Its place among the worst.
        title: What it is called in the list.
        words: What is said of it below the picture.
        volumes: What is shown.
        empty: Whether there is no prediction to see; the viewer begins with a case that has one.
    """

    rank: int
    title: str
    words: str
    volumes: Embedded
    empty: bool = False


def viewer(cases: Sequence[Turnable], structures: Sequence[tuple[str, Colour]]) -> str:
    """Return the viewer as HTML, with the volumes of its cases; `viewer_scripts` go at the end of the page.

    Args:
        cases: In the order of the list.
        structures: Names and colours from index 1.
    """
    first = min(cases, key=lambda case: (case.empty, case.rank), default=None)
    options = "".join(
        f'<option value="{case.rank}"{" selected" if case is first else ""}>{safe(case.title)}</option>' for case in cases
    )
    boxes = "".join(
        f'<label><input type="checkbox" checked data-structure="{index}"> {swatch(colour)}{safe(name)}</label>'
        for index, (name, colour) in enumerate(structures, start=1)
    )
    turns = "".join(f'<button type="button" data-turn="{turn}">{name}</button>' for name, turn in _TURNS.items())
    found = "".join(
        f"<li>{swatch((red / 255, green / 255, blue / 255))}{name}</li>" for name, (red, green, blue) in _DIFFERENCES
    )
    setup = {
        "structures": [{"name": name, "rgb": [round(255 * part) for part in colour]} for name, colour in structures],
        "differences": [{"name": name, "rgb": rgb} for name, rgb in _DIFFERENCES],
        "cases": {
            case.rank: {"words": case.words, "scan": case.volumes.image is not None, "centre": case.volumes.centre}
            for case in cases
        },
    }
    held = "\n".join(json_script(f"case-{case.rank}", case.volumes.to_dict()) for case in cases)
    label = "Scan with structures in three planes and in 3-D; drag to turn, buttons below turn it too"
    figure = f'<figure><figcaption></figcaption><canvas tabindex="0" role="img" aria-label="{label}"></canvas></figure>'
    return f"""<div id="viewer" class="screen">
<div class="controls"><label>Case <select data-part="case">{options}</select></label>{_choice("show", "Show", _SHOW)}
{_choice("layout", "View", _LAYOUT)}</div>
<div class="views">{figure}{figure.replace("<figure>", "<figure hidden>")}</div>
<div class="controls"><span>Look from {turns}</span>
<label>Scan <input data-part="opacity" type="range" min="0" max="1" step="0.05" value="0.6"></label>
<label>Structures <input data-part="strength" type="range" min="0" max="1" step="0.05" value="0.7"></label>
<label>Cut the scan <input data-part="cut" type="range" min="0" max="1" step="0.02" value="0"></label></div>
<ul class="legend" data-part="differences" hidden>{found}</ul>
<p data-part="here"></p><p class="faint" data-part="status" role="status"></p>
<fieldset class="structures"><legend>Structures <button type="button" data-all="on">all</button>
<button type="button" data-all="off">none</button></legend>{boxes}</fieldset>
</div>
<style id="unwanted"></style>
{json_script("viewer-setup", setup)}
{held}"""


@cache
def viewer_scripts() -> tuple[str, str]:
    """Return NiiVue and what of ours drives it."""
    return files("medseg_se.reports").joinpath("vendor", NIIVUE).read_text(encoding="utf-8"), asset("viewer.js")


def swatch(colour: Colour) -> str:
    """Return a small field of a structure's colour."""
    return f'<span class="swatch" style="background:{hexadecimal(colour)}"></span>'


def resolution(volumes: Embedded) -> str:
    """Return how fine the volumes of a case are, in words."""
    size = " × ".join(number(step, 2) for step in volumes.spacing)
    return f"{'coarsened to' if volumes.coarsened else 'in full,'} {size} mm"


def _choice(name: str, legend: str, values: dict[str, str]) -> str:
    first = next(iter(values))
    buttons = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"{" checked" if value == first else ""}> {words}</label>'
        for value, words in values.items()
    )
    return f"<fieldset><legend>{legend}</legend>{buttons}</fieldset>"
