import json
from dataclasses import replace

import pytest
import yaml
from made_fingerprints import case, channel, fingerprint, structure

from medseg_se.cli.recipes import recipe_path
from medseg_se.data.datalist import Case, Datalist
from medseg_se.errors import DataError, UsageError
from medseg_se.planning.budget import parse_budget
from medseg_se.planning.document import to_yaml, was_edited, write_plan
from medseg_se.planning.machine import Machine, describe_machine
from medseg_se.planning.measurements import Measurements
from medseg_se.planning.plan import ENOUGH_STEPS, FEWEST_STEPS, Planner, Wishes
from medseg_se.planning.rules import judging_memory
from medseg_se.planning.trial import Measurement, tiles
from medseg_se.structures import Structures

MACHINE = Machine("cpu", "abacus, 1 core", 16 * 10**9, "32-true", "torch 0")
GIGABYTE = 10**9


def recipe(name="generic"):
    return yaml.safe_load(recipe_path(name).read_text(encoding="utf-8"))


class Laboratory:
    """Trials that need no computer: a step takes so many seconds for a million voxels and channel."""

    def __init__(self, slowness=0.02, startup=3.0, preparing=0.8, greed=200.0):
        self.slowness, self.startup, self.preparing, self.greed = slowness, startup, preparing, greed
        self.configs, self.stores = [], []

    def __call__(self, config, cases, store):
        self.configs.append(config)
        self.stores.append(store)
        model, data = config["model"]["init_args"], config["data"]["init_args"]
        voxels = data["batch_size"]
        for size in data["patch_size"]:
            voxels *= size
        maps = voxels * model["channels"][0]
        step = self.slowness * maps / 1e6
        return Measurement(
            step=step,
            validation=step / 4,
            tile=step / 8,
            preparing=self.preparing,
            startup=self.startup,
            peak=int(GIGABYTE / 2 + self.greed * maps),
            base=GIGABYTE // 2,
            prepared=GIGABYTE // 2,
        )


@pytest.fixture
def make(tmp_path):
    """Return a function that plans with trials that need no computer."""

    def plan(budget="1h", found=None, laboratory=None, beginning=None, machine=MACHINE, name="plan", busy=False, **wishes):
        found = found or fingerprint([case(f"c{number}", (128, 160, 120)) for number in range(20)])
        listed = tuple(Case(each.id, (tmp_path / each.id,), tmp_path / each.id, each.group) for each in found.cases)
        values = {each.name: each.values for each in found.structures}
        datalist = Datalist("made", tmp_path / "dataset.json", ("T1",), Structures(values), listed)
        measurements = Measurements(
            tmp_path / name / "measurements.json", [machine.key, found.digest], laboratory or Laboratory(), busy
        )
        chosen = Wishes(parse_budget(budget), **wishes)
        planner = Planner(datalist, found, beginning or recipe(), machine, chosen, tmp_path / name, measurements)
        return planner.plan()

    return plan


def model(plan):
    return plan.config["model"]["init_args"]


def data(plan):
    return plan.config["data"]["init_args"]


# ------------------------------------------------------------------------------------------------------------------ choosing


def test_more_time_gives_a_larger_network_and_always_enough_steps(make):
    plans = [make(budget, name=budget) for budget in ("10m", "1h", "8h", "2d")]
    works = [plan.chosen.candidate.work for plan in plans]
    assert works == sorted(works)
    assert works[0] < works[-1]
    assert all(plan.chosen.table.steps >= ENOUGH_STEPS for plan in plans[1:])


def test_the_next_larger_candidate_would_not_do(make):
    laboratory = Laboratory()
    plan = make("2h", laboratory=laboratory)
    larger = 1.6 * plan.chosen.costs.step
    assert plan.chosen.table.training / larger < 1.7 * ENOUGH_STEPS
    assert 2 <= len(laboratory.configs) <= 4


def test_all_parts_of_the_run_together_take_the_budget(make):
    plan = make("1h")
    days, hours, minutes, seconds = map(int, plan.config["trainer"]["max_time"].split(":"))
    training = ((24 * days + hours) * 60 + minutes) * 60 + seconds
    step = Laboratory()(plan.config, [], None)
    judged = len([0] * 4) * tiles((128, 160, 120), data(plan)["patch_size"])
    everything = step.startup + 2 + 2.5 * step.preparing + training + 4 * step.validation + step.tile * judged
    assert everything == pytest.approx(3600, rel=0.02)


def test_memory_bounds_the_network(make):
    laboratory = Laboratory(slowness=1e-4)
    free = make("8h", laboratory=laboratory)
    tight = make("8h", laboratory=laboratory, memory=2 * GIGABYTE, name="tight")
    assert free.chosen.measurement.peak > 2 * GIGABYTE
    assert 1 * GIGABYTE < 1.1 * tight.chosen.measurement.peak <= 2 * GIGABYTE


