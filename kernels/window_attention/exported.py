"""`window_attention` for programs whose batch, height and width stay free.

An exporter fixes what it has to compare, and views and copies compare sizes with 1: a program taken from a map of one
window would run for no other. So tokens are numbered here, and put in the order of windows by number. One window more
than there are keeps their count from being 1.
"""

import torch
from torch import Tensor
from torch.nn import functional

from .._layout import divided, in_order
from .eager import position_bias
from .halves import half


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
) -> Tensor:
    """See `vertebra.kernels.window_attention`."""
    if cross_window is not None:
        a = half(False, q, k, v, pad, lepe_weight, lepe_bias)
        b = half(True, q, k, v, pad, lepe_weight, lepe_bias)
        first = _attention(a[0], a[1], a[2], window, partition, scale, None, a[3], pad_offset, a[4], a[5])
        second = _attention(b[0], b[1], b[2], cross_window, partition, scale, None, b[3], cross_offset, b[4], b[5])
        return torch.cat([first, second], -1)
    return _attention(q, k, v, window, partition, scale, bias_table, pad, pad_offset, lepe_weight, lepe_bias)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: tuple[int, int],
    partition: str,
    scale: float | None,
    bias_table: Tensor | None,
    pad: Tensor | None,
    pad_offset: tuple[int, int],
    lepe_weight: Tensor | None,
    lepe_bias: Tensor | None,
) -> Tensor:
    batch, height, width, heads, head_dim = q.shape
    tokens = batch * height * width
    place, windows = _places(q, window, partition, pad_offset)
    number = torch.arange(tokens, device=q.device)
    order = number.new_full((windows * window[0] * window[1],), tokens).scatter(0, place, number)
    fills = q.new_zeros(3, 1, heads, head_dim) if pad is None else pad[:, None].to(q.dtype)
    q, k, v = (
        torch.cat([x.flatten(0, 2), fill]).index_select(0, order) for x, fill in zip((q, k, v), fills, strict=True)
    )  # (windows * wh * ww, heads, D)
    bias = None if bias_table is None else position_bias(bias_table, window).to(q.dtype)
    by_window = (in_order(x.reshape(windows, -1, heads, head_dim).transpose(1, 2)) for x in (q, k, v))
    out = functional.scaled_dot_product_attention(*by_window, attn_mask=bias, scale=scale)
    out = out.transpose(1, 2).reshape(-1, heads * head_dim)
    if lepe_weight is not None:
        rows = v.reshape(windows * window[0], window[1], heads * head_dim)  # in two steps: one would divide by sides
        images = rows.reshape(windows, *window, heads * head_dim).permute(0, 3, 1, 2)
        lepe = functional.conv2d(images, lepe_weight, lepe_bias, padding=1, groups=heads * head_dim)
        out = out + in_order(lepe.permute(0, 2, 3, 1)).reshape(-1, heads * head_dim)
    out = out.index_select(0, place)
    return out.reshape(batch, height, width, heads * head_dim)


def _places(q: Tensor, window: tuple[int, int], partition: str, pad_offset: tuple[int, int]) -> tuple[Tensor, int]:
    """Where each token of q (B, H, W, ...) stands in the order of windows, (B * H * W,), and the number of windows."""
    batch, height, width = q.shape[:3]
    (wh, ww), (top, left) = window, pad_offset
    rows, columns = (top + height + wh - 1) // wh, (left + width + ww - 1) // ww  # ONNX rounds negative numbers up
    number = torch.arange(batch * height * width, device=q.device)
    row, x = divided(number, width)
    image, y = divided(row, height)
    if partition == "grid":
        (y, row), (x, column) = divided(y + top, rows), divided(x + left, columns)
    else:
        (row, y), (column, x) = divided(y + top, wh), divided(x + left, ww)
    place = (((image * rows + row) * columns + column) * wh + y) * ww + x
    return place, batch * rows * columns + 1
