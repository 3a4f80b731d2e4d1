"""`window_attention` for programs whose batch, height and width stay free.

An exporter fixes what it has to compare, and views and copies compare sizes with 1: a program taken from a map of one
window would run for no other. So tokens are numbered here, and put in the order of windows by number. One window more
than there are keeps their count from being 1.
"""

import torch
from torch import Tensor
from torch.nn import functional

from .eager import position_bias


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
) -> Tensor:
    """See `vertebra.kernels.window_attention`."""
    batch, height, width, heads, head_dim = q.shape
    tokens = batch * height * width
    place, windows = _places(q, window, partition, pad_offset)
    number = torch.arange(tokens, device=q.device)
    order = number.new_full((windows * window[0] * window[1],), tokens).scatter(0, place, number)
    fills = q.new_zeros(3, 1, heads, head_dim) if pad is None else pad[:, None].to(q.dtype)
    q, k, v = (
        torch.cat([x.flatten(0, 2), fill]).index_select(0, order).reshape(windows, -1, heads, head_dim)
        for x, fill in zip((q, k, v), fills, strict=True)
    )
    bias = None if bias_table is None else position_bias(bias_table, window).to(q.dtype)
    out = functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias, scale=scale
    ).transpose(1, 2)
    if lepe_weight is not None:
        images = v.reshape(windows, *window, heads * head_dim).permute(0, 3, 1, 2)
        lepe = functional.conv2d(images, lepe_weight, lepe_bias, padding=1, groups=heads * head_dim)
        out = out + lepe.permute(0, 2, 3, 1).reshape(out.shape)
    out = out.reshape(-1, heads * head_dim).index_select(0, place)
    return out.reshape(batch, height, width, heads * head_dim)


def _places(q: Tensor, window: tuple[int, int], partition: str, pad_offset: tuple[int, int]) -> tuple[Tensor, int]:
    """Where each token of q (B, H, W, ...) stands in the order of windows, (B * H * W,), and the number of windows."""
    batch, height, width = q.shape[:3]
    (wh, ww), (top, left) = window, pad_offset
    rows, columns = -(-(top + height) // wh), -(-(left + width) // ww)
    number = torch.arange(batch * height * width, device=q.device)
    image, y, x = number // (height * width), number // width % height + top, number % width + left
    if partition == "grid":
        row, y, column, x = y % rows, y // rows, x % columns, x // columns
    else:
        row, y, column, x = y // wh, y % wh, x // ww, x % ww
    place = (((image * rows + row) * columns + column) * wh + y) * ww + x
    return place, batch * rows * columns + 1
