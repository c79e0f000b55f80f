import json

import pytest
from evaluation_maker import dataset, predictions


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
