"""The operator at the sizes that models give it, for benchmarks and compilations: name -> its arguments."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

_HEAD_DIM = 32


def _arguments(
    batch: int,
    size: tuple[int, int],
    heads: int,
    regions: int,
    picks: int,
    device: str | torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    count, dim = regions**2, heads * _HEAD_DIM
    packed = torch.randn(batch, *size, 3 * dim, device=device, dtype=dtype, requires_grad=True)
    q, k, v = packed.unflatten(-1, (3, heads, -1)).unbind(3)
    index = torch.rand(batch, count, count, device=device).topk(picks)[1]
    return {"q": q, "k": k, "v": v, "index": index, "scale": dim**-0.5, "regions": (regions, regions)}


CASES: dict[str, Callable[[str | torch.device, torch.dtype], dict[str, Any]]] = {
    "biformer_base stage 1, 128 x 224": partial(_arguments, 128, (56, 56), 3, 7, 1),
    "biformer_base stage 2, 128 x 224": partial(_arguments, 128, (28, 28), 6, 7, 4),
    "biformer_base stage 3, 128 x 224": partial(_arguments, 128, (14, 14), 12, 7, 16),
    "biformer_base stage 1, 2 x 800x1344": partial(_arguments, 2, (208, 336), 3, 16, 1),
    "biformer_base stage 2, 2 x 800x1344": partial(_arguments, 2, (112, 176), 6, 16, 4),
    "biformer_base stage 3, 2 x 800x1344": partial(_arguments, 2, (64, 96), 12, 16, 16),
}
