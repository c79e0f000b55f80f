"""The report in headless Chromium: it loads nothing, complains of nothing, draws, and does what its boxes say."""

import re

import pytest
from browser import harnessed, needs_browser, pages_on_paper
from evaluation_maker import evaluated

from medseg_se.reports.case_view import find_images
from medseg_se.reports.evaluation_page import write_evaluation_report

pytestmark = needs_browser

# The page in a frame of a given width. What is asked of it is written down as JSON.
HARNESS = """<!doctype html><body style="margin:0"><iframe id="frame" width="WIDTH" height="3000" style="border:0"
srcdoc="PAGE"></iframe><pre id="out"></pre><script>
const frame = document.getElementById("frame"), found = { errors: [] };
const wait = (time) => new Promise((done) => setTimeout(done, time));
// Of the same hue and saturation, for what is turned is shaded.
const near = (wanted, pixel) => {
  const [most, bright] = [Math.max(...wanted), Math.max(...pixel)];
  return bright > 50 && wanted.every((value, place) => Math.abs(value / most - pixel[place] / bright) < 0.15);
};
function colours(canvas, wanted) {
  const gl = canvas.getContext("webgl2"), pixels = new Uint8Array(4 * gl.drawingBufferWidth * gl.drawingBufferHeight);
  gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
  const across = {};
  const counts = { drawn: 0, all: pixels.length / 4, ...Object.fromEntries(Object.keys(wanted).map((name) => [name, 0])) };
  for (let place = 0; place < pixels.length; place += 4) {
    const pixel = pixels.slice(place, place + 3);
    if (Math.max(...pixel) > 20) counts.drawn++;
    for (const [name, colour] of Object.entries(wanted)) if (near(colour, pixel)) {
      counts[name]++;
      across[name] = (across[name] || 0) + (place / 4) % gl.drawingBufferWidth / gl.drawingBufferWidth;
    }
  }
  return { ...counts, across: Object.fromEntries(Object.keys(across).map((name) => [name, across[name] / counts[name]])) };
}
async function ask() {
  const view = frame.contentWindow, page = frame.contentDocument, viewer = page.getElementById("viewer");
  view.addEventListener("error", (event) => found.errors.push(event.message));
  for (let turn = 0; turn < 300 && !viewer.dataset.drawn; turn++) await wait(50);
  await wait(300);
  found.drawn = viewer.dataset.drawn;
  found.status = viewer.querySelector("[data-part=status]").textContent;
  found.here = viewer.querySelector("[data-part=here]").textContent;
  found.width = [page.documentElement.scrollWidth, page.documentElement.clientWidth];
  found.loaded = view.performance.getEntriesByType("resource").map((entry) => entry.name.slice(0, 60));
  const click = (selector) => viewer.querySelector(selector).click();
  const canvases = viewer.querySelectorAll("canvas");
  const strength = viewer.querySelector("[data-part=strength]");
  strength.value = 1;
  strength.dispatchEvent(new view.Event("input", { bubbles: true }));
  click("input[value=truth]");
  found.truth = colours(canvases[0], COLOURS);
  click("[data-structure='1']");
  found.without = colours(canvases[0], COLOURS);
  found.outlines = [1, 2].map((index) => view.getComputedStyle(page.querySelector(`.plane .o${index}`)).display);
  click("[data-structure='1']");
  found.again = colours(canvases[0], COLOURS);
  click("input[value=differences]");
  found.differences = colours(canvases[0], { missed: [86, 180, 233], extra: [230, 159, 0] });
  click("input[value=truth]");
  click("input[value=turn]");
  const scan = viewer.querySelector("[data-part=opacity]");
  scan.value = 0;
  scan.dispatchEvent(new view.Event("input", { bubbles: true }));
  found.looks = {};
  viewer.querySelectorAll("[data-turn]").forEach((button) => {
    button.click();
    found.looks[button.textContent] = colours(canvases[0], COLOURS);
  });
  scan.value = 0.6;
  scan.dispatchEvent(new view.Event("input", { bubbles: true }));
  click("input[value=both]");
  await wait(1500);
  click("input[value=planes]");
  found.both = [...canvases].map((canvas) => colours(canvas, COLOURS));
  page.querySelector("[data-outline=truth]").click();
  found.dotted = view.getComputedStyle(page.querySelector(".plane .t")).display;
  const table = page.querySelector("#table table"), head = table.querySelectorAll("th button")[1];
  const order = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent);
  head.click();
  found.rising = order();
  head.click();
  found.falling = order();
  page.querySelector("[data-open='3']").click();
  await wait(1500);
  found.opened = viewer.dataset.drawn;
}
frame.addEventListener("load", () => ask().catch((error) => found.errors.push(String(error.stack))).finally(() => {
  document.getElementById("out").textContent = JSON.stringify(found);
}));
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    evaluation, _ = evaluated(folder)
    write_evaluation_report(evaluation, folder / "report.html", find_images(evaluation))
    return folder / "report.html"


def asked(page, width):
    """Return what the harness found out of the page in a frame of this width."""
    first, second = re.findall(r'"rgb":\[(\d+,\d+,\d+)\]', page.read_text(encoding="utf-8"))[:2]
    return harnessed(page, HARNESS.replace("COLOURS", f"{{ first: [{first}], second: [{second}] }}"), width)


@pytest.mark.parametrize("width", [900, 390])
def test_the_viewer_draws_and_obeys_without_a_network(page, width):
    found = asked(page, width)
    assert all(name.startswith(("data:", "blob:")) for name in found["loaded"])
    assert found["width"][0] <= width  # only tables scroll sideways
    assert found["drawn"].startswith("2 " + ("both" if width > 800 else "prediction"))  # the worst case that has a prediction
    assert "case_1: Scan and structures in full, 1.00 × 1.00 × 2.00 mm" in found["status"]
    assert found["here"].startswith("At the crosshair: truth ")
    truth, without, again = found["truth"], found["without"], found["again"]
    assert truth["drawn"] > 0.1 * truth["all"]
    assert min(truth["first"], truth["second"]) > 200
    assert without["first"] < 0.05 * truth["first"]
    assert without["second"] > 0.8 * truth["second"]
    assert again["first"] == pytest.approx(truth["first"], rel=0.05)
    assert found["outlines"] == ["none", "inline"]
    assert min(found["differences"]["missed"], found["differences"]["extra"]) > 50
    looks = found["looks"]  # the first structure lies on the patient's left
    for name, sign in {"front": 1, "back": -1, "head": 1, "feet": 1}.items():
        assert sign * (looks[name]["across"]["first"] - looks[name]["across"]["second"]) > 0.05, name
    assert looks["right"]["second"] > 2 * looks["right"]["first"]
    assert looks["left"]["first"] > 2 * looks["left"]["second"]
    assert min(pane["drawn"] / pane["all"] for pane in found["both"]) > 0.02
    assert found["dotted"] == "none"
    assert found["rising"] == ["case_2", "case_1", "case_0"]
    assert found["falling"] == ["case_0", "case_1", "case_2"]
    assert found["opened"].startswith("3 ")


def test_on_paper_there_are_pictures_and_no_viewer(page, tmp_path):
    assert 2 <= pages_on_paper(page, tmp_path) <= 12
