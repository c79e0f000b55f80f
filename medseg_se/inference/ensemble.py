"""Several checkpoints that answer as one: the weighted mean of their probabilities on the scan's own grid.

Above all for 2D networks that see a scan along different axes: QuickNAT's view aggregation weights coronal and axial slices
with 0.4 each and sagittal ones with 0.2; Roy et al., 2019, https://arxiv.org/abs/1801.04161. The folds of a cross-validation
are averaged in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from medseg_se.data.preprocessing import Preprocessing
from medseg_se.errors import CheckpointError, UsageError
from medseg_se.inference.answering import Prediction, Voice, answer
from medseg_se.inference.engines.base import EngineName
from medseg_se.inference.model import Model, Precision
from medseg_se.inference.passage import Ready
from medseg_se.inference.settings import Settings
from medseg_se.structures import Structures
from medseg_se.volumes import Volume


def load_model(
    checkpoints: Sequence[Path | str],
    weights: Sequence[float] | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    *,
    engine: EngineName = "torch",
    raw: bool = False,
    calibration: Sequence[Path | str] = (),
    least_dice: float = 0.99,
) -> Model | Ensemble:
    """Load one checkpoint as a `Model`, several as an `Ensemble`.

    Args:
        checkpoints: Checkpoints, or folders of them; see `find_checkpoints`.
        weights: A positive number for each; equal if not given. Only their ratios count.
        device: See `Model.load`.
        precision: See `Model.load`.
        engine: See `Model.load`.
        raw: Whether the post-processing that is stored with the checkpoints is left out.
        calibration: See `Model.load`.
        least_dice: See `Model.load`.

    Raises:
        CheckpointError: As `Model.load`, or the checkpoints do not segment the same structures of the same channels.
        UsageError: As `Model.load`, or the weights are not one positive number a checkpoint.
    """
    paths = [path for named in checkpoints for path in find_checkpoints(named)]
    shares_of(weights, len(paths))  # before anything large is read
    members = [Model.load(path, device, precision, engine, calibration, least_dice) for path in paths]
    for member in members if raw else ():
        member.leave_raw()
    return members[0] if len(members) == 1 else Ensemble(members, weights)


def find_checkpoints(named: Path | str) -> list[Path]:
    """Return the checkpoints that `named` stands for: of a folder all in it, or in its folder `model`, in the order of names.

    Raises:
        CheckpointError: It is the folder of one training, whose checkpoints are no ensemble.
    """
    path = Path(named)
    folder = path / "model" if (path / "model").is_dir() else path
    found = sorted(folder.glob("*.ckpt"))
    if folder / "last.ckpt" in found:
        raise CheckpointError(f"Expected checkpoints to average, but {folder} holds those of one training; name one of them.")
    return found or [path]


class Ensemble:
    """Models that segment a scan together; to `predict_cases` it is a model like any other.

    They may differ in network, preprocessing, tiles and the axis across their slices. A sagittal slice does not tell left
    from right, so a member may have merged structures: one whose label values are those of several structures of the
    ensemble gives its probability to each of them.

    Args:
        members: The models.
        weights: A positive number for each; equal if not given. Only their ratios count.

    Attributes:
        structures: What it segments: the structures of the member that has most.
        regions: What the networks find, where that is regions; see `Model`.
        channels: Names of the channels it expects.
        postprocessing: What is done to its label maps: what all members agree on.
        precision: The precision in which the members compute.
        digest: Digest and share of every member, the same in whatever order they are given.
        training: Digests of the image files that any member was trained on.
        validation: Digests of the image files that chose a checkpoint and trained none.
        seen: What the scans were like that the member with most structures was trained on.
        mirror: Directions along which patches were mirrored in the training of every member.

    Raises:
        CheckpointError: The members do not segment the same structures of the same channels, or differ in post-processing.
        UsageError: There is no member, or the weights are not one positive number a member.
    """

    def __init__(self, members: Sequence[Model], weights: Sequence[float] | None = None) -> None:
        shares = shares_of(weights, len(members))
        whole = max(members, key=lambda member: member.structures.num_classes)  # the first of them
        for member in members:
            _check_agreement(member, whole)
        # In an order of their own, so that sums are rounded alike in whatever order the members are given.
        together = sorted(zip(shares, members, strict=True), key=lambda pair: (pair[1].digest, pair[0]))
        self.members = tuple(member for _, member in together)
        self.weights = tuple(share for share, _ in together)
        self.structures, self.channels, self.label_dtype = whole.structures, whole.channels, whole.label_dtype
        self.regions, self.maps = whole.regions, whole.maps
        self.precision: Precision = whole.precision
        self.postprocessing = whole.postprocessing
        # With the digits that float32 tells apart: 9,1 and 0.9,0.1 are the same weights.
        self.digest = " + ".join(f"{share:.9g} * {member.digest}" for share, member in together)
        self.seen = whole.seen
        self.mirror = tuple(name for name in whole.mirror if all(name in member.mirror for member in members))
        self.training = frozenset[str]().union(*(member.training for member in members))
        self.validation = frozenset[str]().union(*(member.validation for member in members)) - self.training

    def prepare(self, image: Volume) -> tuple[Ready, ...]:
        """Prepare a scan (C, I, J, K) for every member; members that prepare it alike share it.

        Raises:
            DataError: As `Model.prepare`, for any member.
        """
        made: dict[Preprocessing, Ready] = {}
        for member in self.members:
            if member.preprocessing not in made:
                made[member.preprocessing] = member.prepare(image)
        return tuple(made[member.preprocessing] for member in self.members)

    def answer(
        self,
        ready: tuple[Ready, ...],
        settings: Settings = Settings(),  # noqa: B008 - frozen
        probabilities: bool | Path = False,
        uncertainty: bool = False,
    ) -> Prediction:
        """Segment a prepared scan; of equal probabilities, the first structure's wins. See `Model.answer`."""
        voices = [
            Voice(member, own, weight, tuple(self._sources(member)))
            for member, own, weight in zip(self.members, ready, self.weights, strict=True)
        ]
        return answer(self, voices, settings, probabilities, uncertainty)

    def predict(
        self,
        image: Volume,
        settings: Settings = Settings(),  # noqa: B008 - frozen
        probabilities: bool | Path = False,
        uncertainty: bool = False,
    ) -> Prediction:
        """Segment a scan (C, I, J, K) as read from its file; see `answer`."""
        return self.answer(self.prepare(image), settings, probabilities, uncertainty)

    def _sources(self, member: Model) -> list[int]:
        """Return for each map of the sum the map of the member that is added to it."""
        if self.regions is None or member.regions is None:
            return _sources(member.structures, self.structures)
        return [member.regions.names.index(name) for name in self.regions.names]


