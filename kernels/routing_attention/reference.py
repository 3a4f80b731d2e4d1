"""What `routing_attention` means, in plain PyTorch: cut the map into regions, gather the routed ones, attend."""

import math

from torch import Tensor


def routing_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    scale: float | None = None,
    regions: tuple[int, int] | None = None,
) -> Tensor:
    """See `vertebra.kernels.routing_attention`."""
    batch, height, width, heads, head_dim = q.shape
    rows, columns = regions or (math.isqrt(index.shape[1]),) * 2
    q, k, v = (_regions(x, rows, columns) for x in (q, k, v))
    k, v = (_gather(x, index) for x in (k, v))
    scores = q @ k.transpose(-2, -1) * (head_dim**-0.5 if scale is None else scale)
    out = scores.softmax(-1) @ v  # (B, regions, heads, T, D)
    out = out.reshape(batch, rows, columns, heads, height // rows, width // columns, head_dim)
    return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, heads * head_dim)


def _regions(x: Tensor, rows: int, columns: int) -> Tensor:
    """(B, H, W, heads, D) -> (B, regions, heads, T, D)."""
    batch, height, width, heads, head_dim = x.shape
    x = x.reshape(batch, rows, height // rows, columns, width // columns, heads, head_dim)
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(1, 2)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """What each region is routed to, one after the other: (B, regions, heads, T, D) -> (B, regions, heads, K T, D)."""
    _, count, heads, tokens, head_dim = x.shape
    picks = index[..., None, None, None].expand(-1, -1, -1, heads, tokens, head_dim)
    x = x[:, None].expand(-1, count, -1, -1, -1, -1).gather(2, picks)  # (B, regions, K, heads, T, D)
    return x.transpose(2, 3).flatten(3, 4)
