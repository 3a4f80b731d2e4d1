"""The backward kernels of `neighborhood_pool_attention`. No two programs add to one number.

backward_queries  dq of a patch, the parameters' gradients, and the sums `delta` that the others need
backward_keys     dk and dv of a patch: every key looks at the nine queries around it, which are its neighbours
backward_pool     gradients of a tile of pooled keys and values: over all queries of an image, in `splits` parts

With w the weights of the softmax, g the gradient of the result, delta = Σ w (g · v) over the softmax alone, the
gradient of the scores is w (g · v - delta). The learned weights stand beside the softmax and take no part in delta.
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
    through_norm,
)


@triton.jit(do_not_specialize=SIZES)
def backward_queries(
    q, k, v, pool_k, pool_v, out, lse, grad, delta, dq, partial,
    embedding, temperature, local, tokens, learned_bias, table, rows, columns,
    H, W, patches, across, heads, P, PW, TH, TW, rs, rp, cs, cp,
    qb, qy, qx, qh, qd, kb, ky, kx, kh, kd, vb, vy, vx, vh, vd, jb, jp, jh, jd, ub, up, uh, ud, gb, gy, gx, gc,
    D: tl.constexpr, DP: tl.constexpr, BP: tl.constexpr, UNIT: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr, SMALL: tl.constexpr,
):  # fmt: skip
    """dq (B, H, W, heads, D), delta (B, heads, H * W) and `partial` (B * patches, heads, 10 * D + 19), to be summed.

    A partial: nine rows of D for the learnable tokens, one for the query embedding, nine numbers each for the local
    and the learnable bias, and one for softplus(temperature).

    One way through the keys suffices. It takes a first estimate of delta, right but for the rounding of `out`, and
    sums w (g · v - estimate) times the keys; the rest of delta, known in the end, goes with the weighted mean of keys.
    """
    program = tl.program_id(0)
    head, piece = program % heads, program // heads
    d, number = tl.arange(0, DP), tl.arange(0, 16)
    added = embed(embedding, head, d, D, ACC)
    sharp = sharpness(temperature, head, ACC)
    table += head.to(tl.int64) * TH * TW
    image, y, x, exists = locate(piece, patches, across, H, W)
    pixel = y.to(tl.int64) * W + x
    at = ((image * H * W + pixel) * heads + head) * D
    queries = load(q, address(image, y, x, head, qb, qy, qx, qh, UNIT), exists, d, qd, D, ACC, UPCAST)
    at_g = address(image, y, x, 0, gb, gy, gx, 0, UNIT) + head * D * gc
    g = load(grad, at_g, exists, d, gc, D, ACC, UPCAST)
    level = tl.load(lse + (image * heads + head) * H * W + pixel, mask=exists, other=float("inf"))
    inverse = inverse_norm(queries.to(ACC))
    shifted = queries.to(ACC) * inverse[:, None] + added[None, :]
    many = length(y, x, H, W, P, ACC)
    factor = sharp * LOG2E * many
    gradient = tl.zeros((BLOCK, DP), ACC)  # Σ w (g · v) key, then Σ w (g · v - estimate) key
    mean = tl.zeros((BLOCK, DP), ACC)  # Σ w key
    inner, sure, beside = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    near, products = tl.zeros((BLOCK, 16), ACC), tl.zeros((BLOCK, 16), ACC)
    for t in range(9):
        row, column, inside = neighbour(t, y, x, H, W, exists)
        keys = load(k, address(image, row, column, head, kb, ky, kx, kh, UNIT), inside, d, kd, D, ACC, True).to(ACC)
        values = load(v, address(image, row, column, head, vb, vy, vx, vh, UNIT), inside, d, vd, D, ACC, True)
        keys *= inverse_norm(keys)[:, None]
        s = tl.sum(shifted * keys, 1) * factor + tl.load(local + head * 9 + t).to(ACC) * LOG2E
        w = tl.where(inside, tl.exp2(s - level), 0.0)
        product = tl.sum(g.to(ACC) * values, 1)
        token = tl.load(tokens + (head * D + d) * 9 + t, mask=d < D, other=0.0).to(ACC)
        weight = tl.sum((shifted - added[None, :]) * token[None, :], 1) + tl.load(learned_bias + head * 9 + t).to(ACC)
        beside += weight * product
        inner += w * product
        sure += w
        gradient += (w * product)[:, None] * keys
        mean += w[:, None] * keys
        near = tl.where(number[None, :] == t, w[:, None], near)
        products = tl.where(number[None, :] == t, product[:, None], products)
    result = load(out, at, exists, d, 1, D, ACC, True).to(ACC)
    estimate = tl.sum(g.to(ACC) * result, 1) - beside
    partial += program.to(tl.int64) * (10 * D + 19)
    of_tokens = tl.dot(tl.trans(products), shifted - added[None, :], out_dtype=ACC, input_precision=SMALL)
    mask = (number[:, None] < 9) & (d[None, :] < D)
    tl.store(partial + number[:, None] * D + d[None, :], of_tokens, mask=mask)
    tl.store(partial + 10 * D + 9 + number, tl.sum(products, 0), mask=number < 9)
    gradient -= estimate[:, None] * mean
    rest = inner - estimate * sure
    for tile in range(tl.cdiv(P, BP)):
        p, there = pooled_keys(tile, P, BP)
        keys = load(pool_k, (image * jb + p.to(tl.int64) * jp + head * jh) * UNIT, there, d, jd, D, ACC, UPCAST)
        values = load(pool_v, (image * ub + p.to(tl.int64) * up + head * uh) * UNIT, there, d, ud, D, ACC, UPCAST)
        bias = pooled_bias(table, rows, columns, y, x, p, H, W, P, PW, TW, rs, rp, cs, cp, ACC)
        key_inverse = inverse_norm(keys.to(ACC))
        s = pooled_scores(queries, inverse, factor, keys, key_inverse, added, there, bias, ACC, PRECISION)
        w = tl.exp2(s - level[:, None])
        ds = tl.dot(g, tl.trans(values), out_dtype=ACC, input_precision=PRECISION)
        ds = w * (ds - estimate[:, None])
        rest += tl.sum(ds, 1)
        keys = (keys.to(ACC) * key_inverse[:, None]).to(keys.dtype)
        gradient += tl.dot(ds.to(keys.dtype), keys, out_dtype=ACC, input_precision=PRECISION)
        mean += tl.dot(w.to(keys.dtype), keys, out_dtype=ACC, input_precision=PRECISION)
    at_q = address(image, y, x, head, qb, qy, qx, qh, UNIT)
    unit = load(q, at_q, exists, d, qd, D, ACC, True).to(ACC)  # once more, which is cheaper than to keep it
    gradient -= rest[:, None] * mean
    exact = estimate + rest
    tl.store(delta + (image * heads + head) * H * W + pixel, exact, mask=exists)
    dunit = gradient * (sharp * many)[:, None]
    for t in range(9):
        token = tl.load(tokens + (head * D + d) * 9 + t, mask=d < D, other=0.0).to(ACC)
        dunit += tl.sum(tl.where(number[None, :] == t, products, 0.0), 1)[:, None] * token[None, :]
    tl.store(
        dq + at[:, None] + d[None, :], through_norm(dunit, unit, inverse).to(dq.dtype.element_ty),
        mask=exists[:, None] & (d[None, :] < D),
    )  # fmt: skip
    unit *= inverse[:, None]
    tl.store(partial + 9 * D + d, tl.sum(gradient * (sharp * many)[:, None], 0), mask=d < D)
    tl.store(partial + 10 * D + number, tl.sum(near * (products - exact[:, None]), 0), mask=number < 9)
    tl.store(partial + 10 * D + 18, tl.sum(many * tl.sum(gradient * (unit + added[None, :]), 1), 0))


@triton.jit(do_not_specialize=SIZES)
def backward_keys(
    q, k, v, lse, grad, delta, dk, dv,
    embedding, temperature, local, tokens, learned_bias,
    H, W, patches, across, heads, P,
    qb, qy, qx, qh, qd, kb, ky, kx, kh, kd, vb, vy, vx, vh, vd, gb, gy, gx, gc,
    D: tl.constexpr, DP: tl.constexpr, UNIT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dk, dv (B, H, W, heads, D)."""
    program = tl.program_id(0)
    head, piece = program % heads, program // heads
    d = tl.arange(0, DP)
    added = embed(embedding, head, d, D, ACC)
    sharp = sharpness(temperature, head, ACC)
    image, y, x, exists = locate(piece, patches, across, H, W)
    keys = load(k, address(image, y, x, head, kb, ky, kx, kh, UNIT), exists, d, kd, D, ACC, True).to(ACC)
    values = load(v, address(image, y, x, head, vb, vy, vx, vh, UNIT), exists, d, vd, D, ACC, True).to(ACC)
    key_inverse = inverse_norm(keys)
    unit_keys = keys * key_inverse[:, None]
    key_gradient = tl.zeros((BLOCK, DP), ACC)
    value_gradient = tl.zeros((BLOCK, DP), ACC)
    for t in range(9):
        row, column, inside = neighbour(8 - t, y, x, H, W, exists)  # whose neighbour number t this key is
        at = (image * heads + head) * H * W + row.to(tl.int64) * W + column
        level = tl.load(lse + at, mask=inside, other=float("inf"))
        center = tl.load(delta + at, mask=inside, other=0.0)
        queries = load(q, address(image, row, column, head, qb, qy, qx, qh, UNIT), inside, d, qd, D, ACC, True).to(ACC)
        at_g = address(image, row, column, 0, gb, gy, gx, 0, UNIT) + head * D * gc
        g = load(grad, at_g, inside, d, gc, D, ACC, True).to(ACC)
        unit = queries * inverse_norm(queries)[:, None]
        scaled = (unit + added[None, :]) * (sharp * length(row, column, H, W, P, ACC))[:, None]
        s = (tl.sum(scaled * unit_keys, 1) + tl.load(local + head * 9 + t).to(ACC)) * LOG2E
        w = tl.exp2(s - level)
        token = tl.load(tokens + (head * D + d) * 9 + t, mask=d < D, other=0.0).to(ACC)
        weight = tl.sum(unit * token[None, :], 1) + tl.load(learned_bias + head * 9 + t).to(ACC)
        value_gradient += (w + weight)[:, None] * g
        key_gradient += (w * (tl.sum(g * values, 1) - center))[:, None] * scaled
    key_gradient = through_norm(key_gradient, keys, key_inverse)
    at = ((image * H * W + y.to(tl.int64) * W + x) * heads + head) * D
    mask = exists[:, None] & (d[None, :] < D)
    tl.store(dk + at[:, None] + d[None, :], key_gradient.to(dk.dtype.element_ty), mask=mask)
    tl.store(dv + at[:, None] + d[None, :], value_gradient.to(dv.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def backward_pool(
    q, pool_k, pool_v, lse, grad, delta, partial,
    embedding, temperature, table, rows, columns,
    images, H, W, patches, across, tiles, rounds, heads, P, PW, TH, TW, rs, rp, cs, cp,
    qb, qy, qx, qh, qd, jb, jp, jh, jd, ub, up, uh, ud, gb, gy, gx, gc,
    D: tl.constexpr, DP: tl.constexpr, BP: tl.constexpr, UNIT: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """partial (splits, 2, B, P, heads, D), to be summed: gradients of pool_k and pool_v over `rounds` patches each."""
    program = tl.program_id(0)
    head, rest = program % heads, program // heads
    tile, rest = rest % tiles, rest // tiles
    image, split = (rest % images).to(tl.int64), rest // images
    d = tl.arange(0, DP)
    added = embed(embedding, head, d, D, ACC)
    sharp = sharpness(temperature, head, ACC)
    table += head.to(tl.int64) * TH * TW
    p, there = pooled_keys(tile, P, BP)
    keys = load(pool_k, (image * jb + p.to(tl.int64) * jp + head * jh) * UNIT, there, d, jd, D, ACC, UPCAST)
    values = load(pool_v, (image * ub + p.to(tl.int64) * up + head * uh) * UNIT, there, d, ud, D, ACC, UPCAST)
    key_inverse = inverse_norm(keys.to(ACC))
    key_gradient = tl.zeros((BP, DP), ACC)
    value_gradient = tl.zeros((BP, DP), ACC)
    for step in range(rounds):
        patch = split * rounds + step
        _, y, x, exists = locate(patch, patches, across, H, W)
        exists &= patch < patches
        pixel = y.to(tl.int64) * W + x
        queries = load(q, address(image, y, x, head, qb, qy, qx, qh, UNIT), exists, d, qd, D, ACC, UPCAST)
        at_g = address(image, y, x, 0, gb, gy, gx, 0, UNIT) + head * D * gc
        g = load(grad, at_g, exists, d, gc, D, ACC, UPCAST)
        level = tl.load(lse + (image * heads + head) * H * W + pixel, mask=exists, other=float("inf"))
        center = tl.load(delta + (image * heads + head) * H * W + pixel, mask=exists, other=0.0)
        inverse = inverse_norm(queries.to(ACC))
        factor = sharp * length(y, x, H, W, P, ACC)
        bias = pooled_bias(table, rows, columns, y, x, p, H, W, P, PW, TW, rs, rp, cs, cp, ACC)
        s = pooled_scores(queries, inverse, factor * LOG2E, keys, key_inverse, added, there, bias, ACC, PRECISION)
        w = tl.exp2(s - level[:, None])
        value_gradient += tl.dot(tl.trans(w.to(g.dtype)), g, out_dtype=ACC, input_precision=PRECISION)
        ds = tl.dot(g, tl.trans(values), out_dtype=ACC, input_precision=PRECISION)
        ds = w * (ds - center[:, None])
        scaled = (queries.to(ACC) * inverse[:, None] + added[None, :]) * factor[:, None]
        scaled = scaled.to(queries.dtype)
        key_gradient += tl.dot(tl.trans(ds.to(scaled.dtype)), scaled, out_dtype=ACC, input_precision=PRECISION)
    key_gradient = through_norm(key_gradient, keys.to(ACC), key_inverse)
    at = ((((split * 2) * images + image) * P + p) * heads + head) * D
    mask = there[:, None] & (d[None, :] < D)
    tl.store(partial + at[:, None] + d[None, :], key_gradient, mask=mask)
    at = ((((split * 2 + 1) * images + image) * P + p) * heads + head) * D
    tl.store(partial + at[:, None] + d[None, :], value_gradient, mask=mask)
