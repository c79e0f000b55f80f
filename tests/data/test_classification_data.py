import csv
import json
import logging
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from whole_scans import CLASSES, write_ages, write_pictures

from medseg_se.data.augmentation import Augmentation
from medseg_se.data.classification import ClassificationData, RegressionData
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.errors import DataError, UsageError
from medseg_se.files import digest_of


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def heads(tmp_path):
    return write_ages(tmp_path / "heads")


@pytest.fixture
def classes(tmp_path, pictures):
    def build(source=None, **options):
        defaults = {"folds": 3, "size": [16, 16], "batch_size": 4, "store": str(tmp_path / "store"), "progress": False}
        return ClassificationData(str(source or pictures), **{**defaults, **options})

    return build


@pytest.fixture
def ages(tmp_path, heads):
    def build(source=None, **options):
        defaults = {"target": "age", "folds": 3, "size": [8, 8, 8], "store": str(tmp_path / "store"), "progress": False}
        return RegressionData(str(source or heads), **{**defaults, **options})

    return build


def edit(heads, change):
    content = json.loads((heads / "dataset.json").read_text())
    change(content)
    (heads / "dataset.json").write_text(json.dumps(content))


def ids(cases):
    return [case.id for case in cases]


def write_list(folder, training, test=()):
    content = {"training": list(training), "test": list(test)}
    (folder / "dataset.json").write_text(json.dumps(content))


def listed(numbers=range(6), **more):
    return [
        {"image": f"{kind}/{number}.png", "id": f"{kind}{number}", "class": kind, **more}
        for kind in CLASSES
        for number in numbers
    ]


# ------------------------------------------------------------------------------------------------------- sources and targets


def test_a_folder_a_class(classes):
    data = classes()
    assert (data.num_classes, data.in_channels, data.spatial_dims) == (3, 1, 2)
    assert data.classes == CLASSES
    assert classes(colour="rgb").in_channels == 3


def test_a_dataset_of_scans_without_labels(ages, classes, heads):
    data = ages()
    assert (data.num_classes, data.in_channels, data.spatial_dims) == (1, 1, 3)
    assert ages(target=["age", "weight"]).num_classes == 2
    sexes = classes(heads, target="sex", size=[8, 8], slice_axis="coronal")
    assert (sexes.classes, sexes.spatial_dims, sexes.scan.flat_axis) == (("f", "m"), 2, 1)


