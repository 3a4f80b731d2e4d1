"""Attention of the regions of a map to a few other regions each, which a list names."""

import torch
from torch import Tensor

from .. import dispatch
from . import eager, reference

__all__ = ["routing_attention"]


def routing_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    scale: float | None = None,
    regions: tuple[int, int] | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(scale * q kᵀ) v, where the tokens of a region attend to all tokens of the regions it is routed to.

    The map is a grid of regions of equal size, numbered row by row. All heads take the same regions.

    Args:
        q, k, v: (B, H, W, heads, D), with any strides: views of a projection's output; the grid divides H and W.
        index: (B, regions, K), integers: the regions whose tokens are the keys of a region, none of them twice.
        scale: of the scores; None takes D ** -0.5.
        regions: rows and columns of the grid; None takes a square one.
        backend: None, "reference" or "eager"; see `dispatch`.

    Returns:
        (B, H, W, heads * D).
    """
    if torch.jit.is_scripting():
        return eager.routing_attention(q, k, v, index, scale, regions)
    run = reference.routing_attention if dispatch.is_reference(backend) else eager.routing_attention
    return run(q, k, v, index, scale, regions)
