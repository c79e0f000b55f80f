import json
from collections import Counter
from pathlib import Path

import pytest

from medseg_se.data.datalist import Case, Datalist, deal_folds, read_datalist, read_structures
from medseg_se.errors import DataError, UsageError
from medseg_se.structures import Structures

LIVER = Structures({"liver": (1,)})


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def decathlon(folder, training, **more):
    content = {"labels": {"0": "background", "1": "liver"}, "training": training, **more}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def cases(groups, folds=None):
    folds = folds or [None] * len(groups)
    pairs = zip(groups, folds, strict=True)
    return tuple(Case(f"case{n}", (Path(f"{n}.nii"),), group=group, fold=fold) for n, (group, fold) in enumerate(pairs))


def datalist(groups, folds=None):
    return Datalist("test", Path("dataset.json"), ("image",), LIVER, cases(groups, folds))


# -------------------------------------------------------------------------------------------------------------------- Decathlon


def test_decathlon(tmp_path):
    training = [
        {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"},
        {"image": ["b_t1.nii", "b_t2.nii"], "label": "b.nii", "id": "b", "group": "patient 7", "fold": 2, "age": 61},
    ]
    found = read_datalist(decathlon(tmp_path, training, name="Livers", modality={"1": "T2", "0": "T1"}, test=["c.nii.gz"]))
    assert found.name == "Livers"
    assert found.source == tmp_path / "dataset.json"
    assert found.channels == ("T1", "T2")
    assert found.structures == LIVER
    first, second = found.training
    assert first == Case("a", (tmp_path / "imagesTr/a.nii.gz",), tmp_path / "labelsTr/a.nii.gz", group="a")
    assert second == Case("b", (tmp_path / "b_t1.nii", tmp_path / "b_t2.nii"), tmp_path / "b.nii", "patient 7", 2, {"age": 61})
    assert found.test == (Case("c", (tmp_path / "c.nii.gz",), group="c"),)


def test_the_json_file_itself_may_be_named(tmp_path):
    decathlon(tmp_path, ["a.nii"])
    other = (tmp_path / "dataset.json").rename(tmp_path / "mine.json")
    found = read_datalist(other)
    assert found.name == tmp_path.name
    assert found.channels == ("image",)
    assert found.training[0].label is None


def test_channels_may_be_a_list_or_one_name(tmp_path):
    assert read_datalist(decathlon(tmp_path, ["a.nii"], modality=["T1", "FLAIR"])).channels == ("T1", "FLAIR")
    assert read_datalist(decathlon(tmp_path, ["a.nii"], modality="MRI")).channels == ("MRI",)


def test_a_patient_numbered_zero_is_a_group(tmp_path):
    training = [{"image": f"{name}.nii", "group": 0} for name in "ab"]
    assert [case.group for case in read_datalist(decathlon(tmp_path, training)).training] == ["0", "0"]


def test_given_structures_override_the_source(tmp_path):
    other = Structures({"anything": (5,)})
    assert read_datalist(decathlon(tmp_path, ["a.nii"]), other).structures == other


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ([], "lists no case"),
        ([{"label": "a.nii"}], "path or to have an 'image'"),
        ([7], "path or to have an 'image'"),
        ([{"image": []}], "image"),
        (["a.nii", "sub/a.nii.gz"], "lists case 'a' twice"),
        ([{"image": "a.nii", "fold": -1}], "fold of case a .* whole number from 0, but got -1"),
        ([{"image": "a.nii", "fold": "one"}], "fold of case a"),
    ],
)
def test_a_decathlon_that_makes_no_sense_is_refused(tmp_path, training, words):
    with pytest.raises(DataError, match=words):
        read_datalist(decathlon(tmp_path, training))


