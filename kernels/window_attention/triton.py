"""`window_attention` on Triton: windows are read from the map and written to it, with no copy before, between or after.

A window of up to 64 tokens (32 in float32) is one tile, several small ones are packed into one; of larger windows, a
program takes that many queries, or keys, and goes through the others.
"""

from typing import Any

import torch
from torch import Tensor

from .._triton import INTERPRETED, divide_up, launch, like, numerics, power_of_two, register, sums_in

WIDE_TILE = 64 if INTERPRETED else 32
"""Tokens of a tile in float32, of which registers hold fewer; the interpreter takes its time for tiles of any size."""

_PROGRAMS = 512
"""About so many programs share what is summed over all windows: fixed, so that sums are the same on every GPU."""


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: tuple[int, int],
    partition: str = "block",
    scale: float | None = None,
    bias_table: Tensor | None = None,
    pad: Tensor | None = None,
    pad_offset: tuple[int, int] = (0, 0),
    lepe_weight: Tensor | None = None,
    lepe_bias: Tensor | None = None,
) -> Tensor:
    """See `vertebra.kernels.window_attention`."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    geometry = [*window, *pad_offset]
    return _operator(q, k, v, bias_table, pad, lepe_weight, lepe_bias, geometry, partition == "grid", scale)[0]


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    pad: Tensor | None,
    lepe_weight: Tensor | None,
    lepe_bias: Tensor | None,
    geometry: list[int],
    grid: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """(out, lse); geometry: wh, ww, top, left."""
    from . import forward as kernels

    out, lse = _shapes(q, k, v, table, pad, lepe_weight, lepe_bias, geometry, grid, scale)
    plan = _Plan(q, geometry, grid, table is not None)
    table, pad, weight, bias = (_contiguous(x) for x in (table, pad, lepe_weight, lepe_bias))
    launch(
        kernels.forward, plan.heads * plan.tiles * plan.groups,
        q, k, v, out, lse, _or(table, q), _or(pad, q), _or(weight, q), _or(bias, q),
        *plan.sizes, plan.tiles, plan.heads, scale, *q.stride(), *k.stride(), *v.stride(),
        **plan.constants, PACK=plan.pack, BIAS=table is not None, PADDED=pad is not None, LEPE=weight is not None,
        LEPE_BIAS=bias is not None, **numerics(q), num_warps=plan.warps, num_stages=plan.stages,
    )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    pad: Tensor | None,
    lepe_weight: Tensor | None,
    lepe_bias: Tensor | None,
    geometry: list[int],
    grid: bool,
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, table, pad, lepe_weight and lepe_bias."""
    plan = _Plan(q, geometry, grid, table is not None)
    given = [table, pad, lepe_weight, lepe_bias]
    table, pad, lepe_weight, lepe_bias = (_contiguous(x) for x in given)
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    arguments = (grad, q, k, v, table, pad, lepe_weight, lepe_bias, scale, out, lse, dq, dk, dv)
    dbias, dpad = (_whole if plan.tiles == 1 else _in_tiles)(plan, *arguments)
    gradients = [like(x) for x in given]
    if table is not None:
        gradients[0] = _table_gradient(dbias, geometry[0], geometry[1]).to(table.dtype)
    if pad is not None:
        gradients[1] = dpad.to(pad.dtype)
    if lepe_weight is not None:
        sums = _lepe_sums(plan, grad, v, pad)
        # clones: results of an operator may not share memory
        weights = sums[:, :9].transpose(1, 2).clone(memory_format=torch.contiguous_format)
        gradients[2] = weights.view(lepe_weight.shape).to(lepe_weight.dtype)
        if lepe_bias is not None:
            gradients[3] = sums[:, 9].clone().flatten().to(lepe_bias.dtype)
    return dq, dk, dv, gradients[0], gradients[1], gradients[2], gradients[3]


def _shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    pad: Tensor | None,
    lepe_weight: Tensor | None,
    lepe_bias: Tensor | None,
    geometry: list[int],
    grid: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    batch, height, width, heads, head_dim = q.shape
    wh, ww, top, left = geometry
    windows = batch * divide_up(top + height, wh) * divide_up(left + width, ww)
    out = q.new_empty(batch, height, width, heads * head_dim)
    return out, q.new_empty(heads, windows, wh * ww, dtype=sums_in(q))


def _flops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    pad: Tensor | None,
    lepe_weight: Tensor | None,
    lepe_bias: Tensor | None,
    geometry: list[int],
    *_: Any,
) -> int:
    batch, height, width, heads, head_dim = q.shape
    wh, ww, top, left = geometry
    windows = batch * divide_up(top + height, wh) * divide_up(left + width, ww)
    taps = 0 if lepe_weight is None else 18
    return windows * wh * ww * heads * head_dim * (4 * wh * ww + taps)


_operator = register("window_attention", forward, _shapes, backward, _flops)


class _Plan:
    """How windows are dealt to programs."""

    def __init__(self, q: Tensor, geometry: list[int], grid: bool, bias: bool) -> None:
        batch, height, width, self.heads, self.head_dim = q.shape
        wh, ww, top, left = geometry
        rows, columns = divide_up(top + height, wh), divide_up(left + width, ww)
        self.tokens = tokens = wh * ww
        tile = 64 if q.element_size() == 2 else WIDE_TILE
        self.warps = 8 if bias and tokens > tile else 4  # the bias of a whole tile takes registers
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


