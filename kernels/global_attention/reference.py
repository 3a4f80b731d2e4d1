"""What `global_attention` means, in plain PyTorch: all scores, their softmax, and the mean of v that it weighs."""

from torch import Tensor


def global_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, bias: Tensor | None = None) -> Tensor:
    """See `vertebra.kernels.global_attention`."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, heads, N or M, D or E)
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
