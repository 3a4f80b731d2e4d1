"""`linear_attention` on Triton: every token is read once and written once in each pass."""

import torch
from torch import Tensor

from .._triton import launch, like, register, sums_in


def linear_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, min_denominator: float = 100.0) -> Tensor:
    """See `vertebra.kernels.linear_attention`."""
    return _operator(q, k, v, temperature, min_denominator)[0]


def forward(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, min_denominator: float) -> tuple[Tensor, Tensor]:
    """(out, state): relu(k)ᵀ v in D rows, and the sum of relu(k) in one more."""
    from .._state import Plan
    from . import forward as kernels

    out, state = _shapes(q, k, v, temperature, min_denominator)
    plan, shares = Plan(q, rows=q.shape[3] + 1), temperature.contiguous()
    pair = (*k.stride(), *v.stride())
    if plan.whole:
        launch(
            kernels.whole, plan.programs, q, k, v, shares, state, out, *plan.sizes, min_denominator, *q.stride(), *pair,
            **plan.constants,
        )  # fmt: skip
        return out, state
    parts = plan.state(q)
    launch(kernels.gather, plan.programs, k, v, parts, *plan.sizes, *pair, **plan.constants)
    torch.sum(parts, 1, out=state)
    launch(
        kernels.apply, plan.programs, q, shares, state, out, *plan.sizes, min_denominator, *q.stride(),
        **plan.constants,
    )  # fmt: skip
    return out, state


def backward(
    grad: Tensor,
    wanted: list[bool],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    temperature: Tensor,
    min_denominator: float,
    out: Tensor | None,
    state: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and temperature."""
    from .._state import Plan, by_head
    from . import backward as kernels

    plan, shares = Plan(q, rows=q.shape[3] + 1), temperature.contiguous()
    dq, dk, dv = like(q, grad), like(k, grad), like(v, grad)
    parts = plan.state(q)
    launch(
        kernels.backward_gather, plan.programs, grad, q, shares, state, parts, dq, *plan.sizes, min_denominator,
        *by_head(grad, q.shape[3]), *q.stride(), **plan.constants,
    )  # fmt: skip
    dstate = plan.sum(parts)
    launch(
        kernels.backward_apply, plan.programs, k, v, shares, dstate, dk, dv, *plan.sizes, *k.stride(), *v.stride(),
        **plan.constants,
    )  # fmt: skip
    dtemperature = (state * dstate)[:, :, :-1].sum((0, 2, 3)).to(temperature.dtype)
    return dq, dk, dv, dtemperature


def _shapes(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, min_denominator: float) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, head_dim = q.shape
    out = q.new_empty(batch, tokens, heads * head_dim)
    return out, q.new_empty(batch, heads, head_dim + 1, head_dim, dtype=sums_in(q))


def _flops(q: Tensor, *_: object) -> int:
    batch, tokens, heads, head_dim = q.shape
    return 4 * batch * tokens * heads * head_dim**2


_operator = register("linear_attention", forward, _shapes, backward, _flops, unread=("out",), backward_flops=2)
