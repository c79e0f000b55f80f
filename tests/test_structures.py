import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_se.errors import DataError, UsageError
from medseg_se.structures import IGNORE, Structures

ODD = Structures({"left": (17,), "right": (53, 1053), "stem": (-4,)}, background=(0, 24), ignore=255)


# ------------------------------------------------------------------------------------------------------- reading a labels table


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "1": "liver", "3": "tumour"},
        {"background": 0, "liver": 1, "tumour": 3},
        {"background": [0], "liver": [1], "tumour": [3]},
        {0: "Background", 1: "liver", 3: "tumour"},
        {"liver": "1", "tumour": "3"},
    ],
)
def test_every_form_of_labels_means_the_same(labels):
    assert Structures.from_labels(labels) == Structures({"liver": (1,), "tumour": (3,)})


@pytest.mark.parametrize("name", ["background", "Unknown", "Clear Label", "bg"])
def test_the_names_of_the_background_are_known(name):
    assert Structures.from_labels({name: 0, "liver": 1}).names == ("liver",)


def test_a_name_given_for_several_values_is_their_union():
    structures = Structures.from_labels({"1": "cortex", "2": "cortex", "3": "stem"})
    assert structures == Structures({"cortex": (1, 2), "stem": (3,)})


def test_ignore_is_no_structure():
    structures = Structures.from_labels({"background": 0, "liver": 1, "ignore": 9})
    assert structures.ignore == 9
    assert structures.names == ("liver",)


def test_regions_of_nnunet_become_structures_and_regions():
    labels = {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing": 3}
    structures = Structures.from_labels(labels)
    assert structures.names == ("label_1", "label_2", "enhancing")
    assert structures.judged() == {
        "label_1": (1,),
        "label_2": (2,),
        "enhancing": (3,),
        "whole tumour": (1, 2, 3),
        "tumour core": (2, 3),
    }


def test_regions_may_be_declared_beside_the_labels():
    structures = Structures.from_labels({"oedema": 1, "core": 2}, regions={"tumour": ["oedema", "core"]})
    assert structures.judged()["tumour"] == (1, 2)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({}, "non-empty table"),
        (["liver"], "non-empty table"),
        ({"background": 0}, "at least one structure"),
        ({"liver": "one"}, "liver"),
        ({"liver": 1.5}, "liver"),
        ({"liver": True}, "liver"),
        ({"liver": []}, "liver"),
        ({"liver": 1, "spleen": 1}, "liver"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(labels, words):
    with pytest.raises(DataError, match=words):
        Structures.from_labels(labels)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"values": {}}, "at least one structure"),
        ({"values": {"a": ()}}, "'a' has no label value"),
        ({"values": {"a": (1,), "b": (1,)}}, "1 means both 'a' and 'b'"),
        ({"values": {"a": (0,)}}, "0 means both 'background' and 'a'"),
        ({"values": {"a": (1,)}, "ignore": 0}, "0 means both 'background' and 'ignore'"),
        ({"values": {"a": (1,)}, "ignore": 1}, "1 means both 'ignore' and 'a'"),
        ({"values": {"a": (1,)}, "regions": {"all": ("a", "b")}}, r"'all' names \['b'\]"),
        ({"values": {"a": (1,)}, "regions": {"all": ()}}, "'all' names no structure"),
    ],
)
def test_contradictions_are_refused(arguments, words):
    with pytest.raises(DataError, match=words):
        Structures(**arguments)


def test_plain_data_makes_an_equal_object():
    structures = Structures({"a": (1, 5), "b": (2,)}, background=(0, 9), ignore=7, regions={"all": ("a", "b")})
    assert Structures.from_dict(structures.to_dict()) == structures


# -------------------------------------------------------------------------------------------------------------- names and sides


def test_index_and_its_error_with_the_nearest_name():
    structures = Structures({"Left-Hippocampus": (17,), "Right-Hippocampus": (53,)})
    assert structures.num_classes == 3
    assert [structures.index(name) for name in structures.names] == [1, 2]
    with pytest.raises(UsageError, match=r"Did you mean 'Left-Hippocampus'\? Valid names: Left-Hippocampus, Right-Hippocampus"):
        structures.index("left hippocampus")


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Left-Hippocampus", "Right-Hippocampus"),
        ("kidney_left", "kidney_right"),
        ("ctx-lh-insula", "ctx-rh-insula"),
        ("LungL", "LungR"),
        ("lt eye", "rt eye"),
        ("leftKidney", "rightKidney"),
    ],
)
def test_names_that_differ_only_in_their_side_are_a_pair(left, right):
    structures = Structures({right: (1,), "stem": (2,), left: (3,)})
    assert structures.pairs() == ((3, 1),)
    np.testing.assert_array_equal(structures.mirrored(), [0, 3, 2, 1])


