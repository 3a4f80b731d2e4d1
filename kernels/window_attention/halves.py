"""Two halves of the heads that attend in different windows, for ways that know one kind of window at a time."""

from torch import Tensor


def half(
    second: bool, q: Tensor, k: Tensor, v: Tensor, pad: Tensor | None, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """What one half has of q, k and v (B, H, W, heads, D), pad (3, heads, D), LePE's weight and bias (heads * D)."""
    heads = q.shape[3] // 2
    start = heads if second else 0
    channels = heads * q.shape[4]
    first = channels if second else 0
    return (
        q.narrow(3, start, heads),
        k.narrow(3, start, heads),
        v.narrow(3, start, heads),
        None if pad is None else pad.narrow(1, start, heads),
        None if weight is None else weight.narrow(0, first, channels),
        None if bias is None else bias.narrow(0, first, channels),
    )
