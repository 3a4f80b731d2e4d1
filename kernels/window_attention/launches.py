"""How windows are dealt to programs, and the launches of `window_attention`.

A window of up to 64 tokens (32 in float32) is one tile, several small ones are packed into one; of larger windows, a
program takes that many queries, or keys, and goes through the others.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._triton import INTERPRETED, divide_up, launch, numerics, power_of_two, sums_in

WIDE_TILE = 64 if INTERPRETED else 32
"""Tokens of a tile in float32, of which registers hold fewer; the interpreter takes its time for tiles of any size."""

_PROGRAMS = 512
"""About so many programs share what is summed over all windows: fixed, so that sums are the same on every GPU."""


@dataclass(frozen=True)
class Inputs:
    """What kernels read: q, k, v (B, H, W, heads, D) with any strides, and tables, contiguous."""

    q: Tensor
    k: Tensor
    v: Tensor
    table: Tensor | None
    pad: Tensor | None
    lepe_weight: Tensor | None
    lepe_bias: Tensor | None
    scale: float

    def tables(self, *names: str) -> list[Tensor]:
        """Pointers to tables; where there is none, one that is not followed."""
        given = (getattr(self, name) for name in names)
        return [self.q if x is None else x for x in given]

    @property
    def strides(self) -> tuple[int, ...]:
        """Of q, k and v."""
        return (*self.q.stride(), *self.k.stride(), *self.v.stride())

    @property
    def options(self) -> dict[str, bool]:
        """Which tables there are, as kernels ask."""
        return {
            "BIAS": self.table is not None,
            "PADDED": self.pad is not None,
            "LEPE": self.lepe_weight is not None,
        }


class Plan:
    """How windows are dealt to programs."""

    def __init__(self, q: Tensor, geometry: list[int], grid: bool, bias: bool) -> None:
        batch, height, width, self.heads, self.head_dim = q.shape
        wh, ww, top, left = geometry
        rows, columns = divide_up(top + height, wh), divide_up(left + width, ww)
        self.tokens = tokens = wh * ww
        tile = 64 if q.element_size() == 2 else WIDE_TILE
        self.warps = 8 if bias and tokens > tile == 64 else 4  # the bias of a large tile takes registers
        self.windows = batch * rows * columns
        self.stages = 2 if q.element_size() == 2 else 1
        self.pack = tile // tokens if tokens <= tile // 2 else 1
        self.block = power_of_two(self.pack * tokens) if tokens <= tile else tile
        self.tiles = divide_up(tokens, self.block)
        self.groups = divide_up(self.windows, self.pack)
        self.padded_dim = power_of_two(self.head_dim)
        self.sizes = (height, width, rows, columns, top, left, wh, ww, self.windows)
        self.constants: dict[str, Any] = {
            "D": self.head_dim,
            "DP": self.padded_dim,
            "WH": _constant(wh),
            "WW": _constant(ww),
            "GRID": grid,
            "BLOCK": self.block,
        }

    def rounds(self, pieces: int, each: int = 1) -> tuple[int, int]:
        """(rounds, programs a head) to sum over so many pieces, where `each` programs a head do the same round."""
        rounds = max(1, divide_up(pieces, max(1, _PROGRAMS // (self.heads * each))))
        return rounds, divide_up(pieces, rounds)


def _constant(side: int) -> int:
    return side if side <= 16 else 0


def result(plan: Plan, inputs: Inputs, out: Tensor, lse: Tensor) -> None:
    """Fill out (B, H, W, heads * D), part of rows that may be longer, and lse."""
    from . import forward as kernels

    launch(
        kernels.forward, plan.heads * plan.tiles * plan.groups,
        inputs.q, inputs.k, inputs.v, out, lse, *inputs.tables("table", "pad", "lepe_weight", "lepe_bias"),
        *plan.sizes, plan.tiles, plan.heads, out.stride(2), inputs.scale, *inputs.strides,
        **plan.constants, **inputs.options, PACK=plan.pack, LEPE_BIAS=inputs.lepe_bias is not None,
        **numerics(inputs.q), num_warps=plan.warps, num_stages=plan.stages,
    )  # fmt: skip


def gradients(
    plan: Plan, inputs: Inputs, grad: Tensor, out: Tensor, lse: Tensor, room: list[Tensor], learns: bool
) -> tuple[Tensor, Tensor]:
    """Fill `room`, the gradients of q, k and v; returns those of the table, if it learns, and of a padding."""
    if plan.tiles == 1:
        dbias, dpad = _whole(plan, inputs, grad, out, lse, room)
    else:
        dbias, dpad = _in_tiles(plan, inputs, grad, out, lse, room, learns)
    if inputs.table is not None and learns:
        dbias = _table_gradient(dbias, plan.sizes[6], plan.sizes[7])
    if inputs.pad is not None:
        dpad = _pad_gradient(dpad, plan.head_dim)
    return dbias, dpad


def _whole(
    plan: Plan, inputs: Inputs, grad: Tensor, out: Tensor, lse: Tensor, room: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Windows of one tile; returns the gradients of the scores' bias (heads, T, T) and of the edge (heads, 2, DP)."""
    from . import backward as kernels

    table, pad = inputs.table is not None, inputs.pad is not None
    rounds, chunks = plan.rounds(plan.groups) if table else (1, plan.groups)
    dbias = lse.new_empty((chunks, plan.heads, plan.block, plan.block) if table else 0)
    dpad = lse.new_empty((chunks, plan.heads, rounds, 2, plan.padded_dim) if pad else 0)
    launch(
        kernels.backward_whole, plan.heads * chunks,
        inputs.q, inputs.k, inputs.v, grad, lse, *inputs.tables("table", "pad", "lepe_weight"), *room, dbias, dpad,
        *plan.sizes, plan.heads, rounds, room[0].stride(2), inputs.scale, *inputs.strides, *grad.stride(),
        **plan.constants, **inputs.options, PACK=plan.pack,
        **numerics(inputs.q), num_warps=8 if plan.block == 64 else 4, num_stages=1,
    )  # fmt: skip
    if table:
        tokens = plan.pack * plan.tokens
        dbias = dbias.sum(0)[:, :tokens, :tokens].unflatten(1, (plan.pack, -1)).unflatten(3, (plan.pack, -1))
        dbias = dbias.diagonal(dim1=1, dim2=3).sum(-1)  # pairs of one window each
    return dbias, dpad.sum((0, 2)) if pad else dpad