def test_what_is_not_the_same_thing_on_two_sides_is_no_pair():
    names = ("kidney_left", "adrenal_right", "rib_left_1", "rib_right_2", "left", "right", "L5", "R5", "left-right-commissure")
    structures = Structures({name: (value,) for value, name in enumerate(names, start=1)})
    assert structures.pairs() == ()
    np.testing.assert_array_equal(structures.mirrored(), np.arange(10))


def test_mirroring_twice_is_nothing():
    structures = Structures({"a_left": (1,), "b": (2,), "a_right": (3,), "c_r": (4,), "c_l": (5,)})
    table = structures.mirrored()
    np.testing.assert_array_equal(table[table], np.arange(6))
    np.testing.assert_array_equal(table, [0, 3, 2, 1, 5, 4])


# ----------------------------------------------------------------------------------------------------------- values and indices


def test_encode_maps_odd_values():
    labels = np.array([[0, 24, 17], [53, 1053, -4]], dtype=np.int32)
    indices = ODD.encode(labels)
    np.testing.assert_array_equal(indices, [[0, 0, 1], [2, 2, 3]])
    assert indices.dtype == np.int16
    assert ODD.encode(np.array([255, 17])).tolist() == [IGNORE, 1]


def test_decode_writes_the_first_value_of_each():
    np.testing.assert_array_equal(ODD.decode(np.array([0, 1, 2, 3])), [0, 17, 53, -4])


def test_unknown_truth_is_written_back_as_unknown():
    labels = np.array([0, 17, 255, 53])
    np.testing.assert_array_equal(ODD.decode(ODD.encode(labels)), labels)


def test_an_undeclared_value_is_refused_with_the_file_and_the_declared_ones():
    with pytest.raises(
        DataError, match=r"truth\.nii holds label values \{3, 99\}, not declared among \{-4, 0, 17, .*\}.*Add the"
    ):
        ODD.encode(np.array([0, 3, 17, 99]), where="truth.nii")
    with pytest.raises(DataError, match=r"holds label value \{3\}"):
        ODD.encode(np.array([3]))


def test_a_scan_taken_for_labels_gives_a_short_message():
    with pytest.raises(DataError) as caught:
        ODD.encode(np.arange(2000, 4000))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1, 255), np.uint8),
        ((1, 256), np.uint16),
        ((1, 65536), np.uint32),
        ((-1, 5), np.int8),
        ((-1, 128), np.int16),
        ((-1, 40000), np.int32),
        ((1, 2**32), np.int64),
    ],
)
def test_the_smallest_type_that_holds_all_values_is_chosen(values, expected):
    structures = Structures({str(value): (value,) for value in values})
    assert structures.dtype() == expected
    np.testing.assert_array_equal(structures.decode(np.array([0, 1, 2])), [0, *values])


def test_a_wanted_type_is_taken_only_if_it_holds_the_values():
    structures = Structures({"a": (300,)})
    assert structures.dtype(np.int16) == np.int16
    assert structures.dtype(np.uint8) == np.uint16
    assert structures.dtype(np.float32) == np.uint16
    assert structures.decode(np.array([1]), dtype=np.int32).dtype == np.int32


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.integers(-(2**31), 2**31 - 1).filter(bool), min_size=1, max_size=8, unique=True),
    seed=st.integers(0, 2**16),
)
def test_encode_and_decode_are_inverse(values, seed):
    structures = Structures({f"structure {value}": (value,) for value in values})
    labels = np.random.default_rng(seed).choice([0, *values], size=(3, 4, 5))
    indices = structures.encode(labels)
    assert set(np.unique(indices)) <= set(range(structures.num_classes))
    np.testing.assert_array_equal(structures.decode(indices), labels)


def test_a_region_may_not_take_the_name_of_a_structure_that_it_goes_beyond():
    labels = {"background": 0, "tumour": 1, "edema": 2}
    with pytest.raises(DataError, match="'tumour' names a structure and a region of others too"):
        Structures.from_labels(labels, {"tumour": ["tumour", "edema"]})
    alone = Structures.from_labels(labels, {"tumour": ["tumour"]})
    assert alone.judged() == {"tumour": (1,), "edema": (2,)}
