"""Phantoms of people whose age is seen: the signs follow the brain age alone, and the datalist says whose head it is."""

import json

import numpy as np
import pytest
from medseg_se.data_prep.main import main as prepare

from medseg_se.data.datalist import read_datalist
from medseg_se.data.phantom import draw_person, make_subject, write_phantoms
from medseg_se.data.phantom_ages import Ages, Person, Signs
from medseg_se.errors import UsageError
from medseg_se.metrics.age_floor import AgeFloor
from medseg_se.volumes import read_image

VENTRICLES, CORTEX, WHITE = (4, 43), (3, 42), (2, 41)


@pytest.fixture(scope="module")
def ageing():
    """Return the head of the same woman at three ages."""
    return [make_subject("brain", 2, 0, 4.0, Person(age, age, "female").signs) for age in (20, 50, 80)]


def litres(labels, values):
    return np.isin(labels.array, values).sum() * np.prod(labels.spacing) / 1e6


def test_ventricles_widen_and_the_cortex_thins(ageing):
    ventricles = [litres(labels, VENTRICLES) for _, labels in ageing]
    third = [litres(labels, (14,)) for _, labels in ageing]
    cortex = [litres(labels, CORTEX) for _, labels in ageing]
    assert [later / ventricles[0] for later in ventricles[1:]] == pytest.approx([1.87, 3.73], rel=0.1)
    assert third[0] < third[1] < third[2]
    assert [later / cortex[0] for later in cortex[1:]] == pytest.approx([0.89, 0.77], abs=0.02)


def test_grey_matter_comes_closer_to_white(ageing):
    contrast = []
    for image, labels in ageing:
        median = [np.median(image.array[np.isin(labels.array, values)]) for values in (CORTEX, WHITE)]
        contrast.append(1 - median[0] / median[1])
    assert contrast[0] > 1.25 * contrast[1] > 1.5 * contrast[2]


def test_the_brain_stays_the_same_otherwise(ageing):
    masks = [labels.array > 0 for _, labels in ageing]
    assert (masks[0] ^ masks[2]).sum() < 0.02 * masks[0].sum()
    assert np.array_equal(ageing[0][0].affine, ageing[2][0].affine)
    for value in (8, 16, 17):  # cerebellum, stem, hippocampus; the ventricles grow into the nuclei
        assert litres(ageing[2][1], (value,)) == pytest.approx(litres(ageing[0][1], (value,)), rel=0.12)


def test_a_head_without_an_age_is_one_of_fifty_years():
    plain, fifty = make_subject("brain", 1, 0, 6.0), make_subject("brain", 1, 0, 6.0, Signs())
    assert all(np.array_equal(one.array, other.array) for one, other in zip(plain, fifty, strict=True))
    signs = Person(30, 50, "male").signs
    assert (signs.ventricles, signs.cortex, signs.contrast) == (1, 1, 1)
    assert signs == Person(70, 50, "male").signs  # the age itself is not seen


def test_the_heads_of_men_are_larger():
    female, male = (make_subject("brain", 4, 0, 5.0, Person(40, 40, sex).signs)[1] for sex in ("female", "male"))
    assert (male.array > 0).sum() / (female.array > 0).sum() == pytest.approx(1.02**6, rel=0.02)


def test_ages_are_uniform_and_deviations_normal():
    ages = Ages(30, 70, 4)
    people = [draw_person(ages, subject) for subject in range(3000)]
    age, seen = (np.array([getattr(person, name) for person in people]) for name in ("age", "brain_age"))
    assert 30 <= age.min() < 30.5
    assert 69.5 < age.max() <= 70
    assert np.histogram(age, 4, (30, 70))[0] == pytest.approx([750] * 4, abs=90)
    assert (seen - age).std() == pytest.approx(4, rel=0.05)
    assert np.corrcoef(seen - age, age)[0, 1] == pytest.approx(0, abs=0.05)
    assert np.mean([person.sex == "male" for person in people]) == pytest.approx(0.5, abs=0.03)
    floor = AgeFloor(ages.youngest, ages.oldest, ages.deviation)
    assert np.abs(floor.median(seen) - age).mean() == pytest.approx(floor.mae(), abs=0.15)
    assert draw_person(ages, 7) == people[7] != draw_person(ages, 7, seed=1)


def test_the_datalist_says_whose_head_it_is(tmp_path):
    arguments = ["phantom", str(tmp_path / "people"), "--cases=3", "--test=1", "--resolution=8", "--workers=1"]
    assert prepare([*arguments, "--ages=[40,60]", "--age_deviation=3"]) == 0
    datalist = read_datalist(tmp_path / "people")
    cases = [*datalist.training, *datalist.test]
    for subject, case in enumerate(cases):
        assert dict(case.attributes) == draw_person(Ages(40, 60, 3), subject).attributes
    assert sorted(cases[0].attributes) == ["age", "brain_age", "sex"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert prepare([*arguments, "--ages=[40,60]", "--age_deviation=3"]) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before
    _, labels = make_subject("brain", 0, 0, 8.0, draw_person(Ages(40, 60, 3), 0).signs)
    assert np.array_equal(read_image(cases[0].label).array, labels.array)


@pytest.mark.parametrize("other", [[], ["--ages=[40,60]"], ["--ages=[40,61]", "--age_deviation=3"]])
def test_other_ages_are_not_mixed_in(tmp_path, other, capsys):
    arguments = ["phantom", str(tmp_path / "people"), "--cases=1", "--test=0", "--resolution=8", "--workers=1"]
    assert prepare([*arguments, "--ages=[40,60]", "--age_deviation=3"]) == 0
    capsys.readouterr()
    assert prepare([*arguments, *other]) == 2
    assert "Choose another folder" in capsys.readouterr().err


def test_people_made_before_ages_were_known_are_taken_on(tmp_path):
    write_phantoms(tmp_path, "brain", 1, 0, 0, 8.0)
    marker = json.loads((tmp_path / "phantom.json").read_text())
    del marker["ages"]
    (tmp_path / "phantom.json").write_text(json.dumps(marker))
    write_phantoms(tmp_path, "brain", 1, 0, 0, 8.0)


@pytest.mark.parametrize(
    ("ages", "message"),
    [((80, 20, 5), "the younger first"), ((0, 20, 5), "more than 0"), ((20, 130, 5), "120 years"), ((20, 80, -1), "0 and 20")],
)
def test_ages_that_make_no_sense_are_refused(ages, message):
    with pytest.raises(UsageError, match=message):
        Ages(*ages)


def test_trunks_have_no_age(tmp_path):
    with pytest.raises(UsageError, match="to be brain"):
        write_phantoms(tmp_path, "torso", 1, 0, ages=Ages())
    with pytest.raises(UsageError, match="to be brain"):
        make_subject("torso", 0, signs=Signs())
