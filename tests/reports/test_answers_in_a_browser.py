"""The reports of classifications and regressions in headless Chromium."""

import pytest
from browser import asked, needs_browser, pages_on_paper
from judged_maker import judged_ages, judged_classes
from known_classifier import Sides, write_checkpoint
from whole_scans import CLASSES

from medseg_se.analysis.explaining import Explainer
from medseg_se.networks import NETWORKS
from medseg_se.reports.classification_page import write_classification_report
from medseg_se.reports.regression_page import write_regression_report

pytestmark = needs_browser

# Overlays lie exactly on their pictures, and the box hides them; places of marks are measured within their plots.
ASK = """
  const inside = (one, other) => ["left", "right", "top", "bottom"].every((side) => Math.abs(one[side] - other[side]) < 1.5);
  const heats = [...page.querySelectorAll(".heat")];
  found.heats = heats.map((heat) => inside(heat.getBoundingClientRect(), heat.parentElement.getBoundingClientRect()));
  const seen = () => heats.map((heat) => view.getComputedStyle(heat).visibility);
  found.before = seen();
  page.querySelector("[data-outline=heat]").click();
  found.after = seen();
  found.panels = [...page.querySelectorAll(".panel > svg")].map((plot) => {
    const frame = plot.getBoundingClientRect();
    const dots = [...plot.querySelectorAll("circle.dot")].map((dot) => {
      const box = dot.getBoundingClientRect();
      const [x, y] = [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
      return [(x - frame.left) / frame.width, (frame.bottom - y) / frame.height];
    });
    return { size: [frame.width, frame.height], dots };
  });
  const table = page.querySelector("#table table");
  const first = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  found.order = first();
  table.querySelector("th button").click();
  found.sorted = first();
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    NETWORKS["sides"] = Sides
    judged, images = judged_classes(folder / "pictures")
    explainer = Explainer.load(write_checkpoint(folder / "a.ckpt", CLASSES, (16, 16), gated=True), "cpu")
    write_classification_report(judged, folder / "classes.html", images, explainer)
    ages, scans = judged_ages(folder / "heads")
    explainer = Explainer.load(write_checkpoint(folder / "b.ckpt", ["age"], (8, 8, 8), "regression"), "cpu")
    write_regression_report(ages, folder / "ages.html", scans, explainer)
    yield {"classes": (folder / "classes.html", judged), "ages": (folder / "ages.html", ages)}
    del NETWORKS["sides"]


@pytest.mark.parametrize("width", [1000, 390])
@pytest.mark.parametrize("kind", ["classes", "ages"])
def test_the_page_draws_and_obeys_without_a_network(pages, kind, width):
    path, judged = pages[kind]
    found = asked(path, width, ASK)
    assert len(found["heats"]) >= 20
    assert all(found["heats"])
    assert set(found["before"]) == {"visible"}
    assert set(found["after"]) == {"hidden"}
    assert found["sorted"] == sorted(judged.ids)
    assert found["order"][0] == next(iter(judged.failures))
    panels = found["panels"]
    assert len(panels) == {"classes": 2, "ages": 3}[kind]
    assert all(min(panel["size"]) > 150 for panel in panels)
    places = [place for panel in panels for dot in panel["dots"] for place in dot]
    assert min(places) > -0.01
    assert max(places) < 1.01
    if kind == "classes":  # reliability: a point a bin, at what was said and what happened
        bins = judged.reliability
        used = bins.counts > 0
        expected = sorted(zip(bins.said[used], bins.happened[used], strict=True))
        assert [pytest.approx(dot, abs=0.01) for dot in sorted(map(tuple, panels[1]["dots"]))] == expected


@pytest.mark.parametrize("kind", ["classes", "ages"])
def test_the_page_prints(pages, kind, tmp_path):
    assert 2 <= pages_on_paper(pages[kind][0], tmp_path) <= 14