def shares_of(weights: Sequence[float] | None, count: int) -> list[float]:
    """Return the weights divided by their sum."""
    if count < 1:
        raise UsageError("Expected at least one checkpoint, but got none.")
    given = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(given) != count or not all(0 < weight < math.inf for weight in given):
        what = "1 positive number" if count == 1 else f"{count} positive numbers"
        raise UsageError(f"Expected `weights` to be {what}, one a checkpoint, but got {given}.")
    relative = [weight / max(given) for weight in given]
    return [weight / math.fsum(relative) for weight in relative]


def _check_agreement(member: Model, whole: Model) -> None:
    """Refuse a member that another one cannot be averaged with."""
    pair = f"{member.path or 'one'} and {whole.path or 'the other'}"
    for name, what in (("channels", "channels"), ("label_dtype", "type of label values"), ("precision", "precision")):
        of_member, of_whole = getattr(member, name), getattr(whole, name)
        if of_member != of_whole:
            raise CheckpointError(f"Expected checkpoints with the same {what}, but {pair} have {of_member} and {of_whole}.")
    if member.postprocessing != whole.postprocessing:
        raise CheckpointError(
            f"Expected checkpoints with the same post-processing, but {pair} differ. Leave it out with `--raw`."
        )
    of_member, of_whole = (sorted(model.regions.names) if model.regions else None for model in (member, whole))
    if of_member != of_whole:
        found = [", ".join(names) if names else "structures" for names in (of_member, of_whole)]
        raise CheckpointError(f"Expected checkpoints that find the same, but {pair} find {found[0]} and {found[1]}.")
    if whole.regions and member.structures != whole.structures:
        raise CheckpointError(f"Expected checkpoints of regions to have the same structures, but those of {pair} differ.")
    misfits = _misfits(member.structures, whole.structures)
    if misfits:
        raise CheckpointError(
            f"Expected checkpoints with the same structures, but {pair} differ in {', '.join(misfits)}. Names and label values "
            "must be the same; only a structure that merges several of the other checkpoint, with the values of all of them, "
            "may have a name of its own."
        )


def _misfits(member: Structures, whole: Structures) -> list[str]:
    """Return the names of structures that mean something else in one of both, or nothing."""
    sources = _sources(member, whole)[1:]
    misfits = {name: None for name, source in zip(whole.names, sources, strict=True) if source == 0}
    for index, (name, values) in enumerate(member.values.items(), start=1):
        parts = [part for part, source in zip(whole.names, sources, strict=True) if source == index]
        covered = {value for part in parts for value in whole.values[part]}
        if covered != set(values) or (len(parts) == 1 and parts != [name]):
            misfits |= dict.fromkeys([name, *parts])
    if set(member.background) != set(whole.background):
        misfits["background"] = None
    return list(misfits)


def _sources(member: Structures, whole: Structures) -> list[int]:
    """Return for each class of `whole` the class of `member` that holds its first label value; 0 if there is none."""
    owner = {value: index for index, values in enumerate(member.values.values(), start=1) for value in values}
    return [0, *(owner.get(values[0], 0) for values in whole.values.values())]