def _in_tiles(
    plan: Plan, inputs: Inputs, grad: Tensor, out: Tensor, lse: Tensor, room: list[Tensor], learns: bool
) -> tuple[Tensor, Tensor]:
    """The same, of windows that are larger than a tile."""
    from . import backward as kernels

    pad = inputs.pad is not None
    qkv, strides = (inputs.q, inputs.k, inputs.v), (*inputs.strides, *grad.stride())
    programs = plan.heads * plan.tiles * plan.windows
    constants = {**plan.constants, **numerics(inputs.q), "num_warps": plan.warps, "num_stages": plan.stages}
    delta = torch.empty_like(lse)
    launch(
        kernels.backward_queries, programs,
        *qkv, out, grad, lse, *inputs.tables("table", "pad", "lepe_weight", "lepe_bias"), room[0], delta,
        *plan.sizes, plan.tiles, plan.heads, out.stride(2), room[0].stride(2), inputs.scale, *strides,
        **constants, **inputs.options, LEPE_BIAS=inputs.lepe_bias is not None,
    )  # fmt: skip
    dpad = lse.new_empty((plan.windows, plan.tiles, plan.heads, 2, plan.padded_dim) if pad else 0)
    launch(
        kernels.backward_keys, programs,
        *qkv, grad, lse, delta, *inputs.tables("table", "pad", "lepe_weight"), *room[1:], dpad,
        *plan.sizes, plan.tiles, plan.heads, room[1].stride(2), inputs.scale, *strides, **constants, **inputs.options,
    )  # fmt: skip
    dpad = dpad.sum((0, 1)) if pad else dpad
    if inputs.table is None or not learns:
        return lse.new_empty(0), dpad
    rounds, chunks = plan.rounds(plan.windows, plan.tiles**2)
    side = plan.tiles * plan.block
    dbias = lse.new_empty(chunks, plan.heads, side, side)
    launch(
        kernels.backward_bias, plan.heads * plan.tiles**2 * chunks,
        *qkv, grad, lse, delta, *inputs.tables("table", "pad"), dbias,
        *plan.sizes, plan.tiles, plan.heads, rounds, inputs.scale, *strides, **constants, PADDED=pad,
    )  # fmt: skip
    return dbias.sum(0)[:, : plan.tokens, : plan.tokens], dpad


def _pad_gradient(sums: Tensor, head_dim: int) -> Tensor:
    """(heads, 2, DP) of keys and values -> (3, heads, D): a padded query has no result, so no gradient."""
    sums = sums[:, :, :head_dim].transpose(0, 1)
    return torch.cat([torch.zeros_like(sums[:1]), sums])


def _table_gradient(dbias: Tensor, wh: int, ww: int) -> Tensor:
    """(heads, T, T) -> (heads, 2 wh - 1, 2 ww - 1): the sum over all pairs that lie alike."""
    heads = dbias.shape[0]
    windows = dbias.reshape(heads, wh, ww, wh, ww).flip(1, 2)  # the first window is the last query's
    columns = torch.ops.aten.unfold_backward(windows, [heads, wh, 2 * ww - 1, wh], 2, ww, 1)
    return torch.ops.aten.unfold_backward(columns, [heads, 2 * wh - 1, 2 * ww - 1], 1, wh, 1)


def lepe_gradient(plan: Plan, inputs: Inputs, grad: Tensor) -> Tensor:
    """(heads, 16, D): gradients of the nine taps of LePE, and of its bias in row 9."""
    from . import backward as kernels

    rounds, chunks = plan.rounds(divide_up(plan.windows * plan.tokens, plan.block))
    sums = grad.new_empty(chunks, plan.heads, 16, plan.padded_dim, dtype=sums_in(inputs.v))
    launch(
        kernels.backward_lepe, plan.heads * chunks,
        inputs.v, grad, *inputs.tables("pad"), sums, *plan.sizes, plan.heads, rounds,
        *inputs.v.stride(), *grad.stride(),
        **plan.constants, PADDED=inputs.pad is not None, ACC=numerics(inputs.v)["ACC"], num_warps=4, num_stages=2,
    )  # fmt: skip
    return sums.sum(0)[:, :, : plan.head_dim]
