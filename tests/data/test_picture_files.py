import numpy as np
import pytest
from PIL import Image

from medseg_se.data.pictures import is_picture, read_class_folders, read_picture
from medseg_se.errors import DataError, UsageError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOURED = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def test_rows_and_columns_stay_and_lie_as_axial_slices_are_shown(tmp_path):
    volume = read_picture(save(tmp_path / "a.png", GREY))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0, :, :, 0], GREY)
    assert volume.orientation == "PLS"
    assert volume.spacing == (1.0, 1.0, 1.0)


def test_colours(tmp_path):
    path = save(tmp_path / "a.png", COLOURED)
    rgb = read_picture(path, "rgb").array
    np.testing.assert_array_equal(np.moveaxis(rgb[..., 0], 0, -1), COLOURED)
    grey = read_picture(path).array
    assert grey.shape == (1, 5, 7, 1)
    np.testing.assert_allclose(grey[0, ..., 0], COLOURED @ [0.299, 0.587, 0.114], atol=1)
    np.testing.assert_array_equal(read_picture(save(tmp_path / "g.png", GREY), "rgb").array[2, :, :, 0], GREY)


def test_transparency_and_palettes_are_read_as_they_look(tmp_path):
    seen = Image.fromarray(GREY)
    seen.convert("RGBA").save(tmp_path / "alpha.png")
    seen.convert("P").save(tmp_path / "palette.png")
    for name in ("alpha.png", "palette.png"):
        np.testing.assert_array_equal(read_picture(tmp_path / name).array[0, ..., 0], GREY)


