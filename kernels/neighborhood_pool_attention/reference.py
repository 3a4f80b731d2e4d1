"""What `neighborhood_pool_attention` means, in plain PyTorch: every pixel's nine neighbours written out beside it."""

import torch
from torch import Tensor
from torch.nn import functional

from .bias import position_bias


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
    batch, height, width, heads, head_dim = q.shape
    pooled = pool_k.shape[1]
    q, k, pool_k = (functional.normalize(x, dim=-1) for x in (q, k, pool_k))
    q = q.flatten(1, 2).transpose(1, 2)  # (B, heads, N, D)
    pool_k, pool_v = pool_k.transpose(1, 2), pool_v.transpose(1, 2)  # (B, heads, P, D)
    near_k, near_v = _neighbours(k), _neighbours(v)  # (B, heads, N, D, 9)
    inside = _neighbours(q.new_ones(1, height, width, 1, 1))[0, 0, :, 0] > 0  # (N, 9)

    length = (inside.sum(-1, keepdim=True) + pooled).to(q.dtype)
    scaled = (q + query_embedding) * functional.softplus(temperature) * length.log()
    near = (scaled.unsqueeze(-2) @ near_k).squeeze(-2) + relative_pos_bias_local.unsqueeze(1)
    near = near.masked_fill(~inside, float("-inf"))
    far = scaled @ pool_k.transpose(-2, -1) + position_bias(bias_table, bias_rows, bias_columns)
    near, far = torch.cat([near, far], -1).softmax(-1).split([9, pooled], -1)
    near = near + q @ learnable_tokens + learnable_bias
    out = (near.unsqueeze(-2) @ near_v.transpose(-2, -1)).squeeze(-2) + far @ pool_v
    return out.transpose(1, 2).reshape(batch, height, width, heads * head_dim)


def _neighbours(x: Tensor) -> Tensor:
    """The 3 x 3 pixels around each, row by row, zeros outside: (B, H, W, heads, D) -> (B, heads, H * W, D, 9)."""
    batch, height, width, heads, head_dim = x.shape
    x = functional.unfold(x.permute(0, 3, 4, 1, 2).flatten(1, 2), 3, padding=1)
    return x.reshape(batch, heads, head_dim, 9, height * width).permute(0, 1, 4, 2, 3)
