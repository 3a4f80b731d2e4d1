"""`channel_attention` at the shapes of DaViT, for benchmarks and for kernels that are only compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

__all__ = ["CASES"]


def _inputs(
    device: str | torch.device, dtype: torch.dtype, *, batch: int, height: int, width: int, heads: int, transposed: bool
) -> dict[str, Any]:
    packed = torch.randn(batch, height * width, 3, heads, 32, device=device, dtype=dtype).requires_grad_()
    q, k, v = packed.unbind(2)
    return {"q": q, "k": k, "v": v, "scale": None if transposed else 32**-0.5, "transposed": transposed}


def _case(batch: int, height: int, width: int, heads: int, transposed: bool = False) -> Callable[..., dict[str, Any]]:
    return partial(_inputs, batch=batch, height=height, width=width, heads=heads, transposed=transposed)


CASES: dict[str, Callable[[str | torch.device, torch.dtype], dict[str, Any]]] = {
    "davit_tiny stage 1, 128 x 224": _case(128, 56, 56, 3),
    "davit_tiny stage 2, 128 x 224": _case(128, 28, 28, 6),
    "davit_tiny stage 3, 128 x 224": _case(128, 14, 14, 12),
    "davit_tiny stage 4, 128 x 224": _case(128, 7, 7, 24),
    "davit_base stage 1, 128 x 224": _case(128, 56, 56, 4),
    "davit_base_fl stage 1, 16 x 768": _case(16, 192, 192, 4, transposed=True),
    "davit_base_fl stage 3, 16 x 768": _case(16, 48, 48, 16, transposed=True),
    "davit_tiny stage 1, 2 x 800x1344": _case(2, 200, 336, 3),
    "davit_tiny stage 3, 2 x 800x1344": _case(2, 50, 84, 12),
}
