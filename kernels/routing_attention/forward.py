"""The forward kernel of `routing_attention`: one program for a tile of queries and one head.

It goes through the keys that the region is routed to, tile by tile, with a running softmax. `lse`, the logarithm of
each softmax's sum in base 2, is what the backward pass needs to find its weights again.
"""

import triton
import triton.language as tl

from .tiles import keys_of, load, locate, routed, tokens_of

SIZES = ("tall", "wide", "columns", "count", "picks", "tiles")
"""Of images: Triton would compile anew for those that 16 divides, or that are 1."""


@triton.jit(do_not_specialize=SIZES)
def forward(
    q, k, v, index, out, lse,
    tall, wide, columns, count, picks, tiles, heads, scale,
    qb, qy, qx, qh, qd, kb, ky, kx, kh, kd, vb, vy, vx, vh, vd, ob, oy,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """q, k, v (B, H, W, heads, D) with strides -> out (B, H, W, heads * D), lse (B, heads, regions, T).

    index (B, regions, K); MASKED: words (B, regions).
    """
    tokens = tall * wide
    head, image, region, t, inside = tokens_of(tl.program_id(0), tiles, heads, count, tokens, BM, MASKED)
    d = tl.arange(0, DP)
    y, x = locate(region, t, tall, wide, columns)
    queries = load(q + image * qb + head * qh, y, x, qy, qx, inside, d, qd, D, ACC, UPCAST)
    if MASKED:
        routes = tl.load(index + image * count + region, mask=inside, other=0)
        number = count * tokens
    else:
        index += (image * count + region) * picks
        number = picks * tokens
    k += image * kb + head * kh
    v += image * vb + head * vh
    largest = tl.full((BM,), -float("inf"), ACC)
    total = tl.zeros((BM,), ACC)
    mean = tl.zeros((BM, DP), ACC)
    for start in range(0, number, BN):
        exists, named, row, column = keys_of(
            index, start + tl.arange(0, BN), number, tokens, tall, wide, columns, count, MASKED
        )
        keys = load(k, row, column, ky, kx, exists, d, kd, D, ACC, UPCAST)
        values = load(v, row, column, vy, vx, exists, d, vd, D, ACC, UPCAST)
        s = tl.dot(queries, tl.trans(keys), out_dtype=ACC, input_precision=PRECISION) * (scale * 1.4426950408889634)
        seen = exists[None, :]
        if MASKED:
            seen = seen & routed(routes[:, None], named[None, :], start // tokens)
        s = tl.where(seen, s, -float("inf"))
        now = tl.maximum(largest, tl.max(s, 1))
        now = tl.where(now == -float("inf"), 0.0, now)  # a query may see no key of a tile
        p = tl.exp2(s - now[:, None])
        shrink = tl.exp2(largest - now)
        total = total * shrink + tl.sum(p, 1)
        product = tl.dot(p.to(values.dtype), values, out_dtype=ACC, input_precision=PRECISION)
        mean = mean * shrink[:, None] + product
        largest = now
    total = tl.where(total == 0.0, 1.0, total)
    at = ((image * heads + head) * count + region) * tokens + t
    tl.store(lse + at, largest + tl.log2(total), mask=inside)
    out += image * ob + head * D
    at = (y * oy + x * (heads * D))[:, None] + d[None, :]
    mean = mean / total[:, None]
    tl.store(out + at, mean.to(out.dtype.element_ty), mask=inside[:, None] & (d[None, :] < D))
