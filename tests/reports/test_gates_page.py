import numpy as np
import pytest
from known_network import write_checkpoint
from matplotlib.image import imread
from torch import nn

from medseg_se.analysis.inspection import inspect_scan
from medseg_se.analysis.watched import WatchedModel
from medseg_se.attention import ATTENTION, ChannelSE
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.errors import OutputError
from medseg_se.reports.gates import gates_page
from medseg_se.structures import Structures
from medseg_se.volumes import Volume, reorient

TWO = Structures({"front": (1,), "back": (2,)})
PIXELS = 110  # per inch
WEIGHT = np.array([0x56, 0xC1, 0xF5]) / 255  # the colour of the first alternative


class Sideways(nn.Module):
    """A block that opens towards one end of the first axis."""

    label = "sideways"

    def __init__(self, channels, spatial_dims):
        super().__init__()

    def look(self, x):
        gate = x.new_zeros((len(x), 1, *x.shape[2:]))
        return {"spatial": gate + (x.new_ones(x.shape[2]).cumsum(0) / x.shape[2]).reshape(-1, 1, 1)}

    def forward(self, x):
        return x


class Weighing(ChannelSE):
    def choice(self):
        return {"cse": 0.9, "sse": 0.1}


@pytest.fixture(autouse=True)
def _plugged_in(monkeypatch):
    monkeypatch.setitem(ATTENTION, "sideways", Sideways)
    monkeypatch.setitem(ATTENTION, "weighing", Weighing)


@pytest.fixture
def draw(tmp_path):
    """Return a function that inspects a scan under a network with some attention, and returns the page as pixels."""

    def make(attention, orientation="RAS", structures=TWO, **options):
        path = write_checkpoint(
            tmp_path / "model.ckpt",
            network="unet",
            options={"channels": [4, 6, 8], "attention": attention, **options},
            structures=structures,
            preprocessing=Preprocessing("RAS"),
            tile=(16, 16, 16),
        )
        labels = np.zeros((1, 16, 16, 16), dtype=np.int16)
        labels[:, 2:14, 2:14, 2:12] = (np.arange(12) * len(structures.names) // 12 + 1)[:, None]
        image = np.random.default_rng(0).normal(size=(1, 16, 16, 16)).astype(np.float32) + labels
        scan, truth = (reorient(Volume(array, np.eye(4)), orientation) for array in (image, labels))
        result = inspect_scan(WatchedModel.load(path, "cpu"), scan, truth, patches=3)
        gates_page(result, tmp_path / "page.png", "a scan")
        return imread(tmp_path / "page.png")[..., :3]

    return make


def test_the_page_has_what_the_blocks_have(draw, tmp_path):
    heights = {name: draw(name).shape[0] / PIXELS for name in ("scse", "cse", "simam", "weighing")}
    curves, heat, maps = 3.0 + 1.35, 0.8 + 1.25, 0.4
    rows = heights["simam"] - (1.5 + curves + maps)
    assert 3 < rows < 8
    assert heights["cse"] == pytest.approx(1.5 + curves + heat, abs=0.02)
    assert heights["scse"] == pytest.approx(1.5 + curves + heat + maps + rows, abs=0.02)
    assert heights["weighing"] == pytest.approx(heights["cse"] + 5 * 0.24 + 1.2, abs=0.02)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.ckpt", "page.png"]


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "ILP"])
def test_maps_lie_over_the_scan_with_the_patients_right_on_the_left(draw, orientation):
    page = draw("sideways", orientation, attention_at=["encoder"])
    top, left, width = 1.0 + 3.0 + 1.35 + 0.3 + 0.22, 0.8 + (15 - 1.6) / 5, (15 - 1.6) / 5 - 0.1
    lines = slice(int((top + 0.2) * PIXELS), int((top + width - 0.2) * PIXELS))
    first, middle, last = (int((left + share * width) * PIXELS) for share in (0.05, 0.5, 0.95))
    # The gate opens with the first axis, which points to the patient's right once the scan is prepared.
    assert page[lines, first:middle, 0].mean() > page[lines, middle:last, 0].mean() + 0.2


def test_learnt_weights_are_drawn_to_scale(draw):
    page = draw("weighing")
    top, left, width = 1.0 + 4.35 + 2.05 + 0.3, 0.8 + 1.6, 15 - 1.6 - 4.2
    line = page[int((top + 0.12) * PIXELS), int(left * PIXELS) : int((left + width) * PIXELS)]
    assert (np.abs(line - WEIGHT).max(axis=1) < 0.02).mean() == pytest.approx(0.9, abs=0.05)


def test_many_structures_and_constant_gates_are_drawn_too(draw):
    many = Structures({f"a structure with a long name, number {number}": (number,) for number in range(1, 13)})
    assert draw("scse", structures=many).shape[1] == 15 * PIXELS
    assert draw("cse", attention_at=["bottleneck"]).shape[1] == 15 * PIXELS


def test_a_page_that_cannot_be_written_leaves_nothing(draw, tmp_path):
    (tmp_path / "page.png").mkdir()
    with pytest.raises(OutputError, match=r"Cannot write .*page\.png"):
        draw("cse")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.ckpt", "page.png"]
