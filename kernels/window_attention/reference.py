"""What `window_attention` means, in plain PyTorch: cut the map into windows, attend, put it together again."""

import torch
from torch import Tensor
from torch.nn import functional

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
    height, width, heads, head_dim = q.shape[1:]
    (wh, ww), (top, left) = window, pad_offset
    bottom, right = -(top + height) % wh, -(left + width) % ww
    fills = pad if pad is not None else q.new_zeros(3, heads, head_dim)
    q, k, v = (
        _windows(_pad(x, fill, top, bottom, left, right), window, partition)
        for x, fill in zip((q, k, v), fills, strict=True)
    )  # (B, rows, columns, heads, T, D)
    scores = q @ k.transpose(-2, -1) * (head_dim**-0.5 if scale is None else scale)
    if bias_table is not None:
        scores = scores + _bias(bias_table, window)
    out = scores.softmax(-1) @ v
    if lepe_weight is not None:
        out = out + _lepe(v, window, lepe_weight, lepe_bias)
    out = _unwindows(out, window, partition)
    return out[:, top : top + height, left : left + width].flatten(3)


def _pad(x: Tensor, fill: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    batch, height, width = x.shape[:3]
    padded = fill.to(x.dtype).expand(batch, top + height + bottom, left + width + right, *fill.shape)
    inside = x.new_zeros(padded.shape[1:3], dtype=torch.bool)
    inside[top : top + height, left : left + width] = True
    x = functional.pad(x, (0, 0, 0, 0, left, right, top, bottom))
    return torch.where(inside[:, :, None, None], x, padded)


def _windows(x: Tensor, window: tuple[int, int], partition: str) -> Tensor:
    """(B, H, W, heads, D) -> (B, rows, columns, heads, T, D)."""
    batch, height, width, heads, head_dim = x.shape
    wh, ww = window
    if partition == "block":
        x = x.reshape(batch, height // wh, wh, width // ww, ww, heads, head_dim).permute(0, 1, 3, 5, 2, 4, 6)
    else:
        x = x.reshape(batch, wh, height // wh, ww, width // ww, heads, head_dim).permute(0, 2, 4, 5, 1, 3, 6)
    return x.flatten(4, 5)


def _unwindows(x: Tensor, window: tuple[int, int], partition: str) -> Tensor:
    """(B, rows, columns, heads, T, D) -> (B, H, W, heads, D)."""
    x = x.unflatten(4, window)
    order = (0, 1, 4, 2, 5, 3, 6) if partition == "block" else (0, 4, 1, 5, 2, 3, 6)
    return x.permute(order).flatten(3, 4).flatten(1, 2)


def _bias(table: Tensor, window: tuple[int, int]) -> Tensor:
    """(heads, 2 wh - 1, 2 ww - 1) -> (heads, T, T), rows are queries."""
    wh, ww = window
    rows = torch.arange(wh, device=table.device).repeat_interleave(ww)
    columns = torch.arange(ww, device=table.device).repeat(wh)
    return table[:, rows - rows[:, None] + wh - 1, columns - columns[:, None] + ww - 1]


def _lepe(v: Tensor, window: tuple[int, int], weight: Tensor, bias: Tensor | None) -> Tensor:
    """A depthwise 3 x 3 convolution inside each window of v (B, rows, columns, heads, T, D)."""
    images = v.transpose(-2, -1).unflatten(-1, window).flatten(3, 4).flatten(0, 2)  # (windows, heads * D, wh, ww)
    out = functional.conv2d(images, weight, bias, padding=1, groups=len(weight))
    return out.flatten(2).reshape(*v.shape[:4], v.shape[5], v.shape[4]).transpose(-2, -1)
