"""`fit`, `validate` and `test`: LightningCLI with this project's defaults and messages."""

from __future__ import annotations

import inspect
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import pytorch_lightning as pl
import yaml
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from rich.console import Console
from torch.multiprocessing.spawn import ProcessRaisedException

from medseg_se.checkpoints import read_checkpoint
from medseg_se.cli.messages import CONFIG_FLAGS, explain
from medseg_se.cli.recipes import recipe_names, recipe_path
from medseg_se.data.classification import ClassificationData, RegressionData
from medseg_se.data.segmentation import SegmentationData
from medseg_se.errors import MedsegError, UsageError
from medseg_se.files import alone
from medseg_se.hardware import keep_freed_memory
from medseg_se.plugins import plugin_words
from medseg_se.reports.logs import RunLog, run_loggers
from medseg_se.reports.summary import where_everything_is, write_summary
from medseg_se.reports.training import SUMMARY, RunReport
from medseg_se.tasks import ClassificationTask, RegressionTask, SegmentationTask
from medseg_se.tasks.base import Stage, Task
from medseg_se.tasks.callbacks import TrainingProgress, trainer_defaults
from medseg_se.tasks.checkpoints import CheckpointHabits, keeper_of_the_best
from medseg_se.tasks.interruption import is_first_process

TASKS = (SegmentationTask, ClassificationTask, RegressionTask)
DATA = (SegmentationData, ClassificationData, RegressionData)


