import csv
import math

import numpy as np
import pytest

from medseg_se.inference import volumes_report
from medseg_se.inference.volumes_report import count_values, measure, write_cohort, write_volumes
from medseg_se.structures import Structures
from medseg_se.volumes import Volume

STRUCTURES = Structures(
    {"near": (7,), "far": (300, 301), "none": (9,)}, regions={"both": ("near", "far"), "nothing": ("none",)}
)


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def label_map(order="C"):
    array = np.zeros((6, 5, 4), dtype=np.int16, order=order)
    array[1:3, 1:4, 1:3] = 7  # 12 voxels inside
    array[4, 2, 1] = 300
    array[5, 2, 1] = 301  # at the border
    return Volume(array[None], np.diag([2.0, 2.5, -3.0, 1.0]))


@pytest.mark.parametrize("order", ["C", "F"])
def test_voxels_millilitres_and_the_border(order):
    near, far, none, both, nothing = measure(label_map(order), STRUCTURES)
    assert (near.structure, near.values, near.voxels, near.touches_border) == ("near", (7,), 12, False)
    assert near.ml == pytest.approx(12 * 2 * 2.5 * 3 / 1000)
    assert (far.values, far.voxels, far.touches_border) == ((300, 301), 2, True)
    assert (none.voxels, none.ml, none.touches_border) == (0, 0, False)
    assert (both.structure, both.values, both.voxels, both.touches_border) == ("both", (7, 300, 301), 14, True)
    assert nothing.voxels == 0
    assert near.uncertainty is None


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("place", [0, -1])
def test_every_face_is_border_but_those_across_a_single_voxel(axis, place):
    array = np.zeros((4, 4, 4), dtype=np.uint8)
    array[2, 2, 2] = 7
    assert not measure(Volume(array[None], np.eye(4)), STRUCTURES)[0].touches_border
    index = [2, 2, 2]
    index[axis] = place
    array[tuple(index)] = 7
    assert measure(Volume(array[None], np.eye(4)), STRUCTURES)[0].touches_border
    flat = np.zeros((4, 4, 1), dtype=np.uint8)
    flat[1, 1] = 7
    assert not measure(Volume(flat[None], np.eye(4)), STRUCTURES)[0].touches_border


@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int32", "uint32", "int64"])
def test_counts_are_those_of_numpy_in_any_type_and_however_far_apart(kind, monkeypatch):
    monkeypatch.setattr(volumes_report, "CHUNK", 50)
    limits = np.iinfo(kind)
    rng = np.random.default_rng(0)
    for low, high in ((0, 3), (limits.min, limits.min + 2), (limits.min, limits.max)):
        array = rng.choice(np.array([low, high], dtype=kind), size=(7, 8, 9))
        values, numbers = np.unique(array, return_counts=True)
        assert count_values(array) == dict(zip(values.tolist(), numbers.tolist(), strict=True))
        assert count_values(array[:, ::2].transpose(2, 0, 1)) == count_values(array[:, ::2])


def test_tables_of_cases_and_of_the_cohort(tmp_path):
    rows = measure(label_map(), STRUCTURES)
    write_volumes(rows, tmp_path / "a_volumes.csv")
    table = rows_of(tmp_path / "a_volumes.csv")
    assert table[0] == {"structure": "near", "label": "7", "voxels": "12", "ml": "0.1800", "touches_border": "no"}
    assert table[1]["label"] == "300 301"
    assert table[1]["touches_border"] == "yes"
    assert [row["structure"] for row in table] == ["near", "far", "none", "both", "nothing"]
    write_cohort(tmp_path, ["a"])
    assert rows_of(tmp_path / "volumes.csv") == [{"case": "a", **row} for row in table]

    doubt = measure(label_map(), STRUCTURES, {"near": 0.25, "far": 0.5, "none": math.nan})
    write_volumes(doubt, tmp_path / "b, with commas_volumes.csv")
    table = rows_of(tmp_path / "b, with commas_volumes.csv")
    assert [row["uncertainty"] for row in table] == ["0.2500", "0.5000", "", "", ""]
    (tmp_path / "broken_volumes.csv").write_bytes(b"\xff\xfe\x00")
    write_cohort(tmp_path, ["a", "missing", "broken", "b, with commas"])
    together = rows_of(tmp_path / "volumes.csv")
    assert [row["case"] for row in together] == ["a"] * 5 + ["b, with commas"] * 5
    assert [row["uncertainty"] for row in together] == [""] * 5 + ["0.2500", "0.5000", "", "", ""]
    write_cohort(tmp_path, [])
    assert rows_of(tmp_path / "volumes.csv") == []
