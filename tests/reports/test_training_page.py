import csv

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger

from medseg_se.reports.curves import best_epoch, draw_curves, parts_of
from medseg_se.reports.logs import RunLog, run_loggers
from medseg_se.reports.palette import colours
from medseg_se.reports.snapshots import Answered, Lie, Segmented, answered_picture, segmented_picture
from medseg_se.reports.training import thin_out
from medseg_se.structures import Structures
from medseg_se.tasks.base import Score

DICE = Score("val_dice", "dice", "max")
TWO = Structures({"left lobe": (1,), "nodule": (2,)})


def table(folder, version=0):
    with (folder / "logs" / f"version_{version}" / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def train(log, epochs, steps=3):
    """Log `epochs` as a training does: a validation and the training itself, both of the epoch's last step."""
    for epoch in epochs:
        last = steps * (epoch + 1) - 1
        log.log_metrics({"val_loss": torch.tensor(0.5), "val_dice/a, b": 0.25, "epoch": epoch}, last)
        log.save()
        log.log_metrics({"train_loss": 1 / (epoch + 1), "epoch": epoch}, last)
        log.save()


# ------------------------------------------------------------------------------------------------------------------ the table


def test_a_table_is_written_row_by_row_and_read_back_by_epoch(tmp_path):
    log = RunLog(tmp_path)
    train(log, range(2))
    rows = table(tmp_path)
    assert [(row["epoch"], row["step"], row["val_dice/a, b"]) for row in rows] == [
        ("0", "2", "0.25"),
        ("0", "2", ""),
        ("1", "5", "0.25"),
        ("1", "5", ""),
    ]
    assert log.history() == {"val_loss": {0: 0.5, 1: 0.5}, "val_dice/a, b": {0: 0.25, 1: 0.25}, "train_loss": {0: 1.0, 1: 0.5}}


def test_rows_are_appended_and_the_file_is_rewritten_for_new_columns_alone(tmp_path):
    log = RunLog(tmp_path)
    train(log, range(1))
    path = tmp_path / "logs" / "version_0" / "metrics.csv"
    before, content = path.stat().st_ino, path.read_text()
    train(log, range(1, 40))
    assert path.stat().st_ino == before  # an atomic write would have put another file in its place
    assert path.read_text().startswith(content)
    log.log_metrics({"new": 1.0, "epoch": 40}, 120)
    log.save()
    assert [row["new"] for row in table(tmp_path)] == [*[""] * 80, "1.0"]


def test_a_resumed_table_goes_on_without_the_steps_that_are_taken_again(tmp_path):
    train(RunLog(tmp_path), range(4))
    log = RunLog(tmp_path, resumed=True)
    log.rewind(6)  # two epochs are in the checkpoint
    train(log, range(2, 5))
    assert [row["step"] for row in table(tmp_path) if row["train_loss"]] == ["2", "5", "8", "11", "14"]
    assert [row["step"] for row in table(tmp_path) if row["val_loss"]] == ["2", "5", "8", "11", "14"]
    assert not (tmp_path / "logs" / "version_1").exists()


def test_what_was_judged_after_the_end_of_a_run_stays_when_it_goes_on(tmp_path):
    log = RunLog(tmp_path)
    train(log, range(2))
    log.log_metrics({"val_scan_dice": 0.9, "epoch": 2}, 6)
    log.save()
    log = RunLog(tmp_path, resumed=True)
    log.rewind(6)
    train(log, range(2, 3))
    assert [row["val_scan_dice"] for row in table(tmp_path) if row["val_scan_dice"]] == ["0.9"]
    assert [row["epoch"] for row in table(tmp_path) if row["train_loss"]] == ["0", "1", "2"]


def test_the_best_checkpoint_s_scores_do_not_become_those_of_an_epoch_without_a_validation(tmp_path):
    log = RunLog(tmp_path)
    train(log, range(2))
    log.log_metrics({"val_loss": 0.1, "epoch": 2}, 6)  # as of a classifier, whose scores have the same names
    log.save()
    log = RunLog(tmp_path, resumed=True)
    log.rewind(6)
    assert log.history()["val_loss"] == {0: 0.5, 1: 0.5}


@pytest.mark.parametrize("taken", [1, 2])
def test_epochs_of_one_step_are_not_repeated(tmp_path, taken):
    train(RunLog(tmp_path), range(3), steps=1)
    log = RunLog(tmp_path, resumed=True)
    log.rewind(taken)
    train(log, range(taken, 4), steps=1)
    for column in ("train_loss", "val_loss"):
        assert [row["step"] for row in table(tmp_path) if row[column]] == ["0", "1", "2", "3"]


def test_a_row_that_was_cut_off_is_dropped(tmp_path):
    train(RunLog(tmp_path), range(2))
    path = tmp_path / "logs" / "version_0" / "metrics.csv"
    path.write_text(path.read_text()[:-4])
    log = RunLog(tmp_path, resumed=True)
    assert log.history()["train_loss"] == {0: 1.0}
    log.rewind(3)
    train(log, range(1, 2))
    assert [row["epoch"] for row in table(tmp_path)] == ["0", "0", "1", "1"]


@pytest.mark.parametrize("left", [3, 8])
def test_rows_that_follow_one_that_was_cut_off_are_not_joined_to_it(tmp_path, left):
    train(RunLog(tmp_path), range(2))
    path = tmp_path / "logs" / "version_0" / "metrics.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:left] + "ä".encode()[:1])
    log = RunLog(tmp_path, resumed=True)
    log.rewind(6)  # nothing of what is left
    train(log, range(2, 4))
    assert [row["train_loss"] for row in table(tmp_path) if row["train_loss"]] == ["1.0", str(1 / 3), "0.25"]
    assert [row["step"] for row in table(tmp_path) if row["val_loss"]] == ["2", "5", "8", "11"]


def test_the_training_is_continued_and_not_a_validation_beside_it(tmp_path):
    train(RunLog(tmp_path), range(1))
    judged = RunLog(tmp_path)
    judged.log_metrics({"val_scan_dice": 0.5, "epoch": 1}, 0)
    judged.save()
    assert judged.version == 1
    assert RunLog(tmp_path, resumed=True).version == 0
    assert RunLog(tmp_path).version == 2


def test_loggers_are_added_to_the_table_or_all_left_out(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    mine = CSVLogger(str(tmp_path / "mine"))
    for chosen, others in ((None, []), (True, []), (mine, [mine]), ([mine, mine], [mine, mine])):
        own, *rest = run_loggers(tmp_path, chosen, resumed=False)
        assert isinstance(own, RunLog)
        assert rest == others
    assert run_loggers(tmp_path, chosen=False, resumed=False) == []


# --------------------------------------------------------------------------------------------------------------------- curves


def history(parts, prefix="val_dice/", epochs=5):
    course = {epoch: 0.1 * epoch for epoch in range(epochs)}
    names = ("train_loss", "val_loss", "lr", "val_dice", "val_dice_ema")
    return {name: dict(course) for name in (*names, *(f"{prefix}$part_{number}$" for number in range(parts)))}


@pytest.mark.parametrize(("parts", "least", "most"), [(1, 500, 700), (2, 800, 1000), (12, 1200, 1500), (117, 2500, 3500)])
def test_curves_grow_with_the_structures(tmp_path, parts, least, most):
    draw_curves(history(parts), tmp_path / "curves.png", r"run $\what$", "unet", DICE)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width == 1650
        assert least < picture.height < most


def test_an_epoch_alone_and_values_that_are_not_counted_are_drawn(tmp_path):
    course = history(3, epochs=1)
    course["val_dice/$part_1$"] = {0: float("nan")}
    draw_curves(course, tmp_path / "curves.png", "run", "unet", DICE)
    draw_curves({"train_loss": {0: 1.0}}, tmp_path / "bare.png", "run", "unet", DICE)
    assert (tmp_path / "curves.png").is_file()
    assert (tmp_path / "bare.png").is_file()


@pytest.mark.parametrize(("prefix", "said"), [("val_dice/", True), ("val_recall/", False), ("val_mae/", False)])
def test_only_of_structures_the_sheet_says_that_validation_is_on_patches(tmp_path, prefix, said):
    draw_curves(history(2, prefix), tmp_path / "curves.png", "run", "unet", DICE)
    with Image.open(tmp_path / "curves.png") as picture:
        foot = np.asarray(picture.convert("L"))[-40:]
    assert (foot.max() > foot.min()) == said


def test_the_best_epoch_counts_from_one_and_leaves_out_what_is_not_finite():
    course = {0: float("nan"), 1: 0.3, 2: 0.2}
    assert best_epoch(course, DICE) == (2, 0.3)
    assert best_epoch(course, Score("val_error", "error", "min")) == (3, 0.2)
    assert best_epoch({0: float("nan")}, DICE) is None


def test_parts_are_those_of_the_task():
    assert parts_of({"val_recall/ill": {0: 0.5}, "val_loss": {0: 1.0}}) == ("val_recall/", {"ill": {0: 0.5}})
    assert parts_of({"val_loss": {0: 1.0}}) == ("", {})


# ------------------------------------------------------------------------------------------------------------------- pictures


def case(shape=(20, 16, 12)):
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    truth, prediction = (np.zeros(shape, dtype=np.int64) for _ in range(2))
    truth[5:15, 4:12] = 1
    prediction[5:10, 4:12] = 2
    return Segmented("case $1", image, truth, prediction)


def has(picture, colour, box=None):
    """Count the pixels of a colour."""
    pixels = np.asarray(picture.crop(box) if box else picture).astype(int)
    return int((np.abs(pixels - np.round(255 * np.array(colour))).max(axis=2) <= 1).sum())


def test_three_planes_of_every_patch_show_the_truth_as_an_outline_in_the_colour_of_the_structure():
    one, two = (segmented_picture([case()] * count, TWO, Lie(), "epoch 1") for count in (1, 2))
    assert two.height > one.height
    assert one.width > 600  # three planes
    colour = colours(TWO)["left lobe"]
    assert has(one, colour, (0, 24, one.width, one.height - 60)) > 200
    nothing = Segmented("", case().image, np.zeros((20, 16, 12), dtype=np.int64), np.zeros((20, 16, 12), dtype=np.int64))
    assert has(segmented_picture([nothing], TWO, Lie(), ""), colour) == 0


def test_the_patient_s_right_is_on_the_left_however_the_axes_run():
    shape = (24, 24)
    image, truth, nothing = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    truth[2:8, 10:14] = 1  # at the low end of the first axis
    for orientation, side in (("RAS", "right"), ("LAS", "left")):
        picture = segmented_picture([Segmented("", image, truth, nothing)], TWO, Lie(orientation, 2), "")
        middle, colour = 4 + 120, colours(TWO)["left lobe"]
        left = has(picture, colour, (4, 24, middle, 264))
        right = has(picture, colour, (middle, 24, 244, 264))
        assert (left > right) == (side == "left")
        assert min(left, right) == 0


def test_slices_of_several_cases_stand_side_by_side_and_may_be_flat_or_uneven():
    flat = [
        Segmented("", *(np.squeeze(array[:, :, :1]) for array in (item.image, item.truth, item.prediction)))
        for item in [case()] * 4
    ]
    assert segmented_picture(flat, TWO, Lie("RAS", 2), "").width > 4 * 200
    wide = segmented_picture([case()], TWO, Lie("RAS", None, (1.0, 1.0, 5.0)), "")
    assert wide.width != segmented_picture([case()], TWO, Lie(), "").width


def test_unknown_truth_and_odd_intensities_do_no_harm():
    odd = case()
    odd.image[0, 0, 0], odd.truth[0] = np.nan, -1
    assert segmented_picture([odd], TWO, Lie(), "x" * 500).width < 1000


def test_more_structures_than_there_is_room_for_are_counted_in_the_legend():
    many = Structures({f"a structure with a long name {number}": (number,) for number in range(1, 118)})
    labels = np.arange(120).reshape(1, 10, 12).repeat(8, axis=0) % 118
    picture = segmented_picture([Segmented("", labels.astype(np.float32), labels, labels)], many, Lie(), "")
    assert picture.height < 600


def test_answers_are_green_where_right_and_red_where_wrong():
    image = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    picture = answered_picture([Answered(image, "ill", "ill", right=True)], Lie("RAS", 2), "")
    other = answered_picture([Answered(image, "ill", "well", right=False), Answered(image, "63.1", "60")], Lie("RAS", 2), "")
    green, red = (139 / 255, 209 / 255, 124 / 255), (1, 123 / 255, 114 / 255)
    assert has(picture, green) > 5
    assert has(picture, red) == 0
    assert has(other, red) > 5
    assert has(other, green) == 0


def test_pictures_are_thinned_out_evenly_and_the_first_and_the_latest_stay(tmp_path):
    (tmp_path / "notes.png").touch()
    for epoch in range(1, 501):
        (tmp_path / f"epoch_{epoch:04d}.png").touch()
        thin_out(tmp_path)
    left = sorted(int(path.stem[6:]) for path in tmp_path.glob("epoch_*.png"))
    assert len(left) == 50
    assert (left[0], left[-1]) == (1, 500)
    assert max(np.diff(left)) <= 2 * 500 / 50
    assert (tmp_path / "notes.png").exists()
