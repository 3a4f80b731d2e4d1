"""Attention with positive features in place of a softmax: its cost grows with the tokens, not with their square."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import _triton, dispatch
from .._precision import without_autocast
from . import eager, reference

__all__ = ["linear_attention"]


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    temperature: Tensor,
    min_denominator: float = 100.0,
    backend: str | None = None,
) -> Tensor:
    """relu(q) S / max(relu(q) · z, min_denominator), with S = temperature * relu(k)ᵀ v and z the sum of relu(k).

    S and z grow with the number of tokens, beyond what float16 holds: they and all products with them are float32
    (float64 for float64), under autocast too. Scripts cannot switch autocast off; there it decides. From Zheng, The
    Linear Attention Resurrection in Vision Transformer, https://arxiv.org/abs/2501.16182.

    Args:
        q, k, v: (B, N, heads, D), with any strides: views of a projection's output.
        temperature: (heads,).
        min_denominator: what a token's denominator is raised to, where it is smaller.
        backend: None, "reference", "eager" or "triton"; see `dispatch`.

    Returns:
        (B, N, heads * D), in the dtype of q.

    Raises:
        ValueError: a backend that does not exist; names those that do.
        BackendError: Triton was asked for and cannot run; says why.
    """
    if torch.jit.is_scripting():
        return eager.linear_attention(q, k, v, temperature, min_denominator)
    unfit, shape = partial(_unfit, q, k, v, temperature), partial(_shape, q)
    chosen = dispatch.choose("linear_attention", backend, (q, k, v, temperature), unfit, shape)
    run = _implementation(chosen)
    with without_autocast(q):
        return run(q, k, v, temperature, min_denominator)


def _implementation(chosen: str) -> Callable[..., Tensor]:
    if chosen == "triton":
        from . import triton

        return triton.linear_attention
    return reference.linear_attention if chosen == "reference" else eager.linear_attention


def _unfit(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> str | None:
    return _triton.misfit("(B, N, heads, D)", q, k, v) or _triton.misshapen(
        k=(k, q.shape), v=(v, q.shape), temperature=(temperature, (q.shape[2],))
    )


def _shape(q: Tensor) -> str:
    """The class of shapes that is measured together: nothing that changes with the image."""
    return "narrow heads" if q.shape[3] <= 32 else "wide heads"
