"""`channel_attention` as fast as plain PyTorch gets: the scale goes to the D x D scores, not to all tokens."""

import torch
from torch import Tensor


def channel_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, transposed: bool = False) -> Tensor:
    """See `vertebra.kernels.channel_attention`."""
    factor = (q.shape[1] if transposed else q.shape[3]) ** -0.5 if scale is None else scale
    left, right, mixed = (q, k, v) if transposed else (k, v, q)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scores = left.permute(0, 2, 3, 1).to(wide) @ right.transpose(1, 2).to(wide)  # (B, heads, D, D)
    weights = (scores * factor).softmax(-1).to(q.dtype)
    out = mixed.transpose(1, 2) @ weights.transpose(2, 3)  # (B, heads, N, D)
    return out.transpose(1, 2).flatten(2)
