"""Tiny classifiers and regressions, trained in seconds with all that a run leaves in its best checkpoint."""

import pytorch_lightning as pl
import torch
from whole_scans import write_ages, write_pictures

from medseg_se.data.classification import ClassificationData, RegressionData
from medseg_se.tasks import ClassificationTask, RegressionTask
from medseg_se.tasks.checkpoints import AtomicCheckpointIO, CheckpointHabits
from medseg_se.tasks.self_knowledge import SelfKnowledge

SMALL = {"network": "resnet18v2", "channels": [8, 8, 16, 16]}


def fit(task, data, folder, epochs):
    callbacks = [*CheckpointHabits(minutes=5, smoothing=0).callbacks(folder, task.score), SelfKnowledge()]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(
        max_epochs=epochs, callbacks=callbacks, plugins=[AtomicCheckpointIO()], default_root_dir=folder, **quiet
    )
    trainer.fit(task, data)
    return folder / "best.ckpt"


def train_classifier(folder, epochs=8, fold=0, seed=0):
    """Train on pictures whose bright half is the class; returns the checkpoint."""
    pictures = folder / "pictures"
    if not pictures.exists():
        write_pictures(pictures, each=24)
    torch.manual_seed(seed)
    data = ClassificationData(
        str(pictures),
        folds=3,
        fold=fold,
        size=[24, 24],
        batch_size=8,
        num_workers=0,
        progress=False,
        store=str(folder / "store"),
    )
    return fit(ClassificationTask(1, 3, lr=5e-3, **SMALL), data, folder / f"run{seed}{fold}", epochs)


def train_regression(folder, epochs=3):
    """Train on blobs whose size is the age; returns the checkpoint."""
    heads = write_ages(folder / "heads")
    torch.manual_seed(0)
    data = RegressionData(
        str(heads), "age", folds=3, size=[12, 12, 12], batch_size=3, num_workers=0, progress=False, store=str(folder / "store")
    )
    return fit(RegressionTask(1, 1, 3, lr=5e-3, **SMALL), data, folder / "run", epochs)
