"""What MONAI's networks share here: its options by its names, this package's shapes, attention after its stages.

Attention comes in through forward hooks on named modules of MONAI's network: its own weights keep the names that MONAI gave
them, so that its checkpoints load into `MonaiNetwork.network`. A hook is a method of a slot that is registered like any other
module, so its weights are saved, counted and copied with the network.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medseg_se.attention.checks import check_options
from medseg_se.errors import UsageError
from medseg_se.networks.base import Network, crop, pad_to_multiple
from medseg_se.networks.monai_stages import Sizes, Stage
from medseg_se.networks.placement import AttentionPlan
from medseg_se.optional import load_optional

_GIVEN = ("in_channels", "num_classes", "spatial_dims")
_REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What MONAI raises at options that it cannot take."""


class Slot(nn.Module):
    """An attention block after a module of MONAI's network."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def recalibrate(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Replace the module's output, as its forward hook."""
        return self.attention(output)  # type: ignore[no-any-return]


class MonaiNetwork(Network):
    """A network of MONAI for segmentation; its subclasses say which, and what its levels are.

    A scan is lengthened with copies of its last voxels to a size that the network can take, and the logits are cut back. A
    scan so small that a normalisation gets a single voxel is refused.

    Args:
        in_channels: Channels of the scan.
        num_classes: Structures and background; or classes; or values to regress.
        spatial_dims: 2 or 3.
        attention: Name of an attention block, or one name a level.
        attention_at: Where it sits, some of `places`; at all of them if not given.
        attention_options: Options of the attention block, or of each kind of block under its name.
        options: Options of MONAI's class by its own names. Those are left out that take code instead of values, that fetch
            weights, or that make something else than logits.

    Attributes:
        network: MONAI's module.
        sizes: What sizes it can take.
        monai: Its class.
        renamed: What MONAI calls the numbers of channels and classes.
        withheld: Options of the class that are not offered.
        always: Arguments that the class always gets.
        defaults: Defaults that are not MONAI's, mostly because it has none.
        packages: Optional packages that it needs.

    Raises:
        UsageError: An argument that makes no sense, or that MONAI refuses; or an optional package is missing.
    """

    monai: ClassVar[type[nn.Module]]
    renamed: ClassVar[tuple[str, str]] = ("in_channels", "out_channels")
    withheld: ClassVar[tuple[str, ...]] = ()
    always: ClassVar[Mapping[str, Any]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}
    packages: ClassVar[tuple[str, ...]] = ()
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Let the signature show MONAI's options: that is where options are looked up."""
        super().__init_subclass__(**arguments)
        if hasattr(cls, "monai"):
            cls.__signature__ = inspect.Signature([*_own_parameters(), *_offered(cls)])

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        spatial_dims: int = 3,
        attention: str | Sequence[str] = "none",
        attention_at: Sequence[str] | None = None,
        attention_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, num_classes, spatial_dims)
        name = type(self).__name__
        check_options(f"MONAI's {name}", type(self), _GIVEN, options)
        for package in self.packages:
            load_optional(package)
        given = zip(("spatial_dims", *self.renamed), (spatial_dims, in_channels, num_classes), strict=True)
        # MONAI writes into nested options, which are the caller's or stand for all networks of the class.
        chosen = copy.deepcopy({**self.defaults, **options, **self.always})
        try:
            self.network: Any = self.monai(**dict(given), **self.arguments(chosen))
            self.adapt()
            self.sizes = self.fitting()
            stages = self.stages()
            channels = self._probed(stages)
        except _REFUSALS as error:
            raise UsageError(f"MONAI's {name} cannot be made with these options: {_sentence(error)}") from error
        if stages:
            levels = 1 + max(stage.level for stage in stages)
            here = tuple(place for place in self.places if any(stage.place == place for stage in stages))
            at = here if attention_at is None else attention_at
            self._insert(AttentionPlan.make(attention, at, levels, attention_options, here), stages, channels)
        elif attention != "none":
            raise UsageError(
                f"Expected `attention` to be none for MONAI's {name}, but got {attention!r}: attention recalibrates maps, and "
                "it has tokens instead. Take a network with stages, such as monai:DenseNet121 or monai:SwinUNETR."
            )
        else:
            AttentionPlan.make(attention, attention_at or (), 1, attention_options, ())

    def arguments(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of MONAI's class for these options."""
        return options

    def adapt(self) -> None:
        """Take out of MONAI's network what is registered and never used, or registered twice."""

    def fitting(self) -> Sizes:
        """Return what sizes MONAI's network can take."""
        return Sizes((1,) * self.spatial_dims, (1,) * self.spatial_dims)

    def stages(self) -> list[Stage]:
        """Return where attention can sit."""
        return []

    def run(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run MONAI's network on a scan of a fitting size; several outputs come from the finest down."""
        return self.network(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map a scan (N, C, *spatial) to logits (N, num_classes, *spatial).

        In training with deep supervision: a tuple of logits from the finest down.

        Raises:
            UsageError: Not a map of this network's axes and channels, or of a size that it cannot take.
        """
        self.check_input(x)
        shape, fitted = x.shape[2:], self._fitted(x)
        y = self._run(pad_to_multiple(x, fitted))
        if isinstance(y, Tensor):
            return crop(y, shape)
        return tuple(crop(part, _share(shape, part.shape[2:], fitted)) for part in y)

    def _fitted(self, x: Tensor) -> tuple[int, ...]:
        """Return the size to which a scan is lengthened."""
        shape, exact = tuple(x.shape[2:]), self.sizes.exact
        if exact and any(size > most for size, most in zip(shape, exact, strict=True)):
            raise UsageError(
                f"Expected the {type(self).__name__} to get at most {_by(exact)} voxels, but got {_by(shape)}; take a smaller "
                "patch, or set `img_size` to the size of the patch."
            )
        return self.sizes.fitted(shape)

    def _run(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        try:
            return self.run(x)
        except ValueError as error:  # a normalisation that got a single voxel
            raise UsageError(
                f"The {type(self).__name__} cannot take a patch of {_by(x.shape[2:])} voxels: {_sentence(error)} Take a larger "
                "patch, or fewer levels."
            ) from error

    def _probed(self, stages: Sequence[Stage]) -> dict[str, int]:
        """Run the network on a scan without values, and return the channels of each stage by its path.

        Raises:
            UsageError: The logits have another size than the scan.
        """
        found: dict[str, int] = {}
        modules = {path: self.network.get_submodule(path) for _, _, path in stages}
        handles = [
            module.register_forward_hook(lambda module, inputs, output, path=path: found.update({path: output.shape[1]}))
            for path, module in modules.items()
        ]
        size = self.sizes.fitted([max(64, 2 * step, low) for step, low, *_ in zip(*self.sizes[:2], strict=True)])
        state = {name: value.to("meta") for name, value in chain(self.named_parameters(), self.named_buffers())}
        self.eval()
        with torch.no_grad():
            logits = functional_call(self, state, (torch.empty(1, self.in_channels, *size, device="meta"),))
        self.train()
        for handle in handles:
            handle.remove()
        expected = (1, self.num_classes, *(size if self.kind == "segmentation" else ()))
        if tuple(logits.shape) != expected:
            raise UsageError(
                f"Expected options of MONAI's {type(self).__name__} that map a scan of {_by(size)} voxels to logits of shape "
                f"{expected}, but got {tuple(logits.shape)}."
            )
        return found

    def _insert(self, plan: AttentionPlan, stages: Sequence[Stage], channels: Mapping[str, int]) -> None:
        """Put the blocks of the plan after their stages."""
        for place, level, path in stages:
            block = plan.build(place, level, channels[path], self.spatial_dims)
            if isinstance(block, nn.Identity):
                continue
            if not hasattr(self, place):
                self.add_module(place, nn.ModuleDict())
            slot = Slot(block)
            self.get_submodule(place).add_module(str(level), slot)
            self.network.get_submodule(path).register_forward_hook(slot.recalibrate)


class MonaiClassifier(MonaiNetwork):
    """A network of MONAI for classification and regression; otherwise as `MonaiNetwork`."""

    kind = "classification"
    places: ClassVar[tuple[str, ...]] = ("encoder",)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map a scan (N, C, *spatial) to logits, or values to regress, (N, num_classes).

        Raises:
            UsageError: Not a map of this network's axes and channels, or of a size that it cannot take.
        """
        self.check_input(x)
        return self._run(pad_to_multiple(x, self._fitted(x)))

    def last_maps(self) -> nn.Module:
        """Return the module that puts out the last maps.

        Raises:
            UsageError: The network has tokens instead.
        """
        stages = self.stages()
        if not stages:
            raise UsageError(f"MONAI's {type(self).__name__} has tokens instead of maps. Take a network with stages.")
        last: nn.Module = self.network.get_submodule(stages[-1].path)
        return last


def drop_cross_attention(transformer: Any) -> None:
    """Take out the normalisations before attention to another sequence, which MONAI makes whether there is one or not."""
    for block in transformer.blocks:
        del block.norm_cross_attn


def _own_parameters() -> list[inspect.Parameter]:
    """Return the arguments of every network here, without `self` and MONAI's options."""
    return list(inspect.signature(MonaiNetwork.__init__).parameters.values())[1:-1]


def _offered(cls: type[MonaiNetwork]) -> list[inspect.Parameter]:
    """Return the options of MONAI's class that are offered, with their defaults."""
    hidden = {*_GIVEN, *cls.renamed, *cls.withheld, *cls.always}
    return [
        option.replace(kind=option.KEYWORD_ONLY, default=cls.defaults.get(name, option.default))
        for name, option in inspect.signature(cls.monai).parameters.items()
        if name not in hidden
    ]


def _share(shape: Sequence[int], part: Sequence[int], whole: Sequence[int]) -> list[int]:
    """Return how much of a `part`, which stands for the `whole`, stands for `shape`; rounded up."""
    return [-(-size * some // most) for size, some, most in zip(shape, part, whole, strict=True)]


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith(".") else f"{text}."
