"""Every notebook runs from the first cell to the last, with its parameters made small."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SMALL = {
    "compare_attention": """
        CASES, RESOLUTION, STEPS, CHANNELS, PATCH = 6, 8.0, 3, [4, 8], [16, 16, 16]
        BLOCKS, SEEDS = ["none", "scse"], [1]
    """,
    "custom_block": "CASES, RESOLUTION, MINUTES, CHANNELS, PATCH = 8, 8.0, 0.08, [4, 8], [16, 16, 16]",
    "first_segmentation": "CASES, RESOLUTION, MINUTES, CHANNELS, PATCH = 8, 7.0, 0.2, [4, 8], [16, 16, 16]",
    "inside_the_gates": "CASES, RESOLUTION, MINUTES, CHANNELS, PATCH = 6, 8.0, 0.08, [4, 8], [16, 16, 16]",
    "own_dataset": "CASES, RESOLUTION, MINUTES, CHANNELS, PATCH = 6, 12.0, 0.08, [4, 8], [16, 16, 16]",
}
SHOWN = {
    "compare_attention": ["unet scse", "'structure': 'mean over foreground'", "against unet none: "],
    "custom_block": ["3D fine, 16 parameters", "Unknown attention 'own_mean'", "mean over foreground"],
    "first_segmentation": ["mean over foreground"],
    "inside_the_gates": ["spatial: shape (1, 1, 12, 12, 12)", "encoder 0 channel", "encoder-0-spatial.nii.gz ("],
    "own_dataset": ["exit code 1", "exit code 0", "patient_001", "mean over foreground", "report.html"],
}
"""What a reader of each must have seen, once it has run."""
LEFT = {
    "compare_attention": ["out/report.html", "out/table.csv"],
    "custom_block": ["run/summary.html", "predictions/*.nii.gz"],
    "first_segmentation": ["pictures/*.png"],
    "inside_the_gates": ["maps/**/*.nii.gz"],
    "own_dataset": ["predictions/report.html", "run/checkpoints/best.ckpt"],
}


@pytest.fixture
def kernel(monkeypatch):
    """The kernel takes the package from where the tests take it, and as few processors."""
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent))


@pytest.mark.parametrize("name", sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")))
def test_a_notebook_runs(name, tmp_path, kernel):
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "notebooks are kept without outputs"
    place = next(n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(map(str.strip, SMALL[name].splitlines()))))
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    text = "".join(output.get("text", "") + str(output.get("data", {}).get("text/plain", "")) for output in outputs)
    assert [words for words in SHOWN[name] if words not in text] == []
    assert "Traceback" not in text
    assert [files for files in LEFT[name] if not any((tmp_path / name).glob(files))] == []