def test_a_table_of_pictures(classes, pictures):
    rows = [
        {"id": f"{kind}{number}", "image": f"{kind}/{number}.png", "class": kind, "split": split}
        for kind in CLASSES
        for number, split in enumerate(["", "", "", "", "test", "test"])
    ]
    with (pictures / "all.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    data = classes(folds=2)
    assert data.classes == CLASSES
    data.setup("test")
    assert ids(data.test) == [f"{kind}{number}" for kind in CLASSES for number in (4, 5)]
    (batch, *_), second = data.test_dataloader(), 5
    assert batch["target"].tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(data.test_dataloader().dataset[second]["image"], data.scan.read(data.test[second]))


def test_numbers_are_those_of_the_cases(ages, heads):
    data = ages(target=["weight", "age"])
    data.setup("fit")
    expected = [[case.attributes["weight"], case.attributes["age"]] for case in data.training]
    torch.testing.assert_close(data.training_targets(), torch.tensor(expected))
    edit(heads, lambda content: content["training"][0].update(age="61.5"))  # as a CSV has it
    assert 61.5 in ages().encode(ages().datalist.training).flatten().tolist()


# ----------------------------------------------------------------------------------------------------------------- the split


def test_files_that_are_the_same_are_never_parted(classes, pictures):
    for kind in CLASSES:
        for number in range(4):
            shutil.copy(pictures / kind / f"{number}.png", pictures / kind / f"copy{number}.png")
    for fold in range(3):
        training, validation = classes(fold=fold).split()
        assert len(training) + len(validation) == 30
        assert not {digest_of(case.images) for case in training} & {digest_of(case.images) for case in validation}


def test_groups_that_share_a_file_are_never_parted(classes, pictures):
    """Of each class, 0 and 1 are of patient z, who shares files with y and w; one of y's is a file without a patient."""
    entries = listed()
    for entry, patient in zip(entries, ["z", "z", "w", "y", "y", ""] * 3, strict=True):
        entry["group"] = patient and f"{entry['class']}-{patient}"
    for kind in CLASSES:
        for one, other in ((0, 3), (1, 2), (4, 5)):
            shutil.copy(pictures / kind / f"{one}.png", pictures / kind / f"{other}.png")
    found = []
    for order in (entries, entries[::-1]):
        write_list(pictures, order)
        found.append([sorted(ids(classes(fold=fold).split()[1])) for fold in range(3)])
    assert sorted(found[0]) == [[f"{kind}{number}" for number in range(6)] for kind in CLASSES]  # a class is a group now
    assert found[0] == found[1]


def test_prescribed_folds_must_not_part_the_same_file(classes, pictures):
    entries = [{**entry, "fold": int(entry["id"][-1]) % 2} for entry in listed()]
    write_list(pictures, entries)
    assert ids(classes(fold=1).split()[1]) == [entry["id"] for entry in entries if entry["fold"] == 1]
    shutil.copy(pictures / "left" / "0.png", pictures / "left" / "2.png")  # both in fold 0
    assert len(classes(fold=1).split()[1]) == 9
    shutil.copy(pictures / "left" / "0.png", pictures / "left" / "3.png")
    with pytest.raises(
        DataError,
        match=r"cases left0 and left3 are the same file but lie in folds 0 and 1 \(.*left/0\.png, .*left/3\.png\)",
    ):
        classes(fold=1).split()


def test_the_same_file_in_two_classes_is_mentioned(classes, pictures, caplog):
    shutil.copy(pictures / "left" / "0.png", pictures / "dark" / "zero.png")
    with caplog.at_level(logging.WARNING):
        classes().split()
    assert "the same file has several truths: dark/zero.png, left/0.png" in caplog.text


def test_patients_are_never_parted(ages, heads):
    edit(heads, lambda content: [entry.update(group=f"p{place // 3}") for place, entry in enumerate(content["training"])])
    for fold in range(3):
        training, validation = ages(fold=fold).split()
        assert len(validation) == 3
        assert not {case.group for case in training} & {case.group for case in validation}


def test_without_a_fold_every_case_is_trained_on_and_a_warning_says_what_that_means(classes, caplog):
    data = classes(fold=None)
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    assert len(data.training) == len(data.validation) == 18
    assert "says nothing about new scans" in caplog.text
    assert data.describe()["validation"] == []


def test_single_cases_are_dealt_out_on_request_and_it_is_said_loudly(classes, pictures, caplog):
    write_list(pictures, [{**entry, "group": f"patient{entry['class']}"} for entry in listed()])
    training, validation = classes(grouped=False).split()
    assert len(validation) == 6
    assert {case.id for case in training}.isdisjoint(case.id for case in validation)
    assert "GROUPED IS FALSE" in caplog.text
    assert "The result says nothing about new scans" in caplog.text
    parted = {case.attributes["class"] for case in training} & {case.attributes["class"] for case in validation}
    assert parted  # each class was one patient
    assert all(len({case.group for case in part}) == len(part) for part in (training, validation))
    write_list(pictures, listed(fold=0))
    with pytest.raises(UsageError, match="prescribes folds, which cannot be dealt anew: leave out `grouped`"):
        classes(grouped=False).split()


# ------------------------------------------------------------------------------------------------------------ the test scans


def test_a_share_of_every_class_is_held_out_and_no_group_is_parted(classes, pictures):
    for kind in CLASSES:  # 0 and 1 are copies
        shutil.copy(pictures / kind / "0.png", pictures / kind / "1.png")
    found = []
    for fold in range(2):
        data = classes(test_share=0.34, fold=fold)
        data.setup("fit")
        data.setup("test")
        found.append(sorted(ids(data.test)))
        parts = [data.training, data.validation, data.test]
        assert sum(map(len, parts)) == 18
        digests = [{digest_of(case.images) for case in part} for part in parts]
        assert not digests[2] & (digests[0] | digests[1])
        assert not digests[0] & digests[1]
    assert found[0] == found[1]  # whatever the fold
    assert [sum(name.startswith(kind) for name in found[0]) for kind in CLASSES] == [2, 2, 2]
    other = classes(test_share=0.34, split_seed=1)
    other.setup("test")
    assert sorted(ids(other.test)) != found[0]
    everything = classes(test_share=0.34, fold=None)
    everything.setup("fit")
    assert sorted(ids(everything.training)) == sorted({f"{kind}/{n}.png" for kind in CLASSES for n in range(6)} - {*found[0]})


def test_a_test_that_cannot_be_held_out_is_refused(classes, pictures):
    with pytest.raises(DataError, match=r"hold out some of the 18 groups of .*, but 0\.1 of each class is less than one"):
        classes(test_share=0.1).setup("test")
    write_list(pictures, listed(range(4)), listed([4, 5]))
    with pytest.raises(UsageError, match=r"holds out test cases of its own\. Leave out `test_share`"):
        classes(test_share=0.2)


def test_what_a_careless_test_has_seen_is_mentioned(classes, pictures, caplog):
    for kind in CLASSES:
        for number in range(1, 6):
            shutil.copy(pictures / kind / "0.png", pictures / kind / f"{number}.png")
    classes(test_share=0.34, grouped=False).setup("test")
    assert "6 of the 6 test scans are also training or validation scans" in caplog.text


def images_of(loader):
    return torch.cat([batch["image"] for batch in loader])


@pytest.mark.parametrize("stages", [["fit", "test"], ["test"], ["test", "fit"]], ids="-".join)
def test_a_test_case_may_have_the_id_of_a_training_case(classes, pictures, stages):
    test = [{**entry, "id": f"{entry['class']}0"} for entry in listed([5])]
    write_list(pictures, listed(range(5)), test)
    data = classes()
    for stage in stages:
        data.setup(stage)
    assert set(ids(data.test)) <= set(ids(data.datalist.training))
    expected = torch.stack([data.scan.read(case) for case in data.test])
    torch.testing.assert_close(images_of(data.test_dataloader()), expected)
    if "fit" in stages:
        assert data.describe()["training"] == [digest_of(case.images) for case in data.training]
        expected = torch.stack([data.scan.read(case) for case in data.validation])
        torch.testing.assert_close(images_of(data.val_dataloader()), expected)


def test_a_test_scan_that_was_trained_on_is_mentioned(classes, pictures, caplog):
    write_list(pictures, listed(range(4)), listed([4, 5]))
    with caplog.at_level(logging.WARNING):
        classes().setup("test")
    assert not caplog.records
    for kind in CLASSES:
        shutil.copy(pictures / kind / "0.png", pictures / kind / "5.png")
    with caplog.at_level(logging.WARNING):
        classes().setup("test")
    words = "3 of the 6 test scans are also training or validation scans: dark5, left5, right5. Their result says"
    assert words in caplog.text


def test_the_test_needs_no_training_scans(classes, pictures, tmp_path, caplog):
    write_list(pictures, listed(range(4)), listed([4, 5]))
    (pictures / "left" / "0.png").unlink()
    (pictures / "left" / "1.png").write_bytes(b"damaged")
    shutil.copy(pictures / "dark" / "0.png", pictures / "dark" / "5.png")
    data = classes()
    with caplog.at_level(logging.WARNING):
        data.setup("test")
    assert "1 of the 6 test scans are also" in caplog.text
    assert len(images_of(data.test_dataloader())) == 6
    assert len(list((tmp_path / "store").iterdir())) == 6
    with pytest.raises(DataError, match=r"Cannot read .*left/0\.png"):
        data.setup("fit")


# --------------------------------------------------------------------------------------------------------------- the loaders


def test_an_epoch_is_a_pass_in_full_batches(classes):
    data = classes(batch_size=5)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == -(-len(data.training) // 5)
    for batch in batches:
        assert batch["image"].shape == (5, 1, 16, 16)
        assert batch["image"].dtype == torch.float32
        assert batch["target"].dtype == torch.int64
    seen = torch.cat([batch["target"] for batch in batches])[: len(data.training)]
    assert torch.equal(seen.sort().values, data.training_targets().sort().values)


def test_the_number_of_batches_can_be_given(classes):
    data = classes(batches_per_epoch=7)
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 7


def test_validation_scans_are_plain_and_in_order(classes):
    data = classes()
    data.setup("fit")
    batches = list(data.val_dataloader())
    images, targets = (torch.cat([batch[key] for batch in batches]) for key in ("image", "target"))
    assert [data.classes[index] for index in targets] == [case.attributes["class"] for case in data.validation]
    for image, case in zip(images, data.validation, strict=True):
        torch.testing.assert_close(image, data.scan.read(case))


def test_files_are_read_once(classes, monkeypatch):
    classes().setup("fit")
    monkeypatch.setattr("medseg_se.data.whole_scan.read_picture", lambda *_: pytest.fail("read again"))
    data = classes()
    data.setup("fit")
    data.setup("validate")
    assert len(list(data.val_dataloader().dataset)) == len(data.validation)


def test_preprocessing_and_augmentation_are_those_asked_for(ages, classes):
    data = ages(orientation="lps", spacing=[2, 1, 1.5], crop="nonzero", intensity="minmax", rotation=3, mirror=["left-right"])
    assert data.scan.preprocessing == Preprocessing("LPS", (2.0, 1.0, 1.5), "nonzero", "minmax")
    assert data.augmentation == Augmentation(rotation=3, scaling=0.1, mirror=("left-right",), intensity_probability=0.15)
    assert classes(intensity_probability=None).augmentation.intensity_probability is None
    assert classes().scan.preprocessing == Preprocessing("PLS")


# ------------------------------------------------------------------------------------------------------------ what it tells


def test_the_description_is_plain_data(classes, ages):
    data = classes()
    data.setup("fit")
    described = data.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["classes"] == list(CLASSES)
    assert (described["target"], described["colour"], described["size"]) == ("class", "grey", [16, 16])
    assert (described["slice_axis"], described["flat_axis"]) == ("axial", 2)
    assert Preprocessing.from_dict(described["preprocessing"]) == data.scan.preprocessing
    for part in ("training", "validation"):
        assert described[part] == [digest_of(case.images) for case in getattr(data, part)]
    assert ages(target=["age", "weight"]).describe()["values"] == ["age", "weight"]


# -------------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": [16]}, "Expected `size` to be two positive numbers for slices or pictures, but got [16]"),
        ({"size": [16, 0]}, "two positive numbers for slices or pictures, but got [16, 0]"),
        ({"batch_size": 0}, "Expected `batch_size` to be at least 1, but got 0"),
        ({"batches_per_epoch": 0}, "Expected `batches_per_epoch` to be at least 1, but got 0"),
        ({"num_workers": -1}, "Expected `num_workers` to be at least 0"),
        ({"seed": -1}, "Expected `seed` to be at least 0"),
        ({"shift": 1.0}, "Expected `shift` to be at least 0 and below 1, but got 1.0"),
        ({"colour": "cmyk"}, "Expected `colour` to be one of grey, rgb, but got 'cmyk'"),
        ({"spacing": [1.0, 1.0, 1.0]}, "Pictures have no place in the body: leave out `spacing`"),
        ({"slice_axis": "axial"}, "leave out `slice_axis`"),
        ({"orientation": "RAS"}, "leave out `orientation`"),
        ({"rotation": -1}, "Expected `rotation` between 0 and 180, but got -1"),
        ({"intensity": "dataset"}, "Expected `mean` and `deviation` of the dataset's intensities"),
        ({"target": ["class", "age"]}, "Expected `target` to be one attribute that holds a class"),
        (
            {"target": ["class", "class"]},
            "Expected `target` to be one attribute, or several that differ, but got ['class', 'cl",
        ),
        ({"target": []}, "Expected `target` to be one attribute, or several that differ, but got []"),
    ],
    ids=str,
)
def test_bad_values_are_refused_before_anything_is_read(classes, options, words):
    with pytest.raises(UsageError) as caught:
        classes(**options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": [8, 8]}, "Expected `size` to be three positive numbers, but got [8, 8]"),
        ({"slice_axis": "oblique"}, "Expected `slice_axis` to be one of sagittal, coronal, axial, but got 'oblique'"),
        ({"spacing": [1.0, 1.0]}, "Expected `spacing` to be three positive numbers in mm, but got [1.0, 1.0]"),
        ({"colour": "rgb"}, "Scans have no colours as pictures have: leave out `colour`, but got 'rgb'"),
        ({"target": ["age", "age"]}, "Expected `target` to be one attribute, or several that differ, but got ['age', 'age']"),
    ],
    ids=str,
)
def test_bad_values_for_volumes(ages, options, words):
    with pytest.raises(UsageError) as caught:
        ages(**options)
    assert words in str(caught.value)


