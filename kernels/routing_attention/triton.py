"""`routing_attention` on Triton: kernels take routed regions where they lie on the map, by the list that names them.

A program takes a tile of queries of one region and goes through the keys. For the gradients of keys, the list is turned
round: a program takes a tile of keys and goes through the queries of the regions that are routed to it.

Where regions are a few tokens of a small map, tiles hold the tokens of many, and a mask hides what is not routed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .._triton import divide_up, launch, like, numerics, power_of_two, register, sums_in
from .eager import square

_QUERIES = 4096
"""So many queries a program goes through, at least, before its list is cut."""

_ASKING = 32
"""Queries of a tile where keys are what a program owns: two sums then leave room for more programs."""

_BITS = 64
"""Regions of an image, at most, for a word to say which of them a region is routed to."""


def routing_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    scale: float | None = None,
    regions: tuple[int, int] | None = None,
) -> Tensor:
    """See `vertebra.kernels.routing_attention`."""
    rows, columns = square(index) if regions is None else regions
    return _operator(q, k, v, index, rows, columns, q.shape[-1] ** -0.5 if scale is None else scale)[0]


def forward(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, rows: int, columns: int, scale: float
) -> tuple[Tensor, Tensor]:
    """(out, lse)."""
    from . import forward as kernels

    out, lse = _shapes(q, k, v, index, rows, columns, scale)
    plan = _Plan(q, index, rows, columns)
    launch(
        kernels.forward, plan.programs,
        q, k, v, _words(index) if plan.masked else index.contiguous(), out, lse,
        *plan.sizes, plan.tiles, plan.heads, scale, *q.stride(), *k.stride(), *v.stride(), *out.stride()[:2],
        **plan.constants, BM=plan.block, BN=plan.tile,
    )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor,
    wanted: list[bool],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    rows: int,
    columns: int,
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    from . import backward as kernels

    dq, dk, dv = like(q, grad), like(k, grad), like(v, grad)
    if not q.numel():
        return dq, dk, dv
    plan = _Plan(q, index, rows, columns)
    delta = torch.empty_like(lse)
    of_inputs, of_out = (*q.stride(), *k.stride(), *v.stride()), out.stride()[:2]
    words = _words(index) if plan.masked else index.contiguous()
    launch(
        kernels.backward_queries, plan.programs,
        q, k, v, words, out, grad, lse, dq, delta, *plan.sizes, plan.tiles, plan.heads, scale,
        *of_inputs, *of_out, *grad.stride(), **plan.constants, BM=plan.block, BN=plan.tile,
    )  # fmt: skip
    order = ends = slots = owners = words
    most = rest = 0
    if not plan.masked:
        order, ends = _turned_round(index)
        # a list is a few regions as a rule: from shapes alone follows how many pieces can be more than that
        most = max(2 * plan.picks, divide_up(_QUERIES, plan.tokens))
        rest = plan.groups * plan.picks // most if most < plan.count else 0
    partial = lse.new_empty(rest, plan.tiles, plan.heads, 2, plan.block, plan.padded_dim)
    constants = {**plan.constants, "BM": _ASKING, "BN": plan.block}
    if rest:
        slots, owners = _pieces(ends, most, rest)
        launch(
            kernels.backward_rest, plan.heads * plan.tiles * rest,
            q, k, v, grad, lse, delta, order, ends, slots, owners, partial,
            *plan.sizes, plan.tiles, most, plan.groups, plan.heads, scale, *of_inputs, *grad.stride(), **constants,
        )  # fmt: skip
    launch(
        kernels.backward_keys, plan.programs,
        q, k, v, grad, lse, delta, order, ends, slots, partial, dk, dv,
        *plan.sizes, plan.tiles, most, plan.heads, scale, *of_inputs, *of_out, *grad.stride(),
        **constants, SPLIT=rest > 0,
    )  # fmt: skip
    return dq, dk, dv


def _words(index: Tensor) -> Tensor:
    """A word (B, regions) for each region, with a bit for each that it is routed to."""
    return (torch.ones_like(index, dtype=torch.int64) << index).sum(-1)


def _turned_round(index: Tensor) -> tuple[Tensor, Tensor]:
    """Who asks for each region: see `backward.py` for `order` (B, regions * K) and `ends` (B, regions + 1)."""
    batch, count, picks = index.shape
    named, order = index.reshape(batch, count * picks).int().sort(dim=1, stable=True)
    numbers = torch.arange(count + 1, dtype=torch.int32, device=index.device).repeat(batch, 1)
    return order, torch.searchsorted(named, numbers, out_int32=True)


def _pieces(ends: Tensor, most: int, rest: int) -> tuple[Tensor, Tensor]:
    """Slots for pieces of lists after the first `most` entries: see `backward_rest` for `slots` and `owners`."""
    extra = (ends.diff(dim=1) - 1).clamp(min=0) // most
    slots = functional.pad(extra.flatten().cumsum(0, dtype=torch.int32), (1, 0))
    numbers = torch.arange(rest, dtype=torch.int32, device=ends.device)
    return slots, torch.searchsorted(slots, numbers, right=True, out_int32=True) - 1


def _shapes(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, rows: int, columns: int, scale: float
) -> tuple[Tensor, Tensor]:
    batch, height, width, heads, head_dim = q.shape
    tokens = (height // rows) * (width // columns)
    out = q.new_empty(batch, height, width, heads * head_dim)
    return out, q.new_empty(batch, heads, rows * columns, tokens, dtype=sums_in(q))


def _flops(q: Tensor, k: Tensor, v: Tensor, index: Tensor, rows: int, columns: int, *_: Any) -> int:
    batch, height, width, heads, head_dim = q.shape
    keys = index.shape[2] * (height // rows) * (width // columns)
    return 4 * batch * height * width * heads * head_dim * keys


_operator = register("routing_attention", forward, _shapes, backward, _flops, constant=("index",))


class _Plan:
    """How regions are dealt to programs."""

    def __init__(self, q: Tensor, index: Tensor, rows: int, columns: int) -> None:
        batch, height, width, self.heads, head_dim = q.shape
        tall, wide = height // rows, width // columns
        self.tokens = tokens = tall * wide
        self.count, self.picks = count, picks = rows * columns, index.shape[2]
        self.groups = batch * count
        self.sizes = (tall, wide, columns, count, picks)
        # a region of a few tokens takes 16 rows of a tile all the same, and a mask may hide as much
        self.masked = tokens <= 16 and count <= _BITS and count * tokens <= 32 * picks
        self.padded_dim = power_of_two(head_dim)
        half = q.element_size() == 2
        # products in float32 use no tensor cores, and larger tiles would not fit registers; a mask tells 32 regions
        self.tile = 64 if half and not (self.masked and tokens == 1) else 32
        self.block = self.tile if self.masked else min(self.tile, power_of_two(tokens))
        self.tiles = divide_up(count * tokens if self.masked else tokens, self.block)
        self.programs = self.heads * self.tiles * (batch if self.masked else self.groups)
        warps = (4 if self.block > 16 else 2) * (1 if half else 2)
        self.constants: dict[str, Any] = {
            "D": head_dim,
            "DP": self.padded_dim,
            "MASKED": self.masked,
            **numerics(q),
            "num_warps": min(8, warps * (2 if self.padded_dim > 64 else 1)),
            "num_stages": 2 if self.masked and not half else 3,
        }
