import re

import numpy as np
import pytest
from judged_maker import judged_classes
from known_classifier import Sides, write_checkpoint
from whole_scans import CLASSES

from medseg_se.analysis.explaining import Explainer
from medseg_se.errors import DataError, UsageError
from medseg_se.networks import NETWORKS
from medseg_se.reports.classification_page import write_classification_report
from medseg_se.reports.classification_plots import roc_points


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A judged classification, its pictures, and the model."""
    monkeypatch.setitem(NETWORKS, "sides", Sides)
    judged, images = judged_classes(tmp_path / "pictures")
    return judged, images, Explainer.load(write_checkpoint(tmp_path / "a.ckpt", CLASSES, (16, 16), gated=True), "cpu")


def test_the_most_confident_errors_come_first_with_what_speaks_for_both_classes(made, tmp_path):
    judged, images, explainer = made
    found = write_classification_report(judged, tmp_path / "a.html", images, explainer, cases=5, title="A <page>")
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    shown = re.findall(r"<h3>(\d)\. (\S+) <small>([^<]*)</small>", text)
    assert [name for _, name, _ in shown] == [
        "dark/0.png",
        "left/0.png",
        "right/0.png",
        "dark/1.png",
        "left/1.png",
        "right/5.png",
    ]
    assert shown[0][2] == "left with 0.900, true: dark"
    assert shown[3][2] == "dark with 0.810, right"
    assert shown[5] == ("1", "right/5.png", "right with 0.850, right; unlike the scans of the training, distance 1.50")
    assert "for dark, which is true" in text
    assert (found.pictured, found.explained) == (6, True)
    assert text.count('class="heat"') == 3 * 2 + 3 - text.count(": nothing")
    assert "A &lt;page&gt;" in text
    assert "no &lt;answer&gt;" in text
    assert "holiday.png" in text
    assert found.size == len(text.encode())
    assert not re.search(r"(src|href)=[\"']?(https?:|//|file:)", text)


def test_numbers_are_those_of_the_evaluation(made, tmp_path):
    judged, images, _ = made
    write_classification_report(judged, tmp_path / "a.html", images)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    accuracy = judged.figures["accuracy"]
    assert f'<span class="large">{14 / 18:.3f}</span>' in text
    assert f"accuracy [{accuracy.low:.3f}, {accuracy.high:.3f}]" in text
    area = judged.by_name["left"]["AUC"]
    assert f"{area.estimate:.3f} <small>[{area.low:.3f}, {area.high:.3f}]</small>" in text
    confusion = re.search(r'<table class="confusion">.*?</table>', text, re.DOTALL)[0]
    assert re.findall(r"<td[^>]*>(\d+)", confusion) == list("410105101050")  # the last column: without an answer
    assert text.count('<polyline class="curve "') == 3


def test_without_the_model_the_page_says_how_to_get_what_speaks_for_an_answer(made, tmp_path):
    judged, images, _ = made
    found = write_classification_report(judged, tmp_path / "a.html", images)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "medseg-se report FOLDER --checkpoint CHECKPOINT" in text
    assert 'class="heat"' not in text
    assert "Attention by class" not in text
    assert not found.explained


def test_pictures_that_are_gone_or_unknown_cost_their_place_alone(made, tmp_path):
    judged, images, explainer = made
    some = {name: (path.with_name("none.png"),) for name, (path,) in images.items() if name != "dark/0.png"}
    found = write_classification_report(judged, tmp_path / "a.html", some, explainer)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert found.pictured == 0
    assert "Name the dataset with --images" in text
    assert "Cannot be shown: Cannot read" in text


def test_the_size_is_kept(made, tmp_path):
    judged, images, explainer = made
    whole = write_classification_report(judged, tmp_path / "a.html", images, explainer)
    less = write_classification_report(judged, tmp_path / "b.html", images, explainer, limit=whole.size - 20_000)
    assert 0 < less.pictured < whole.pictured
    assert less.size <= whole.size - 20_000
    assert "more did not fit into the page" in (tmp_path / "b.html").read_text(encoding="utf-8")


def test_another_model_and_impossible_numbers_are_refused(made, tmp_path):
    judged, images, _ = made
    other = Explainer.load(write_checkpoint(tmp_path / "b.ckpt", ("dark", "left", "up"), (16, 16)), "cpu")
    with pytest.raises(DataError, match=r"Expected .*b\.ckpt to be the model that was judged"):
        write_classification_report(judged, tmp_path / "a.html", images, other)
    with pytest.raises(UsageError, match="0 or more cases"):
        write_classification_report(judged, tmp_path / "a.html", images, cases=-1)
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize("ties", [False, True])
def test_the_area_under_the_curve_is_the_share_of_pairs_in_order(ties):
    rng = np.random.default_rng(0)
    truth = rng.random(200) < 0.3
    scores = rng.normal(truth, 1.0)
    scores = scores.round(0) if ties else scores
    alarms, hits = roc_points(truth, scores)
    difference = scores[truth][:, None] - scores[~truth]
    expected = ((difference > 0) + 0.5 * (difference == 0)).mean()
    assert np.trapezoid(hits, alarms) == pytest.approx(expected)
    assert (alarms[0], hits[0], alarms[-1], hits[-1]) == (0, 0, 1, 1)
