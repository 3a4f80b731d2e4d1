"""`window_attention` as fast as plain PyTorch gets: one copy into windows, SDPA, one copy back."""

import torch
from torch import Tensor
from torch.nn import functional

from .._layout import pad_map


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
    height, width = q.shape[1], q.shape[2]
    wh, ww = window
    top, left = pad_offset
    bottom, right = -(top + height) % wh, -(left + width) % ww
    edges = (top, bottom, left, right)
    grid = partition == "grid"
    rows, columns = (top + height + bottom) // wh, (left + width + right) // ww
    q = _windows(_pad(q, None if pad is None else pad[0], edges), wh, ww, grid)
    k = _windows(_pad(k, None if pad is None else pad[1], edges), wh, ww, grid)
    v = _windows(_pad(v, None if pad is None else pad[2], edges), wh, ww, grid)  # (B * windows, heads, T, D)
    bias = None if bias_table is None else _bias(bias_table, wh, ww).to(q.dtype)
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    if lepe_weight is not None:
        out = out + _lepe(v, wh, ww, lepe_weight, lepe_bias)
    heads, head_dim = out.shape[1], out.shape[3]
    out = out.transpose(1, 2).reshape(-1, rows, columns, wh, ww, heads * head_dim)
    out = out.permute(0, 3, 1, 4, 2, 5) if grid else out.permute(0, 1, 3, 2, 4, 5)
    out = out.reshape(-1, rows * wh, columns * ww, heads * head_dim)
    return out[:, top : top + height, left : left + width]


def _pad(x: Tensor, fill: Tensor | None, edges: tuple[int, int, int, int]) -> Tensor:
    top, bottom, left, right = edges
    if fill is None:
        return pad_map(x, top, bottom, left, right)
    return pad_map(x - fill, top, bottom, left, right) + fill


def _windows(x: Tensor, wh: int, ww: int, grid: bool) -> Tensor:
    """(B, H, W, heads, D) -> (B * windows, heads, T, D)."""
    batch, height, width, heads, head_dim = x.shape
    if grid:
        x = x.reshape(batch, wh, height // wh, ww, width // ww, heads, head_dim).permute(0, 2, 4, 5, 1, 3, 6)
    else:
        x = x.reshape(batch, height // wh, wh, width // ww, ww, heads, head_dim).permute(0, 1, 3, 5, 2, 4, 6)
    return x.reshape(batch * (height // wh) * (width // ww), heads, wh * ww, head_dim)


def _bias(table: Tensor, wh: int, ww: int) -> Tensor:
    """(heads, 2 wh - 1, 2 ww - 1) -> (heads, T, T), rows are queries."""
    rows = torch.arange(wh, device=table.device).repeat_interleave(ww)
    columns = torch.arange(ww, device=table.device).repeat(wh)
    return table[:, rows - rows[:, None] + wh - 1, columns - columns[:, None] + ww - 1]


def _lepe(v: Tensor, wh: int, ww: int, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A depthwise 3 x 3 convolution inside each window: (N, heads, T, D) -> (N, heads, T, D)."""
    count, heads, _, head_dim = v.shape
    images = v.transpose(-2, -1).reshape(count, heads * head_dim, wh, ww)
    out = functional.conv2d(images, weight, bias, padding=1, groups=heads * head_dim)
    return out.reshape(count, heads, head_dim, wh * ww).transpose(-2, -1)
