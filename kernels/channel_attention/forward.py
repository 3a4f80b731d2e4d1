"""The forward kernels of `channel_attention`: `whole` in one go, or `gather`, a sum of its parts, and `apply`.

The scores are leftᵀ right, summed over tokens; A is their softmax, and the result is mixed Aᵀ.
"""

import triton
import triton.language as tl

from .._state import RUNTIME, load, load_state, locate, masked, store, store_state, tile


@triton.jit
def softmax(scores, scale, D: tl.constexpr, DP: tl.constexpr):
    """softmax(scale * scores) over columns, (DP, DP); zeros beyond D rows and columns."""
    i = tl.arange(0, DP)
    inside = (i < D)[:, None] & (i < D)[None, :]
    scores = tl.where((i < D)[None, :], scores * (scale * 1.4426950408889634), -float("inf"))
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return tl.where(inside, weights / tl.sum(weights, 1)[:, None], 0.0)


@triton.jit
def _sum(
    left, right, image, chunk, head, N, rounds, lb, ln, lh, ld, rb, rn, rh, rd,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    total = tl.zeros((DP, DP), ACC)
    for step in range(rounds):
        n = tile(chunk, rounds, step, BLOCK)
        rows = load(left, image, n, head, N, lb, ln, lh, ld, D, DP, ACC, UPCAST)
        columns = load(right, image, n, head, N, rb, rn, rh, rd, D, DP, ACC, UPCAST)
        total = tl.dot(tl.trans(masked(rows, n < N)), columns, total, out_dtype=ACC, input_precision=PRECISION)
    return total


@triton.jit
def _mix(
    mixed, scores, out, image, chunk, head, N, heads, rounds, scale, mb, mn, mh, md,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # weights of 16 bits are what PyTorch takes, too
    weights = softmax(scores, scale, D, DP).to(ACC if UPCAST else mixed.dtype.element_ty)
    for step in range(rounds):
        n = tile(chunk, rounds, step, BLOCK)
        tokens = load(mixed, image, n, head, N, mb, mn, mh, md, D, DP, ACC, UPCAST)
        result = tl.dot(tokens, tl.trans(weights), out_dtype=ACC, input_precision=PRECISION)
        store(out, result, image, n, head, N, heads, D, DP)


@triton.jit(do_not_specialize=RUNTIME)
def gather(
    left, right, parts, N, heads, chunks, rounds, lb, ln, lh, ld, rb, rn, rh, rd,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """left, right (B, N, heads, D) with strides -> parts of the scores (B, chunks, heads, D, D), to be summed."""
    image, chunk, head = locate(heads, chunks)
    scores = _sum(
        left, right, image, chunk, head, N, rounds, lb, ln, lh, ld, rb, rn, rh, rd,
        D, DP, BLOCK, ACC, UPCAST, PRECISION,
    )  # fmt: skip
    store_state(parts, scores, (image * chunks + chunk) * heads + head, D, D, DP)


@triton.jit(do_not_specialize=RUNTIME)
def apply(
    mixed, scores, out, N, heads, chunks, rounds, scale, mb, mn, mh, md,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """mixed (B, N, heads, D) with strides, scores (B, heads, D, D) -> out (B, N, heads * D)."""
    image, chunk, head = locate(heads, chunks)
    state = load_state(scores, image * heads + head, D, D, DP)
    _mix(
        mixed, state, out, image, chunk, head, N, heads, rounds, scale, mb, mn, mh, md,
        D, DP, BLOCK, ACC, UPCAST, PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=RUNTIME)
def whole(
    left, right, mixed, scores, out, N, heads, chunks, rounds, scale,
    lb, ln, lh, ld, rb, rn, rh, rd, mb, mn, mh, md,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """left, right, mixed (B, N, heads, D) with strides -> scores (B, heads, D, D), out (B, N, heads * D)."""
    image, chunk, head = locate(heads, chunks)
    state = _sum(
        left, right, image, chunk, head, N, rounds, lb, ln, lh, ld, rb, rn, rh, rd,
        D, DP, BLOCK, ACC, UPCAST, PRECISION,
    )  # fmt: skip
    store_state(scores, state, image * heads + head, D, D, DP)
    _mix(
        mixed, state, out, image, chunk, head, N, heads, rounds, scale, mb, mn, mh, md,
        D, DP, BLOCK, ACC, UPCAST, PRECISION,
    )  # fmt: skip
