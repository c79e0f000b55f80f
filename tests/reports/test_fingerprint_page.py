import base64
import io
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from medseg_se.errors import OutputError, UsageError
from medseg_se.planning.facts import CaseFacts, ChannelFacts, Fingerprint, StructureFacts
from medseg_se.reports.fingerprint import fingerprint_page

COLOURS = {"left-right": (0x56, 0xC1, 0xF5), "back-front": (0xFF, 0xB4, 0x54), "down-up": (0x8B, 0xD1, 0x7C)}


def make(cases=4, channels=1, structures=2, absent=()):
    """Return a fingerprint; (case, structure) in `absent` are not there."""
    names = [f"structure_{number}" for number in range(structures)]
    present = np.array([[(case, number) not in absent for number in range(structures)] for case in range(cases)], dtype=int)
    percentiles = {"0.5": 1.0, "5": 2.0, "50": 5.0, "95": 8.0, "99.5": 9.0}
    return Fingerprint(
        name="made up",
        source="somewhere/dataset.json",
        inputs="",
        channels=tuple(
            ChannelFacts(f"channel {number}", 5.0, 2.0, 0.0, 9.0, percentiles, (4,) * 64, number == 1)
            for number in range(channels)
        ),
        cases=tuple(
            CaseFacts(
                id=f"case_{case}",
                group=f"patient_{case // 2}",
                shape=(30 + case, 40, 50),
                cropped=(20, 30, 40),
                spacing=(1.0, 2.0, 3.0),
                orientation="LPS",
                lowest=(0.0,) * channels,
                highest=(9.0,) * channels,
                nonzero=0.4,
                bytes=2**20,
                volumes={name: 2.0 + case for name, there in zip(names, present[case], strict=True) if there},
            )
            for case in range(cases)
        ),
        structures=tuple(
            StructureFacts(name, (7 + number,), there, 3.5, 2.0, 5.0, (10.0, 20.0, 30.0), 0.1, 0.1)
            for number, (name, there) in enumerate(zip(names, present.sum(axis=0).tolist(), strict=True))
        ),
        background=0.8,
        pairs=(),
        together=tuple(map(tuple, (present.T @ present).tolist())),
        regions={},
        unusable={},
        warnings=(),
    )


@pytest.fixture
def draw(tmp_path):
    """Return a function that writes the page of a fingerprint: its text, and its pictures by name as pixels."""

    def write(fingerprint):
        fingerprint_page(fingerprint, tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text(encoding="utf-8")
        found = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="([^"]+)">', text)
        pictures = {name: imread(io.BytesIO(base64.b64decode(content)))[..., :3] for content, name in found}
        return re.sub(r"base64,[^\"]+", "", text), pictures

    return write


def has_colour(picture, colour):
    return np.any(np.abs(picture - np.array(colour) / 255).max(axis=-1) < 0.02)


def test_the_page_says_what_was_measured_and_needs_nothing_else(draw):
    text, pictures = draw(make())
    assert "4 usable cases of 2\ngroups, 1 channel\n(channel 0), 2\nstructures; 4.0 MiB" in text
    assert "<td>structure_1</td><td>8</td><td>4</td>" in text
    assert "10 × 20 × 30" in text
    assert "<td>case_3</td><td>patient_1</td><td>33 × 40 × 50</td>\n<td>20 × 30 × 40</td>" in text
    assert not re.search(r"(src|href)=\"?(http|//|[\w./]+\.(js|css|png))", text)
    assert "Warnings" not in text
    assert "cannot be used" not in text
    assert list(pictures) == ["Grids", "Intensities inside the structures", "Volumes and smallest extents of the structures"]
    assert all(has_colour(picture, COLOURS["left-right"]) for picture in pictures.values())


def test_warnings_and_broken_cases_stand_first_and_are_only_text(draw):
    warnings = ("Left <b>lies</b> to the right.", "Another one.")
    text, _ = draw(replace(make(), warnings=warnings, unusable={"case_9 & co": "<script>alert(1)</script> is missing"}))
    assert "<li>Left &lt;b&gt;lies&lt;/b&gt; to the right.</li>" in text
    assert "<b>case_9 &amp; co</b>: &lt;script&gt;" in text
    assert "<script" not in text
    assert text.index("Another one.") < text.index("case_9 &amp; co") < text.index("<img")


def test_what_appears_together_is_shown_only_where_something_is_missing(draw):
    _, full = draw(make(structures=3))
    text, some = draw(make(structures=3, absent={(0, 1), (1, 2), (2, 2), (3, 2), (0, 2)}))
    assert "What appears together" not in full
    assert "What appears together" in some
    assert "<td>structure_1</td><td>8</td><td>3</td>" in text
    assert re.search(r"<td>structure_2</td><td>9</td><td>0</td>\s*<td colspan=\"5\">in no case</td>", text)


def test_a_structure_more_takes_a_row_more_and_one_that_is_absent_none(draw):
    name = "Volumes and smallest extents of the structures"

    def height(**options):
        return draw(make(**options))[1][name].shape[0]

    row = height(structures=3) - height(structures=2)
    assert row > 10
    assert height(structures=60) - height(structures=2) == pytest.approx(58 * row, abs=58)
    assert height(structures=3, absent={(case, 1) for case in range(4)}) == height(structures=2)
    nothing = make(structures=2, absent={(case, number) for case in range(4) for number in range(2)})
    assert list(draw(nothing)[1]) == ["Grids", "Intensities inside the structures"]


def test_channels_lie_side_by_side(draw):
    name = "Intensities inside the structures"
    one, three, four = (draw(make(channels=count))[1][name] for count in (1, 3, 4))
    assert one.shape == three.shape
    assert four.shape[0] > 1.5 * three.shape[0]
    blue = np.abs(four - np.array(COLOURS["left-right"]) / 255).max(axis=-1) < 0.02
    lower = blue[four.shape[0] // 2 :]
    assert lower[:, : four.shape[1] // 3].any()
    assert not lower[:, four.shape[1] // 3 :].any()


def test_one_case_of_constant_intensity_is_drawn(draw):
    percentiles = dict.fromkeys(("0.5", "5", "50", "95", "99.5"), 3.0)
    constant = ChannelFacts("flat", 3.0, 0.0, 3.0, 3.0, percentiles, (9,) * 64, False)
    text, pictures = draw(replace(make(cases=1, structures=1), channels=(constant,)))
    assert "1 usable case of 1\ngroup, 1 channel\n(flat), 1\nstructure;" in text
    assert has_colour(pictures["Intensities inside the structures"], COLOURS["left-right"])


def test_names_are_not_taken_for_formulas(draw):
    made, odd = make(structures=2, absent={(0, 0)}), "a$_{\\frac$"
    channel = replace(made.channels[0], name=odd)
    structure = replace(made.structures[1], name=odd)
    cases = tuple(
        replace(case, volumes={odd if name == "structure_1" else name: 2.0 for name in case.volumes}) for case in made.cases
    )
    text, pictures = draw(replace(made, channels=(channel,), structures=(made.structures[0], structure), cases=cases))
    assert text.count(odd) == 2
    assert list(pictures) == list(draw(made)[1])
    assert len(pictures) == 4


def test_a_page_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"page\.html"):
        fingerprint_page(make(), tmp_path / "file" / "page.html")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="pip install"):
        fingerprint_page(make(), tmp_path / "page.html")
