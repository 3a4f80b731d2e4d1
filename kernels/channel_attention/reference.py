"""What `channel_attention` means, in plain PyTorch."""

import torch
from torch import Tensor


def channel_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, transposed: bool = False) -> Tensor:
    """See `vertebra.kernels.channel_attention`."""
    dtype, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
    q, k, v = (x.to(wide).transpose(1, 2) for x in (q, k, v))  # (B, heads, N, D)
    tokens, channels = q.shape[2:]
    if transposed:
        weights = ((q * (tokens**-0.5 if scale is None else scale)).mT @ k).softmax(-1)
        out = (weights @ v.mT).mT
    else:
        weights = ((k * (channels**-0.5 if scale is None else scale)).mT @ v).softmax(-1)
        out = (weights @ q.mT).mT
    return out.transpose(1, 2).flatten(2).to(dtype)
