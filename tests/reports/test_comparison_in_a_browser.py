"""The report of a comparison in headless Chromium: it loads nothing, complains of nothing, draws and sorts."""

import numpy as np
import pytest
from browser import asked, needs_browser, pages_on_paper

from medseg_se.evaluation.case import CaseResult
from medseg_se.evaluation.compare import Compared, compare
from medseg_se.evaluation.result import Evaluation
from medseg_se.reports.comparison_page import write_comparison_report
from medseg_se.structures import Structures

pytestmark = needs_browser

NAMES = ("anterior", "posterior <left>", "head")

ASK = """
  found.verdicts = page.querySelectorAll(".verdict").length;
  const boxes = [...page.querySelectorAll("#differences .mean")].map((mark) => mark.getBoundingClientRect());
  found.diamonds = boxes.map((box) => [box.width > 3, (box.left + box.right) / 2]);
  const line = page.querySelector("#differences .zero").getBoundingClientRect();
  found.zero = (line.left + line.right) / 2;
  found.points = [...page.querySelectorAll("#costs .pareto circle")].map((mark) => mark.getBoundingClientRect().width > 3);
  const table = page.querySelector("#runs table");
  const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  const heads = [...table.querySelectorAll("th button")];
  found.heads = heads.map((head) => head.textContent);
  heads[2].click();
  found.rising = names();
  heads[2].click();
  found.falling = names();
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rng = np.random.default_rng(0)
    first = rng.uniform(0.7, 0.9, (12, len(NAMES)))

    def run(name, dice, reference, flops):
        cases = [CaseResult(f"case_{place}", {"dice": dict(zip(NAMES, row, strict=True))}) for place, row in enumerate(dice)]
        structures = Structures({name: (value,) for value, name in enumerate(NAMES, start=1)})
        return Compared(name, {"seed 1": Evaluation(structures, tuple(cases), {}, ())}, reference, {"flops": flops})

    runs = [
        run("none", first, None, 1e9),
        run("scse", first + 0.05 + rng.normal(0, 0.005, first.shape), "none", 2e9),
        run("worse", first - 0.05 + rng.normal(0, 0.005, first.shape), "none", 1.5e9),
    ]
    path = tmp_path_factory.mktemp("comparison") / "report.html"
    write_comparison_report(compare(runs), path)
    return path


@pytest.mark.parametrize("width", [1000, 390])
def test_the_page_of_a_comparison_draws_and_sorts_without_a_network(page, width):
    found = asked(page, width, ASK)
    assert found["verdicts"] == 2
    assert len(found["diamonds"]) == 2 * (1 + len(NAMES))
    assert all(drawn for drawn, _ in found["diamonds"])
    for place, (_, x) in enumerate(found["diamonds"]):  # the better run lies right of the line, the worse one left
        assert (x - found["zero"]) * (1 if place % 2 == 0 else -1) > 5
    assert found["points"] == [True] * 3
    assert found["heads"][2].startswith("Dice")
    assert found["rising"] == ["worse", "none", "scse"]
    assert found["falling"] == ["scse", "none", "worse"]


def test_the_page_of_a_comparison_prints(page, tmp_path):
    assert 1 <= pages_on_paper(page, tmp_path) <= 6
