"""Self-attention between the voxels of a map, for the deep levels of a network: over the whole map or within windows.

Vaswani et al., Attention Is All You Need, 2017, https://arxiv.org/abs/1706.03762, equation 1. The gate on its output: Qiu et
al., Gated Attention for Large Language Models, 2025, https://arxiv.org/abs/2505.06708, section 2.2. Windows: Liu et al., Swin
Transformer, 2021, https://arxiv.org/abs/2103.14030, section 3.2.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_se.attention.checks import check_arguments, check_map
from medseg_se.attention.precision import in_float32, in_type
from medseg_se.attention.tiles import full_precision
from medseg_se.dims import Size, per_axis
from medseg_se.errors import UsageError, unknown_name

Gate = Literal["channel", "head", "none"]
_GATES = ("channel", "head", "none")

_WINDOWS_AT_ONCE = 2**14
"""More than 65535 would not fit the grid of a CUDA kernel; fewer bound the memory for the gradient of the bias."""


class _SelfAttention(nn.Module):
    """``x + W_o(gate ⊙ attention(t))`` with t = norm(x), a layer norm over the channels of each voxel.

    The norm is left out for a single channel, which it would erase. W_o starts at 0: the block begins as the identity, its
    other weights learn from the second step on. Gates are computed in float32; the attention is computed in the type of the
    map, its softmax in float32.
    """

    label: ClassVar[str]

    def __init__(self, channels: int, spatial_dims: int, heads: int, gate: Gate) -> None:
        super().__init__()
        check_arguments(channels, spatial_dims)
        if heads < 1:
            raise UsageError(f"Expected `heads` to be at least 1, but got {heads}.")
        self.channels, self.spatial_dims = channels, spatial_dims
        self.heads = next(count for count in range(min(heads, channels), 0, -1) if channels % count == 0)
        self.norm = nn.LayerNorm(channels) if channels > 1 else nn.Identity()
        self.queries_keys_values = nn.Linear(channels, 3 * channels)
        self.gate = nn.Linear(channels, channels if gate == "channel" else self.heads) if gate != "none" else None
        self.project = nn.Linear(channels, channels)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def attend(self, parts: Tensor) -> Tensor:
        """Return the attention (N, *spatial, heads, d) for queries, keys and values (3, N, *spatial, heads, d)."""
        raise NotImplementedError

    def check(self, x: Tensor) -> None:
        """Refuse a map that the block cannot work on."""
        check_map(x, self.channels, self.spatial_dims, self.label)

    def forward(self, x: Tensor) -> Tensor:
        """Add to ``x`` (N, C, *spatial) what each voxel gathers from others."""
        self.check(x)
        with full_precision(x):
            tokens = in_type(self.norm, x.movedim(1, -1), x.dtype)
            projected = in_type(self.queries_keys_values, tokens, x.dtype)
            size = self.channels // self.heads
            gathered = self.attend(projected.reshape(*tokens.shape[:-1], 3, self.heads, size).movedim(-3, 0))
            if self.gate is not None:
                gathered = gathered * self._gate(self.gate, tokens).to(x.dtype)
            return x + in_type(self.project, gathered.flatten(-2), x.dtype).movedim(-1, 1)

    def look(self, x: Tensor) -> dict[str, Tensor]:
        """Return the gate that `forward` uses on ``x``, as (N, C, *spatial) under "voxel"; nothing if there is none."""
        self.check(x)
        if self.gate is None:
            return {}
        with full_precision(x):
            tokens = in_type(self.norm, x.movedim(1, -1), x.dtype)
            gate = self._gate(self.gate, tokens)
            return {"voxel": gate.expand(*gate.shape[:-1], self.channels // self.heads).flatten(-2).movedim(-1, 1)}

    def _gate(self, layer: nn.Linear, tokens: Tensor) -> Tensor:
        """Return σ(W_g t + b_g) as (N, *spatial, heads, C / heads or 1)."""
        return torch.sigmoid(in_float32(layer, tokens)).reshape(
            *tokens.shape[:-1], self.heads, layer.out_features // self.heads
        )


class GatedSelfAttention(_SelfAttention):
    """Let every voxel gather from all others: ``x + W_o(σ(W_g t + b_g) ⊙ softmax(q kᵀ / √d) v)``, with t = norm(x).

    q, k and v are linear in t, and split in heads of d = C / heads channels. The gate is that of the voxel that gathers. W_o
    starts at 0, so that the block begins as the identity.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        heads: Heads; where they do not divide the channels, the next smaller number that does.
        gate: One gate per "channel" or per "head" of each voxel.
        max_voxels: Maps of more voxels are refused: time grows with the square of their number.
    """

    label = "gated self-attention"

    def __init__(
        self,
        channels: int,
        spatial_dims: int,
        heads: int = 4,
        gate: Literal["channel", "head"] = "channel",
        max_voxels: int = 32768,
    ) -> None:
        if gate not in _GATES[:2]:
            raise unknown_name("gate", gate, _GATES[:2])
        if max_voxels < 1:
            raise UsageError(f"Expected `max_voxels` to be at least 1, but got {max_voxels}.")
        super().__init__(channels, spatial_dims, heads, gate)
        self.max_voxels = max_voxels

    def check(self, x: Tensor) -> None:
        """Refuse maps that are too large as well.

        Raises:
            UsageError: A map of the wrong shape, or of more than `max_voxels` voxels.
        """
        super().check(x)
        size = x.shape[2:]
        if math.prod(size) > self.max_voxels:
            raise UsageError(
                f"Expected {self.label} to get at most {self.max_voxels} voxels (`max_voxels`), but got "
                f"{' × '.join(map(str, size))} = {math.prod(size)}; take a deeper level of the network, window attention or a "
                "larger `max_voxels`."
            )

    def attend(self, parts: Tensor) -> Tensor:
        """Return the attention over all voxels."""
        queries, keys, values = parts.flatten(2, -3).transpose(2, 3)
        return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).reshape(parts.shape[1:])


class WindowAttention(_SelfAttention):
    """Let every voxel gather from those of its window: ``x + W_o softmax(q kᵀ / √d + bias) v`` in each window.

    Windows lie side by side from the first voxel on, or half a window before it with `shift`; take one block of each kind in
    turn, so that windows exchange what they know. Those at the borders hold fewer voxels: there is no padding, and an axis no
    longer than a window is one window whatever the shift.

    Args:
        channels: Channels of the map.
        spatial_dims: 2 or 3.
        heads: Heads; where they do not divide the channels, the next smaller number that does.
        window: Voxels along each axis of a window, one number or one per axis.
        shift: Whether windows begin half a window earlier.
        bias: Whether each head has a learned bias for every offset between two voxels of a window. On CPUs training then
            keeps the weights of all pairs in a window, since no fused kernel gives such a bias its gradient there.
        gate: An output gate as in `GatedSelfAttention`; "none", as in the paper, leaves it out.
    """

    label = "window attention"

    def __init__(
        self,
        channels: int,
        spatial_dims: int,
        heads: int = 4,
        window: Size = 4,
        shift: bool = False,
        bias: bool = True,
        gate: Gate = "none",
    ) -> None:
        if gate not in _GATES:
            raise unknown_name("gate", gate, _GATES)
        super().__init__(channels, spatial_dims, heads, gate)
        self.window, self.shift = per_axis(window, spatial_dims, "window"), shift
        offsets = [2 * length - 1 for length in self.window]
        self.bias = nn.Parameter(nn.init.trunc_normal_(torch.empty(self.heads, *offsets), std=0.02)) if bias else None

    def attend(self, parts: Tensor) -> Tensor:
        """Return the attention within windows."""
        return self._attend_along(0, parts, ())

    def _attend_along(self, axis: int, parts: Tensor, window: tuple[int, ...]) -> Tensor:
        """Cut this spatial axis and those after it where the length of windows changes; those before fit `window`."""
        if axis == self.spatial_dims:
            return self._attend_within(parts, window)
        pieces, start = [], 0
        for size, length in _cut(parts.shape[2 + axis], self.window[axis], self.shift):
            piece = parts.narrow(2 + axis, start, size)
            pieces.append(self._attend_along(axis + 1, piece, (*window, length)))
            start += size
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1 + axis)

    def _attend_within(self, parts: Tensor, window: tuple[int, ...]) -> Tensor:
        """Return the attention within windows of one size, which fill the map."""
        dims, batch = self.spatial_dims, parts.shape[1]
        counts = [size // length for size, length in zip(parts.shape[2:-2], window, strict=True)]
        cut = [number for pair in zip(counts, window, strict=True) for number in pair]
        # from (3, N, count, length, count, length, ..., heads, d) to (3, N, counts, heads, lengths, d) and on to 4 axes
        order = [0, 1, *range(2, 2 + 2 * dims, 2), 2 + 2 * dims, *range(3, 3 + 2 * dims, 2), 3 + 2 * dims]
        windows = parts.reshape(3, batch, *cut, *parts.shape[-2:]).permute(order)
        tokens = windows.reshape(3, -1, self.heads, math.prod(window), parts.shape[-1])
        bias = self._biases(window, parts.dtype)
        gathered = torch.cat(
            [F.scaled_dot_product_attention(q, k, v, bias) for q, k, v in torch.split(tokens, _WINDOWS_AT_ONCE, 1)]
        )
        back = [order.index(axis) - 1 for axis in range(1, len(order))]
        return gathered.reshape(windows.shape[1:]).permute(back).reshape(parts.shape[1:])

    def _biases(self, window: tuple[int, ...], kind: torch.dtype) -> Tensor | None:
        """Return the bias (1, heads, L, L) for each pair of the L voxels of a window."""
        if self.bias is None:
            return None
        places = torch.cartesian_prod(*(torch.arange(length, device=self.bias.device) for length in window))
        offsets = places[:, None] - places + torch.tensor(self.window, device=self.bias.device) - 1
        return self.bias.movedim(0, -1)[offsets.unbind(-1)].movedim(-1, 0)[None].to(kind)


def _cut(size: int, window: int, shift: bool) -> list[tuple[int, int]]:
    """Cut an axis into parts that windows of one length fill; return each part's length and that of its windows."""
    first = window // 2 if shift and size > window else 0
    whole = (size - first) // window * window
    last = size - first - whole
    return [(length, own) for length, own in ((first, first), (whole, window), (last, last)) if length]
