import pytest
import yaml

from medseg_se.errors import UsageError
from medseg_se.experiments.grid import read_experiment

LEAST = {"data": "data", "test": 2, "budget": {"steps": 4}, "networks": ["unet"], "blocks": ["none", "scse"]}


@pytest.fixture
def read(tmp_path):
    def run(**changes):
        content = {key: value for key, value in {**LEAST, **changes}.items() if value is not ...}
        (tmp_path / "e.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return read_experiment(tmp_path / "e.yaml")

    return run


def test_the_grid_is_every_combination(read):
    found = read(networks=["unet", "sdnet"], folds=[0, 1], seeds=[3, 4])
    assert len(found.runs) == 2 * 2 * 2 * 2
    assert [run.name for run in found.runs[:2]] == ["unet-none-fold0-seed3", "unet-scse-fold0-seed3"]
    assert [(run.seed, run.fold) for run in found.runs] == [(3, 0)] * 4 + [(3, 1)] * 4 + [(4, 0)] * 4 + [(4, 1)] * 4
    assert [variant.name for variant in found.variants] == ["unet none", "unet scse", "sdnet none", "sdnet scse"]


def test_reductions_and_places_multiply_only_blocks_that_have_them(read):
    found = read(blocks=["none", "cse", "simam"], reductions=[2, 8], places=["encoder", ["encoder", "decoder"]])
    assert [run.variant.name for run in found.runs] == [
        "unet none",
        *("unet cse r2 encoder", "unet cse r2 encoder+decoder", "unet cse r8 encoder", "unet cse r8 encoder+decoder"),
        *("unet simam encoder", "unet simam encoder+decoder"),
    ]
    assert found.runs[4].variant.arguments() == {
        "attention": "cse",
        "attention_at": ["encoder", "decoder"],
        "attention_options": {"cse": {"reduction": 8}},
    }
    assert found.runs[0].variant.arguments() == {"attention": "none"}


def test_places_that_all_blocks_have_go_without_saying(read):
    alike = read(places=["encoder"])
    assert [alike.title(variant) for variant in alike.variants] == ["unet none", "unet scse"]
    others = read(places=["encoder", "decoder"])
    assert [others.title(variant) for variant in others.variants] == ["unet none", "unet scse encoder", "unet scse decoder"]


def test_further_grids_are_added_to_it(read):
    found = read(networks=["unet", "sdnet"], also=[{"networks": ["unet"], "seeds": [1]}, {"blocks": ["none"]}])
    assert [run.name for run in found.runs] == [
        *("unet-none-seed0", "unet-scse-seed0", "sdnet-none-seed0", "sdnet-scse-seed0"),
        *("unet-none-seed1", "unet-scse-seed1"),
    ]


def test_a_network_may_have_a_name_of_its_own(read):
    found = read(networks={"wide": {"network": "unet", "channels": [8, 16]}, "sdnet": None})
    assert found.networks == {"wide": {"network": "unet", "channels": [8, 16]}, "sdnet": {"network": "sdnet"}}
    assert found.runs[0].name == "wide-none-seed0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "Unknown key in .* 'seed'. Did you mean 'seeds'"),
        ({"blocks": ["none", "scsf"]}, "Unknown attention 'scsf'. Did you mean 'scse'"),
        ({"blocks": ["scse"]}, "`blocks` in .* to hold none, which others are compared with, also for unet"),
        ({"blocks": ["none"]}, "`blocks` in .* to hold something besides none"),
        ({"networks": ["unett"]}, "Unknown network 'unett'. Did you mean 'unet'"),
        ({"networks": {"unet": {"attention": "cse"}}}, "network unet sets attention"),
        ({"also": [{"networks": ["sdnet"]}]}, "Unknown network in .* 'sdnet'"),
        ({"also": [{"seed": [1]}]}, "`also` in .* to be a list of further grids"),
        ({"budget": {"steps": 0}}, "`budget` in .* to be `steps: NUMBER`"),
        ({"budget": {"steps": 4, "time": "00:00:01:00"}}, "`budget` in .* to be `steps: NUMBER`"),
        ({"test": ...}, "`test` or `folds` in .*: something must be held out"),
        ({"test": ..., "folds": [None]}, "Expected `test` in .* where a fold is null"),
        ({"test": 0}, "`test` in .* to be a number of cases or a dataset, but got 0"),
        ({"seeds": [-1]}, "`seeds` in .* to be whole numbers from 0"),
        ({"seeds": []}, "`seeds` in .* to be a list"),
        ({"judged": "first"}, "Unknown `judged` in .* 'first'"),
        ({"fit": ["x"]}, "`fit` in .* to be a config"),
        ({"data": ...}, "`data` in .* to name a dataset"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(read, changes, message):
    with pytest.raises(UsageError, match=message):
        read(**changes)
