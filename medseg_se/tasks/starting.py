"""Where a training begins: the weights before the first step, and which of them learn, and how fast."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import nn

from medseg_se.checkpoints import read_checkpoint
from medseg_se.data.preprocessing import Preprocessing
from medseg_se.errors import CheckpointError, UsageError, unknown_name
from medseg_se.networks.pretrained import Loaded
from medseg_se.networks.transfer import Ports, transfer
from medseg_se.structures import BACKGROUND_NAMES

say = rank_zero_only(logging.getLogger(__name__).log)


@dataclass(frozen=True)
class Earlier:
    """The checkpoint that a training began with.

    Attributes:
        path: The file.
        digest: Its digest.
        loaded: What became of its tensors.
        data: What it says of the data it was trained on.
    """

    path: str
    digest: str
    loaded: Loaded
    data: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with every tensor by its name."""
        tensors = {name: list(getattr(self.loaded, name)) for name in ("loaded", "adapted", "left", "unused")}
        return {"checkpoint": self.path, "digest": self.digest, **tensors}


@dataclass(frozen=True)
class Start:
    """What the weights are before the first step, and which of them learn.

    Parts of a network are paths of its modules: ``encoder`` is all of the encoder, ``encoder.0`` its first level.

    Attributes:
        path: A checkpoint of this program to begin with; None for weights drawn at random. Outputs follow the names of the
            structures, classes or values, channels their names; see `medseg_se.networks.transfer.transfer`.
        frozen: Parts of the network that do not learn, nor change the statistics of their normalisation, nor drop anything.
        lr_factors: Part of the network → factor on its learning rate; of several parts that hold a weight the smallest counts.

    Raises:
        UsageError: A factor that is not above 0.
    """

    path: str | None = None
    frozen: tuple[str, ...] = ()
    lr_factors: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part, factor in self.lr_factors.items():
            if not 0 < factor < math.inf:
                instead = f" To keep {part} as it is, name it in `freeze`." if factor == 0 else ""
                raise UsageError(f"Expected `lr_factors` to be above 0, but got {factor} for {part}.{instead}")

    def freeze(self, network: nn.Module) -> None:
        """Let the frozen parts of a network have no gradients, and put them into the state of judging.

        Raises:
            UsageError: A part that the network does not have, nothing that learns, or a learning rate for what does not learn.
        """
        for part in self.frozen:
            _part(network, part, "freeze").requires_grad_(False)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise UsageError(f"Expected `freeze` to leave something that learns, but got {', '.join(self.frozen)}: everything.")
        for part in self.lr_factors:
            if not any(parameter.requires_grad for parameter in _part(network, part, "lr_factors").parameters()):
                raise UsageError(
                    f"Expected `lr_factors` for parts that learn, but {part} is frozen. Take it out of one of them."
                )
        self.keep_frozen(network)  # Lightning leaves the states as they are when a training begins

    def keep_frozen(self, network: nn.Module) -> None:
        """Put the frozen parts of a network into the state of judging, in which they keep their statistics."""
        for part in self.frozen:
            network.get_submodule(part).eval()

    def check_frozen(self, network: nn.Module, drawn: Collection[str]) -> None:
        """Refuse a network of which what does not learn was drawn at random.

        Args:
            network: The network.
            drawn: Names of its tensors that stay as drawn.

        Raises:
            UsageError: A frozen parameter is among them.
        """
        frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad and name in drawn]
        if frozen:
            listed = ", ".join(frozen[:3]) + (", …" if len(frozen) > 3 else "")
            raise UsageError(
                f"Expected `freeze` for weights that come from elsewhere, but {len(frozen)} tensors of "
                f"{', '.join(self.frozen)} would stay as drawn: {listed}. Give `start_from`, or freeze less."
            )

    def groups(self, network: nn.Module, lr: float) -> list[dict[str, Any]]:
        """Return the parameters that learn, in groups with a learning rate of their own; the first has `lr` itself."""
        parts = sorted(self.lr_factors, key=len, reverse=True)  # the smallest part first
        groups: dict[str, list[nn.Parameter]] = {part: [] for part in ("", *self.lr_factors)}
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                groups[next((part for part in parts if name.startswith(f"{part}.")), "")].append(parameter)
        return [{"params": held, "lr": lr * self.lr_factors.get(part, 1.0)} for part, held in groups.items()]

    def load(self, network: nn.Module, task: str, described: Mapping[str, Any], data: Mapping[str, Any]) -> Earlier | None:
        """Fill a network with what fits of the checkpoint, and say what did; None if there is no checkpoint.

        Args:
            network: The network, in place.
            task: What it is trained for: "segmentation", "classification" or "regression".
            described: How it was built.
            data: What the data say of themselves.

        Raises:
            CheckpointError: The file cannot be read, or is of another network; the network is as it was before.
            UsageError: A frozen part would not come from the checkpoint.
        """
        if self.path is None:
            return None
        description, state, digest = read_checkpoint(Path(self.path))
        theirs, trained_for = description["data"], description.get("task", "segmentation")
        try:
            ours, others = _ports(task, described, data), _ports(trained_for, description["network"], theirs)
            loaded = transfer(network, described, ours, state, description["network"], others)
        except CheckpointError as error:
            raise CheckpointError(f"Cannot begin with {self.path}. {error}") from error
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.path} does not describe its network as medseg-se does; it was edited.") from error
        strange = bool(loaded.left or loaded.adapted or loaded.unused)
        summary = _summary(loaded, len(network.state_dict()), ours, others)
        say(logging.WARNING if strange else logging.INFO, "%s: %s.", self.path, summary)
        if data and (differences := list(_differences(theirs, data))):
            say(logging.WARNING, "%s was trained on scans that were prepared otherwise: %s.", self.path, "; ".join(differences))
        say_seen(self.path, theirs, data)
        return Earlier(self.path, digest, loaded, theirs)