class Parser(LightningArgumentParser):
    """An argument parser whose complaint about an unknown key names the nearest valid one, on one line."""

    arguments: Sequence[str] = ()  # of the running command, for messages

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the complaint as a `UsageError`."""
        raise explain(str(message), valid_keys(), self.arguments) from ex


class TrainingCLI(LightningCLI):
    """LightningCLI that takes the sizes of the network from the data and fills in sensible trainer defaults.

    Args:
        arguments: Those of the command line, with `fit`, `validate` or `test` first and files for the names of recipes.
    """

    last = Path()  # where the running command keeps its state, for messages
    held = ExitStack()  # what the running command lets go of at its end

    def __init__(self, arguments: Sequence[str]) -> None:
        Parser.arguments = [*arguments, *plugin_words()]
        super().__init__(
            Task,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            parser_kwargs={"prog": "medseg-se"},
            args=list(arguments),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands with the arguments that are not the user's."""
        every = LightningCLI.subcommands()
        return {name: every[name] for name in ("fit", "validate", "test")}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse `args`."""
        self.config = parser.parse_args(args)
        seed = self.config[self.config.subcommand].seed_everything
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            raise UsageError(f"Expected `seed_everything` between 0 and 4294967295, but got {seed}.")

    def _parse_ckpt_path(self) -> None:
        """Leave the config as the user wrote it; Lightning would mix in what the checkpoint was made with."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the habits of checkpoints, and link what the data knows to what the network needs."""
        parser.add_class_arguments(CheckpointHabits, "checkpoints")
        for name in ("num_classes", "in_channels", "spatial_dims"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Guard earlier runs, and find the checkpoint that is meant."""
        config = self.config[self.subcommand] if self.subcommand else self.config
        trainer = config.trainer
        if trainer.default_root_dir is None:
            trainer.default_root_dir = "runs/default"
        checkpoints = Path(trainer.default_root_dir) / "checkpoints"
        TrainingCLI.last = checkpoints / "last.ckpt"
        resume = config.get("ckpt_path") or (None if self.subcommand == "fit" else "best")
        if self.subcommand == "fit" and resume == "last" and not self.last.exists():
            raise UsageError(f"Nothing to continue: there is no {self.last}. Leave out `--ckpt_path last` to start.")
        if resume and re.match(r"\w+://", str(resume)):
            raise UsageError(f"Expected `ckpt_path` to be a file, but got the address {resume}. Download and inspect it first.")
        if resume in ("last", "best"):
            resume = str(checkpoints / f"{resume}.ckpt")
        if resume:
            read_checkpoint(Path(resume))  # refuses what is damaged, foreign or holds code
            config.ckpt_path = resume
        elif self.subcommand == "fit" and (start := config.model.init_args.get("start_from")):
            read_checkpoint(Path(start))  # now, and not after the scans were prepared
        if self.subcommand == "fit" and not trainer.fast_dev_run:
            self._guard_run(resume)
        if self.subcommand != "fit":
            config.verbose = False  # the task shows its result as a table

    def _guard_run(self, resume: str | None) -> None:
        """Refuse to write beside a run that is going on, and to overwrite an earlier one, given the checkpoint to continue."""
        last = self.last
        if is_first_process():  # the others are of the same run
            self.held.enter_context(alone(last.parent.parent / ".lock"))
        of_this_run = resume and Path(resume).resolve().parent == last.parent.resolve()
        if last.exists() and not of_this_run:
            raise UsageError(
                f"{last.parent.parent} already holds a run. Continue it with `--ckpt_path last`, or start another one with "
                "`--trainer.default_root_dir FOLDER`."
            )

    def instantiate_classes(self) -> None:
        """Build data, network and trainer; what they refuse is passed on as they said it."""
        try:
            super().instantiate_classes()
        except ValueError as error:  # jsonargparse wraps whatever a constructor raises
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, MedsegError):
                cause = cause.__cause__ or cause.__context__
            if cause is None:
                raise
            raise cause from None

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add the checkpoint, progress and logging habits that a config does not set itself."""
        config = self._get(self.config_init, "trainer")
        device = "cpu" if config["accelerator"] == "cpu" else "auto"
        habits_of_checkpoints = self._get(self.config_init, "checkpoints")
        defaults = trainer_defaults(config["default_root_dir"], device, self.model.score, habits_of_checkpoints)
        shows = config.get("enable_progress_bar") is not False
        keeps = config.get("enable_checkpointing") is not False and not config.get("fast_dev_run")
        chosen = {name: value for name, value in config.items() if value is not None}
        resumed = self.subcommand == "fit" and self._get(self.config_init, "ckpt_path") is not None
        loggers = run_loggers(config["default_root_dir"], chosen.pop("logger", None), resumed)
        trainer_config = {**defaults, **chosen, "logger": loggers, **kwargs}
        trainer_config["plugins"] = [*defaults["plugins"], *_listed(config.get("plugins"))]
        unwanted = (*((TrainingProgress,) if not shows else ()), *((pl.callbacks.Checkpoint,) if not keeps else ()))
        habits = [habit for habit in defaults["callbacks"] if not isinstance(habit, unwanted)]
        reports = self._reports(config, loggers) if self.subcommand == "fit" else []
        trainer_config["callbacks"] = [*_listed(config.get("callbacks")), *reports, *habits]
        try:
            trainer = self._instantiate_trainer(trainer_config, [])
        except (MisconfigurationException, ValueError, TypeError) as error:
            raise UsageError(f"The trainer refuses its settings: {error}") from error
        endless = trainer.max_epochs == trainer.max_steps == -1 and not any(isinstance(one, Timer) for one in trainer.callbacks)
        if self.subcommand == "fit" and endless and self.model.optimisation.follows_the_run:
            raise UsageError(
                "Expected `max_time`, `max_steps` or a number of `max_epochs`: the learning rate follows the share of the run "
                "that is done."
            )
        return trainer

    def _reports(self, config: Any, loggers: Sequence[Logger]) -> list[pl.Callback]:
        """Return what draws curves and pictures, unless the run leaves nothing behind."""
        if config.get("fast_dev_run"):
            return []
        return [RunReport(config["default_root_dir"], table) for table in loggers if isinstance(table, RunLog)]

    def after_fit(self) -> None:
        """Judge the best checkpoint on whole scans and say where everything is."""
        best = getattr(keeper_of_the_best(self.trainer), "best_model_path", "")
        if self.trainer.interrupted:
            return
        console = Console(stderr=True, quiet=not self.trainer.is_global_zero, soft_wrap=True, highlight=False, markup=False)
        reports = [report for report in self.trainer.callbacks if isinstance(report, RunReport)]
        # The loop is still about to go on where it found nothing left to do.
        if self.trainer.fit_loop.is_resuming and all((report.folder / SUMMARY).is_file() for report in reports):
            steps = f"{self.trainer.global_step:,} steps"
            console.print(f"The run had ended already, after {steps}: nothing was trained or judged anew.")
            return
        if not Path(best).is_file():
            if self.last.is_file():
                console.print(f"\nThe run ended before a validation, so no checkpoint is best. The last one: {self.last}")
            self._sum_up(console, None)
            return
        console.print(f"\nBest checkpoint: {best}\nJudging it on the whole validation scans …")
        self.trainer.validate(self.model, self.datamodule, ckpt_path=best, verbose=False, weights_only=True)
        console.print(self.model.table(self.trainer.callback_metrics, "val"))
        console.print(f"These scans chose the checkpoint. {self.model.advice}")
        self._sum_up(console, Path(best))

    def _sum_up(self, console: Console, best: Path | None) -> None:
        """Write the run's page, where it has one, and say where it is."""
        for report in self.trainer.callbacks:
            if isinstance(report, RunReport) and self.trainer.is_global_zero:
                write_summary(report, self.trainer, self.model, Parser.arguments, best)
                console.print(where_everything_is(report))

    def after_validate(self) -> None:
        """Show the result."""
        self._show("val")

    def after_test(self) -> None:
        """Show the result."""
        self._show("test")

    def _show(self, stage: Stage) -> None:
        console = Console(markup=False, quiet=not self.trainer.is_global_zero)
        console.print(self.model.table(self.trainer.callback_metrics, stage))


def run(argv: Sequence[str]) -> int:
    """Run `fit`, `validate` or `test` with the arguments after the program's name; returns the exit code."""
    quieten()
    keep_freed_memory()
    arguments = with_configs(argv)
    with ExitStack() as TrainingCLI.held:
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    try:
        TrainingCLI(arguments)
    except SystemExit as stop:  # Lightning's way out: with code 1 after Ctrl-C, by an exception of its own after SIGTERM
        if stop.code == 1 or isinstance(stop, SIGTERMException):
            if is_first_process():
                print(_how_to_continue(arguments), file=sys.stderr)
            return 130
        return int(stop.code or 0)
    except ProcessRaisedException as error:  # what one of several forked processes said, at the end of its traceback
        kind, _, said = str(error).strip().splitlines()[-1].partition(": ")
        if kind.startswith(f"{MedsegError.__module__}."):
            raise UsageError(said) from error
        raise
    return 0


def _how_to_continue(arguments: list[str]) -> str:
    if arguments[0] != "fit":
        return "Interrupted."
    if not TrainingCLI.last.exists():
        return "Interrupted before the first step was kept. Run the same command again."
    flag = next((place for place, argument in enumerate(arguments) if argument == "--ckpt_path"), len(arguments))
    others = [argument for argument in (*arguments[:flag], *arguments[flag + 2 :]) if not argument.startswith("--ckpt_path=")]
    again = shlex.join([*others, *plugin_words(), "--ckpt_path", "last"])
    return f"Interrupted; the state is saved. Continue with: medseg-se {again}"


def with_configs(arguments: Sequence[str]) -> list[str]:
    """Put the file in place of a shipped recipe's name after `--config`, and check that every config can be read."""
    result: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if result and result[-1] in CONFIG_FLAGS:
            result.append(str(_config_file(argument)))
        elif flag in CONFIG_FLAGS and equals:
            result += [flag, str(_config_file(value))]
        else:
            result.append(argument)
    return result


def _config_file(name: str) -> Path:
    path = Path(name)
    if path.parent == Path() and not path.exists() and (path.suffix == "" or path.stem in recipe_names()):
        path = recipe_path(name)
    if not path.is_file():
        raise UsageError(f"No such config: {name}. Expected a YAML file or a shipped recipe: {', '.join(recipe_names())}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UsageError(f"Cannot read the config {name}: {place}{error.problem}.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"Cannot read the config {name}: it is no text in UTF-8 ({str(error).splitlines()[0]}).") from error
    if not isinstance(content, dict):
        raise UsageError(
            f"Expected the config {name} to hold keys such as `trainer:`, `model:` and `data:`, but it holds none."
        )
    return path


def _listed(value: Any) -> list[Any]:
    """Return a list of what may be one thing, several or none."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def valid_keys() -> list[str]:
    """Return every key of a config, dotted, and the short forms of the command line."""
    keys = ["seed_everything", "trainer", "model", "data", "checkpoints", "ckpt_path", "config"]
    every = (("trainer", (pl.Trainer,)), ("model", TASKS), ("data", DATA), ("checkpoints", (CheckpointHabits,)))
    for prefix, kinds in every:
        named = (name for kind in kinds for name in inspect.signature(kind.__init__).parameters if name != "self")
        keys += [f"{prefix}.{name}" for name in dict.fromkeys(named)]
    return keys


def quieten() -> None:
    """Leave out the tips and notices of the libraries below; warnings about data stay."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*`isinstance.treespec.*",
        ".*deprecat.*",
        ".*in eval mode at the start of training.*",  # what is frozen
        ".*your dataloader is not resumable.*",  # it is: its sampler begins where the run stands
        ".*sync_dist=True.*",  # the metrics are summed over the devices by themselves
        ".*could not find the monitored key.*",  # a run that ends before its first validation; `after_fit` says so
        ".*The dirpath has changed from.*",  # a checkpoint of another folder is judged or continued
        ".*Checkpoint directory .* exists and is not empty.*",  # as it does whenever a run is continued
    ):
        warnings.filterwarnings("ignore", message=text)