def test_a_decathlon_without_labels_is_refused(tmp_path):
    (tmp_path / "dataset.json").write_text('{"training": ["a.nii"]}')
    with pytest.raises(DataError, match="no 'labels'"):
        read_datalist(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------- nnU-Net


def nnunet(folder, **more):
    content = {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "liver": 1},
        "file_ending": ".nii.gz",
        **more,
    }
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_nnunet(tmp_path):
    root = nnunet(tmp_path / "Dataset001_Liver")
    touch(root / "labelsTr/p2.nii.gz", root / "labelsTr/p1.nii.gz", root / "labelsTr/._p1.nii.gz", root / "labelsTr/notes.txt")
    touch(root / "imagesTs/p3_0000.nii.gz", root / "imagesTs/p3_0001.nii.gz", root / "imagesTs/._p3_0000.nii.gz")
    found = read_datalist(root)
    assert found.name == "Dataset001_Liver"
    assert found.channels == ("CT", "PET")
    assert found.structures == LIVER
    assert [case.id for case in found.training] == ["p1", "p2"]
    images = tuple(root / "imagesTr" / f"p1_{channel:04d}.nii.gz" for channel in (0, 1))
    assert found.training[0] == Case("p1", images, root / "labelsTr/p1.nii.gz", group="p1")
    assert found.test == (Case("p3", tuple(root / "imagesTs" / f"p3_000{channel}.nii.gz" for channel in (0, 1)), group="p3"),)


def test_nnunet_regions(tmp_path):
    root = nnunet(tmp_path, labels={"background": 0, "whole": [1, 2], "core": 2})
    touch(root / "labelsTr/p1.nii.gz")
    structures = read_datalist(root).structures
    assert structures.names == ("label_1", "core")
    assert structures.regions == {"whole": ("label_1", "core")}


def test_nnunet_of_other_files_or_none_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"'\.png'; only \.nii\.gz and \.nii are read"):
        read_datalist(nnunet(tmp_path, file_ending=".png"))
    with pytest.raises(DataError, match="lists no case"):
        read_datalist(nnunet(tmp_path))


# -------------------------------------------------------------------------------------------------------------------------- CSV


def table(folder, text, structures=True):
    (folder / "cases.csv").write_text(text, encoding="utf-8-sig")
    if structures:
        (folder / "structures.json").write_text('{"liver": 1}')
    return folder / "cases.csv"


def test_csv(tmp_path):
    rows = [
        "id,image,label,group,fold,split,age",
        "x,a1.nii;a2.nii,a.nii,p1,1,,61",
        ",b1.nii; b2.nii,b.nii,,0,train,",
        "z,c.nii;d.nii,,,,test,",
    ]
    table(tmp_path, "\n".join(rows))
    found = read_datalist(tmp_path)
    assert found.name == "cases"
    assert found.channels == ("channel_0", "channel_1")
    assert found.structures == LIVER
    assert found.training == (
        Case("x", (tmp_path / "a1.nii", tmp_path / "a2.nii"), tmp_path / "a.nii", "p1", 1, {"age": "61"}),
        Case("b1", (tmp_path / "b1.nii", tmp_path / "b2.nii"), tmp_path / "b.nii", "b1", 0),
    )
    assert [case.id for case in found.test] == ["z"]


def test_csv_with_absolute_paths_and_given_structures(tmp_path):
    path = table(tmp_path, "image\n/elsewhere/a.nii\n", structures=False)
    assert read_datalist(path, LIVER).training[0].images == (Path("/elsewhere/a.nii"),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image\n", "at least one row"),
        ("scan\na.nii\n", "column 'image'"),
        ("image,label\n,b.nii\n", "Line 2 of .* has no image"),
        ("image\na.nii\na.nii\n", "'a' twice"),
        ("image,fold\na.nii,1.5\n", "fold of case a"),
    ],
)
def test_a_csv_that_makes_no_sense_is_refused(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        read_datalist(table(tmp_path, text))


def test_a_csv_without_structures_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"needs a structures\.json beside it"):
        read_datalist(table(tmp_path, "image\na.nii\n", structures=False))


# ------------------------------------------------------------------------------------------------------------- any other source


def test_sources_that_are_none_are_refused(tmp_path):
    with pytest.raises(DataError, match="No such dataset"):
        read_datalist(tmp_path / "none")
    with pytest.raises(DataError, match="is empty"):
        read_datalist(tmp_path)
    touch(tmp_path / "a.csv", tmp_path / "b.csv")
    with pytest.raises(DataError, match="it holds 2 CSV files"):
        read_datalist(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "as JSON: .*line 1"), ("[]", "holds a list"), ('{"name": "x"}', "neither a Decathlon .* nor an nnU-Net")],
)
def test_json_that_is_no_dataset_is_refused(tmp_path, text, words):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_datalist(tmp_path)