def test_a_memory_too_small_is_refused_with_what_suffices(make):
    with pytest.raises(UsageError, match=r"Expected `memory` of at least (\d\.\d)GB, .* but got 300 MB") as caught:
        make("8h", memory=3 * 10**8)
    enough = float(str(caught.value).split("at least ")[1].split("GB")[0])
    make("8h", memory=int(enough * GIGABYTE))


def test_a_budget_too_small_is_refused_with_what_suffices(make):
    with pytest.raises(UsageError, match=r"Expected `budget` of at least \w+, but got 10 s: starting takes 5 s") as caught:
        make("10s")
    smallest = str(caught.value).split("at least ")[1].split(",")[0]
    assert make(smallest).chosen.table.steps >= FEWEST_STEPS


def test_a_device_on_which_nothing_runs_is_named(make):
    with pytest.raises(UsageError, match=r"Not even the smallest network .* could be tried on cpu"):
        make(laboratory=lambda config, cases, store: None)


def test_a_candidate_that_does_not_fit_is_left_aside(make):
    laboratory = Laboratory(slowness=1e-4, greed=0)

    def breaks_down(config, cases, store):
        found = laboratory(config, cases, store)
        return found if config["model"]["init_args"]["channels"][0] < 24 else None

    assert model(make("8h", laboratory=breaks_down))["channels"][0] < 24


def test_every_trial_prepares_its_cases_itself(make):
    laboratory = Laboratory()
    make("2h", laboratory=laboratory)
    assert len(set(laboratory.stores)) == len(laboratory.stores) >= 2


def test_preparing_does_not_end_the_search(make):
    slow = Laboratory(preparing=60.0)
    make("8h", laboratory=slow)
    assert len(slow.configs) >= 2


# -------------------------------------------------------------------------------------------------------------------- memory


