"""The forward kernels of `linear_attention`: `whole` in one go, or `gather`, a sum of its parts, and `apply`.

The state of an image and a head is relu(k)ᵀ v in D rows, and z, the sum of relu(k), in one more.
"""

import triton
import triton.language as tl

from .._state import RUNTIME, halves, load, load_state, locate, store, store_state, tile, times


@triton.jit
def relu(x):
    """As PyTorch's, which keeps NaN."""
    return tl.where(x < 0.0, tl.zeros_like(x), x)


@triton.jit
def load_sums(state, number, D: tl.constexpr, DP: tl.constexpr):
    """The last row of a state, (DP,)."""
    d = tl.arange(0, DP)
    return tl.load(state + number * (D + 1) * D + D * D + d, mask=d < D, other=0.0)


@triton.jit
def store_sums(state, sums, number, D: tl.constexpr, DP: tl.constexpr):
    """The same, to be written."""
    d = tl.arange(0, DP)
    tl.store(state + number * (D + 1) * D + D * D + d, sums, mask=d < D)


@triton.jit
def _sum(
    k, v, image, chunk, head, N, rounds, kb, kn, kh, kd, vb, vn, vh, vd,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A chunk's part of the state, (DP, DP) and (DP,)."""
    total = tl.zeros((DP, DP), ACC)
    sums = tl.zeros((BLOCK, DP), ACC)
    for step in range(rounds):
        n = tile(chunk, rounds, step, BLOCK)
        b = relu(load(k, image, n, head, N, kb, kn, kh, kd, D, DP, ACC, UPCAST))
        values = load(v, image, n, head, N, vb, vn, vh, vd, D, DP, ACC, UPCAST)
        total = tl.dot(tl.trans(b), values, total, out_dtype=ACC, input_precision=PRECISION)
        sums += b.to(ACC)  # row by row: adding up rows wants all warps to meet, which is for the end
    return total, tl.sum(sums, 0)


@triton.jit
def _mix(
    q, temperature, total, sums, out, image, chunk, head, N, heads, rounds, least, qb, qn, qh, qd,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    share = tl.load(temperature + head).to(ACC)
    high, low, factor = halves(total * share, ACC if UPCAST else q.dtype.element_ty, ACC)
    for step in range(rounds):
        n = tile(chunk, rounds, step, BLOCK)
        a = relu(load(q, image, n, head, N, qb, qn, qh, qd, D, DP, ACC, UPCAST))
        ratio = tl.sum(a.to(ACC) * sums[None, :], 1)
        ratio = tl.where(n < N, tl.where(ratio < least, least, ratio), 1.0)
        result = times(a, high, low, factor, ACC, PRECISION) / ratio[:, None]
        store(out, result, image, n, head, N, heads, D, DP)


@triton.jit(do_not_specialize=RUNTIME)
def gather(
    k, v, parts, N, heads, chunks, rounds, kb, kn, kh, kd, vb, vn, vh, vd,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """k, v (B, N, heads, D) with strides -> parts of the state (B, chunks, heads, D + 1, D), to be summed."""
    image, chunk, head = locate(heads, chunks)
    total, sums = _sum(
        k, v, image, chunk, head, N, rounds, kb, kn, kh, kd, vb, vn, vh, vd, D, DP, BLOCK, ACC, UPCAST, PRECISION
    )
    number = (image * chunks + chunk) * heads + head
    store_state(parts, total, number, D + 1, D, DP)
    store_sums(parts, sums, number, D, DP)


@triton.jit(do_not_specialize=RUNTIME)
def apply(
    q, temperature, state, out, N, heads, chunks, rounds, least, qb, qn, qh, qd,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """q with strides, temperature (heads,), state (B, heads, D + 1, D) -> out (B, N, heads * D)."""
    image, chunk, head = locate(heads, chunks)
    total = load_state(state, image * heads + head, D + 1, D, DP)
    sums = load_sums(state, image * heads + head, D, DP)
    _mix(
        q, temperature, total, sums, out, image, chunk, head, N, heads, rounds, least, qb, qn, qh, qd,
        D, DP, BLOCK, ACC, UPCAST, PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=RUNTIME)
def whole(
    q, k, v, temperature, state, out, N, heads, chunks, rounds, least, qb, qn, qh, qd, kb, kn, kh, kd, vb, vn, vh, vd,
    D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """q, k, v with strides, temperature -> state (B, heads, D + 1, D), out (B, N, heads * D)."""
    image, chunk, head = locate(heads, chunks)
    total, sums = _sum(
        k, v, image, chunk, head, N, rounds, kb, kn, kh, kd, vb, vn, vh, vd, D, DP, BLOCK, ACC, UPCAST, PRECISION
    )
    store_state(state, total, image * heads + head, D + 1, D, DP)
    store_sums(state, sums, image * heads + head, D, DP)
    _mix(
        q, temperature, total, sums, out, image, chunk, head, N, heads, rounds, least, qb, qn, qh, qd,
        D, DP, BLOCK, ACC, UPCAST, PRECISION,
    )  # fmt: skip
