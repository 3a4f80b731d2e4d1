"""Attention among channels: every head mixes its D channels by weights that all tokens together decide."""

import torch
from torch import Tensor

from .. import dispatch
from .._precision import without_autocast
from . import eager, reference

__all__ = ["channel_attention"]


def channel_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    transposed: bool = False,
    backend: str | None = None,
) -> Tensor:
    """q Aᵀ with A = softmax(scale * kᵀ v), normalised over the channels of v; transposed: v Aᵀ with A of qᵀ k.

    The scores are sums over all tokens, beyond what float16 holds: they and their softmax are float32 (float64 for
    float64), under autocast too. From Ding et al., https://arxiv.org/abs/2204.03645; `transposed` is the way of
    Florence-2's image tower, https://arxiv.org/abs/2311.06242.

    Args:
        q, k, v: (B, N, heads, D), with any strides: views of a projection's output.
        scale: of the scores; None takes D ** -0.5, transposed N ** -0.5.
        transposed: scores between the channels of q and k, which weigh v.
        backend: None, "reference" or "eager"; see `dispatch`.

    Returns:
        (B, N, heads * D), in the dtype of q.
    """
    if torch.jit.is_scripting():
        return eager.channel_attention(q, k, v, scale, transposed)
    run = reference.channel_attention if dispatch.is_reference(backend) else eager.channel_attention
    with without_autocast(q):
        return run(q, k, v, scale, transposed)
