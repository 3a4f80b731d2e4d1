"""`neighborhood_pool_attention` at the shapes of TransNeXt, to be compiled, checked and timed."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

HEAD_DIM = 24


def _make(
    images: int, height: int, width: int, heads: int, ratio: int, device: str | torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Arguments for a map that is pooled by `ratio`, which divides it: views of three projections, and parameters."""
    ph, pw = height // ratio, width // ratio
    q = torch.randn(images, height, width, heads, HEAD_DIM, device=device, dtype=dtype, requires_grad=True)
    kv = torch.randn(images, height, width, 2, heads, HEAD_DIM, device=device, dtype=dtype, requires_grad=True)
    pool = torch.randn(images, ph * pw, 2, heads, HEAD_DIM, device=device, dtype=dtype, requires_grad=True)
    k, v = kv.unbind(3)
    pool_k, pool_v = pool.unbind(2)

    def parameter(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).mul_(0.1).requires_grad_()

    def places(queries: int, keys: int) -> Tensor:
        query, key = torch.arange(queries, device=device), torch.arange(keys, device=device)
        return query.unsqueeze(1) - ratio * key + ratio * (keys - 1)

    return {
        "q": q,
        "k": k,
        "v": v,
        "pool_k": pool_k,
        "pool_v": pool_v,
        "query_embedding": parameter(heads, 1, HEAD_DIM),
        "temperature": torch.full((heads, 1, 1), 4.15, device=device).requires_grad_(),
        "relative_pos_bias_local": parameter(heads, 9),
        "learnable_tokens": parameter(heads, HEAD_DIM, 9),
        "learnable_bias": parameter(heads, 1, 9),
        "bias_table": parameter(heads, height + ratio * (ph - 1), width + ratio * (pw - 1)),
        "bias_rows": places(height, ph),
        "bias_columns": places(width, pw),
    }


CASES: dict[str, Callable[[str | torch.device, torch.dtype], dict[str, Any]]] = {
    "transnext_tiny stage 1, 128 x 224": partial(_make, 128, 56, 56, 3, 8),
    "transnext_tiny stage 2, 128 x 224": partial(_make, 128, 28, 28, 6, 4),
    "transnext_tiny stage 3, 128 x 224": partial(_make, 128, 14, 14, 12, 2),
    "transnext_base stage 3, 32 x 384": partial(_make, 32, 24, 24, 16, 2),
    "transnext_tiny stage 1, 2 x 800x1344": partial(_make, 2, 200, 336, 3, 8),
    "transnext_tiny stage 2, 2 x 800x1344": partial(_make, 2, 100, 168, 6, 4),
    "transnext_tiny stage 3, 2 x 800x1344": partial(_make, 2, 50, 84, 12, 2),
}
