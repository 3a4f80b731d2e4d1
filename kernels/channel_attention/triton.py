"""`channel_attention` on Triton: every token is read once and written once in each pass."""

import torch
from torch import Tensor

from .._triton import launch, like, register, sums_in


def channel_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, transposed: bool = False) -> Tensor:
    """See `vertebra.kernels.channel_attention`."""
    return _operator(q, k, v, scale, transposed)[0]


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float | None, transposed: bool) -> tuple[Tensor, Tensor]:
    """(out, scores): the scores before they are scaled."""
    from .._state import Plan
    from . import forward as kernels

    out, scores = _shapes(q, k, v, scale, transposed)
    plan, factor = Plan(q, rows=q.shape[3]), _factor(q, scale, transposed)
    left, right, mixed = (q, k, v) if transposed else (k, v, q)
    pair = (*left.stride(), *right.stride())
    if plan.whole:
        launch(
            kernels.whole, plan.programs, left, right, mixed, scores, out, *plan.sizes, factor, *pair, *mixed.stride(),
            **plan.constants,
        )  # fmt: skip
        return out, scores
    parts = plan.state(q)
    launch(kernels.gather, plan.programs, left, right, parts, *plan.sizes, *pair, **plan.constants)
    torch.sum(parts, 1, out=scores)
    launch(kernels.apply, plan.programs, mixed, scores, out, *plan.sizes, factor, *mixed.stride(), **plan.constants)
    return out, scores


def backward(
    grad: Tensor,
    wanted: list[bool],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    transposed: bool,
    out: Tensor | None,
    scores: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    from .._state import Plan, by_head
    from . import backward as kernels

    plan, factor = Plan(q, rows=q.shape[3]), _factor(q, scale, transposed)
    dq, dk, dv = like(q, grad), like(k, grad), like(v, grad)
    left, right, mixed = (q, k, v) if transposed else (k, v, q)
    dleft, dright, dmixed = (dq, dk, dv) if transposed else (dk, dv, dq)
    parts = plan.state(q)
    launch(
        kernels.backward_gather, plan.programs, grad, mixed, scores, parts, dmixed, *plan.sizes, factor,
        *by_head(grad, q.shape[3]), *mixed.stride(), **plan.constants,
    )  # fmt: skip
    launch(
        kernels.backward_apply, plan.programs, left, right, scores, plan.sum(parts), dleft, dright, *plan.sizes, factor,
        *left.stride(), *right.stride(), **plan.constants,
    )  # fmt: skip
    return dq, dk, dv


def _factor(q: Tensor, scale: float | None, transposed: bool) -> float:
    if scale is not None:
        return scale
    return max(1, q.shape[1] if transposed else q.shape[3]) ** -0.5


def _shapes(q: Tensor, k: Tensor, v: Tensor, scale: float | None, transposed: bool) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, head_dim = q.shape
    out = q.new_empty(batch, tokens, heads * head_dim)
    return out, q.new_empty(batch, heads, head_dim, head_dim, dtype=sums_in(q))


def _flops(q: Tensor, *_: object) -> int:
    batch, tokens, heads, head_dim = q.shape
    return 4 * batch * tokens * heads * head_dim**2


_operator = register("channel_attention", forward, _shapes, backward, _flops, unread=("out",), backward_flops=2)
