import re

import numpy as np
import pytest
from judged_maker import judged_ages
from known_classifier import Sides, write_checkpoint

from medseg_se.analysis.explaining import Explainer
from medseg_se.errors import UsageError
from medseg_se.networks import NETWORKS
from medseg_se.reports.regression_page import write_regression_report


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A judged regression, its scans, and the model."""
    monkeypatch.setitem(NETWORKS, "sides", Sides)
    judged, images = judged_ages(tmp_path / "heads")
    return judged, images, Explainer.load(write_checkpoint(tmp_path / "a.ckpt", ["age"], (8, 8, 8), "regression"), "cpu")


def test_the_largest_errors_come_first_in_three_planes(made, tmp_path):
    judged, images, explainer = made
    found = write_regression_report(judged, tmp_path / "a.html", images, explainer, cases=3)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    shown = re.findall(r"<h3>\d\. (\S+) <small>([^<]*)</small>", text)
    assert [name for name, _ in shown[:2]] == ["head0", "head1"]
    assert shown[0][1] == "age 20.0, true 40.0 (−20.0)"
    assert shown[2][1].endswith("unlike the scans of the training, distance 1.00")
    assert found.pictured == 3
    assert text.count('class="heat"') == 9
    for words in ("sagittal", "coronal", "axial", "no interval here", "head8: no prediction"):
        assert words in text


def test_the_plots_say_what_is_measured(made, tmp_path):
    judged, images, _ = made
    write_regression_report(judged, tmp_path / "a.html", images)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    known = judged.answered
    errors = (judged.answers - judged.truth)[known, 0]
    middle, reach = errors.mean(), 1.96 * errors.std(ddof=1)
    levels = [float(one.replace("−", "-")) for one in re.findall(r">mean(?: [+−] 1\.96 SD)? ([+−]?\d+\.\d+)<", text)]
    assert levels == pytest.approx([middle, middle + reach, middle - reach], abs=0.006)
    slope, _ = np.polyfit(judged.truth[known, 0], errors, 1)
    found = re.search(r"slope ([+−]?\d\.\d+) per unit", text)[1]
    assert float(found.replace("−", "-")) == pytest.approx(slope, abs=6e-4)
    assert text.count("<circle") == 3 * known.sum()
    assert "medseg-se report FOLDER --checkpoint CHECKPOINT" in text


def test_the_number_of_cases_must_make_sense(made, tmp_path):
    with pytest.raises(UsageError, match="0 or more cases"):
        write_regression_report(made[0], tmp_path / "a.html", made[1], cases=-1)
