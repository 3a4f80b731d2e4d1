"""Attention among channels: every head mixes its D channels by weights that all tokens together decide."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import _triton, dispatch
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
        backend: None, "reference", "eager" or "triton"; see `dispatch`.

    Returns:
        (B, N, heads * D), in the dtype of q.

    Raises:
        ValueError: a backend that does not exist; names those that do.
        BackendError: Triton was asked for and cannot run; says why.
    """
    if torch.jit.is_scripting():
        return eager.channel_attention(q, k, v, scale, transposed)
    unfit, shape = partial(_unfit, q, k, v), partial(_shape, q, transposed)
    chosen = dispatch.choose("channel_attention", backend, (q, k, v), unfit, shape)
    run = _implementation(chosen)
    with without_autocast(q):
        return run(q, k, v, scale, transposed)


def _implementation(chosen: str) -> Callable[..., Tensor]:
    if chosen == "triton":
        from . import triton

        return triton.channel_attention
    return reference.channel_attention if chosen == "reference" else eager.channel_attention


def _unfit(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    return _triton.misfit("(B, N, heads, D)", q, k, v) or _triton.misshapen(k=(k, q.shape), v=(v, q.shape))


def _shape(q: Tensor, transposed: bool) -> str:
    """The class of shapes that is measured together: nothing that changes with the image."""
    width = "narrow" if q.shape[3] <= 32 else "wide"
    return f"{width} heads transposed" if transposed else f"{width} heads"
