"""Products with the nine neighbours of each pixel, one shifted map after the other, and their derivatives.

Each of the three is the derivative of the other two, so that gradients of any order come from the same code.

q     (B, heads, H, W, D)           a map
k     (B, heads, H + 2, W + 2, D)   a map in a frame, one pixel wide
w     (B, heads, H, W, 9)           a weight for each neighbour, row by row
"""

from typing import Any

import torch
from torch import Tensor

from .._layout import is_eager


def score(q: Tensor, k: Tensor) -> Tensor:
    """w[n, t] = q[n] · k[n + δt]."""
    if torch.jit.is_scripting():
        return _score_at_once(q, k)
    return _Score.apply(q, k) if is_eager(q) else _score_at_once(q, k)


def gather(w: Tensor, k: Tensor) -> Tensor:
    """q[n] = Σt w[n, t] k[n + δt]."""
    if torch.jit.is_scripting():
        return _gather_at_once(w, k)
    return _Gather.apply(w, k) if is_eager(w) else _gather_at_once(w, k)


def _shifted(k: Tensor, t: int, height: int, width: int) -> Tensor:
    """The neighbour number `t` of every pixel, a view of the framed map."""
    return k[:, :, t // 3 : t // 3 + height, t % 3 : t % 3 + width]


def _score_at_once(q: Tensor, k: Tensor) -> Tensor:
    height, width = q.shape[2], q.shape[3]
    return torch.stack([(q * _shifted(k, t, height, width)).sum(-1) for t in range(9)], -1)


def _gather_at_once(w: Tensor, k: Tensor) -> Tensor:
    height, width = w.shape[2], w.shape[3]
    out = w[..., :1] * _shifted(k, 0, height, width)
    for t in range(1, 9):
        out = out + w[..., t : t + 1] * _shifted(k, t, height, width)
    return out


class _Score(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(q: Tensor, k: Tensor) -> Tensor:
        height, width = q.shape[2], q.shape[3]
        out = q.new_empty((*q.shape[:4], 9))
        for t in range(9):
            out[..., t] = (q * _shifted(k, t, height, width)).sum(-1)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        q, k = ctx.saved_tensors
        return _Gather.apply(grad, k), _Scatter.apply(grad, q)


class _Gather(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, k: Tensor) -> Tensor:
        height, width = w.shape[2], w.shape[3]
        out = w[..., :1] * _shifted(k, 0, height, width)
        for t in range(1, 9):
            out.addcmul_(w[..., t : t + 1], _shifted(k, t, height, width))
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        w, k = ctx.saved_tensors
        return _Score.apply(grad, k), _Scatter.apply(w, grad)


class _Scatter(torch.autograd.Function):
    """k[m] = Σt w[m - δt, t] q[m - δt], in a frame."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, q: Tensor) -> Tensor:
        batch, heads, height, width, head_dim = q.shape
        out = q.new_zeros((batch, heads, height + 2, width + 2, head_dim))
        for t in range(9):
            _shifted(out, t, height, width).addcmul_(w[..., t : t + 1], q)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        w, q = ctx.saved_tensors
        return _Score.apply(q, grad), _Gather.apply(w, grad)
