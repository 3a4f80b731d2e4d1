"""`linear_attention` at the shapes of L2ViT, for benchmarks and for kernels that are only compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

__all__ = ["CASES"]


def _inputs(
    device: str | torch.device, dtype: torch.dtype, *, batch: int, height: int, width: int, heads: int
) -> dict[str, Any]:
    packed = torch.randn(batch, height * width, 3, heads, 32, device=device, dtype=dtype).requires_grad_()
    q, k, v = packed.unbind(2)
    return {"q": q, "k": k, "v": v, "temperature": torch.full((heads,), 32**-0.5, device=device).requires_grad_()}


def _case(batch: int, height: int, width: int, heads: int) -> Callable[..., dict[str, Any]]:
    return partial(_inputs, batch=batch, height=height, width=width, heads=heads)


CASES: dict[str, Callable[[str | torch.device, torch.dtype], dict[str, Any]]] = {
    "l2vit_tiny stage 1, 128 x 224": _case(128, 56, 56, 3),
    "l2vit_tiny stage 2, 128 x 224": _case(128, 28, 28, 6),
    "l2vit_tiny stage 3, 128 x 224": _case(128, 14, 14, 12),
    "l2vit_tiny stage 4, 128 x 224": _case(128, 7, 7, 24),
    "l2vit_base stage 1, 128 x 224": _case(128, 56, 56, 4),
    "l2vit_base_384 stage 1, 32 x 384": _case(32, 96, 96, 4),
    "l2vit_tiny stage 1, 2 x 800x1344": _case(2, 200, 336, 3),
    "l2vit_tiny stage 3, 2 x 800x1344": _case(2, 50, 84, 12),
}