def test_unseen_pixels_are_black_whatever_colour_they_hide(tmp_path):
    hidden = np.dstack([np.full((5, 7), 200, np.uint8), np.full((5, 7), 255, np.uint8)])
    hidden[:2, :, 1], hidden[2, :, 1] = 0, 102
    Image.fromarray(hidden).save(tmp_path / "la.png")
    palette = Image.fromarray(GREY // 128).convert("P")
    palette.putpalette([200, 200, 200, 90, 90, 90])
    palette.save(tmp_path / "p.png", transparency=0)
    for colour in ("grey", "rgb"):
        found = read_picture(tmp_path / "la.png", colour).array[0, ..., 0]
        assert [sorted(set(rows.ravel().tolist())) for rows in (found[:2], found[2], found[3:])] == [[0], [80], [200]]
        np.testing.assert_array_equal(read_picture(tmp_path / "p.png", colour).array[0, ..., 0], np.where(GREY < 128, 0, 90))


def test_the_four_colours_of_a_press_become_grey(tmp_path):
    smooth = np.repeat(np.linspace(20, 230, 32).astype(np.uint8)[None], 32, axis=0)
    for name, options in (("a.jpg", {"quality": 95}), ("a.tif", {})):
        Image.fromarray(smooth).convert("CMYK").save(tmp_path / name, **options)
        assert Image.open(tmp_path / name).mode == "CMYK"
        np.testing.assert_allclose(read_picture(tmp_path / name).array[0, ..., 0], smooth, atol=4)


def test_the_content_tells_the_format_and_not_the_suffix(tmp_path):
    save(tmp_path / "a.png", GREY).rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.jpg").array[0, ..., 0], GREY)


def test_more_than_eight_bits_are_kept(tmp_path):
    deep = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(read_picture(save(tmp_path / name, deep)).array[0, ..., 0], deep)
    assert read_picture(tmp_path / "a.png", "rgb").array.shape == (3, 5, 7, 1)


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    path = save(tmp_path / "a.png", GREY, exif=exif)
    np.testing.assert_array_equal(read_picture(path).array[0, ..., 0], np.rot90(GREY, -1))


def test_files_that_are_no_pictures_are_named(tmp_path):
    whole = save(tmp_path / "whole.jpg", RNG.integers(0, 256, (64, 64), dtype=np.uint8)).read_bytes()
    damaged = {"cut.jpg": whole[: len(whole) // 2], "text.png": b"no picture", "empty.png": b""}
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
    for name in (*damaged, "missing.png"):
        with pytest.raises(DataError, match=rf"Cannot read .*{name} as a picture: .*\. Restore it or leave it out\."):
            read_picture(tmp_path / name)


@pytest.mark.parametrize(("name", "kind"), [("a.tif", "TIFF"), ("a.png", "PNG"), ("a.webp", "WEBP"), ("gif_called.jpg", "GIF")])
def test_several_pages_and_films_are_refused(tmp_path, name, kind):
    pages = [Image.fromarray(np.roll(GREY, 2 * number, axis=1)) for number in range(3)]
    pages[0].save(tmp_path / name, kind, save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=rf"{name} to hold one picture, but it holds 3\. Save each to its own file"):
        read_picture(tmp_path / name)


def test_a_picture_that_claims_too_much_is_refused(tmp_path):
    with pytest.raises(DataError, match="claims 7 × 5 pixels"):
        read_picture(save(tmp_path / "a.png", GREY), memory_limit=100)


def test_an_unknown_colour_is_refused(tmp_path):
    with pytest.raises(UsageError, match="Expected `colour` to be one of grey, rgb, but got 'cmyk'"):
        read_picture(save(tmp_path / "a.png", GREY), "cmyk")


def test_class_folders_become_a_datalist(tmp_path):
    for name in ("b/1.PNG", "b/2.jpg", "a/1.png", "a/._1.png", "a/notes.txt", ".hidden/1.png", "_other/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = read_class_folders(tmp_path)
    assert [(case.id, case.group, dict(case.attributes)) for case in found.training] == [
        ("a/1.png", "a/1.png", {"class": "a"}),
        ("b/1.PNG", "b/1.PNG", {"class": "b"}),
        ("b/2.jpg", "b/2.jpg", {"class": "b"}),
    ]
    assert all(is_picture(case.images[0]) for case in found.training)
    assert (found.name, found.test) == (tmp_path.name, ())


def test_a_folder_within_a_class_is_a_group(tmp_path):
    files = ("a/p1/1.png", "a/p1/late/1.png", "a/p2/1.png", "a/1.png", "b/p1/2.png")
    left_out = ("a/.thumbs/1.png", "a/p2/._1.png", "a/p2/__MACOSX/1.png", "a/p2/notes.txt")
    for name in (*files, *left_out):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = {case.id: case for case in read_class_folders(tmp_path).training}
    assert {name: (case.group, case.attributes["class"]) for name, case in found.items()} == {
        "a/1.png": ("a/1.png", "a"),
        "a/p1/1.png": ("p1", "a"),
        "a/p1/late/1.png": ("p1", "a"),
        "a/p2/1.png": ("p2", "a"),
        "b/p1/2.png": ("p1", "b"),
    }
    assert all(case.images == (tmp_path / name,) for name, case in found.items())


def test_the_parts_of_a_split_are_no_classes(tmp_path):
    for name in ("Training/a", "Training/b", "Testing/a"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").touch()
    with pytest.raises(DataError, match=r"but got the parts of a split: Testing, Training\. Name one of them, or list"):
        read_class_folders(tmp_path)
    assert [case.id for case in read_class_folders(tmp_path / "Training").training] == ["a/1.png", "b/1.png"]


def test_files_with_other_suffixes_are_counted_and_named(tmp_path, caplog):
    for name in (
        "a/1.png",
        "a/2.gif",
        "a/p/3.dcm",
        "b/1.png",
        "b/notes.txt",
        "b/z.nii",
        "b/.hidden",
        "b/Thumbs.db",
        "b/_x/4.gif",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [case.id for case in read_class_folders(tmp_path).training] == ["a/1.png", "b/1.png"]
    words = "left out, for their suffixes are not those of pictures: 4 files (a/2.gif, a/p/3.dcm, b/notes.txt, …)"
    assert words in caplog.text
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(DataError, match=r"a to hold the pictures of a class .*but it holds only 2\.gif, p/3\.dcm\. Remove"):
        read_class_folders(tmp_path)


def test_a_class_without_pictures_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"a to hold the pictures of a class \(\.jpg, .*no dataset\.json, but it holds none"):
        read_class_folders(tmp_path)


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match="or a folder of pictures for each class"):
        read_class_folders(tmp_path)
