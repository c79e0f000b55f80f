"""From a network's coarse grid to that of the scan: coordinates that go in come back where they were."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medseg_se.analysis.feature_grid import FeatureGrid, on_scan
from medseg_se.data.datalist import Case
from medseg_se.data.pictures import ORIENTATION, read_picture
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.data.scan import read_channels
from medseg_se.data.whole_scan import WholeScan
from medseg_se.volumes import Volume, reorient, write_volume

SHAPE = (24, 30, 20)
CASES = {
    "fitted": (Preprocessing("RAS", None, "none", "none"), (16, 18, 14), None),
    "turned": (Preprocessing("PIR", None, "none", "none"), (28, 28, 28), None),
    "spacing, cut": (Preprocessing("RAS", (2.0, 2.0, 2.0), "none", "none"), (12, 10, 16), None),
    "spacing, continued": (Preprocessing("LPS", (1.5, 1.5, 3.0), "none", "none"), (40, 50, 24), None),
    "cropped": (Preprocessing("RAS", None, "nonzero", "none"), (20, 20, 20), None),
    "axial slice": (Preprocessing("RAS", None, "none", "none"), (20, 18), 2),
    "coronal slice": (Preprocessing("RPS", (1.0, 1.2, 1.5), "none", "none"), (30, 20), 1),
    "thick slice": (Preprocessing("RAS", (1.0, 1.0, 8.0), "none", "none"), (30, 30), 2),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("letters", ["LPS", "SRA"])
def test_coordinates_come_back_to_where_they_were(name, letters, make_affine, tmp_path):
    preprocessing, size, flat = CASES[name]
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij")).astype(np.float32) + 1
    if preprocessing.crop == "nonzero":
        index[:, :3] = index[:, :, 26:] = 0
    volumes = [Volume(channel[None], make_affine(letters, (1.0, 1.3, 2.1))) for channel in index]
    paths = tuple(tmp_path / f"{axis}.nii.gz" for axis in range(3))
    for volume, path in zip(volumes, paths, strict=True):
        write_volume(volume, path)
    scan = WholeScan(preprocessing, size, 3, flat, None)
    network_input = scan.read(Case("a", paths)).numpy()
    read = read_channels(paths, 3)
    back = on_scan(network_input, FeatureGrid(size, (0.0,) * len(size), (1.0,) * len(size)), scan, preprocessing(read))
    assert back.same_grid(read) is None
    seen = np.isfinite(back.array).all(axis=0)
    if flat is not None:
        turned = reorient(Volume(seen[None].astype(np.uint8), back.affine), preprocessing.orientation).array[0]
        slices = np.flatnonzero(turned.any(axis=tuple(axis for axis in range(3) if axis != flat)))
        thick = round(8 / (2.1 if letters == "LPS" else 1.0))
        assert len(slices) == (thick if name == "thick slice" else 1)
        # What is shown is the middle of the scan.
        assert abs(slices.mean() - (turned.shape[flat] - 1) / 2) <= (thick / 2 if name == "thick slice" else 0.5)
    elif name in ("fitted", "turned", "spacing, continued"):
        assert seen.all()
    else:
        assert 0 < seen.mean() < 1
    # The outer half of an outermost voxel is held, and what lies beside zeros is mixed with them.
    inside = seen & (index > 4).all(axis=0) & (index <= np.array(SHAPE)[:, None, None, None] - 4).all(axis=0)
    if preprocessing.crop == "nonzero":
        inside &= (index[0] > 7) & (index[1] < 22)
    if name == "spacing, cut":
        inside &= ndimage.binary_erosion(seen, iterations=2)
    assert inside.sum() > 50
    slack = thick / 2 if name == "thick slice" else 0.5 if flat is not None else 0.1  # across a slice, that of the slice
    assert np.abs(back.array - index)[:, inside].max() <= slack


def test_a_coarse_voxel_comes_back_about_the_pixels_it_is_centred_on(tmp_path):
    Image.fromarray(np.zeros((80, 120), dtype=np.uint8)).save(tmp_path / "a.png")
    scan = WholeScan(Preprocessing(ORIENTATION, intensity="none"), (48, 48), 1, 2, "grey")
    prepared = scan.preprocessing(read_picture(tmp_path / "a.png"))
    maps = np.zeros((1, 6, 6))
    maps[0, 2, 4] = 1
    back = on_scan(maps, FeatureGrid((6, 6), (0.0, 3.5), (8.0, 8.0)), scan, prepared)
    picture = back.array[0, :, :, 0]
    assert back.array.shape == (1, 80, 120, 1)
    # 120 pixels become 48, and 80 become 32 with 8 lines above: pixel = (voxel + 0.5) · 2.5 − 0.5.
    rows, columns = (picture.sum(axis=1 - axis) for axis in (0, 1))
    centre = [(line * np.arange(len(line))).sum() / line.sum() for line in (rows, columns)]
    assert centre == pytest.approx([(2 * 8 - 8 + 0.5) * 2.5 - 0.5, (3.5 + 4 * 8 + 0.5) * 2.5 - 0.5])
    assert picture.max() == pytest.approx(1, abs=0.05)
