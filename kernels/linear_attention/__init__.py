"""Attention with positive features in place of a softmax: its cost grows with the tokens, not with their square."""

import torch
from torch import Tensor

from .. import dispatch
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
        backend: None, "reference" or "eager"; see `dispatch`.

    Returns:
        (B, N, heads * D), in the dtype of q.
    """
    if torch.jit.is_scripting():
        return eager.linear_attention(q, k, v, temperature, min_denominator)
    run = reference.linear_attention if dispatch.is_reference(backend) else eager.linear_attention
    with without_autocast(q):
        return run(q, k, v, temperature, min_denominator)