def test_the_largest_scans_are_prepared_and_judged_within_the_memory(make, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    sizes = [(128, 160, 120)] * 18 + [(600, 600, 500)] * 2
    plan = make("30m", found=fingerprint([case(f"c{number:02}", shape) for number, shape in enumerate(sizes)]))
    voxels = 600 * 600 * 500
    assert plan.chosen.memory >= plan.chosen.measurement.base + 2 * 4 * 4 * voxels
    assert not plan.warnings
    small = replace(MACHINE, memory=8 * GIGABYTE)
    (warning,) = make(
        "30m", found=fingerprint([case(f"c{n:02}", size) for n, size in enumerate(sizes)]), machine=small
    ).warnings
    assert warning.startswith("preparing 2 of the largest scans at once may take")


def test_a_card_needs_no_memory_to_prepare(make, monkeypatch):
    monkeypatch.setattr("medseg_se.processors.cores", lambda: 8)
    found = fingerprint([case(f"c{number}", (300, 300, 300)) for number in range(20)])
    processor = replace(MACHINE, memory=80 * GIGABYTE)
    card = Machine("cuda:0", "card", 80 * GIGABYTE, "bf16-mixed", "torch 0")
    needed = [make("30m", found=found, machine=machine).chosen for machine in (processor, card)]
    assert needed[0].memory > 8 * 4 * 4 * 300**3
    assert needed[1].memory == max(needed[1].measurement.peak, GIGABYTE / 2 + judging_memory(300**3, 1, 3))


def test_more_memory_than_there_is_is_not_believed(make):
    laboratory = Laboratory(slowness=1e-4, greed=2000.0)
    plan = make("8h", laboratory=laboratory, memory=64 * GIGABYTE)
    assert 1.1 * plan.chosen.measurement.peak <= MACHINE.memory
    assert plan.warnings == ("`memory` of 64 GB is more than this machine can give; planned for 16 GB",)
    assert make("8h", laboratory=laboratory, memory=16 * GIGABYTE).warnings == ()


# ---------------------------------------------------------------------------------------------------------------- repeating


def test_what_was_measured_on_a_busy_machine_is_measured_again_on_an_idle_one(make):
    slow, quick = Laboratory(slowness=0.04), Laboratory()
    (warning,) = make(laboratory=slow, busy=True).warnings
    assert "was busy with other work" in warning
    before = len(slow.configs)
    assert make(laboratory=slow, busy=True).warnings == (warning,)
    assert len(slow.configs) == before
    assert make(laboratory=quick).warnings == ()
    assert quick.configs
    assert make(laboratory=slow, busy=True).warnings == ()
    assert len(slow.configs) == before


def test_what_took_too_long_is_tried_again_and_what_did_not_fit_is_not(make, monkeypatch):
    tried = []

    def nothing(config, cases, store):
        tried.append(config)

    for patience, times in ((0.0, 2), (120.0, 3), (120.0, 3)):
        monkeypatch.setattr("medseg_se.planning.measurements.PATIENCE", patience)
        with pytest.raises(UsageError, match="Not even"):
            make(laboratory=nothing)
        if not patience:
            with pytest.raises(UsageError, match="Not even"):
                make(laboratory=nothing)
        assert len(tried) == times


@pytest.mark.parametrize("damage", [lambda record: record["found"].pop("step"), lambda record: record.update(found="much")])
def test_a_damaged_record_is_measured_again(make, tmp_path, damage):
    first = make()
    path = tmp_path / "plan" / "measurements.json"
    content = json.loads(path.read_text())
    for record in content["trials"].values():
        damage(record)
    path.write_text(json.dumps(content))
    laboratory = Laboratory()
    assert make(laboratory=laboratory) == first
    assert laboratory.configs


def test_the_same_plan_again_measures_nothing(make):
    laboratory, noisy = Laboratory(), Laboratory(slowness=0.05)
    first, again = make("1h", laboratory=laboratory), make("1h", laboratory=noisy)
    assert laboratory.configs
    assert not noisy.configs
    assert again == first


def test_noise_of_a_percent_gives_the_same_plan(make):
    texts = set()
    for number, slowness in enumerate((0.0198, 0.02, 0.0202)):
        plan = make("1h", laboratory=Laboratory(slowness), name=str(number))
        text = to_yaml(plan.config, plan.decisions, []).rpartition("#")[0]  # without the seal, which knows the folder
        texts.add(text.replace(f"/{number}/", "/plan/"))
    assert len(texts) == 1


def test_another_machine_or_other_data_are_measured_anew(make):
    laboratory = Laboratory()
    make(laboratory=laboratory)
    before = len(laboratory.configs)
    make(laboratory=laboratory, machine=replace(MACHINE, name="another"))
    assert len(laboratory.configs) == 2 * before
    make(laboratory=laboratory, found=fingerprint([case(f"d{number}", (128, 160, 120)) for number in range(20)]))
    assert len(laboratory.configs) == 3 * before


def test_damaged_measurements_are_named(make, tmp_path):
    make()
    (tmp_path / "plan" / "measurements.json").write_text("{")
    with pytest.raises(DataError, match=r"measurements.json is damaged or of another version. Delete it"):
        make()


# ----------------------------------------------------------------------------------------------------------------- decisions


def test_every_decision_is_in_the_config_with_its_reason(make):
    plan = make()
    text = to_yaml(plan.config, plan.decisions, ["a plan"])
    assert yaml.safe_load(text) == plan.config
    assert text.startswith("# a plan\n")
    for decision in plan.decisions:
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{decision.key.partition('.')[2]}: ")]
        assert line.endswith(f"  # {decision.reason}")
        assert decision.reason


def test_what_no_rule_decides_is_that_of_the_recipe(make):
    beginning = recipe("hippocampus_unet3d_scse")
    plan = make(beginning=beginning)
    own = beginning["model"]["init_args"]
    assert {name: model(plan)[name] for name in ("network", "attention", "attention_at", "weight_decay")} == {
        name: own[name] for name in ("network", "attention", "attention_at", "weight_decay")
    }
    assert plan.config["trainer"]["gradient_clip_val"] == 5.0


def test_the_residual_encoder_gets_its_blocks_for_every_level(make):
    options = model(make(beginning=recipe("hippocampus_unet3d_resenc"), found=fingerprint([case(str(n)) for n in range(9)])))
    assert len(options["network_options"]["blocks"]) == len(options["channels"])


def test_a_network_without_channels_is_fitted_by_its_patch(make):
    beginning = recipe()
    beginning["model"]["init_args"] = {"network": "monai:UNETR"}
    trials = Laboratory()

    def laboratory(config, cases, store):
        assert "channels" not in config["model"]["init_args"]
        config = {**config, "model": {"init_args": {"channels": [16]}}}
        return trials(config, cases, store)

    sizes = [
        data(make(budget, beginning=beginning, laboratory=laboratory, name=budget))["patch_size"] for budget in ("30m", "2d")
    ]
    assert sizes[0][0] < sizes[1][0]


def test_thick_slices_give_kernels_and_strides_for_each_axis(make):
    thick = fingerprint([case(str(number), (200, 200, 40), (0.5, 0.5, 2.0)) for number in range(20)])
    options = model(make(found=thick))
    assert options["kernel_size"][0] == [3, 3, 1]
    assert options["strides"][0] == [2, 2, 1]
    assert len(options["strides"]) + 1 == len(options["channels"]) == len(options["kernel_size"])


def test_slices_give_a_2d_network(make):
    flat = fingerprint([case(str(number), (200, 4, 200), (1.0, 8.0, 1.0)) for number in range(20)])
    plan = make(found=flat)
    assert data(plan)["slice_axis"] == "coronal"
    assert len(data(plan)["patch_size"]) == 2


def test_the_machine_is_in_the_plan(make):
    machine = Machine("cuda:1", "card", 80 * GIGABYTE, "bf16-mixed", "torch 0")
    plan = make(machine=machine)
    assert {key: plan.config["trainer"][key] for key in ("accelerator", "devices", "precision")} == {
        "accelerator": "cuda",
        "devices": [1],
        "precision": "bf16-mixed",
    }
    assert describe_machine("cpu").trainer()["accelerator"] == "cpu"
    assert 10**8 < describe_machine("cpu").memory < 10**14


def test_ct_keeps_its_units(make):
    plan = make(found=fingerprint([case(str(n), (90, 90, 90)) for n in range(9)], channels=[channel("CT", ct=True)]))
    assert data(plan)["intensity"] == "dataset"
    assert data(plan)["window"] == [10.0, 90.0]


# ------------------------------------------------------------------------------------------------------------------ refusals


def test_more_folds_than_groups_are_refused(make):
    three = fingerprint([case(str(number)) for number in range(3)])
    with pytest.raises(UsageError, match="Expected `folds` between 2 and the 3 groups there are, but got 5"):
        make(found=three, folds=5)
    assert data(make(found=three))["folds"] == 3
    with pytest.raises(UsageError, match="Expected `fold` between 0 and 2, but got 3"):
        make(found=three, fold=3)


def test_one_patient_alone_is_validated_on_itself(make):
    plan = make(found=fingerprint([case("only", (64, 64, 64))]))
    assert data(plan)["fold"] is None


def test_doubts_of_the_data_are_passed_on(make):
    found = fingerprint(
        [case(str(number)) for number in range(5)],
        [structure("near", 1, 5), structure("far", 2, 1)],
        warnings=["far is in one case only"],
        unusable={"broken": "scan.nii.gz is truncated"},
    )
    first, second = make(found=found).warnings
    assert first.startswith("broken cannot be used")
    assert "truncated" in first
    assert second == "far is in one case only"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda content: content["model"].update(class_path="medseg_se.tasks.ClassificationTask"), "recipe of segmentation"),
        (
            lambda content: content["model"]["init_args"].update(netwrok="unet"),
            "Unknown key of `model` 'netwrok'. Did you mean",
        ),
        (lambda content: content["data"]["init_args"].update(patchsize=3), "Did you mean 'patch_size'"),
        (lambda content: content["trainer"].update(max_epoch=3), "Did you mean 'max_epochs'"),
        (lambda content: content["model"]["init_args"].update(network="unett"), "Unknown network 'unett'"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_before_anything_is_tried(make, change, complaint):
    beginning, laboratory = recipe(), Laboratory()
    change(beginning)
    with pytest.raises(UsageError, match=complaint):
        make(beginning=beginning, laboratory=laboratory)
    assert not laboratory.configs


# ------------------------------------------------------------------------------------------------------------------ document


def test_an_edited_plan_is_not_replaced_unasked(make, tmp_path):
    path = tmp_path / "plan.yaml"
    plan = make()
    text = to_yaml(plan.config, plan.decisions, [])
    write_plan(path, text, overwrite=False)
    assert not was_edited(path)
    write_plan(path, text, overwrite=False)
    path.write_text(path.read_text().replace("lr: 0.001", "lr: 0.005").replace("lr: 0.002", "lr: 0.005"))
    assert was_edited(path)
    with pytest.raises(UsageError, match=r"plan.yaml was edited since it was planned"):
        write_plan(path, text, overwrite=False)
    assert "lr: 0.005" in path.read_text()
    write_plan(path, text, overwrite=True)
    assert path.read_text() == text


def test_measurements_say_what_was_tried(make, tmp_path):
    plan = make()
    content = json.loads((tmp_path / "plan" / "measurements.json").read_text())
    steps = [record["found"]["step"] for record in content["trials"].values()]
    assert plan.chosen.measurement.step in steps


def test_tiles_overlap_by_half():
    assert tiles((40, 40, 40), (40, 40, 40)) == 1
    assert tiles((60, 40, 20), (40, 40, 40)) == 2
    assert tiles((100, 40, 7), (40, 40, 1)) == 4 * 7
