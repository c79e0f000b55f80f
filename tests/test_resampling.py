"""Resampling of arrays: the same as SimpleITK's spline, and the label with the largest interpolated mask."""

import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK

from medseg_se import resampling
from medseg_se.resampling import by_vote, cubic, spline_matrix


def by_simpleitk(array, shape, how):
    """Resample (I, J, K) over the same field of view."""
    scale = np.array(array.shape) / np.array(shape)
    resampler = SimpleITK.ResampleImageFilter()
    resampler.SetInterpolator(how)
    resampler.SetSize([int(length) for length in shape])
    resampler.SetOutputSpacing(scale.tolist())
    resampler.SetOutputOrigin(((scale - 1) / 2).tolist())
    resampler.SetUseNearestNeighborExtrapolator(True)
    source = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    return SimpleITK.GetArrayFromImage(resampler.Execute(source)).transpose(2, 1, 0)


@pytest.mark.parametrize("shape", [(14, 7, 11), (5, 20, 22), (9, 10, 3)])
def test_cubic_is_the_spline_of_simpleitk(shape):
    scan = np.random.default_rng(0).normal(40, 300, (2, 9, 10, 11)).astype(np.float32)
    found = cubic(scan, shape)
    expected = np.stack([by_simpleitk(channel, shape, SimpleITK.sitkBSpline) for channel in scan])
    np.testing.assert_allclose(found, expected, atol=1e-3)  # of ±1000
    assert found.dtype == np.float32


def test_cubic_does_not_depend_on_the_number_of_threads():
    program = (
        "import hashlib, numpy as np; from medseg_se.resampling import cubic; "
        "scan = np.random.default_rng(0).normal(40, 300, (1, 70, 60, 50)).astype(np.float32); "
        "print(hashlib.md5(cubic(scan, (81, 67, 90)).tobytes()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count},
            capture_output=True,
            check=True,
        ).stdout
        for count in ("1", "2")
    }
    assert len(found) == 1


@pytest.mark.parametrize("old", [1, 2, 3, 10])
def test_the_spline_passes_through_every_voxel_and_keeps_constants(old):
    matrix = spline_matrix(old, 3 * old)
    np.testing.assert_allclose(matrix[1::3], np.eye(old), atol=1e-6)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("shape", [(13, 25, 9), (6, 7, 4), (24, 24, 24), (1, 1, 1), (3, 40, 11)])
@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.int32])
def test_every_voxel_takes_the_label_with_the_largest_interpolated_mask_the_lowest_if_equal(shape, kind):
    least = np.iinfo(kind).min < 0
    labels = np.random.default_rng(0).integers(-1 if least else 0, 5, (12, 17, 9)).astype(kind)
    found, values = by_vote(labels, shape), np.unique(labels)
    masks = np.stack([by_simpleitk((labels == value).astype(np.float32), shape, SimpleITK.sitkLinear) for value in values])
    largest = masks.max(axis=0)
    np.testing.assert_array_equal(found, values[np.argmax(masks > largest - 1e-5, axis=0)])
    assert found.dtype == kind
    # SimpleITK has a vote of its own, which leaves it to rounding where votes are equal.
    reference = by_simpleitk(labels, shape, SimpleITK.sitkLabelLinear)
    assert (masks[np.searchsorted(values, reference), *np.indices(shape)] > largest - 1e-5).all()


def test_votes_do_not_depend_on_how_many_voxels_are_counted_together(monkeypatch):
    labels = np.random.default_rng(0).integers(0, 4, (9, 8, 7)).astype(np.int16)
    whole = by_vote(labels, (14, 9, 5))
    monkeypatch.setattr(resampling, "SLAB", 100)
    np.testing.assert_array_equal(by_vote(labels, (14, 9, 5)), whole)
