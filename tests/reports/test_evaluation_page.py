import hashlib
import json
import re
from dataclasses import replace
from importlib.resources import files

import pytest
from evaluation_maker import dataset, evaluated, predictions

from medseg_se.errors import OutputError, UsageError
from medseg_se.evaluation.evaluate import evaluate
from medseg_se.reports.case_view import find_images
from medseg_se.reports.evaluation_page import write_evaluation_report
from medseg_se.reports.palette import colours, hexadecimal
from medseg_se.reports.viewer import NIIVUE, SHA256
from medseg_se.structures import Structures


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An evaluation, and the report of it as text."""
    folder = tmp_path_factory.mktemp("report")
    evaluation, _ = evaluated(folder)
    contents = write_evaluation_report(evaluation, folder / "report.html", find_images(evaluation), title="Boxes <1>")
    return evaluation, contents, (folder / "report.html").read_text(encoding="utf-8")


def without_viewer(text):
    return text.replace(files("medseg_se.reports").joinpath("vendor", NIIVUE).read_text(encoding="utf-8"), "")


def test_the_vendored_viewer_is_the_published_one_with_its_licence():
    vendor = files("medseg_se.reports").joinpath("vendor")
    assert hashlib.sha256(vendor.joinpath(NIIVUE).read_bytes()).hexdigest() == SHA256
    licence = vendor.joinpath("niivue.LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("BSD 2-Clause License\n\nCopyright (c) 2021, Niivue")


def test_the_page_needs_nothing_else(made):
    _, contents, text = made
    assert contents.size == len(text.encode())
    ours = without_viewer(text)
    assert len(ours) < len(text) - 2_000_000
    assert not re.search(r"(src|href)=[\"']?(https?:|//|file:)", ours)
    assert "url(" not in ours
    assert "default-src 'none'" in text
    assert ours.count("<script") == ours.count("</script>")


def test_numbers_are_those_of_the_evaluation(made):
    evaluation, _, text = made
    left = evaluation.summary("dice")["liver"]
    assert f'data-v="{left.mean}">{left.mean:.3f} <small>[{left.low:.3f}, {left.high:.3f}]</small>' in text
    whole = evaluation.foreground_interval
    assert f'<span class="large">{evaluation.mean_foreground:.3f}</span> mean Dice of the structures, 95 % interval' in text
    assert f"95 % interval [{whole.low:.3f}, {whole.high:.3f}]</p>" in text
    assert "spleen &lt;b&gt;" in text
    assert "<b>" not in without_viewer(text).replace("\\u003c", "")
    assert "Boxes &lt;1&gt;" in text
    assert "1 infinite" in text  # distances of what the failed case misses


def test_failed_cases_come_first_then_the_worst(made):
    _, contents, text = made
    assert re.findall(r"<h3>(\d\. case_\d)", text) == ["1. case_2", "2. case_1", "3. case_0"]
    assert re.search(r"Counted as empty: no prediction found", text)
    assert (contents.pictured, contents.turnable) == (3, 3)
    assert re.search(r'<option value="2" selected>2\. case_1', text)  # the worst that has something to see
    assert text.count('data-structure="') == 2


def test_the_same_evaluation_gives_the_same_page(made, tmp_path):
    evaluation, _, text = made
    write_evaluation_report(evaluation, tmp_path / "again.html", find_images(evaluation), title="Boxes <1>")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_the_size_is_kept_by_coarsening_then_leaving_out(made, tmp_path):
    evaluation, contents, _ = made
    images = find_images(evaluation)
    sizes = []
    for limit in (contents.size + 100_000, contents.size, contents.size - 30_000, 100_000):
        found = write_evaluation_report(evaluation, tmp_path / "small.html", images, limit=limit)
        assert found.size <= limit
        assert (tmp_path / "small.html").stat().st_size == found.size
        sizes.append((found.pictured, found.turnable))
    assert sizes[0] == (3, 3)
    assert sizes[1][0] == 3
    assert sizes[1][1] < 3
    assert sizes[2:] == [(0, 0), (0, 0)]
    text = (tmp_path / "small.html").read_text(encoding="utf-8")
    assert "stays within 0.1 MB: of 3 cases, the worst 0 are shown" in text
    assert "<canvas" not in text
    assert 'href="#turn"' not in text


def test_only_as_many_cases_as_wished_are_pictured(made, tmp_path):
    evaluation, _, _ = made
    found = write_evaluation_report(evaluation, tmp_path / "one.html", cases=1)
    text = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert found.pictured == text.count("<article") == 1
    assert "The 2 others are in the table below." in text
    assert "No scan was given, so the structures are shown alone" in text
    with pytest.raises(UsageError, match="0 or more cases"):
        write_evaluation_report(evaluation, tmp_path / "no.html", cases=-1)


def test_a_label_map_that_is_gone_costs_its_picture_alone(made, tmp_path):
    evaluation, _, _ = made
    cases = tuple(replace(case, truth=tmp_path / f"{case.id}.nii.gz") for case in evaluation.cases)
    found = write_evaluation_report(replace(evaluation, cases=cases), tmp_path / "gone.html")
    assert (found.pictured, found.turnable) == (0, 0)
    assert "Cannot be shown: " in (tmp_path / "gone.html").read_text(encoding="utf-8")


def test_one_subject_has_no_interval_and_the_page_says_why(tmp_path):
    evaluation, _ = evaluated(tmp_path, count=1)
    write_evaluation_report(evaluation, tmp_path / "one.html")
    text = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert f"No interval: {evaluation.summary('dice')['liver'].reason}" in text.replace("&#x27;", "'")


def test_dice_alone_and_names_like_markup_make_a_page(tmp_path):
    evaluation, data = evaluated(tmp_path, metrics="dice")
    cases = tuple(replace(case, id=f"</script><b>{case.id}") for case in evaluation.cases)
    write_evaluation_report(replace(evaluation, cases=cases), tmp_path / "page.html", dict.fromkeys([], data))
    text = without_viewer((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "</script><b>" not in text
    assert text.count("<script") == text.count("</script>")
    assert "HD95" not in text


def test_a_page_that_cannot_be_written_is_an_error(made, tmp_path):
    evaluation, _, _ = made
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        write_evaluation_report(evaluation, tmp_path / "file" / "report.html")


def test_an_evaluation_read_back_gives_the_same_page(made, tmp_path):
    evaluation, _, text = made
    evaluation.write_json(tmp_path / "evaluation.json")
    again = type(evaluation).read_json(tmp_path / "evaluation.json")
    write_evaluation_report(again, tmp_path / "again.html", find_images(again), title="Boxes <1>")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == text


def test_lesions_and_regions_have_rows_too(tmp_path):
    evaluation, data = evaluated(tmp_path)
    regions = replace(evaluation.structures, regions={"both": ("liver", "spleen <b>")})
    found = evaluate(tmp_path / "predictions", data, regions, progress=False, lesions="any")
    write_evaluation_report(found, tmp_path / "page.html", find_images(found))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "both <small>region</small>" in text
    assert "lesion recall" in text


def test_an_index_has_the_name_and_the_colour_of_its_structure_everywhere(tmp_path):
    data, folder = dataset(tmp_path / "data", 1), predictions(tmp_path / "predictions", 1)
    structures = Structures({"left box": (3,), "right box": (7,)})
    found = evaluate(folder, data / "labelsTr", structures, progress=False)
    write_evaluation_report(found, tmp_path / "page.html")
    text = without_viewer((tmp_path / "page.html").read_text(encoding="utf-8"))
    setup = json.loads(re.search(r'id="viewer-setup">(.*?)</script>', text)[1])
    for index, (name, colour) in enumerate(colours(structures).items(), start=1):
        outlines = re.findall(
            rf'<path class="o{index}" stroke="([^"]+)" d="M(\d+)[^<]*><title>([^<]+), prediction</title>', text
        )
        assert {(ink, title) for ink, _, title in outlines} == {(hexadecimal(colour), name)}
        assert f'data-structure="{index}"> <span class="swatch" style="background:{hexadecimal(colour)}"></span>{name}<' in text
        assert setup["structures"][index - 1] == {"name": name, "rgb": [round(255 * part) for part in colour]}
    axial = text[text.index("axial, z") :]
    starts = {name: int(re.search(rf'd="M(\d+)[^<]*><title>{name}, truth', axial)[1]) for name in ("left box", "right box")}
    assert starts["right box"] < starts["left box"]
