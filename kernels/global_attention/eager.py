"""`global_attention` as fast as plain PyTorch gets: SDPA on views, kept off its slow way on a CPU.

PyTorch's CPU kernel wants one head size for q, k and v, a last dimension without gaps, and a bias that learns nothing.
For anything else SDPA writes out all scores at once. Here they come in pieces, or the inputs are made fit.
"""

import torch
from torch import Tensor
from torch.nn import functional

from .._layout import is_eager

_PIECE = 2**20  # scores written out at once in inference: few enough to stay in the cache
_KEPT = 2**24  # scores that a backward pass may keep (64 MiB in float32), where that is the faster way


def global_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, bias: Tensor | None = None) -> Tensor:
    """See `vertebra.kernels.global_attention`."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, N or M, D or E)
    if bias is not None:
        bias = bias.to(q.dtype)
        while bias.dim() < 4:
            bias = bias.unsqueeze(0)
    if torch.jit.is_scripting():
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    elif is_eager(q) and q.device.type == "cpu":
        out = _on_cpu(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, bias)
    else:
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return out.transpose(1, 2).flatten(2)


def _on_cpu(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    grad = torch.is_grad_enabled()
    if bias is not None and not grad:
        bias = bias.detach()  # a parameter's name alone would rule the kernel out
    size, out_size = q.shape[-1], v.shape[-1]
    scores = q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2]
    precise = q.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    refused = size != out_size or (bias is not None and bias.requires_grad)
    if refused and precise and (scores <= _KEPT or not grad):
        return _written_out(q, k, v, scale, bias, scores if grad else _PIECE)
    if size != out_size:
        common = max(size, out_size)  # zeros add nothing to a score, and columns of v stay apart
        q, k, v = (functional.pad(x, (0, common - x.shape[-1])) for x in (q, k, v))
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)[..., :out_size]


def _written_out(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, limit: int) -> Tensor:
    """The scores written out, of so many queries at a time that they are no more than `limit`."""
    batch, heads, queries, _ = q.shape
    step = max(1, limit // max(1, batch * heads * k.shape[2]))
    k = k.transpose(-2, -1)
    pieces = []
    for start in range(0, max(queries, 1), step):
        scores = (q[:, :, start : start + step] * scale) @ k
        if bias is not None:
            scores = scores + (bias if bias.shape[2] == 1 else bias[:, :, start : start + step])
        pieces.append(scores.softmax(-1) @ v)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)
