"""`neighborhood_pool_attention` on Triton: normalisation, scores, softmax and learned weights in one kernel.

A program takes a patch of 8 x 8 pixels of one head. Neighbours are read where they lie, and the bias where it stands in
its table; scores are never written. The backward pass gathers: a key looks at the queries around it. What belongs to
parameters is written once a patch and summed by torch.

The bias table's gradient takes a sum over images and over all pairs that read an entry. A kernel writes the sums over
images for some rows of queries, at most 128 MiB at once; two more passes add up what belongs to each column, then to
each row of the table, along lists sorted beforehand (`table.py`). All sums have a fixed order.
"""

from typing import Any

import torch
from torch import Tensor

from .._triton import divide_up, launch, like, numerics, power_of_two, register, sums_in

SIDE = 8
_PROGRAMS = 1024
"""About so many programs share what is summed over patches or images: fixed, so that sums are the same on every GPU."""

_PAIRS = 2**25
"""The most pairs of a pixel and a pooled one whose gradients are written out at once."""


def neighborhood_pool_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    query_embedding: Tensor,
    temperature: Tensor,
    relative_pos_bias_local: Tensor,
    learnable_tokens: Tensor,
    learnable_bias: Tensor,
    bias_table: Tensor,
    bias_rows: Tensor,
    bias_columns: Tensor,
) -> Tensor:
    """See `vertebra.kernels.neighborhood_pool_attention`."""
    if bias_rows.is_floating_point():
        bias_table, bias_rows, bias_columns = _interpolated(bias_table, bias_rows, bias_columns)
    return _operator(
        q,
        k,
        v,
        pool_k,
        pool_v,
        query_embedding,
        temperature,
        relative_pos_bias_local,
        learnable_tokens,
        learnable_bias,
        bias_table,
        bias_rows,
        bias_columns,
    )[0]


def _interpolated(table: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The table that weights (H, ph, Th) and (W, pw, Tw) make of another, and the place of each pair in it."""
    table = rows.flatten(0, 1).to(table.dtype) @ table @ columns.flatten(0, 1).t().to(table.dtype)
    places = [torch.arange(x.shape[0] * x.shape[1], device=x.device).view(x.shape[:2]) for x in (rows, columns)]
    return table, places[0], places[1]


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    embedding: Tensor,
    temperature: Tensor,
    local: Tensor,
    tokens: Tensor,
    learned_bias: Tensor,
    table: Tensor,
    rows: Tensor,
    columns: Tensor,
) -> tuple[Tensor, Tensor]:
    """(out, lse)."""
    from . import forward as kernels

    out, lse = _shapes(
        q, k, v, pool_k, pool_v, embedding, temperature, local, tokens, learned_bias, table, rows, columns
    )
    plan = _Plan(q, pool_k, table, rows, columns, [q, k, v, pool_k, pool_v])
    launch(
        kernels.forward, plan.heads * plan.pieces,
        q, k, v, pool_k, pool_v, out, lse,
        *(x.contiguous() for x in (embedding, temperature, local, tokens, learned_bias, table)),
        plan.rows, plan.columns,
        *plan.map, *plan.pool, *plan.strides(q, k, v, pool_k, pool_v), **plan.constants, **numerics(q), **plan.how,
    )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor,
    wanted: list[bool],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    embedding: Tensor,
    temperature: Tensor,
    local: Tensor,
    tokens: Tensor,
    learned_bias: Tensor,
    table: Tensor,
    rows: Tensor,
    columns: Tensor,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of all arguments but `rows` and `columns`."""
    from . import backward as kernels

    plan = _Plan(q, pool_k, table, rows, columns, [q, k, v, pool_k, pool_v, grad])
    given = (embedding, temperature, local, tokens, learned_bias, table)
    parameters = tuple(x.contiguous() for x in given)
    embedding, temperature, local, tokens, learned_bias, table = parameters
    dq, dk, dv, delta = like(q, grad), like(k, grad), like(v, grad), torch.empty_like(lse)
    sums = lse.new_empty(plan.pieces, plan.heads, 10 * plan.head_dim + 19)
    launch(
        kernels.backward_queries, plan.heads * plan.pieces,
        q, k, v, pool_k, pool_v, out, lse, grad, delta, dq, sums, *parameters, plan.rows, plan.columns,
        *plan.map, *plan.pool, *plan.strides(q, k, v, pool_k, pool_v, grad),
        **plan.constants, **numerics(q), SMALL="tf32" if q.itemsize == 2 else "tf32x3", **plan.how,
    )  # fmt: skip
    constants = {key: value for key, value in plan.constants.items() if key != "BP"}
    launch(
        kernels.backward_keys, plan.heads * plan.pieces,
        q, k, v, lse, grad, delta, dk, dv, embedding, temperature, local, tokens, learned_bias,
        *plan.map, plan.heads, plan.pooled, *plan.strides(q, k, v, grad),
        **constants, ACC=numerics(q)["ACC"], **plan.how,
    )  # fmt: skip
    rounds = plan.rounds(plan.patches, plan.heads * plan.tiles * plan.images)
    splits = divide_up(plan.patches, rounds)
    dpool = lse.new_empty(splits, 2, *pool_k.shape)
    launch(
        kernels.backward_pool, plan.heads * plan.tiles * plan.images * splits,
        q, pool_k, pool_v, lse, grad, delta, dpool, embedding, temperature, table, plan.rows, plan.columns,
        plan.images, *plan.map, plan.tiles, rounds, *plan.pool, *plan.strides(q, pool_k, pool_v, grad),
        **plan.constants, **numerics(q), **plan.how,
    )  # fmt: skip
    dpool_k, dpool_v = (dpool[:, i].sum(0).to(q.dtype) for i in range(2))
    d_embedding, d_temperature, d_local, d_tokens, d_bias = (
        like(x, grad).copy_(gradient.reshape(x.shape))
        for x, gradient in zip(given, _parameter_gradients(sums.sum(0), temperature, plan.head_dim), strict=False)
    )
    d_table = like(table, grad)
    if wanted[10]:
        d_table.copy_(_table_gradient(plan, grad, q, pool_k, pool_v, embedding, temperature, table, lse, delta))
    return dq, dk, dv, dpool_k, dpool_v, d_embedding, d_temperature, d_local, d_tokens, d_bias, d_table


def _shapes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    embedding: Tensor,
    temperature: Tensor,
    local: Tensor,
    tokens: Tensor,
    learned_bias: Tensor,
    table: Tensor,
    rows: Tensor,
    columns: Tensor,
) -> tuple[Tensor, Tensor]:
    batch, height, width, heads, head_dim = q.shape
    out = q.new_empty(batch, height, width, heads * head_dim)
    return out, q.new_empty(batch, heads, height * width, dtype=sums_in(q))