def test_a_damaged_picture_is_named(classes, pictures):
    (pictures / "left" / "2.png").write_bytes((pictures / "left" / "2.png").read_bytes()[:200])
    with pytest.raises(
        DataError, match=r"1 of 18 cases cannot be used, the first being left/2\.png: Cannot read .*2\.png as a"
    ):
        classes(fold=None).setup("fit")


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "zero bytes": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a picture"),
    "two pages": lambda path: (
        Image.open(path).copy().save(path, "TIFF", save_all=True, append_images=[Image.new("L", (24, 20), 9)])
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_unreadable_pictures_are_named_counted_and_left_out(classes, pictures, damage, caplog):
    for name in ("left/2.png", "right/4.png"):
        damage(pictures / name)
    data = classes(unusable_share=0.12)
    data.setup("fit")
    assert len(data.training) + len(data.validation) == 16
    assert not {"left/2.png", "right/4.png"} & {*ids(data.training), *ids(data.validation)}
    assert "2 of 18 cases cannot be used and are left out:\n  left/2.png: " in caplog.text
    assert "\n  right/4.png: " in caplog.text
    assert len(data.training_targets()) == len(data.describe()["training"]) == len(data.training)
    assert sum(len(batch["target"]) for batch in data.val_dataloader()) == len(data.validation)
    assert torch.isfinite(next(iter(data.train_dataloader()))["image"]).all()
    with pytest.raises(DataError, match=r"2 of 18 cases cannot be used, the first .* Up to 10% would be left out"):
        classes(unusable_share=0.1).setup("fit")


@pytest.mark.parametrize("damage", [*DAMAGES.values(), lambda path: path.unlink()], ids=[*DAMAGES, "missing"])
def test_no_other_changes_sides_when_one_is_damaged(classes, pictures, damage):
    write_list(pictures, listed())
    before = classes(test_share=0.34)
    before.setup("test")
    sides = [ids(part) for part in (*before.split(), before.test)]
    for victim in ("left2", "right4", "dark0"):
        path = pictures / victim[:-1] / f"{victim[-1]}.png"
        whole = path.read_bytes()
        damage(path)
        data = classes(test_share=0.34, unusable_share=0.5)
        data.setup("fit")
        data.setup("test")
        found = [ids(part) for part in (data.training, data.validation, data.test)]
        assert found == [[name for name in side if name != victim] for side in sides]
        path.write_bytes(whole)


def test_a_fold_of_which_nothing_can_be_read_is_refused(classes, pictures):
    write_list(pictures, [{**entry, "fold": int(entry["id"] == "left0")} for entry in listed()])
    (pictures / "left" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="that can be used is left to validate on"):
        classes(fold=1, unusable_share=0.1).setup("fit")


def test_empty_files_are_no_copies_of_one_another(classes, pictures, caplog):
    for name in ("left/2.png", "right/4.png"):
        (pictures / name).write_bytes(b"")
    classes(unusable_share=0.12).split()
    assert "several truths" not in caplog.text
    assert "left/2.png is" in caplog.text.replace("Cannot read ", "").replace(": it", " is")


def test_a_class_of_which_nothing_can_be_read_is_refused(classes, pictures):
    for path in (pictures / "left").iterdir():
        path.write_text("not a picture")
    with pytest.raises(DataError, match="leaves no case of the class 'left' to train on"):
        classes(unusable_share=0.5).setup("fit")


def test_unreadable_test_pictures_are_left_out_too(classes, pictures, caplog):
    write_list(pictures, listed(range(4)), listed([4, 5]))
    (pictures / "left" / "4.png").write_bytes(b"damaged")
    data = classes(unusable_share=0.2)
    data.setup("test")
    assert "1 of 6 cases cannot be used and are left out:\n  left4: Cannot read" in caplog.text
    assert len(images_of(data.test_dataloader())) == 5
    with pytest.raises(DataError, match="1 of 6 cases cannot be used"):
        classes().setup("test")


def test_what_is_learnt_must_be_there(ages, classes, heads):
    with pytest.raises(DataError, match=r"Case head0 of .* has no attribute 'grade'; it has 'age', 'weight', 'sex'"):
        ages(target="grade")
    with pytest.raises(DataError, match="has no attribute 'class'"):
        classes(heads, size=[8, 8, 8])
    with pytest.raises(DataError, match=r"Expected 'sex' of case head0 in .* to be a number, but got 'f'"):
        ages(target="sex")
    edit(heads, lambda content: content["training"][4].update(age="nan"))
    with pytest.raises(DataError, match=r"Expected 'age' of case head4 in .* to be a number, but got 'nan'"):
        ages()


@pytest.mark.parametrize("value", [None, "", "  ", math.nan])
def test_no_value_is_no_class_and_no_number(classes, ages, heads, value):
    edit(heads, lambda content: content["test"][0].update(sex=value, age=value))
    for data in (classes(heads, target="sex", size=[8, 8, 8]), ages()):
        data.setup("test")
        assert ids(data.test) == ["head10"]
    edit(heads, lambda content: content["training"][4].update(sex=value, age=value))
    with pytest.raises(DataError, match=r"Case head4 of .* has no value of 'sex', but .*\. Give it one, or leave it out"):
        classes(heads, target="sex", size=[8, 8, 8])
    with pytest.raises(DataError, match=r"Case head4 of .* has no value of 'age'"):
        ages()


def test_a_whole_number_is_one_class_however_it_is_written(classes, heads):
    grades = [1, 1.0, "1", 0, 0.0, " 0", 2.5, "2.5", 2.5]

    def change(content):
        for entry, grade in zip(content["training"], grades, strict=True):
            entry["grade"] = grade

    edit(heads, change)
    data = classes(heads, target="grade", size=[8, 8, 8])
    assert data.classes == ("0", "1", "2.5")
    assert data.encode(data.datalist.training).tolist() == [1, 1, 1, 0, 0, 0, 2, 2, 2]


def test_there_must_be_something_to_tell_apart(classes, ages, pictures, heads):
    shutil.rmtree(pictures / "left")
    shutil.rmtree(pictures / "right")
    with pytest.raises(DataError, match=r"Expected at least two classes in .*pictures, but got dark alone"):
        classes()
    edit(heads, lambda content: [entry.update(age=50) for entry in content["training"]])
    with pytest.raises(DataError, match=r"Every training case of .* has 'age' 50: there is nothing to learn"):
        ages().setup("fit")


def test_every_class_must_be_trained(classes, pictures):
    (pictures / "rare").mkdir()
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(pictures / "rare" / "0.png")
    made = [classes(fold=fold) for fold in range(3)]
    bad = next(data for data in made if "rare/0.png" in ids(data.split()[1]))
    with pytest.raises(DataError, match=rf"Fold {bad.fold} of .* leaves no case of the class 'rare' to train on"):
        bad.setup("fit")
    next(data for data in made if data is not bad).setup("fit")


def test_test_cases_must_be_known_and_of_known_classes(classes, ages, heads):
    with pytest.raises(DataError, match="lists no test case with 'class'"):
        classes().setup("test")
    edit(heads, lambda content: [entry.pop("age") for entry in content["test"]])
    with pytest.raises(DataError, match="lists no test case with 'age'"):
        ages().setup("test")
    edit(heads, lambda content: content["test"][0].update(sex="x"))
    data = classes(heads, target="sex", size=[8, 8, 8])
    data.setup("test")
    with pytest.raises(DataError, match=r"Case head9 of .* has the class 'x', which no training case has"):
        data.test_dataloader()


def test_pictures_and_scans_are_not_mixed(ages, heads):
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(heads / "images" / "a.png")
    edit(heads, lambda content: content["training"].append({"image": "images/a.png", "age": 3}))
    with pytest.raises(DataError, match=r"mixes pictures \(a\) and scans \(head0\)"):
        ages()


@pytest.mark.parametrize("part", ["training", "test"])
def test_a_case_of_a_label_map_alone_is_refused(ages, heads, part):
    bare = {"image": None, "label": "labels/bare.nii.gz", "id": "bare", "age": 3}
    edit(heads, lambda content: content.setdefault(part, []).insert(0, bare))
    with pytest.raises(DataError, match=r"Case bare of .* has no scan, but a label map alone"):
        ages()


def test_a_case_of_several_pictures_is_refused(classes, pictures):
    images = ["left/0.png", "left/1.png"]
    content = {"training": [{"image": images, "id": "a", "class": "x"}, {"image": "left/2.png", "id": "b", "class": "y"}]}
    (pictures / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"Case a of .* has 2 pictures; only one can be read"):
        classes()


def test_a_source_that_does_not_exist_or_lists_nothing_to_train_on(classes, ages, heads, tmp_path):
    with pytest.raises(DataError, match="No such dataset"):
        classes(tmp_path / "nowhere")
    edit(heads, lambda content: content.update(training=[]))
    with pytest.raises(DataError, match="lists no case to train on"):
        ages()
