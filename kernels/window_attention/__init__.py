"""Attention inside windows of a map: blocks of neighbours, stripes, or grids of far-apart pixels."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import _triton, dispatch
from .._layout import is_exporting
from . import eager, exported, reference

__all__ = ["window_attention"]


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: tuple[int, int],
    partition: str = "block",
    scale: float | None = None,
    bias_table: Tensor | None = None,
    pad: Tensor | None = None,
    pad_offset: tuple[int, int] = (0, 0),
    lepe_weight: Tensor | None = None,
    lepe_bias: Tensor | None = None,
    cross_window: tuple[int, int] | None = None,
    cross_offset: tuple[int, int] = (0, 0),
    backend: str | None = None,
) -> Tensor:
    """softmax(scale * q kᵀ + bias) v among the tokens of each window, with windows laid over the whole map.

    A map that windows do not fill is padded: `pad_offset` tokens at the top and left, and what is missing at the bottom
    and right. Padded tokens are keys like any other, they are not masked.

    Args:
        q, k, v: (B, H, W, heads, D), with any strides: views of a projection's output.
        window: height and width of a window (wh, ww).
        partition: "block": a window is wh x ww neighbours. "grid": the (padded) map is laid out as wh x ww cells and a
            window takes the same place of every cell, so that its tokens lie H / wh and W / ww apart.
        scale: of the scores; None takes D ** -0.5.
        bias_table: (heads, 2 wh - 1, 2 ww - 1), read at key minus query; None adds nothing.
        pad: (3, heads, D): q, k and v of padded tokens; None takes zeros.
        pad_offset: padded rows at the top and columns at the left.
        lepe_weight: (heads * D, 1, 3, 3): a depthwise convolution of v inside each window, zeros around it, is added.
        lepe_bias: (heads * D,), goes with `lepe_weight`.
        cross_window: height and width of the windows in which the second half of the heads attends; None takes
            `window`. It goes without a `bias_table`.
        cross_offset: the `pad_offset` of that half.
        backend: None, "reference", "eager" or "triton"; see `dispatch`.

    Returns:
        (B, H, W, heads * D).

    Raises:
        ValueError: a partition or a backend that does not exist, names those that do; a cross window with a bias
            table, or with an odd number of heads.
        BackendError: a backend that was asked for cannot run; says why.
    """
    if torch.jit.is_scripting():
        return eager.window_attention(
            q, k, v, window, partition, scale, bias_table, pad, pad_offset, lepe_weight, lepe_bias,
            cross_window, cross_offset,
        )  # fmt: skip
    _check(partition, q, bias_table, cross_window)
    tensors = (q, k, v, bias_table, pad, lepe_weight, lepe_bias)
    unfit = partial(_unfit, tensors, window, pad_offset, cross_window, cross_offset)
    shape = partial(_shape, window, partition, bias_table, lepe_weight)
    chosen = dispatch.choose("window_attention", backend, tensors, unfit, shape)
    run = _implementation(chosen)
    return run(
        q, k, v, window, partition, scale, bias_table, pad, pad_offset, lepe_weight, lepe_bias,
        cross_window, cross_offset,
    )  # fmt: skip


def _implementation(chosen: str) -> Callable[..., Tensor]:
    if chosen == "triton":
        from . import triton

        return triton.window_attention
    if is_exporting():
        return exported.window_attention
    return reference.window_attention if chosen == "reference" else eager.window_attention


def _unfit(
    tensors: tuple[Tensor | None, ...],
    window: tuple[int, int],
    offset: tuple[int, int],
    cross_window: tuple[int, int] | None,
    cross_offset: tuple[int, int],
) -> str | None:
    q, k, v, bias_table, pad, lepe_weight, lepe_bias = tensors
    if q is None or k is None or v is None:
        return "q, k or v is missing"
    for size, before in ((window, offset), (cross_window or window, cross_offset)):
        if min(size) < 1 or min(before) < 0:
            return f"a window is {tuple(size)}, padded by {tuple(before)}; sides are 1 or more, padding 0"
    refused = _triton.misfit("(B, H, W, heads, D)", q, k, v)
    if refused:
        return refused
    heads, head_dim = q.shape[3:]
    return _triton.misshapen(
        k=(k, q.shape),
        v=(v, q.shape),
        bias_table=(bias_table, (heads, 2 * window[0] - 1, 2 * window[1] - 1)),
        pad=(pad, (3, heads, head_dim)),
        lepe_weight=(lepe_weight, (heads * head_dim, 1, 3, 3)),
        lepe_bias=(lepe_bias, (heads * head_dim,)),
    )


def _shape(window: tuple[int, int], partition: str, bias_table: Tensor | None, lepe_weight: Tensor | None) -> str:
    """The class of shapes that is measured together: how windows lie, how they fill tiles, and what is added."""
    tokens = window[0] * window[1]
    size = "packed" if tokens <= 32 else "one tile" if tokens <= 64 else "tiles"
    return f"{partition}, {size}{'' if bias_table is None else ', bias'}{'' if lepe_weight is None else ', lepe'}"


def _check(partition: str, q: Tensor, bias_table: Tensor | None, cross_window: tuple[int, int] | None) -> None:
    if partition not in ("block", "grid"):
        raise ValueError(f"partition is {partition!r}; it takes 'block' or 'grid'")
    if cross_window is not None and bias_table is not None:
        raise ValueError("there is a cross_window and a bias_table; only one of them can be given")
    if cross_window is not None and q.shape[3] % 2:
        raise ValueError(f"there are {q.shape[3]} heads; a cross_window takes half of them, so their number is even")