def _contiguous(x: Tensor | None) -> Tensor | None:
    """A table, which is small, in the order in which kernels read it."""
    return None if x is None else x.contiguous()


def _or(x: Tensor | None, other: Tensor) -> Tensor:
    """A pointer that is not followed, in the place of None."""
    return other if x is None else x


def _whole(
    plan: _Plan,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    pad: Tensor | None,
    lepe_weight: Tensor | None,
    lepe_bias: Tensor | None,
    scale: float,
    out: Tensor,
    lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fill dq, dk and dv; returns the gradients of the scores' bias (heads, T, T) and of the padding (3, heads, D)."""
    from . import backward as kernels

    rounds, chunks = plan.rounds(plan.groups) if table is not None else (1, plan.groups)
    dbias = lse.new_empty((chunks, plan.heads, plan.block, plan.block) if table is not None else 0)
    dpad = lse.new_empty((chunks, plan.heads, rounds, 2, plan.padded_dim) if pad is not None else 0)
    launch(
        kernels.backward_whole, plan.heads * chunks,
        q, k, v, grad, lse, _or(table, q), _or(pad, q), _or(lepe_weight, q), dq, dk, dv, dbias, dpad,
        *plan.sizes, plan.heads, rounds, scale, *q.stride(), *k.stride(), *v.stride(), *grad.stride(),
        **plan.constants, PACK=plan.pack, BIAS=table is not None, PADDED=pad is not None,
        LEPE=lepe_weight is not None, **numerics(q), num_warps=8 if plan.block == 64 else 4, num_stages=1,
    )  # fmt: skip
    if table is not None:
        tokens = plan.pack * plan.tokens
        dbias = dbias.sum(0)[:, :tokens, :tokens].unflatten(1, (plan.pack, -1)).unflatten(3, (plan.pack, -1))
        dbias = dbias.diagonal(dim1=1, dim2=3).sum(-1)  # pairs of one window each
    if pad is not None:
        dpad = _pad_gradient(dpad.sum((0, 2)), plan.head_dim)
    return dbias, dpad


def _in_tiles(
    plan: _Plan,
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None,
    pad: Tensor | None,
    lepe_weight: Tensor | None,
    lepe_bias: Tensor | None,
    scale: float,
    out: Tensor,
    lse: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> tuple[Tensor, Tensor]:
    """The same, of windows that are larger than a tile."""
    from . import backward as kernels

    strides = (*q.stride(), *k.stride(), *v.stride(), *grad.stride())
    options = {"BIAS": table is not None, "PADDED": pad is not None, "LEPE": lepe_weight is not None}
    programs = plan.heads * plan.tiles * plan.windows
    delta = torch.empty_like(lse)
    launch(
        kernels.backward_queries, programs,
        q, k, v, out, grad, lse, _or(table, q), _or(pad, q), _or(lepe_weight, q), _or(lepe_bias, q), dq, delta,
        *plan.sizes, plan.tiles, plan.heads, scale, *strides,
        **plan.constants, **options, LEPE_BIAS=lepe_bias is not None,
        **numerics(q), num_warps=plan.warps, num_stages=plan.stages,
    )  # fmt: skip
    dpad = lse.new_empty((plan.windows, plan.tiles, plan.heads, 2, plan.padded_dim) if pad is not None else 0)
    launch(
        kernels.backward_keys, programs,
        q, k, v, grad, lse, delta, _or(table, q), _or(pad, q), _or(lepe_weight, q), dk, dv, dpad,
        *plan.sizes, plan.tiles, plan.heads, scale, *strides,
        **plan.constants, **options, **numerics(q), num_warps=plan.warps, num_stages=plan.stages,
    )  # fmt: skip
    if pad is not None:
        dpad = _pad_gradient(dpad.sum((0, 1)), plan.head_dim)
    if table is None:
        return lse.new_empty(0), dpad
    rounds, chunks = plan.rounds(plan.windows, plan.tiles**2)
    side = plan.tiles * plan.block
    dbias = lse.new_empty(chunks, plan.heads, side, side)
    launch(
        kernels.backward_bias, plan.heads * plan.tiles**2 * chunks,
        q, k, v, grad, lse, delta, table, _or(pad, q), dbias,
        *plan.sizes, plan.tiles, plan.heads, rounds, scale, *strides,
        **plan.constants, PADDED=pad is not None, **numerics(q), num_warps=plan.warps, num_stages=plan.stages,
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


def _lepe_sums(plan: _Plan, grad: Tensor, v: Tensor, pad: Tensor | None) -> Tensor:
    """(heads, 16, D): gradients of the nine taps of LePE, and of its bias in row 9."""
    from . import backward as kernels

    rounds, chunks = plan.rounds(divide_up(plan.windows * plan.tokens, plan.block))
    sums = grad.new_empty(chunks, plan.heads, 16, plan.padded_dim, dtype=sums_in(v))
    numbers = numerics(v)
    launch(
        kernels.backward_lepe, plan.heads * chunks,
        v, grad, _or(pad, v), sums, *plan.sizes, plan.heads, rounds, *v.stride(), *grad.stride(),
        **plan.constants, PADDED=pad is not None, ACC=numbers["ACC"], num_warps=plan.warps, num_stages=plan.stages,
    )  # fmt: skip
    return sums.sum(0)[:, :, : plan.head_dim]