def with_earlier_scans(data: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return what data say of themselves, with the scans that weights had seen before: none of them is new to the model.

    Args:
        data: With the digests of scans under "training" and "validation".
        earlier: The same, of the training that the weights come from.
    """
    trained, chose = earlier.get("training", ()), earlier.get("validation", ())
    if not trained or "training" not in data:
        return dict(data)
    before = set(trained)
    validation = [scan for scan in data["validation"] if scan not in before]
    known = {*data["training"], *validation}
    seen = dict.fromkeys(scan for scan in (*trained, *chose) if scan not in known)
    return {**data, "training": [*data["training"], *seen], "validation": validation}


def say_seen(path: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Warn of validation scans that a checkpoint was trained on.

    Args:
        path: The checkpoint, for the warning.
        theirs: What the data say of themselves that it was trained on.
        ours: The same of the data that are used now.
    """
    validation, trained = ours.get("validation", ()), set(theirs.get("training", ()))
    seen = sum(scan in trained for scan in validation)
    if seen:
        say(
            logging.WARNING,
            "%s was trained on %d of the %d validation scans: their scores say nothing about new scans.",
            path,
            seen,
            len(validation),
        )


def check_same_fold(path: str, theirs: Mapping[str, Any], ours: Mapping[str, Any], begun_elsewhere: bool) -> None:
    """Refuse to go on with a run in another fold, where it would be judged on scans that it was trained on.

    Args:
        path: The checkpoint of the run.
        theirs: What the data say of themselves that it was trained on.
        ours: The same of the data that it is to go on with.
        begun_elsewhere: Whether it began with the weights of another run, which may have seen its validation scans.

    Raises:
        CheckpointError: It is another fold.
    """
    trained, learn, validation = theirs.get("training", ()), ours.get("training", ()), set(ours.get("validation", ()))
    seen = (validation & set(trained)) - set(learn)  # not those that are the same file as a training scan
    other = set(trained[: len(learn)]) != set(learn)  # what other runs had seen comes behind, see `with_earlier_scans`
    if seen and (other or not begun_elsewhere):
        raise CheckpointError(
            f"Expected {path} to be of a run on the same fold, but it was trained on {len(seen)} of the {len(validation)} "
            "scans that would judge it. Give the `data.fold` and `data.folds` that it began with, or begin another run."
        )


def _part(network: nn.Module, part: str, option: str) -> nn.Module:
    """Return a part of a network that has weights."""
    modules: dict[str, nn.Module] = dict(network.named_modules())
    if part and part in modules and any(True for _ in modules[part].parameters()):
        return modules[part]
    above = part.rpartition(".")[0]
    while above not in modules:
        above = above.rpartition(".")[0]
    valid = [path for path in _below(modules, above) if any(True for _ in modules[path].parameters())]
    if len(valid) == 1:
        valid += [path for path in _below(modules, valid[0]) if any(True for _ in modules[path].parameters())]
    raise unknown_name(f"part of the network in `{option}`", part, valid)


def _below(modules: Mapping[str, nn.Module], path: str) -> Iterator[str]:
    for name, _ in modules[path].named_children():
        yield f"{path}.{name}" if path else name


def _ports(task: str, described: Mapping[str, Any], data: Mapping[str, Any]) -> Ports:
    """Return the names of what goes into a network and comes out of it, as far as the data tell them."""
    channels, wanted = list(data.get("channels", ())), described["in_channels"]
    if len(channels) == 1 and wanted > 1:  # a picture in colours
        channels = [f"{channels[0]} {index}" for index in range(wanted)]
    if data.get("targets"):  # regions, which may be named as structures are and yet mean something else to a sigmoid
        outputs = [f"region {name}" for name in data["targets"]]
    elif task == "segmentation":
        outputs = [BACKGROUND_NAMES[0], *data["structures"]["values"]] if "structures" in data else []
    else:
        outputs = [f"{task} {name}" for name in data.get("classes", data.get("values", ()))]
    return Ports(_named(channels, wanted), _named(outputs, described["num_classes"]))


def _named(names: Sequence[str], wanted: int) -> tuple[str | None, ...]:
    return tuple(names) if len(names) == wanted else (None,) * wanted


def _summary(loaded: Loaded, whole: int, ours: Ports, theirs: Ports) -> str:
    """Say in a line what became of a checkpoint's tensors, and which outputs and channels are new."""
    parts = [f"{len(loaded.loaded)} of {whole} tensors loaded"]
    tensors = {"matched by name": loaded.adapted, "left as drawn": loaded.left, "not used": loaded.unused}
    for what, some in tensors.items():
        if some:
            parts.append(f"{what}: {len(some)} ({', '.join(some[:3])}{', …' if len(some) > 3 else ''})")
    rows = ours.rows_of(theirs)
    for what, names, places in (("outputs", ours.outputs, rows["outputs"]), ("channels", ours.channels, rows["channels"])):
        new = [str(name) for name, place in zip(names, places, strict=True) if place is None]
        if new:
            parts.append(f"new {what}: {', '.join(new[:6])}{', …' if len(new) > 6 else ''}")
    return "; ".join(parts)


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    """Yield how scans were prepared for the checkpoint and are prepared here, where that is not the same."""
    there, here = (
        {**Preprocessing.from_dict(data.get("preprocessing", {})).to_dict(), "slice_axis": data.get("slice_axis")}
        for data in (theirs, ours)
    )
    for name, value in there.items():
        if value != here[name]:
            yield f"{name} {value} there, {here[name]} here"