def test_structures_are_read_from_every_place(tmp_path):
    decathlon(tmp_path, ["a.nii"])
    (tmp_path / "plain.json").write_text('{"liver": 1}')
    (tmp_path / "full.json").write_text(json.dumps(LIVER.to_dict()))
    assert {str(read_structures(tmp_path / name)) for name in ("", "dataset.json", "plain.json", "full.json")} == {str(LIVER)}
    (tmp_path / "bad.json").write_text('{"liver": "one"}')
    with pytest.raises(DataError, match=r"bad\.json: .*'liver'"):
        read_structures(tmp_path / "bad.json")
    with pytest.raises(DataError, match="No structures at"):
        read_structures(tmp_path / "none.json")


# ------------------------------------------------------------------------------------------------------------------------ folds


def test_folds_part_the_cases_and_never_a_group():
    every = datalist([f"patient {number // 3}" for number in range(36)])
    validated = Counter()
    for fold in range(5):
        training, validation = every.fold(fold)
        assert not {case.group for case in training} & {case.group for case in validation}
        assert sorted(case.id for case in training + validation) == sorted(case.id for case in every.training)
        validated.update(case.id for case in validation)
    assert set(validated.values()) == {1}
    assert len(validated) == 36


@pytest.mark.parametrize(("groups", "folds"), [(5, 5), (12, 5), (100, 3), (7, 2)])
def test_folds_differ_by_at_most_one_group(groups, folds):
    sizes = Counter(deal_folds([f"p{number}" for number in range(groups)], folds, seed=3).values())
    assert sorted(sizes) == list(range(folds))
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_folds_depend_on_seed_and_names_alone():
    names = [f"p{number}" for number in range(10)]
    expected = {"p2": 0, "p7": 1, "p9": 4}
    dealt = deal_folds(names, 5, seed=0)
    assert dealt == deal_folds(list(reversed(names)) + names, 5, seed=0)
    assert dealt != deal_folds(names, 5, seed=1)
    assert {name: dealt[name] for name in expected} == expected  # the same in every release: published splits stay valid


def test_prescribed_folds_are_used():
    every = datalist(["a", "b", "c", "d"], folds=[0, 1, 2, 1])
    training, validation = every.fold(1, folds=2)
    assert [case.id for case in validation] == ["case1", "case3"]
    assert [case.id for case in training] == ["case0", "case2"]


@pytest.mark.parametrize(
    ("groups", "folds", "fold", "words"),
    [
        ("ab", [0, None], 0, "gives a fold to some cases, but not to case1"),
        ("aab", [0, 1, 1], 0, "puts group 'a' into folds 0 and 1"),
        ("abc", [0, 2, 2], 1, "no case to validate on"),
        ("ab", [0, 0], 0, "no case to train on"),
    ],
)
def test_prescribed_folds_that_make_no_sense_are_refused(groups, folds, fold, words):
    with pytest.raises(DataError, match=words):
        datalist(list(groups), folds).fold(fold)


def test_folds_that_do_not_exist_are_refused():
    every = datalist(list("abcde"))
    for fold in (-1, 5):
        with pytest.raises(UsageError, match="`fold` between 0 and 4"):
            every.fold(fold)
    with pytest.raises(UsageError, match="between 2 and the 5 groups there are, but got 6"):
        every.fold(0, folds=6)
    with pytest.raises(UsageError, match="but got 1"):
        every.fold(0, folds=1)


def test_a_case_may_be_a_label_map_alone_if_it_says_so(tmp_path):
    listed = {"labels": {"0": "background", "1": "spot"}, "training": [{"image": None, "label": "labelsTr/a.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(listed))
    (case,) = read_datalist(tmp_path).training
    assert (case.id, case.images, case.label) == ("a", (), tmp_path / "labelsTr" / "a.nii.gz")
    assert case.files() == (case.label,)
