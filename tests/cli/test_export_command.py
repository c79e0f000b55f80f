import json

import pytest
from known_network import write_checkpoint

from medseg_se.cli.export import export
from medseg_se.cli.main import guarded, run_function

pytestmark = pytest.mark.engines

UNET = {"network": "unet", "options": {"channels": [4, 6]}, "tile": [8, 8, 8]}


def run(*arguments):
    """Run the command as the command line does."""
    return guarded("medseg-se", lambda: run_function("medseg-se export", export, [str(word) for word in arguments]), "")


@pytest.mark.parametrize(
    ("form", "name"), [("torchscript", "mine.ts"), ("safetensors", "mine.safetensors"), ("monai-bundle", "mine")]
)
def test_writes_what_was_asked_for_and_says_how_it_compares(form, name, tmp_path, capsys):
    checkpoint = write_checkpoint(tmp_path / "model.ckpt", **UNET)
    assert run(checkpoint, "--output", tmp_path / name, "--format", form, "--overlap", "0.25") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{tmp_path / name}: logits differ from the checkpoint's by at most")
    described = json.loads(
        (tmp_path / (f"{name}/configs/medseg_se.json" if form == "monai-bundle" else "mine.json")).read_text()
    )
    assert (described["format"], described["overlap"]) == (form, 0.25)


def test_says_in_one_line_what_is_wrong(tmp_path, capsys):
    checkpoint = write_checkpoint(tmp_path / "model.ckpt", **UNET)
    assert run(checkpoint, "--output", tmp_path / "mine.ts", "--format", "torchscript") == 0
    assert run(checkpoint, "--output", tmp_path / "mine.ts", "--format", "torchscript") == 2
    assert run(checkpoint, "--output", tmp_path / "mine.ts", "--format", "torchscript", "--overwrite") == 0
    assert run(tmp_path / "none.ckpt", "--output", tmp_path / "other.onnx") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "exists. Choose another `output`, or replace it with --overwrite." in errors[0]
    assert "No such checkpoint" in errors[1]
