"""The backward kernels of `channel_attention`, with a sum over chunks between them.

With g the gradient of the result, dA = gᵀ mixed that of the weights and dS that of the scores: those of mixed, left and
right are g A, right dSᵀ and left dS. Every token is read once.
"""

import triton
import triton.language as tl

from .._state import RUNTIME, halves, load, load_state, locate, masked, store, store_state, tile, times
from .forward import softmax


@triton.jit(do_not_specialize=RUNTIME)
def backward_gather(
    grad, mixed, scores, parts, dmixed, N, heads, chunks, rounds, scale, gb, gn, gh, gd, mb, mn, mh, md,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad and mixed with strides, scores -> dmixed (B, N, heads, D), parts of dA (B, chunks, heads, D, D)."""
    image, chunk, head = locate(heads, chunks)
    state = load_state(scores, image * heads + head, D, D, DP)
    weights = softmax(state, scale, D, DP).to(ACC if UPCAST else mixed.dtype.element_ty)
    total = tl.zeros((DP, DP), ACC)
    for step in range(rounds):
        n = tile(chunk, rounds, step, BLOCK)
        g = load(grad, image, n, head, N, gb, gn, gh, gd, D, DP, ACC, UPCAST)
        tokens = load(mixed, image, n, head, N, mb, mn, mh, md, D, DP, ACC, UPCAST)
        result = tl.dot(g, weights, out_dtype=ACC, input_precision=PRECISION)
        store(dmixed, result, image, n, head, N, heads, D, DP)
        total = tl.dot(tl.trans(masked(g, n < N)), tokens, total, out_dtype=ACC, input_precision=PRECISION)
    store_state(parts, total, (image * chunks + chunk) * heads + head, D, D, DP)


@triton.jit(do_not_specialize=RUNTIME)
def backward_apply(
    left, right, scores, dweights, dleft, dright, N, heads, chunks, rounds, scale, lb, ln, lh, ld, rb, rn, rh, rd,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """left and right with strides, scores and dA (B, heads, D, D) -> dleft, dright (B, N, heads, D)."""
    image, chunk, head = locate(heads, chunks)
    weights = softmax(load_state(scores, image * heads + head, D, D, DP), scale, D, DP)
    slope = load_state(dweights, image * heads + head, D, D, DP)
    dscores = weights * (slope - tl.sum(weights * slope, 1)[:, None]) * scale
    high, low, factor = halves(dscores, ACC if UPCAST else left.dtype.element_ty, ACC)
    for step in range(rounds):
        n = tile(chunk, rounds, step, BLOCK)
        rows = load(left, image, n, head, N, lb, ln, lh, ld, D, DP, ACC, UPCAST)
        columns = load(right, image, n, head, N, rb, rn, rh, rd, D, DP, ACC, UPCAST)
        result = times(columns, tl.trans(high), tl.trans(low), factor, ACC, PRECISION)
        store(dleft, result, image, n, head, N, heads, D, DP)
        result = times(rows, high, low, factor, ACC, PRECISION)
        store(dright, result, image, n, head, N, heads, D, DP)
