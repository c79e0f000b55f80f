"""`medseg-prep pictures`: copies of one picture are found however they were saved, kept together, and not tested on."""

import csv
import io

import numpy as np
import pytest
from medseg_se.data_prep.copies import find_links, print_all
from medseg_se.data_prep.main import main
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter
from sources import summary, times, truncate

from medseg_se.data.datalist import read_datalist
from medseg_se.data.pictures import read_picture


def picture(seed, size=(90, 110)):
    """A smooth random head on black, (height, width), different for every seed."""
    rng = np.random.default_rng(seed)
    tissue = gaussian_filter(rng.normal(size=size), 5)
    rows, columns = np.mgrid[-1 : 1 : size[0] * 1j, -1 : 1 : size[1] * 1j]
    inside = (rows / 0.8) ** 2 + (columns / 0.7) ** 2 < 1
    grey = 130 + 45 * tissue / tissue.std()
    return Image.fromarray((grey.clip(40, 255) * inside).astype(np.uint8))


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


CHANGES = {
    "compressed": (lambda image: image, {"quality": 40}),
    "resized": (lambda image: image.resize((61, 50), Image.Resampling.BILINEAR), {}),
    "brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.15), {}),
    "less contrast": (lambda image: image.point(lambda value: value // 2 + 40), {}),
    "padded": (lambda image: pad(image, 25), {}),
    "cropped": (lambda image: image.crop((14, 7, 96, 83)), {}),
    "coloured": (lambda image: image.convert("RGB"), {}),
    "mirrored": (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), {}),
}


def pad(image, margin):
    larger = Image.new("L", (image.width + 2 * margin, image.height + 2 * margin))
    larger.paste(image, (margin, margin))
    return larger


def convert(source, output, *options):
    code = main(["pictures", str(source), str(output), *options])
    return code, read_datalist(output)


def copies(output):
    return list(csv.DictReader(io.StringIO((output / "copies.csv").read_text(encoding="utf-8"))))


def test_pictures_are_copied_byte_for_byte_with_their_class(tmp_path, capsys):
    for number in range(6):
        save(picture(number), tmp_path / f"tumours/{'glioma' if number % 2 else 'none'}/im {number}.JPG")
    (tmp_path / "tumours/glioma/._im 1.JPG").write_bytes(b"twin")
    (tmp_path / "tumours/glioma/Thumbs.db").write_bytes(b"leftover")
    output = tmp_path / "out"
    code, datalist = convert(tmp_path / "tumours", output)
    assert code == 0
    assert datalist.name == "tumours"
    assert [(case.id, case.attributes["class"]) for case in datalist.training] == [
        *((f"glioma/im {number}", "glioma") for number in (1, 3, 5)),
        *((f"none/im {number}", "none") for number in (0, 2, 4)),
    ]
    assert len({case.group for case in datalist.training}) == 6
    for case in datalist.training:
        assert case.images[0].read_bytes() == (tmp_path / f"tumours/{case.id}.JPG").read_bytes()
    assert "No two of the 6 pictures show the same." in capsys.readouterr().out
    assert copies(output) == []
    before = times(output)
    assert convert(tmp_path / "tumours", output)[0] == 0
    assert times(output) == before


@pytest.mark.parametrize("name", CHANGES)
def test_a_copy_is_found_however_it_was_saved(tmp_path, name):
    change, options = CHANGES[name]
    for number in range(4):
        save(picture(number), tmp_path / f"source/a/{number}.png")
    save(change(picture(2)), tmp_path / "source/b/copy.jpg", **options)
    code, datalist = convert(tmp_path / "source", tmp_path / "out")
    assert code == 0
    groups = {case.id: case.group for case in datalist.training}
    assert groups["b/copy"] == groups["a/2"]
    assert len(set(groups.values())) == 4
    (first, second) = copies(tmp_path / "out")
    assert (first["picture"], second["picture"]) == ("a/2.png", "b/copy.jpg")
    assert first["copy"] == second["copy"] == ("mirrored" if name == "mirrored" else "similar")
    assert 0.975 <= float(first["correlation"]) <= 1


def test_copies_far_apart_in_a_large_collection_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr("medseg_se.data_prep.copies.BLOCK", 2)  # as if there were thousands
    for number in range(9):
        save(picture(number), tmp_path / f"source/a/{number}.png")
    for number in (0, 5, 8):
        save(picture(number), tmp_path / f"source/b/{number}.jpg", quality=60)
    convert(tmp_path / "source", tmp_path / "out")
    sets = [(row["set"], row["picture"]) for row in copies(tmp_path / "out")]
    expected = [[(str(place), f"a/{number}.png"), (str(place), f"b/{number}.jpg")] for place, number in enumerate((0, 5, 8), 1)]
    assert sets == [row for rows in expected for row in rows]


def test_identical_files_are_counted_apart_from_similar_ones(tmp_path, capsys):
    source = tmp_path / "source"
    for number in range(3):
        save(picture(number), source / f"a/{number}.png")
    for name in ("a/0 again.png", "b/0.png"):
        save(picture(0), source / name)
    save(picture(1), source / "b/1.jpg", quality=50)
    code, datalist = convert(source, tmp_path / "out")
    assert code == 0
    notes = summary(tmp_path / "out")["notes"]
    assert notes[0].startswith(
        "5 of the 6 pictures show the same as another (3 byte for byte, 2 nearly); without the copies there would be 3."
    )
    assert "The same picture in different classes; decide which is right: a/0 again = a/0 = b/0" in notes
    assert "The same picture in different classes; decide which is right: a/1 = b/1" in notes
    assert notes[0] in capsys.readouterr().out
    groups = {case.id: case.group for case in datalist.training}
    assert groups == {"a/0": "a/0", "a/0 again": "a/0", "b/0": "a/0", "a/1": "a/1", "b/1": "a/1", "a/2": "a/2"}


def test_copies_join_patients(tmp_path):
    source = tmp_path / "source"
    for number, name in enumerate(("a/patient1/x", "a/patient1/y", "a/patient2/x", "b/patient3/x", "b/loose")):
        save(picture(number), source / f"{name}.png")
    save(picture(1), source / "a/patient2/y.jpg", quality=60)
    save(picture(9), source / "b/patient1/x.png")
    code, datalist = convert(source, tmp_path / "out")
    assert code == 0
    assert {case.id: case.group for case in datalist.training} == {
        **dict.fromkeys(("a/patient1/x", "a/patient1/y", "b/patient1/x"), "patient1"),
        **dict.fromkeys(("a/patient2/x", "a/patient2/y"), "patient1"),
        "b/patient3/x": "patient3",
        "b/loose": "b/loose",
    }


@pytest.fixture
def split(tmp_path):
    """Training and Testing inside the folder of an archive; two test pictures and one patient are trained on."""
    root = tmp_path / "archive/Brain"
    for number in range(3):
        save(picture(number), root / f"Training/glioma/image({number}).jpg")
        save(picture(10 + number), root / f"Training/none/image({number}).jpg")
        save(picture(20 + number), root / f"Testing/glioma/image({number}).jpg")
        save(picture(30 + number), root / f"Testing/none/image({number}).jpg")
    save(picture(1), root / "Testing/glioma/leak.jpg")
    save(picture(11), root / "Testing/none/leak.png")
    save(picture(40), root / "Training/none/patient7/a.jpg")
    save(picture(41), root / "Testing/none/patient7/b.jpg")
    return tmp_path / "archive"


def test_test_pictures_that_are_trained_on_are_left_out(split, tmp_path, capsys):
    code, datalist = convert(split, tmp_path / "out")
    assert code == 1
    assert datalist.name == "Brain"
    assert len(datalist.training) == 7
    assert {case.id for case in datalist.test} == {
        f"Testing/{kind}/image({number})" for kind in ("glioma", "none") for number in range(3)
    }
    assert {case.attributes["split"] for case in datalist.test} == {"Testing"}
    assert {case.attributes["split"] for case in datalist.training} == {"Training"}
    left_out = summary(tmp_path / "out")["left_out"]
    assert set(left_out) == {"Testing/glioma/leak.jpg", "Testing/none/leak.png", "Testing/none/patient7/b.jpg"}
    assert left_out["Testing/glioma/leak.jpg"].startswith("It shows the same as Training/glioma/image(1), which is trained on")
    assert left_out["Testing/none/patient7/b.jpg"].startswith("It is of one patient")
    assert "3 test pictures are left out" in capsys.readouterr().out
    assert not {case.group for case in datalist.training} & {case.group for case in datalist.test}


def test_leaks_can_be_kept(split, tmp_path):
    code, datalist = convert(split, tmp_path / "out", "--keep-leaks")
    assert code == 0
    assert (len(datalist.training), len(datalist.test)) == (7, 9)
    groups = {case.id: case.group for case in (*datalist.training, *datalist.test)}
    assert groups["Testing/glioma/leak"] == groups["Training/glioma/image(1)"]


def test_a_broken_picture_is_left_out_until_it_is_whole(tmp_path):
    source, output = tmp_path / "source", tmp_path / "out"
    for number in range(3):
        save(picture(number), source / f"a/{number}.jpg")
    whole = truncate(source / "a/1.jpg")
    code, datalist = convert(source, output)
    assert code == 1
    assert [case.id for case in datalist.training] == ["a/0", "a/2"]
    assert "Cannot read" in summary(output)["left_out"]["a/1.jpg"]
    before = times(output)
    (source / "a/1.jpg").write_bytes(whole)
    code, datalist = convert(source, output)
    assert (code, len(datalist.training)) == (0, 3)
    assert {name: times(output)[name] for name in before} == before


def test_pictures_that_differ_in_their_suffix_only_stay_two(tmp_path):
    save(picture(0), tmp_path / "source/a/1.png")
    save(picture(1), tmp_path / "source/a/1.jpg", quality=100)
    code, datalist = convert(tmp_path / "source", tmp_path / "out")
    assert code == 0
    assert {case.id: case.images[0].name for case in datalist.training} == {"a/1_jpg": "1_jpg.jpg", "a/1_png": "1_png.png"}
    np.testing.assert_array_equal(read_picture(datalist.training[1].images[0]).array[0, :, :, 0], np.asarray(picture(0)))


def test_blank_pictures_and_tiny_ones_are_not_taken_for_copies(tmp_path):
    for number, grey in enumerate((0, 0, 90, 200)):
        save(Image.new("L", (20 + number, 20), grey), tmp_path / f"source/a/{number}.png")
    save(Image.fromarray(np.array([[7]], np.uint8)), tmp_path / "source/a/dot.png")
    save(picture(0), tmp_path / "source/a/head.png")
    code, datalist = convert(tmp_path / "source", tmp_path / "out")
    assert code == 0
    assert len({case.group for case in datalist.training}) == 6


def test_the_correlation_that_makes_two_pictures_one_can_be_raised(tmp_path, capsys):
    save(picture(0), tmp_path / "source/a/0.png")
    save(picture(0), tmp_path / "source/a/1.jpg", quality=10)
    assert len({case.group for case in convert(tmp_path / "source", tmp_path / "out")[1].training}) == 1
    assert len({case.group for case in convert(tmp_path / "source", tmp_path / "out", "--alike", "1")[1].training}) == 2
    assert main(["pictures", str(tmp_path / "source"), str(tmp_path / "other"), "--alike", "0.5"]) == 2
    assert "Expected `alike` to be a correlation between 0.96 and 1, but got 0.5." in capsys.readouterr().err


def test_a_folder_without_classes_is_refused(tmp_path, capsys):
    save(picture(0), tmp_path / "source/0.png")
    assert main(["pictures", str(tmp_path / "source"), str(tmp_path / "out")]) == 2
    assert "a folder of pictures for each class" in capsys.readouterr().err


def test_steps_for_scans_are_refused_rather_than_ignored(tmp_path, capsys):
    save(picture(0), tmp_path / "source/a/0.png")
    assert main(["pictures", str(tmp_path / "source"), str(tmp_path / "out"), "--reorient", "RAS"]) == 2
    assert "Pictures are copied as they are" in capsys.readouterr().err


def test_parts_of_a_split_beside_another_folder_are_refused(split, tmp_path, capsys):
    """They would become classes, and what is held out would be trained on."""
    save(picture(50), split / "Brain/mri_extra/glioma/0.png")
    assert main(["pictures", str(split), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "holds parts of a split (Testing, Training) beside other folders (mri_extra). Move the others away" in error
    assert convert(split / "Brain/Training", tmp_path / "out")[0] == 0


def test_many_copies_of_one_picture_take_one_link_each(tmp_path):
    paths = [save(picture(0), tmp_path / f"{number}.jpg", quality=30 + number) for number in range(40)]
    paths += [save(CHANGES["mirrored"][0](picture(0)), tmp_path / f"mirrored{number}.png") for number in range(2)]
    paths += [save(picture(1), tmp_path / "other.png")]
    prints, _ = print_all(paths)
    links = find_links([prints[path] for path in paths])
    assert len(links) == 41
    assert {place for link in links for place in link.pair} == set(range(42))
    assert sorted(link.kind for link in links) == ["identical", "mirrored", *["similar"] * 39]


def test_a_share_of_every_class_is_held_out_by_whole_groups(tmp_path):
    source = tmp_path / "source"
    for kind in ("glioma", "none"):
        for number in range(10):
            image = picture(number if kind == "glioma" else 100 + number)
            save(image, source / kind / f"{number}.png")
            if number < 5:
                save(image, source / kind / f"{number}_again.png")
    code, dataset = convert(source, tmp_path / "out", "--test", "0.2")
    assert code == 0
    assert not {case.group for case in dataset.training} & {case.group for case in dataset.test}
    for kind in ("glioma", "none"):
        held_out = [case for case in dataset.test if case.attributes["class"] == kind]
        assert len(held_out) == 3
    _, again = convert(source, tmp_path / "again", "--test", "0.2")
    assert [case.id for case in again.test] == [case.id for case in dataset.test]
    _, none = convert(source, tmp_path / "none")
    assert not none.test


def test_what_is_held_out_twice_is_refused(tmp_path, capsys):
    for part in ("Training", "Testing"):
        for kind in ("glioma", "none"):
            save(picture(len(part) * 10 + len(kind)), tmp_path / "source" / part / kind / "1.png")
    assert main(["pictures", str(tmp_path / "source"), str(tmp_path / "out"), "--test", "0.2"]) == 2
    assert "a test part of its own" in capsys.readouterr().err
    assert main(["pictures", str(tmp_path / "source"), str(tmp_path / "out"), "--test", "1"]) == 2
