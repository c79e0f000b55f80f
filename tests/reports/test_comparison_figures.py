import math

import numpy as np
import pytest

from medseg_se.evaluation.case import CaseResult
from medseg_se.evaluation.compare import Compared, compare
from medseg_se.evaluation.result import Evaluation
from medseg_se.reports.comparison_figures import drawn_structures, front_of, write_figures
from medseg_se.reports.comparison_page import write_comparison_report
from medseg_se.structures import Structures

NAMES = ("anterior", "posterior <left>", *(f"part_{number}" for number in range(6)))


@pytest.fixture
def comparison():
    rng = np.random.default_rng(0)
    first = rng.uniform(0.7, 0.9, (10, len(NAMES)))
    better = first.copy()
    better[:, 5] += 0.05

    def run(name, dice, reference, flops):
        cases = [CaseResult(f"case_{place}", {"dice": dict(zip(NAMES, row, strict=True))}) for place, row in enumerate(dice)]
        structures = Structures({name: (value,) for value, name in enumerate(NAMES, start=1)})
        return Compared(name, {"seed 1": Evaluation(structures, tuple(cases), {}, ())}, reference, {"flops": flops})

    noise = first + rng.normal(0, 0.01, first.shape)
    return compare([run("none", first, None, 1e9), run("scse", better, "none", 2e9), run("eca", noise, "none", 1.1e9)])


def test_the_front_holds_what_nothing_beats():
    points = [(1.0, 0.80), (2.0, 0.85), (3.0, 0.84), (2.0, 0.83), (4.0, 0.90), (1.0, math.nan)]
    assert front_of(points, "higher") == [(1.0, 0.80), (2.0, 0.85), (4.0, 0.90)]
    assert front_of([(1.0, 5.0), (2.0, 3.0), (3.0, 4.0)], "lower") == [(1.0, 5.0), (2.0, 3.0)]
    assert front_of([(1.0, -0.5), (2.0, 0.1), (3.0, -0.2)], "zero") == [(1.0, -0.5), (2.0, 0.1)]


def test_of_many_structures_those_with_the_smallest_p_are_drawn(comparison):
    assert len(drawn_structures(comparison)) == 5
    assert NAMES[5] in drawn_structures(comparison)


def test_figures_are_written_in_both_forms(comparison, tmp_path):
    written = write_figures(comparison, tmp_path)
    assert [path.name for path in written] == ["forest.png", "forest.svg", "pareto.png", "pareto.svg"]
    assert written[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in written[1].read_bytes()


def test_the_page_has_the_verdict_and_every_number(comparison, tmp_path):
    write_comparison_report(comparison, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count('class="verdict"') == 2
    assert "scse against none: better (Dice, mean over foreground" in text
    assert "posterior &lt;left&gt;" in text
    assert "posterior <left>" not in text
    assert text.count('<td class="text">scse</td>') == 1 + len(NAMES)
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org", "")
