import shutil

import numpy as np
import pytest
from series_maker import write_series

from medseg_se.data.scan import read_channels
from medseg_se.errors import DataError
from medseg_se.inference.inputs import find_cases
from medseg_se.inference.reading import digest_of_scan, doubts_of_series, read_scan, series_of


def slices(count=4, seed=0):
    return np.random.default_rng(seed).integers(-900, 900, size=(count, 5, 6))


def only_case(path, channels=1):
    (case,) = find_cases([path], channels)
    return case


def test_a_series_is_read_with_its_place(tmp_path):
    affine = write_series(tmp_path / "in", slices(), degrees=(12, -25, 40))
    case = only_case(tmp_path / "in")
    image = read_scan(case, 1)
    np.testing.assert_array_equal(image.array[0], slices().transpose(2, 1, 0))
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    assert image.array.dtype == np.float32
    assert [one.uid for one in series_of(case)] == ["1.2.826.0.1.999.7"]


def test_a_nifti_file_is_read_as_ever(tmp_path, write_scan, make_affine):
    write_scan(tmp_path / "a.nii.gz", slices().astype(np.float32), make_affine("LPS"))
    case = only_case(tmp_path / "a.nii.gz")
    expected = read_channels(case.images, 1)
    np.testing.assert_array_equal(read_scan(case, 1).array, expected.array)
    np.testing.assert_array_equal(read_scan(case, 1).affine, expected.affine)
    assert (series_of(case), doubts_of_series(case)) == ((), ())


def test_the_digest_depends_on_content_and_not_on_names(tmp_path):
    write_series(tmp_path / "in", slices())
    write_series(tmp_path / "other", slices(seed=1))
    first = digest_of_scan(only_case(tmp_path / "in"))
    assert digest_of_scan(only_case(tmp_path / "other")) != first
    for number, path in enumerate(sorted((tmp_path / "in").iterdir(), reverse=True)):
        path.rename(path.with_name(f"renamed{number}"))
    (tmp_path / "in").rename(tmp_path / "moved")
    assert digest_of_scan(only_case(tmp_path / "moved")) == first


def test_what_vanishes_midway_is_a_data_error(tmp_path):
    write_series(tmp_path / "in", slices())
    case = only_case(tmp_path / "in")
    shutil.rmtree(tmp_path / "in")
    for read in (lambda: read_scan(case, 1), lambda: digest_of_scan(case)):
        with pytest.raises(DataError, match="annot"):
            read()


def test_channels_on_different_grids_or_of_another_number_are_refused(tmp_path):
    write_series(tmp_path / "in" / "a_0000", slices(), number=1)
    write_series(tmp_path / "in" / "a_0001", slices(), number=2, degrees=(3, 0, 0))
    case = only_case(tmp_path / "in", channels=2)
    with pytest.raises(DataError, match=r"a_0000 and .*a_0001 lie on different grids"):
        read_scan(case, 2)
    with pytest.raises(DataError, match="Expected 3 channels, but case a is"):
        read_scan(case, 3)


def test_what_the_headers_leave_in_doubt_is_told(tmp_path):
    write_series(tmp_path / "in", slices(7)[::2], reverse=True)
    assert doubts_of_series(only_case(tmp_path / "in")) == ()
    for place, path in enumerate(sorted((tmp_path / "in").iterdir())):
        import pydicom

        data = pydicom.dcmread(path)
        data.InstanceNumber = 2 * place + 1
        data.save_as(path)
    (doubt,) = doubts_of_series(only_case(tmp_path / "in"))
    assert "numbered in steps of 2" in doubt
