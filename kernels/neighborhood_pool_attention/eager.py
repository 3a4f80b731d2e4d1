"""`neighborhood_pool_attention` as fast as plain PyTorch gets: nine shifted maps in place of neighbours written out.

Without a backward pass it goes down the map a few rows at a time, so that no tensor of scores, and no bias of all
pairs, outgrows the cache.
"""

import torch
from torch import Tensor
from torch.nn import functional

from .._kept import kept
from .._layout import is_eager
from .._precision import wide
from .bias import pair_columns, pair_rows
from .neighbors import gather, score


def neighborhood_pool_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    query_embedding: Tensor,
    temperature: Tensor,
    relative_pos_bias_local: Tensor,
    learnable_tokens: Tensor,
    learnable_bias: Tensor,
    bias_table: Tensor,
    bias_rows: Tensor,
    bias_columns: Tensor,
) -> Tensor:
    """See `vertebra.kernels.neighborhood_pool_attention`."""
    height, width = q.shape[1], q.shape[2]
    pooled = pool_k.shape[1]
    k, v = _framed(functional.normalize(wide(k), dim=-1)), _framed(wide(v))
    pool_k = functional.normalize(wide(pool_k), dim=-1).permute(0, 2, 3, 1)  # (B, heads, D, P)
    pool_v = wide(pool_v).transpose(1, 2)  # (B, heads, P, D)
    mask, length = _tables(k, height, width, pooled)
    scale = functional.softplus(temperature).unsqueeze(-1) * length  # (heads, H, W, 1)
    near_bias = relative_pos_bias_local[:, None, None] + mask  # (heads, H, W, 9)
    table = pair_columns(bias_table, bias_columns)
    out = []
    for top, end in _pieces(q, pooled):
        part = _attend(
            q[:, top:end],
            k[:, :, top : end + 2],
            v[:, :, top : end + 2],
            pool_k,
            pool_v,
            query_embedding,
            scale[:, top:end],
            learnable_tokens,
            learnable_bias,
            near_bias[:, top:end],
            pair_rows(table, bias_rows[top:end]),
        )
        out.append(part)
    return out[0] if len(out) == 1 else torch.cat(out, 1)


def _pieces(q: Tensor, pooled: int) -> list[tuple[int, int]]:
    """From which row to which: all at once where a backward pass keeps everything anyway, or sizes are symbols."""
    height = q.shape[1]
    whole = torch.is_grad_enabled()
    if not torch.jit.is_scripting():
        whole = whole or not is_eager(q)
    if whole:
        return [(0, height)]
    scores = 1_000_000 if q.device.type == "cpu" else 64_000_000  # at once: for a core's cache; for few launches
    rows = max(1, scores // max(1, q.shape[0] * q.shape[2] * q.shape[3] * (9 + pooled)))
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def _framed(x: Tensor) -> Tensor:
    """Heads first, zeros around the map: (B, H, W, heads, D) -> (B, heads, H + 2, W + 2, D)."""
    return functional.pad(x.permute(0, 3, 1, 2, 4), (0, 0, 1, 1, 1, 1))


def _tables(x: Tensor, height: int, width: int, pooled: int) -> tuple[Tensor, Tensor]:
    if torch.jit.is_scripting():
        return _surroundings(height, width, pooled, x.dtype, x.device)
    return kept(x, _surroundings, height, width, pooled, x.dtype, x.device)


def _surroundings(
    height: int, width: int, pooled: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What the frame of a map means: -inf for neighbours outside (H, W, 9), and the logarithm of the keys (H, W, 1)."""
    places = torch.arange(height, device=device).unsqueeze(1) + torch.arange(3, device=device) - 1
    rows = (places >= 0) & (places < height)
    places = torch.arange(width, device=device).unsqueeze(1) + torch.arange(3, device=device) - 1
    columns = (places >= 0) & (places < width)
    inside = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2)
    mask = torch.zeros_like(inside, dtype=dtype).masked_fill(~inside, float("-inf"))
    return mask, (inside.sum(-1, keepdim=True) + pooled).to(dtype).log()


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    query_embedding: Tensor,
    scale: Tensor,
    learnable_tokens: Tensor,
    learnable_bias: Tensor,
    near_bias: Tensor,
    far_bias: Tensor,
) -> Tensor:
    """Some rows of queries (B, rows, W, heads, D) against their neighbours and the pooled map."""
    batch, rows, width, heads, head_dim = q.shape
    unit = functional.normalize(wide(q), dim=-1).permute(0, 3, 1, 2, 4).contiguous()
    scaled = (unit + query_embedding.unsqueeze(1)) * scale
    near = (score(scaled, k) + near_bias).flatten(2, 3)
    far = scaled.flatten(2, 3) @ pool_k + far_bias  # (B, heads, rows * W, P)
    weights = torch.cat([near, far], -1).softmax(-1)
    near = weights[..., :9] + unit.flatten(2, 3) @ wide(learnable_tokens) + learnable_bias
    out = gather(near.reshape(batch, heads, rows, width, 9), v)
    out = out + (weights[..., 9:] @ pool_v).reshape(out.shape)
    return out.permute(0, 2, 3, 1, 4).reshape(batch, rows, width, heads * head_dim).to(q.dtype)
