"""What a checkpoint says of where an answer comes from, on the scan's own grid."""

import nibabel as nib
import numpy as np
import pytest
import torch
from known_classifier import Sides, write_checkpoint
from whole_scans import CLASSES, write_ages, write_pictures

from medseg_se.analysis.explaining import Explainer
from medseg_se.data.datalist import Case
from medseg_se.errors import CheckpointError, UsageError
from medseg_se.networks import NETWORKS


@pytest.fixture(autouse=True)
def sides(monkeypatch):
    monkeypatch.setitem(NETWORKS, "sides", Sides)


@pytest.mark.parametrize("kind", ["left", "right"])
def test_evidence_for_a_side_lies_in_the_half_that_is_bright(kind, tmp_path):
    pictures = write_pictures(tmp_path / "pictures", each=1)
    explainer = Explainer.load(write_checkpoint(tmp_path / "a.ckpt", CLASSES, (16, 16)), "cpu")
    assert (explainer.task, explainer.names, explainer.has_gates) == ("classification", CLASSES, False)
    found = explainer.evidence(Case("a", (pictures / kind / "0.png",)), [CLASSES.index(kind), CLASSES.index("dark")])
    assert found.array.shape == (2, 20, 24, 1)
    for_kind, for_dark = found.array[..., 0]
    left, right = for_kind[:, :10], for_kind[:, 14:]
    bright, dark = (left, right) if kind == "left" else (right, left)
    assert bright.mean() > 0.02
    assert (dark[4:-4] > 0).all()  # what is dark on the other side speaks for this one too
    assert (for_dark[4:-4] < 0)[:, :10].all() == (kind == "left")


def test_evidence_of_a_regression_lies_on_the_volume_of_the_file(tmp_path):
    heads = write_ages(tmp_path / "heads", cases=2, test=0)
    explainer = Explainer.load(write_checkpoint(tmp_path / "a.ckpt", ["age"], (8, 8, 8), "regression"), "cpu")
    found = explainer.evidence(Case("a", (heads / "images" / "head0.nii.gz",)), [0])
    image = nib.load(heads / "images" / "head0.nii.gz")
    assert found.array.shape == (1, *image.shape)
    np.testing.assert_allclose(found.affine, image.affine)
    # The last axis of RAS runs up: what is bright below lowers the number.
    cube = found.array[0][2:4, 2:4, 2:4]
    assert cube.mean() < 0


def test_gates_are_summed_up_by_class(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", each=5)
    explainer = Explainer.load(write_checkpoint(tmp_path / "a.ckpt", CLASSES, (16, 16), gated=True), "cpu")
    assert explainer.has_gates
    cases = [Case(f"{kind}{n}", (pictures / kind / f"{n}.png",)) for kind in CLASSES[:2] for n in range(5)]
    gone = Case("gone", (pictures / "none.png",))
    assert explainer.gates([gone], [0]) is None
    found = explainer.gates([*cases[:3], gone, *cases[3:]], [0] * 6 + [1] * 5)
    assert found.groups == {"dark": 5, "left": 5}
    (point,) = found.points
    gates = found.statistics[point.name]["channel"]
    assert gates.n == 20  # two channels of ten scans
    one = found.selectivity[point.name, "channel"]
    assert one.n == 10
    with torch.no_grad():  # by hand
        scans = torch.stack([explainer.scan.read(case) for case in cases])
        before = torch.arange(16) < 8
        expected = explainer.network.block.look(torch.cat([scans * before, scans * ~before], dim=1))["channel"].flatten(1)
    np.testing.assert_allclose(one.means, [expected[:5].mean(0), expected[5:].mean(0)], rtol=1e-5)
    assert gates.mean == pytest.approx(float(expected.mean()), rel=1e-5)
    assert (gates.minimum, gates.maximum) == pytest.approx((float(expected.min()), float(expected.max())), rel=1e-5)


def test_other_checkpoints_are_refused(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="No such checkpoint"):
        Explainer.load(tmp_path / "none.ckpt")
    path = write_checkpoint(tmp_path / "a.ckpt", CLASSES, (16, 16))
    content = torch.load(path, weights_only=True)
    torch.save({**content, "medseg_se": {**content["medseg_se"], "task": "segmentation"}}, tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match="is of a segmentation"):
        Explainer.load(tmp_path / "b.ckpt")
    torch.save({**content, "state_dict": {}}, tmp_path / "c.ckpt")
    with pytest.raises(CheckpointError, match="Cannot make the model"):
        Explainer.load(tmp_path / "c.ckpt")
    monkeypatch.delattr(Sides, "last_maps")
    with pytest.raises(UsageError, match="from maps"):
        Explainer.load(path)
