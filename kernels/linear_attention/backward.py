"""The backward kernels of `linear_attention`, with a sum over chunks between them.

With g the gradient of the result, M = relu(k)ᵀ v, t the temperature, r the denominator of a token, and h = t g Mᵀ / r:
relu(q) · h is g times the result, so that nobody reads the result. Every token is read once.
"""

import triton
import triton.language as tl

from .._state import RUNTIME, add_product, halves, load, load_state, locate, masked, store, store_state, tile, times
from .forward import load_sums, relu, store_sums


@triton.jit(do_not_specialize=RUNTIME)
def backward_gather(
    grad, q, temperature, state, parts, dq, N, heads, chunks, rounds, least, gb, gn, gh, gd, qb, qn, qh, qd,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad, q with strides, state -> dq (B, N, heads, D), parts of the gradients of t M and z as in the state."""
    image, chunk, head = locate(heads, chunks)
    share = tl.load(temperature + head).to(ACC)
    total = load_state(state, image * heads + head, D + 1, D, DP) * share
    sums = load_sums(state, image * heads + head, D, DP)
    high, low, factor = halves(total, ACC if UPCAST else q.dtype.element_ty, ACC)
    dtotal = tl.zeros((DP, DP), ACC)
    dsums = tl.zeros((BLOCK, DP), ACC)
    for step in range(rounds):
        n = tile(chunk, rounds, step, BLOCK)
        g = load(grad, image, n, head, N, gb, gn, gh, gd, D, DP, ACC, UPCAST)
        queries = load(q, image, n, head, N, qb, qn, qh, qd, D, DP, ACC, UPCAST)
        a = relu(queries).to(ACC)
        ratio = tl.sum(a * sums[None, :], 1)
        raised = ratio <= least
        inverse = 1.0 / tl.where(n < N, tl.where(raised, least, ratio), 1.0)
        h = times(g, tl.trans(high), tl.trans(low), factor, ACC, PRECISION) * inverse[:, None]
        pull = tl.where(raised, 0.0, tl.sum(a * h, 1) * inverse)  # a raised denominator has no gradient
        result = tl.where(queries <= 0.0, 0.0, h - pull[:, None] * sums[None, :])
        store(dq, result, image, n, head, N, heads, D, DP)
        dtotal = add_product(dtotal, a * inverse[:, None], masked(g, n < N), ACC, PRECISION)
        dsums -= pull[:, None] * a
    number = (image * chunks + chunk) * heads + head
    store_state(parts, dtotal, number, D + 1, D, DP)
    store_sums(parts, tl.sum(dsums, 0), number, D, DP)


@triton.jit(do_not_specialize=RUNTIME)
def backward_apply(
    k, v, temperature, dstate, dk, dv, N, heads, chunks, rounds, kb, kn, kh, kd, vb, vn, vh, vd,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """k, v with strides, the gradients of t M and z (B, heads, D + 1, D) -> dk, dv (B, N, heads, D)."""
    image, chunk, head = locate(heads, chunks)
    share = tl.load(temperature + head).to(ACC)
    dtotal = load_state(dstate, image * heads + head, D + 1, D, DP) * share
    dsums = load_sums(dstate, image * heads + head, D, DP)
    high, low, factor = halves(dtotal, ACC if UPCAST else k.dtype.element_ty, ACC)
    for step in range(rounds):
        n = tile(chunk, rounds, step, BLOCK)
        keys = load(k, image, n, head, N, kb, kn, kh, kd, D, DP, ACC, UPCAST)
        values = load(v, image, n, head, N, vb, vn, vh, vd, D, DP, ACC, UPCAST)
        result = times(values, tl.trans(high), tl.trans(low), factor, ACC, PRECISION) + dsums[None, :]
        store(dk, tl.where(keys <= 0.0, 0.0, result), image, n, head, N, heads, D, DP)
        result = times(relu(keys), high, low, factor, ACC, PRECISION)
        store(dv, result, image, n, head, N, heads, D, DP)
