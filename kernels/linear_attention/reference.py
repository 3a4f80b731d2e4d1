"""What `linear_attention` means, in plain PyTorch: keys and values first, in float32."""

import torch
from torch import Tensor


def linear_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, min_denominator: float = 100.0) -> Tensor:
    """See `vertebra.kernels.linear_attention`."""
    wide = torch.promote_types(q.dtype, torch.float32)
    a, b, c = (x.to(wide).transpose(1, 2) for x in (q.relu(), k.relu(), v))  # (B, heads, N, D)
    state = b.mT @ c * temperature.to(wide)[:, None, None]
    denominator = (a * b.sum(2, keepdim=True)).sum(3, keepdim=True).clamp(min=min_denominator)
    return (a @ state / denominator).transpose(1, 2).flatten(2).to(q.dtype)
