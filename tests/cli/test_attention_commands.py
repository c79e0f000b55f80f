import json

import pytest

from medseg_se.cli.attention import split_names
from medseg_se.cli.main import main

TINY = ["--spatial_dims", "2", "--size", "16", "--channels", "4,8", "--device", "cpu", "--repeats", "1"]


def test_cost_prints_a_table_and_writes_json(tmp_path, capsys):
    output = tmp_path / "cost.json"
    assert main(["cost", *TINY, "--attention", "scse,simam", "--attention_at", "skip", "--output", str(output)]) == 0
    content = json.loads(output.read_text(encoding="utf-8"))
    assert [variant["attention"] for variant in content["variants"]] == ["none", "scse", "simam"]
    assert [block["name"] for block in content["variants"][1]["blocks"]] == ["encoder.0.skip"]
    assert content["setting"]["size"] == [16, 16]
    assert "simam" in capsys.readouterr().out


def test_cost_takes_a_size_per_axis(tmp_path):
    output = tmp_path / "cost.json"
    assert main(["cost", *TINY, "--size", "16,8", "--attention", "none", "--output", str(output)]) == 0
    assert json.loads(output.read_text(encoding="utf-8"))["setting"]["size"] == [16, 8]


def test_commas_in_brackets_do_not_split():
    assert split_names("scse, max(eca,simam)+sse ,pe", "attention") == ["scse", "max(eca,simam)+sse", "pe"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--attention", "scse,max(eca"], "`attention`"),
        (["--attention", "scse,,eca"], "`attention`"),
        (["--attention", "scse)"], "`attention`"),
        (["--size", "16,x"], "`size`"),
        (["--channels", "4;8"], "`channels`"),
        (["--attention", "scsee"], "Did you mean 'scse'"),
    ],
)
def test_wrong_words_are_explained_in_a_line(arguments, complaint, capsys):
    assert main(["cost", *TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
