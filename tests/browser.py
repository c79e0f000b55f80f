"""Headless Chromium for tests of pages: without a network, in a frame of a given width, and what the console said."""

import html
import json
import os
import re
import shutil
import subprocess

import pytest

CHROMIUM = os.environ.get("MEDSEG_SE_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH; name one in MEDSEG_SE_CHROMIUM")

# The page in a frame of a given width. What is asked of it is written down as JSON.
HARNESS = """<!doctype html><body style="margin:0"><iframe id="frame" width="WIDTH" height="3000" style="border:0"
srcdoc="PAGE"></iframe><pre id="out"></pre><script>
const frame = document.getElementById("frame"), found = { errors: [] };
const wait = (time) => new Promise((done) => setTimeout(done, time));
frame.addEventListener("load", async () => {
  const view = frame.contentWindow, page = frame.contentDocument;
  view.addEventListener("error", (event) => found.errors.push(event.message));
  try {
    await wait(300);
    found.width = [page.documentElement.scrollWidth, page.documentElement.clientWidth];
    found.loaded = view.performance.getEntriesByType("resource").map((entry) => entry.name.slice(0, 60));
    found.pictures = [...page.images].map((image) => [image.complete, image.naturalWidth]);
    found.invalid = [...page.querySelectorAll("svg *")].filter((mark) => [...mark.attributes].some(
      (one) => /NaN|Infinity|undefined/.test(one.value))).length;
    ASK
  } catch (error) { found.errors.push(String(error.stack)); }
  document.getElementById("out").textContent = JSON.stringify(found);
});
</script>"""


def browse(path, *arguments):
    """Run Chromium without a network; returns its output and what the console said."""
    options = ["--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-gpu-sandbox"]
    options += [
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ]
    options += [f"--user-data-dir={path.parent / 'profile'}", "--virtual-time-budget=12000", "--window-size=1000,1000"]
    command = [CHROMIUM, *options, *arguments, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def harnessed(page, harness, width):
    """Return what a harness found out of a page in a frame of this width; nothing was complained of."""
    path = page.with_name(f"harness_{width}.html")
    text = page.read_text(encoding="utf-8")
    path.write_text(harness.replace("WIDTH", str(width)).replace("PAGE", html.escape(text)), encoding="utf-8")
    shown, console = browse(path, "--dump-dom")
    found = json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', shown, re.DOTALL)[1]))
    assert found["errors"] == []
    assert console == []
    return found


def asked(page, width, ask=""):
    """Open a page in a frame of this width, run JavaScript that fills `found` from `page` and `view`, and check the usual.

    Only tables scroll sideways, nothing is fetched, all pictures are shown, and no mark of a plot has a place that is none.
    """
    found = harnessed(page, HARNESS.replace("ASK", ask), width)
    assert found["width"][0] <= width
    assert all(name.startswith(("data:", "blob:")) for name in found["loaded"])
    assert all(complete and wide > 0 for complete, wide in found["pictures"])
    assert found["invalid"] == 0
    return found


def pages_on_paper(page, folder):
    """Print a page, and return how many sheets it takes."""
    copy = folder / "printed.html"
    shutil.copy(page, copy)
    browse(copy, "--window-size=600,800", "--no-pdf-header-footer", f"--print-to-pdf={folder / 'printed.pdf'}")
    content = (folder / "printed.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    return len(re.findall(rb"/Type\s*/Page\b", content))
