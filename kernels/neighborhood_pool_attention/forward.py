"""The forward kernel of `neighborhood_pool_attention`: one running softmax, over neighbours, then over pooled keys.

`lse`, the logarithm of each softmax's sum in base 2, is what the backward pass needs to find its weights again.
"""

import triton
import triton.language as tl

from .tiles import (
    BLOCK,
    LOG2E,
    SIZES,
    address,
    embed,
    inverse_norm,
    length,
    load,
    locate,
    neighbour,
    pooled_bias,
    pooled_keys,
    pooled_scores,
    sharpness,
)


@triton.jit(do_not_specialize=SIZES)
def forward(
    q, k, v, pool_k, pool_v, out, lse,
    embedding, temperature, local, tokens, learned_bias, table, rows, columns,
    H, W, patches, across, heads, P, PW, TH, TW, rs, rp, cs, cp,
    qb, qy, qx, qh, qd, kb, ky, kx, kh, kd, vb, vy, vx, vh, vd, jb, jp, jh, jd, ub, up, uh, ud,
    D: tl.constexpr, DP: tl.constexpr, BP: tl.constexpr, UNIT: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """q, k, v (B, H, W, heads, D), pooled (B, P, heads, D) -> out (B, H, W, heads * D), lse (B, heads, H * W)."""
    program = tl.program_id(0)
    head, piece = program % heads, program // heads  # neighbours in time share the lines of a token's heads
    d = tl.arange(0, DP)
    added = embed(embedding, head, d, D, ACC)
    sharp = sharpness(temperature, head, ACC)
    table += head.to(tl.int64) * TH * TW
    image, y, x, exists = locate(piece, patches, across, H, W)
    queries = load(q, address(image, y, x, head, qb, qy, qx, qh, UNIT), exists, d, qd, D, ACC, UPCAST)
    inverse = inverse_norm(queries.to(ACC))
    unit = queries.to(ACC) * inverse[:, None]
    factor = sharp * LOG2E * length(y, x, H, W, P, ACC)
    scaled = (unit + added[None, :]) * factor[:, None]
    largest = tl.full((BLOCK,), -float("inf"), ACC)
    total = tl.zeros((BLOCK,), ACC)
    mean = tl.zeros((BLOCK, DP), ACC)
    learned = tl.zeros((BLOCK, DP), ACC)
    for t in range(9):
        row, column, inside = neighbour(t, y, x, H, W, exists)
        keys = load(k, address(image, row, column, head, kb, ky, kx, kh, UNIT), inside, d, kd, D, ACC, True)
        values = load(v, address(image, row, column, head, vb, vy, vx, vh, UNIT), inside, d, vd, D, ACC, True)
        s = tl.sum(scaled * keys.to(ACC), 1) * inverse_norm(keys.to(ACC))
        s = tl.where(inside, s + tl.load(local + head * 9 + t).to(ACC) * LOG2E, -float("inf"))
        token = tl.load(tokens + (head * D + d) * 9 + t, mask=d < D, other=0.0).to(ACC)
        weight = tl.sum(unit * token[None, :], 1) + tl.load(learned_bias + head * 9 + t).to(ACC)
        now = tl.maximum(largest, s)
        shift = tl.where(now == -float("inf"), 0.0, now)  # of pixels at a corner, the first neighbours
        p = tl.exp2(s - shift)
        shrink = tl.exp2(largest - shift)
        total = total * shrink + p
        mean = mean * shrink[:, None] + p[:, None] * values
        learned += weight[:, None] * values
        largest = now
    for tile in range(tl.cdiv(P, BP)):
        p, there = pooled_keys(tile, P, BP)
        keys = load(pool_k, (image * jb + p.to(tl.int64) * jp + head * jh) * UNIT, there, d, jd, D, ACC, UPCAST)
        values = load(pool_v, (image * ub + p.to(tl.int64) * up + head * uh) * UNIT, there, d, ud, D, ACC, UPCAST)
        bias = pooled_bias(table, rows, columns, y, x, p, H, W, P, PW, TW, rs, rp, cs, cp, ACC)
        s = pooled_scores(
            queries, inverse, factor, keys, inverse_norm(keys.to(ACC)), added, there, bias, ACC, PRECISION
        )
        now = tl.maximum(largest, tl.max(s, 1))
        weights = tl.exp2(s - now[:, None])
        shrink = tl.exp2(largest - now)
        total = total * shrink + tl.sum(weights, 1)
        mean = mean * shrink[:, None]
        mean += tl.dot(weights.to(values.dtype), values, out_dtype=ACC, input_precision=PRECISION)
        largest = now
    pixel = y.to(tl.int64) * W + x
    tl.store(lse + (image * heads + head) * H * W + pixel, largest + tl.log2(total), mask=exists)
    at = ((image * H * W + pixel) * heads + head) * D
    result = mean / total[:, None] + learned
    tl.store(out + at[:, None] + d[None, :], result.to(out.dtype.element_ty), mask=exists[:, None] & (d[None, :] < D))
