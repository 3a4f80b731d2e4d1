"""Attention of the regions of a map to a few other regions each, which a list names."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import _triton, dispatch
from .._layout import is_eager
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
        index: (B, regions, K), integers: the regions whose tokens are the keys of a region, none of them twice. On a
            GPU nobody looks for numbers of regions that do not exist; a kernel takes the nearest that does.
        scale: of the scores; None takes D ** -0.5.
        regions: rows and columns of the grid; None takes a square one.
        backend: None, "reference", "eager" or "triton"; see `dispatch`.

    Returns:
        (B, H, W, heads * D).

    Raises:
        ValueError: a backend that does not exist; names those that do.
        BackendError: the backend that was asked for cannot run; says why.
    """
    if torch.jit.is_scripting():
        return eager.routing_attention(q, k, v, index, scale, regions)
    unfit, shape = partial(_unfit, q, k, v, index, regions), partial(_shape, q, index)
    chosen = dispatch.choose("routing_attention", backend, (q, k, v), unfit, shape)
    run = _implementation(chosen)
    return run(q, k, v, index, scale, regions)


def _implementation(chosen: str) -> Callable[..., Tensor]:
    if chosen == "triton":
        from . import triton

        return triton.routing_attention
    return reference.routing_attention if chosen == "reference" else eager.routing_attention


def _unfit(q: Tensor, k: Tensor, v: Tensor, index: Tensor, regions: tuple[int, int] | None) -> str | None:
    refused = _triton.misfit("(B, H, W, heads, D)", q, k, v) or _triton.misshapen(k=(k, q.shape), v=(v, q.shape))
    if refused:
        return refused
    if index.device != q.device:
        return f"index is on {index.device} and q on {q.device}"
    if index.dim() != 3 or index.shape[0] != q.shape[0] or index.is_floating_point():
        return f"index is {tuple(index.shape)}, {index.dtype}; the kernel takes ({q.shape[0]}, regions, K) of integers"
    rows, columns = eager.square(index) if regions is None else regions
    count = index.shape[1]
    if min(rows, columns) < 1 or rows * columns != count or q.shape[1] % rows or q.shape[2] % columns:
        return f"a map of {q.shape[1]} x {q.shape[2]} is not cut into {rows} x {columns} regions, {count} listed"
    if index.device.type == "cpu" and is_eager(index) and index.numel():  # to ask a GPU would mean to wait for it
        least, most = int(index.min()), int(index.max())
        if least < 0 or most >= count:
            return f"index names regions {least} to {most}; there are 0 to {count - 1}"
    return None


def _shape(q: Tensor, index: Tensor) -> str:
    """The class of shapes that is measured together: by the tokens and the keys of a region."""
    tokens = q.shape[1] * q.shape[2] // index.shape[1]
    size = "tiny" if tokens <= 8 else "small" if tokens <= 16 else "large"
    return f"{size} regions, {'one tile' if index.shape[2] * tokens <= 64 else 'tiles'} of keys"
