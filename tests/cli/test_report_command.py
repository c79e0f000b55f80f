import json
import re

import numpy as np
import pytest
from evaluation_maker import dataset, predictions
from judged_maker import judged_classes
from known_classifier import Sides, write_checkpoint
from whole_scans import CLASSES

from medseg_se.data.answers import Answers
from medseg_se.evaluation.judged import Judged
from medseg_se.networks import NETWORKS


@pytest.fixture
def judged(tmp_path, call):
    """The folder of an evaluation that the command line wrote, and the dataset."""
    data, folder = dataset(tmp_path / "data"), predictions(tmp_path / "predictions")
    assert call("evaluate", str(folder), str(data))[0] == 1  # one prediction is missing
    return folder, data


def test_a_folder_or_its_json_becomes_a_page_beside_it(judged, call):
    folder, _ = judged
    code, said, _ = call("report", str(folder))
    assert code == 0
    assert "3 cases, 3 of them in pictures, 3 in the 3-D viewer, 3 with their scans" in said
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Evaluation of predictions" in page
    assert call("report", str(folder / "evaluation.json"), "--output", str(folder / "other.html"))[0] == 0
    assert (folder / "other.html").read_text(encoding="utf-8") == page


def test_cases_and_size_are_as_wished(judged, call):
    folder, data = judged
    code, said, _ = call("report", str(folder), "--cases", "1", "--images", str(data / "imagesTr"), "--megabytes", "0.1")
    assert code == 0
    assert "0 of them in pictures" in said
    assert (folder / "report.html").stat().st_size <= 100_000


def test_what_is_no_evaluation_is_refused(judged, refused, tmp_path):
    folder, _ = judged
    assert "medseg-se evaluate PREDICTIONS TRUTH" in refused("report", str(tmp_path / "nothing"))
    assert "No such scans" in refused("report", str(folder), "--images", str(tmp_path / "nothing"))
    content = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    (folder / "evaluation.json").write_text(json.dumps({**content, "format": 1}), encoding="utf-8")
    assert "format" in refused("report", str(folder))


@pytest.fixture
def answered(tmp_path, monkeypatch, call):
    """A folder with the evaluation of a classifier's answers, the pictures, and the checkpoint."""
    monkeypatch.setitem(NETWORKS, "sides", Sides)
    judged, images = judged_classes(tmp_path / "pictures")
    files = tuple(str(images[name][0]) for name in judged.ids)
    table = Answers(judged.ids, files, judged.names, judged.answers, True, judged.unlike, judged.distance)
    table.write(tmp_path / "answers" / "predictions.csv")
    assert call("evaluate", str(tmp_path / "answers"), str(tmp_path / "pictures"))[0] == 1  # one case has no answer
    return tmp_path / "answers", tmp_path / "pictures", write_checkpoint(tmp_path / "a.ckpt", CLASSES, (16, 16), gated=True)


def test_answers_of_a_classifier_become_a_page(answered, call):
    folder, _, checkpoint = answered
    code, said, _ = call("report", str(folder))
    assert code == 0
    assert "18 cases, 17 of them in pictures" in said
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f'<span class="large">{14 / 18:.3f}</span><span class="faint">accuracy [' in page
    assert page.count('<td class="text">dark / left</td>') == 1
    code, said, _ = call("report", str(folder), "--checkpoint", str(checkpoint), "--device", "cpu", "--cases", "4")
    assert code == 0
    assert "with what spoke for their answers" in said
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Attention by class" in page
    # The curve is of the cases that the area is of: the one without an answer is the worst of its class.
    judged = Judged.read_json(folder / "evaluation.json")
    curve = re.search(r'points="([^"]+)"><title>dark: AUC', page)[1]
    alarms, hits = np.array([[float(x), 100 - float(y)] for x, y in (point.split(",") for point in curve.split())]).T / 100
    assert np.trapezoid(hits, alarms) == pytest.approx(judged.by_name["dark"]["AUC"].estimate, abs=2e-5)


def test_scans_that_have_moved_are_found_where_they_are_said_to_be(answered, call):
    folder, pictures, _ = answered
    pictures.rename(pictures.with_name("moved"))
    assert "0 of them in pictures" in call("report", str(folder))[1]
    assert "17 of them in pictures" in call("report", str(folder), "--images", str(pictures.with_name("moved")))[1]


def test_a_model_that_did_not_answer_is_refused(answered, judged, refused, tmp_path):
    other = write_checkpoint(tmp_path / "b.ckpt", ["age"], (8, 8, 8), "regression")
    assert "to be the model that was judged" in refused("report", str(answered[0]), "--checkpoint", str(other))
    assert "label maps" in refused("report", str(judged[0]), "--checkpoint", str(other))
