"""Attention of every pixel to its nine neighbours and to a pooled map, in one softmax."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import _triton, dispatch
from . import eager, reference
from .bias import position_bias

__all__ = ["neighborhood_pool_attention", "position_bias"]


def neighborhood_pool_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pool_k: Tensor,
    pool_v: Tensor,
    query_embedding: Tensor,
    temperature: Tensor,
    relative_pos_bias_local: Tensor,
    learnable_tokens: Tensor,
    learnable_bias: Tensor,
    bias_table: Tensor,
    bias_rows: Tensor,
    bias_columns: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Aggregated attention of TransNeXt (https://arxiv.org/abs/2311.17132), for one head and the pixel n:

        u = q / |q|, and so are the keys normalised; scaled = (u + E) * softplus(τ) * ln(neighbours of n + P)
        weights = softmax([scaled · k(n + δt) + R[t] for t in 0..8] + [scaled · pool_k(p) + bias(n, p) for p < P])
        out = Σt (weights[t] + u · L[:, t] + b[t]) v(n + δt) + Σp weights[9 + p] pool_v(p)

    The offsets δ go through the 3 x 3 pixels around n row by row. A neighbour outside the map is not counted and has
    no weight.

    Args:
        q, k, v: (B, H, W, heads, D), with any strides: views of a projection's output, not normalised.
        pool_k, pool_v: (B, ph * pw, heads, D), the same of the pooled map, row by row; P = ph * pw.
        query_embedding: E, (heads, 1, D).
        temperature: τ, (heads, 1, 1).
        relative_pos_bias_local: R, (heads, 9).
        learnable_tokens: L, (heads, D, 9).
        learnable_bias: b, (heads, 1, 9).
        bias_table: (heads, Th, Tw): the bias between a pixel and a pooled one, by where they lie to each other.
        bias_rows: (H, ph), integers: the row of the table for each row of the map and of the pooled map. Or (H, ph,
            Th), weights of the table's rows, where the bias is interpolated.
        bias_columns: (W, pw) or (W, pw, Tw), the same for columns. A bias that is no table of differences is one of
            ph * H rows and pw * W columns, read at `arange`.
        backend: None, "reference", "eager" or "triton"; see `dispatch`.

    Returns:
        (B, H, W, heads * D).

    Raises:
        ValueError: a backend that does not exist; names those that do.
        BackendError: the backend that was asked for cannot run; says why.
    """
    if torch.jit.is_scripting():
        return eager.neighborhood_pool_attention(
            q,
            k,
            v,
            pool_k,
            pool_v,
            query_embedding,
            temperature,
            relative_pos_bias_local,
            learnable_tokens,
            learnable_bias,
            bias_table,
            bias_rows,
            bias_columns,
        )
    tensors = (
        q,
        k,
        v,
        pool_k,
        pool_v,
        query_embedding,
        temperature,
        relative_pos_bias_local,
        learnable_tokens,
        learnable_bias,
        bias_table,
    )
    unfit, shape = partial(_unfit, tensors, bias_rows, bias_columns), partial(_shape, q)
    run = _implementation(dispatch.choose("neighborhood_pool_attention", backend, tensors, unfit, shape))
    return run(
        q,
        k,
        v,
        pool_k,
        pool_v,
        query_embedding,
        temperature,
        relative_pos_bias_local,
        learnable_tokens,
        learnable_bias,
        bias_table,
        bias_rows,
        bias_columns,
    )


def _implementation(chosen: str) -> Callable[..., Tensor]:
    if chosen == "triton":
        from . import triton

        return triton.neighborhood_pool_attention
    return reference.neighborhood_pool_attention if chosen == "reference" else eager.neighborhood_pool_attention


_INTERPOLATED = 2**27
"""Numbers of a position bias, at most, that are written out: half a gigabyte in float32."""


def _unfit(tensors: tuple[Tensor, ...], bias_rows: Tensor, bias_columns: Tensor) -> str | None:
    q, k, v, pool_k, pool_v, embedding, temperature, local, tokens, learned_bias, table = tensors
    refused = _triton.misfit("(B, H, W, heads, D)", q, k, v, pool_k, pool_v)
    if refused:
        return refused
    for name, places in (("bias_rows", bias_rows), ("bias_columns", bias_columns)):
        if places.dim() != 2 + places.is_floating_point():
            return f"{name} is {tuple(places.shape)}, {places.dtype}; it is integers (n, p) or weights (n, p, T)"
    batch, height, width, heads, head_dim = q.shape
    pooled = (bias_rows.shape[1], bias_columns.shape[1])
    if bias_rows.device != q.device or bias_columns.device != q.device:
        return f"bias_rows and bias_columns are on {bias_rows.device} and {bias_columns.device}, and q on {q.device}"
    if bias_rows.is_floating_point() and heads * height * width * pooled[0] * pooled[1] > _INTERPOLATED:
        return "the interpolated position bias of so many pairs is too large to be written out"
    there = (batch, pooled[0] * pooled[1], heads, head_dim)
    return _triton.misshapen(
        k=(k, q.shape),
        v=(v, q.shape),
        pool_k=(pool_k, there),
        pool_v=(pool_v, there),
        query_embedding=(embedding, (heads, 1, head_dim)),
        temperature=(temperature, (heads, 1, 1)),
        relative_pos_bias_local=(local, (heads, 9)),
        learnable_tokens=(tokens, (heads, head_dim, 9)),
        learnable_bias=(learned_bias, (heads, 1, 9)),
        bias_table=(table, (heads, *table.shape[1:])),
        bias_rows=(bias_rows, (height, *bias_rows.shape[1:])),
        bias_columns=(bias_columns, (width, *bias_columns.shape[1:])),
    )


def _shape(q: Tensor) -> str:
    """The class of shapes that is measured together: the size of heads, which is all that changes the kernels."""
    return f"heads of {q.shape[-1]}"
