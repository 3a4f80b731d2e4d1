"""Attention of every query to every key, for maps small enough, or keys few enough, that no window is needed."""

import torch
from torch import Tensor

from .. import dispatch
from . import eager, reference

__all__ = ["global_attention"]


def global_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    bias: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(scale * q kᵀ + bias) v, head by head.

    Args:
        q: (B, N, heads, D), with any strides, as k and v: views of a projection's output.
        k: (B, M, heads, D).
        v: (B, M, heads, E); E may differ from D.
        scale: of the scores; None takes D ** -0.5.
        bias: added to the scores, of a shape that broadcasts to (B, heads, N, M); None adds nothing.
        backend: None, "reference" or "eager"; see `dispatch`.

    Returns:
        (B, N, heads * E).
    """
    if torch.jit.is_scripting():
        return eager.global_attention(q, k, v, scale, bias)
    chosen = dispatch.choose("global_attention", backend, (q, k, v, bias), _unfit)
    run = reference.global_attention if chosen == "reference" else eager.global_attention
    return run(q, k, v, scale, bias)


def _unfit() -> str:
    return "there is no kernel of it: PyTorch's scaled_dot_product_attention is at the limit here"
