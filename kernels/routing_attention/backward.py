"""The backward kernels of `routing_attention`. Nothing is added up in memory, so that every run gives the same bits.

backward_queries  dq of a tile of queries, and the sums `delta` that keys need
backward_keys     dk and dv of a tile of keys, from the regions that are routed to them
backward_rest     the same, of the regions beyond the first `most` that are routed to some keys: sums for backward_keys

`order` (B, regions * K) sorts the entries of `index` by the region they name, and `ends` (B, regions + 1) says where
those of each region begin and end: `order[ends[r]:ends[r + 1]] // K` are the regions that are routed to region r. They
are a few as a rule. A region that all others are routed to has its list cut, or one program would work on alone.

With p the weights, g the gradient of the result and delta = Σ p (g · v), the gradient of the scores is
p (g · v - delta).
"""

import triton
import triton.language as tl

from .forward import SIZES
from .tiles import keys_of, load, locate, routed, tokens_of


@triton.jit(do_not_specialize=SIZES)
def backward_queries(
    q, k, v, index, out, grad, lse, dq, delta,
    tall, wide, columns, count, picks, tiles, heads, scale,
    qb, qy, qx, qh, qd, kb, ky, kx, kh, kd, vb, vy, vx, vh, vd, ob, oy, gb, gy, gx, gc,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MASKED: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq (B, H, W, heads, D) and delta (B, heads, regions, T)."""
    tokens = tall * wide
    head, image, region, t, inside = tokens_of(tl.program_id(0), tiles, heads, count, tokens, BM, MASKED)
    d = tl.arange(0, DP)
    y, x = locate(region, t, tall, wide, columns)
    queries = load(q + image * qb + head * qh, y, x, qy, qx, inside, d, qd, D, ACC, UPCAST)
    g = load(grad + image * gb + head * D * gc, y, x, gy, gx, inside, d, gc, D, ACC, UPCAST)
    at = image * ob + head * D
    result = load(out + at, y, x, oy, heads * D, inside, d, 1, D, ACC, True)
    at_lse = ((image * heads + head) * count + region) * tokens + t
    mean = tl.sum(g.to(ACC) * result, 1)
    tl.store(delta + at_lse, mean, mask=inside)
    level = tl.load(lse + at_lse, mask=inside, other=float("inf"))
    if MASKED:
        routes = tl.load(index + image * count + region, mask=inside, other=0)
        number = count * tokens
    else:
        index += (image * count + region) * picks
        number = picks * tokens
    k += image * kb + head * kh
    v += image * vb + head * vh
    gradient = tl.zeros((BM, DP), ACC)
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
        p = tl.exp2(tl.where(seen, s - level[:, None], -float("inf")))
        dp = tl.dot(g, tl.trans(values), out_dtype=ACC, input_precision=PRECISION)
        ds = (p * (dp - mean[:, None])).to(keys.dtype)
        gradient += tl.dot(ds, keys, out_dtype=ACC, input_precision=PRECISION)
    dq += at
    at = (y * oy + x * (heads * D))[:, None] + d[None, :]
    tl.store(dq + at, (gradient * scale).to(dq.dtype.element_ty), mask=inside[:, None] & (d[None, :] < D))


@triton.jit
def _of_keys(
    q, k, v, grad, lse, delta, order, first, last, image, region, t, inside, head,
    tall, wide, columns, count, picks, heads, scale,
    qb, qy, qx, qh, qd, kb, ky, kx, kh, kd, vb, vy, vx, vh, vd, gb, gy, gx, gc,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MASKED: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk / scale and dv (BN, DP) of some keys, from the regions of order[first:last]; MASKED: from all."""
    tokens = tall * wide
    d = tl.arange(0, DP)
    y, x = locate(region, t, tall, wide, columns)
    keys = load(k + image * kb + head * kh, y, x, ky, kx, inside, d, kd, D, ACC, UPCAST)
    values = load(v + image * vb + head * vh, y, x, vy, vx, inside, d, vd, D, ACC, UPCAST)
    q += image * qb + head * qh
    grad += image * gb + head * D * gc
    at_lse = (image * heads + head) * count * tokens
    if MASKED:
        order += image * count
        lowest = tl.min(region)
        number = count * tokens
    else:
        order += image * count * picks + first
        number = (last - first) * tokens
    key_gradient = tl.zeros((BN, DP), ACC)
    value_gradient = tl.zeros((BN, DP), ACC)
    for start in range(0, number, BM):
        i = start + tl.arange(0, BM)
        exists = i < number
        asking = i // tokens
        if not MASKED:
            asking = tl.load(order + asking, mask=exists, other=0).to(tl.int32) // picks
        row, column = locate(asking, i % tokens, tall, wide, columns)
        queries = load(q, row, column, qy, qx, exists, d, qd, D, ACC, UPCAST)
        g = load(grad, row, column, gy, gx, exists, d, gc, D, ACC, UPCAST)
        at = at_lse + asking * tokens + i % tokens
        level = tl.load(lse + at, mask=exists, other=float("inf"))  # no weight for queries that do not exist
        mean = tl.load(delta + at, mask=exists, other=0.0)
        s = tl.dot(keys, tl.trans(queries), out_dtype=ACC, input_precision=PRECISION) * (scale * 1.4426950408889634)
        if MASKED:
            routes = tl.load(order + asking, mask=exists, other=0)
            s = tl.where(routed(routes[None, :], region[:, None], lowest), s, -float("inf"))
        p = tl.exp2(s - level[None, :])
        value_gradient += tl.dot(p.to(g.dtype), g, out_dtype=ACC, input_precision=PRECISION)
        dp = tl.dot(values, tl.trans(g), out_dtype=ACC, input_precision=PRECISION)
        ds = (p * (dp - mean[None, :])).to(queries.dtype)
        key_gradient += tl.dot(ds, queries, out_dtype=ACC, input_precision=PRECISION)
    return key_gradient, value_gradient


@triton.jit(do_not_specialize=(*SIZES, "most"))
def backward_keys(
    q, k, v, grad, lse, delta, order, ends, slots, partial, dk, dv,
    tall, wide, columns, count, picks, tiles, most, heads, scale,
    qb, qy, qx, qh, qd, kb, ky, kx, kh, kd, vb, vy, vx, vh, vd, ob, oy, gb, gy, gx, gc,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, SPLIT: tl.constexpr,
    MASKED: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk, dv (B, H, W, heads, D); SPLIT: with what backward_rest has left in `partial`. MASKED: `order` is words."""
    program = tl.program_id(0)
    head, image, region, t, inside = tokens_of(program, tiles, heads, count, tall * wide, BN, MASKED)
    first, last = 0, 0
    if not MASKED:
        ends += image * (count + 1) + region
        first, last = tl.load(ends), tl.load(ends + 1)
    if SPLIT:
        last = tl.minimum(last, first + most)
    key_gradient, value_gradient = _of_keys(
        q, k, v, grad, lse, delta, order, first, last, image, region, t, inside, head,
        tall, wide, columns, count, picks, heads, scale,
        qb, qy, qx, qh, qd, kb, ky, kx, kh, kd, vb, vy, vx, vh, vd, gb, gy, gx, gc,
        D, DP, BM, BN, MASKED, ACC, UPCAST, PRECISION,
    )  # fmt: skip
    d = tl.arange(0, DP)
    if SPLIT:
        tile, group = program // heads % tiles, program // heads // tiles
        slot, end = tl.load(slots + group), tl.load(slots + group + 1)
        sums = partial + ((slot.to(tl.int64) * tiles + tile) * heads + head) * (2 * BN * DP)
        sums += tl.arange(0, BN)[:, None] * DP + d[None, :]
        for _ in range(slot, end):
            key_gradient += tl.load(sums)
            value_gradient += tl.load(sums + BN * DP)
            sums += tiles * heads * (2 * BN * DP)
    y, x = locate(region, t, tall, wide, columns)
    at = image * ob + head * D + (y * oy + x * (heads * D))[:, None] + d[None, :]
    mask = inside[:, None] & (d[None, :] < D)
    tl.store(dk + at, (key_gradient * scale).to(dk.dtype.element_ty), mask=mask)
    tl.store(dv + at, value_gradient.to(dv.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=(*SIZES, "most", "groups"))
def backward_rest(
    q, k, v, grad, lse, delta, order, ends, slots, owners, partial,
    tall, wide, columns, count, picks, tiles, most, groups, heads, scale,
    qb, qy, qx, qh, qd, kb, ky, kx, kh, kd, vb, vy, vx, vh, vd, gb, gy, gx, gc,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MASKED: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """partial (slots, tiles, heads, 2, BN, DP): what a piece of a long list adds to dk / scale and dv.

    `owners` (slots,) names the group, a region of an image, whose piece a slot is; `slots` (groups + 1,) says where
    those of a group begin. Slots that nobody needs belong to a group beyond the last.
    """
    program = tl.program_id(0)
    head, rest = program % heads, program // heads
    tile, slot = rest % tiles, rest // tiles
    group = tl.load(owners + slot).to(tl.int32)
    if group < groups:
        region, image = group % count, (group // count).to(tl.int64)
        ends += image * (count + 1) + region
        first = tl.load(ends) + (slot - tl.load(slots + group) + 1) * most
        last = tl.minimum(tl.load(ends + 1), first + most)
        j = tile * BN + tl.arange(0, BN)
        key_gradient, value_gradient = _of_keys(
            q, k, v, grad, lse, delta, order, first, last, image, region, j, j < tall * wide, head,
            tall, wide, columns, count, picks, heads, scale,
            qb, qy, qx, qh, qd, kb, ky, kx, kh, kd, vb, vy, vx, vh, vd, gb, gy, gx, gc,
            D, DP, BM, BN, MASKED, ACC, UPCAST, PRECISION,
        )  # fmt: skip
        at = tl.arange(0, BN)[:, None] * DP + tl.arange(0, DP)[None, :]
        sums = partial + program.to(tl.int64) * (2 * BN * DP) + at
        tl.store(sums, key_gradient)
        tl.store(sums + BN * DP, value_gradient)
