import pytest
import pytorch_lightning as pl
import torch
from whole_scans import write_pictures

from medseg_se.data.classification import ClassificationData
from medseg_se.errors import CheckpointError, UsageError
from medseg_se.networks import build_network
from medseg_se.tasks import ClassificationTask

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning", "ignore::FutureWarning:pytorch_lightning")
SMALL = {"channels": [4, 6], "blocks": [1, 1], "strides": [1, 2]}


class Seen(pl.Callback):
    """Remembers the first weights that a run begins with."""

    def on_train_start(self, trainer, task):
        self.first = task.network.get_parameter("stem.unit.conv.weight").detach().clone()


@pytest.fixture
def data(tmp_path):
    folder = write_pictures(tmp_path / "pictures")
    options = {"folds": 3, "size": [16, 16], "batch_size": 4, "num_workers": 0, "progress": False, "intensity": "minmax"}
    return ClassificationData(str(folder), store=str(tmp_path / "store"), **options)


@pytest.fixture
def published(tmp_path):
    """Write the weights of a small ResNet under the names of published files, and return the file and its first kernel."""
    torch.manual_seed(7)
    network = build_network("resnet18", 3, 5, 2, **SMALL)
    state = network.state_dict()
    names = network.pretrained_names().items()
    renamed = {
        f"{theirs}.{end}": state[f"{ours}.{end}"]
        for theirs, ours in names
        for end in ("weight", "bias", "running_mean", "running_var")
        if f"{ours}.{end}" in state
    }
    path = tmp_path / "published.pth"
    torch.save(renamed, path)
    return path, renamed["conv1.weight"]


def fit(tmp_path, data, pretrained, epochs=1, ckpt_path=None, **options):
    task = ClassificationTask(1, 3, 2, network="resnet18", network_options=SMALL, pretrained=str(pretrained), **options)
    seen = Seen()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        callbacks=[seen],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
    )
    trainer.fit(task, datamodule=data, ckpt_path=ckpt_path)
    return trainer, seen.first


def test_a_run_begins_with_published_weights_and_goes_on_with_its_own(tmp_path, data, published):
    path, kernel = published
    trainer, first = fit(tmp_path, data, path)
    torch.testing.assert_close(first, kernel.sum(1, keepdim=True))  # grey pictures: the sum over red, green and blue
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    trained = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]["network.stem.unit.conv.weight"]
    assert not torch.equal(trained, first)
    path.unlink()  # a run that goes on does not need it
    _, again = fit(tmp_path, data, path, epochs=2, ckpt_path=str(tmp_path / "run.ckpt"))
    assert torch.equal(again, trained)


def test_what_is_frozen_comes_from_the_published_weights(tmp_path, data, published):
    path, _ = published
    trainer, _ = fit(tmp_path, data, path, freeze=["stem", "encoder.0"])
    names = [name for name, parameter in trainer.lightning_module.network.named_parameters() if not parameter.requires_grad]
    expected = torch.load(path, weights_only=True)
    assert torch.equal(trainer.lightning_module.network.get_parameter(names[1]), expected["bn1.weight"])
    torch.save({name: tensor for name, tensor in expected.items() if not name.startswith("layer1.0.conv2")}, path)
    with pytest.raises(UsageError, match=r"1 tensors of stem, encoder\.0 would stay as drawn: encoder\.0\."):
        fit(tmp_path, data, path, freeze=["stem", "encoder.0"])


def test_a_missing_file_of_weights_is_named(tmp_path, data):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth"):
        fit(tmp_path, data, tmp_path / "nowhere.pth")