def _flops(q: Tensor, k: Tensor, v: Tensor, pool_k: Tensor, *_: Any) -> int:
    return q.numel() * (4 * (9 + pool_k.shape[1]) + 2 * 9)


_operator = register("neighborhood_pool_attention", forward, _shapes, backward, _flops, constant=("rows", "columns"))


class _Plan:
    """How patches and pooled keys are dealt to programs, and the numbers that all kernels take.

    Args:
        q, pool_k, table, rows, columns: the operator's arguments.
        tensors: what kernels read by strides.
    """

    def __init__(
        self, q: Tensor, pool_k: Tensor, table: Tensor, rows: Tensor, columns: Tensor, tensors: list[Tensor]
    ) -> None:
        self.images, self.height, self.width, self.heads, self.head_dim = q.shape
        self.pooled = pool_k.shape[1]
        self.down, self.across = divide_up(self.height, SIDE), divide_up(self.width, SIDE)
        self.patches = self.down * self.across
        self.pieces = self.patches * self.images
        short = q.itemsize == 2
        keys = 32 if short else 16  # products of float32 are made of single multiplications, which want registers
        self.tiles = divide_up(self.pooled, keys)
        self.padded_dim = power_of_two(self.head_dim)
        self.rows, self.columns = _narrow(rows), _narrow(columns)
        self.map = (self.height, self.width, self.patches, self.across)
        self.pool = (
            self.heads,
            self.pooled,
            columns.shape[1],
            *table.shape[1:],
            *self.rows.stride(),
            *self.columns.stride(),
        )
        even = all(stride % 8 == 0 for x in tensors for stride in _steps(x))
        self.unit = 8 if even and self.head_dim % 8 == 0 else 1
        self.constants: dict[str, Any] = {
            "D": self.head_dim,
            "DP": self.padded_dim,
            "BP": keys,
            "UNIT": self.unit,
        }
        self.how = {"num_warps": 4, "num_stages": 2}
        if not short or self.padded_dim > 32:
            self.how = {"num_warps": 8, "num_stages": 1}

    def strides(self, *tensors: Tensor) -> list[int]:
        """Of each tensor in turn, in units but for the last."""
        return [stride for x in tensors for stride in (*(step // self.unit for step in _steps(x)), x.stride(-1))]

    def rounds(self, pieces: int, each: int) -> int:
        """How many patches or images a program takes in turn, where `each` programs work on every one."""
        return max(1, divide_up(pieces, max(1, _PROGRAMS // max(1, each))))


def _steps(x: Tensor) -> list[int]:
    """Strides but for the last; along sides of one element, nobody steps."""
    return [stride if size > 1 else 0 for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True)]


def _narrow(index: Tensor) -> Tensor:
    """The lower halves of 64-bit numbers, of which indices need no more: a view."""
    if index.dtype != torch.int64:
        return index.to(torch.int32)
    return index.contiguous().view(torch.int32)[..., ::2]


def _parameter_gradients(sums: Tensor, temperature: Tensor, head_dim: int) -> list[Tensor]:
    """Gradients of embedding, temperature, local bias, tokens and learned bias, from what patches sum up."""
    rows, numbers = sums[:, : 10 * head_dim].unflatten(1, (10, head_dim)), sums[:, 10 * head_dim :]
    slope = torch.sigmoid(temperature.to(sums.dtype)).flatten()
    return [rows[:, 9], numbers[:, 18] * slope, numbers[:, :9], rows[:, :9].transpose(1, 2), numbers[:, 9:18]]


def _table_gradient(
    plan: _Plan,
    grad: Tensor,
    q: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    embedding: Tensor,
    temperature: Tensor,
    table: Tensor,
    lse: Tensor,
    delta: Tensor,
) -> Tensor:
    """(heads, Th, Tw)."""
    from . import table as kernels

    heads, height, width, pooled = plan.heads, plan.height, plan.width, plan.pooled
    pw = plan.columns.shape[1]
    ph = plan.rows.shape[1]
    _, th, tw = table.shape
    row_lists = _lists(plan.rows.flatten(), th)
    column_lists = _lists(plan.columns.t().flatten(), tw)  # pooled columns first: pixels of a row stay together
    per_row = heads * SIDE * width * pooled
    step = min(plan.down, max(1, _PAIRS // max(1, per_row)))  # rows of patches written out at once
    rounds = plan.rounds(plan.images, heads * plan.tiles * step * plan.across)
    chunks = divide_up(plan.images, rounds)
    by_column = lse.new_empty(heads, height, ph, tw)
    for first in range(0, plan.down, step):
        patches = (min(first + step, plan.down) - first) * plan.across
        top, bottom = first * SIDE, min((first + step) * SIDE, height)
        pairs = lse.new_empty(chunks, heads, bottom - top, pooled, width)
        launch(
            kernels.backward_bias, heads * plan.tiles * patches * chunks,
            q, pool_k, pool_v, lse, grad, delta, pairs, embedding, temperature, table, plan.rows, plan.columns,
            plan.images, *plan.map, first * plan.across, patches, bottom, plan.tiles, rounds, *plan.pool,
            *plan.strides(q, pool_k, pool_v, grad), **plan.constants, **numerics(q), **plan.how,
        )  # fmt: skip
        group = (bottom - top) * ph
        _sum(
            pairs, by_column[:, top:], column_lists, (heads * group, pw * width, tw, 1), chunks, group, height * ph * tw
        )
    out = lse.new_empty(heads, th, tw)
    _sum(by_column, out, row_lists, (heads, height * ph, th, tw), 1, 1, th * tw)
    return out


def _lists(index: Tensor, values: int) -> tuple[Tensor, Tensor]:
    """Where each of the values 0, 1 ... occurs in `index`: places, and where the places of each value start."""
    found, order = index.sort(stable=True)
    return order, torch.searchsorted(found, torch.arange(values + 1, dtype=found.dtype, device=found.device))


def _sum(
    x: Tensor,
    out: Tensor,
    lists: tuple[Tensor, Tensor],
    shape: tuple[int, int, int, int],
    chunks: int,
    group: int,
    stride_group: int,
) -> None:
    """See `sum_lists`; shape: (count, places, number of lists, width)."""
    from . import table as kernels

    count, _, number, width = shape
    rows, lanes = 4, 64
    tiles = divide_up(number * width, lanes)
    launch(
        kernels.sum_lists, tiles * divide_up(count, rows),
        x, out, *lists, *shape, tiles, chunks, x.stride(0), group, stride_group,
        ROWS=rows, LANES=lanes, ACC=numerics(x)["ACC"], num_warps=4,
    )  # fmt: skip
