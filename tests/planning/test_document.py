import yaml

from medseg_se.planning.document import to_yaml, was_edited
from medseg_se.planning.rules import Decision

CONFIG = {"data": {"class_path": "some.Data", "init_args": {"spacing": [1.0, 2.0]}}, "seed": 3}


def test_no_text_can_end_the_comment_it_stands_in(tmp_path):
    ends = "a\nseed: 4\r\ntrainer: b\u2028c: \x85d: \x07"
    text = to_yaml(CONFIG, [Decision("data.spacing", [1.0, 2.0], ends)], [ends, f"Warning: {ends}"])
    assert yaml.safe_load(text) == CONFIG
    assert text.count("seed: 4") == 3
    (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
    assert not was_edited(tmp_path / "plan.yaml")


def test_a_plan_in_another_encoding_was_edited(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_bytes(to_yaml(CONFIG, [], ["für alle"]).encode("latin-1"))
    assert was_edited(path)
