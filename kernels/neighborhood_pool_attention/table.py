"""The gradient of the bias table: of every entry, the sum over all images and all pairs of pixels that read it.

backward_bias   the gradient of the bias of every pair in some rows of the map, summed over images
sum_lists       sums of what lies where lists say: first over pairs of columns, then over pairs of rows

A few rows of queries at a time, so that the pairs written out take a bounded piece of memory. The lists are the two
index tables sorted by what they hold: one program finds all that belongs to an entry, and adds it up in a fixed order.
"""

import triton
import triton.language as tl

from .tiles import (
    BLOCK,
    LOG2E,
    SIDE,
    SIZES,
    address,
    embed,
    inverse_norm,
    length,
    load,
    locate,
    pooled_bias,
    pooled_keys,
    pooled_scores,
    sharpness,
)


@triton.jit(do_not_specialize=SIZES)
def backward_bias(
    q, pool_k, pool_v, lse, grad, delta, pairs,
    embedding, temperature, table, rows, columns,
    images, H, W, whole, across, first, patches, bottom, tiles, rounds, heads, P, PW, TH, TW, rs, rp, cs, cp,
    qb, qy, qx, qh, qd, jb, jp, jh, jd, ub, up, uh, ud, gb, gy, gx, gc,
    D: tl.constexpr, DP: tl.constexpr, BP: tl.constexpr, UNIT: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """pairs (chunks, heads, rows, P, W), a chunk summed over `rounds` images: `patches` from `first`, of `whole`."""
    program = tl.program_id(0)
    head, rest = program % heads, program // heads
    tile, rest = rest % tiles, rest // tiles
    patch, chunk = first + rest % patches, rest // patches
    d = tl.arange(0, DP)
    added = embed(embedding, head, d, D, ACC)
    sharp = sharpness(temperature, head, ACC)
    table += head.to(tl.int64) * TH * TW
    p, there = pooled_keys(tile, P, BP)
    _, y, x, on_map = locate(patch, whole, across, H, W)
    pixel = y.to(tl.int64) * W + x
    factor = sharp * LOG2E * length(y, x, H, W, P, ACC)
    bias = pooled_bias(table, rows, columns, y, x, p, H, W, P, PW, TW, rs, rp, cs, cp, ACC)
    total = tl.zeros((BLOCK, BP), ACC)
    for step in range(rounds):
        image = (chunk * rounds + step).to(tl.int64)
        exists, key_exists = on_map & (image < images), there & (image < images)
        queries = load(q, address(image, y, x, head, qb, qy, qx, qh, UNIT), exists, d, qd, D, ACC, UPCAST)
        at_g = address(image, y, x, 0, gb, gy, gx, 0, UNIT) + head * D * gc
        g = load(grad, at_g, exists, d, gc, D, ACC, UPCAST)
        keys = load(pool_k, (image * jb + p.to(tl.int64) * jp + head * jh) * UNIT, key_exists, d, jd, D, ACC, UPCAST)
        values = load(pool_v, (image * ub + p.to(tl.int64) * up + head * uh) * UNIT, key_exists, d, ud, D, ACC, UPCAST)
        level = tl.load(lse + (image * heads + head) * H * W + pixel, mask=exists, other=float("inf"))
        center = tl.load(delta + (image * heads + head) * H * W + pixel, mask=exists, other=0.0)
        inverse, key_inverse = inverse_norm(queries.to(ACC)), inverse_norm(keys.to(ACC))
        s = pooled_scores(queries, inverse, factor, keys, key_inverse, added, there, bias, ACC, PRECISION)
        ds = tl.dot(g, tl.trans(values), out_dtype=ACC, input_precision=PRECISION)
        total += tl.exp2(s - level[:, None]) * (ds - center[:, None])
    top = first // across * SIDE
    at = ((chunk * heads + head).to(tl.int64) * (bottom - top) + (y - top)[:, None]) * P + p[None, :]
    tl.store(pairs + at * W + x[:, None], total, mask=on_map[:, None] & there[None, :])


@triton.jit(do_not_specialize=SIZES)
def sum_lists(
    x, out, order, starts,
    count, places, lists, width, tiles, chunks, stride_chunk, group, stride_group,
    ROWS: tl.constexpr, LANES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """x (chunks, count, places, width) -> out (count, lists, width): out[:, s] = Σ x[:, :, e], for all e in list s.

    The list s is order[starts[s] : starts[s + 1]]. Of out, `group` elements of `count` lie behind each other, and
    groups `stride_group` apart.
    """
    program = tl.program_id(0)
    lane = program % tiles * LANES + tl.arange(0, LANES)
    row = program // tiles * ROWS + tl.arange(0, ROWS)
    s, column = lane // width, lane % width
    start = tl.load(starts + s, mask=s < lists, other=0)
    size = tl.load(starts + s + 1, mask=s < lists, other=0) - start
    total = tl.zeros((ROWS, LANES), ACC)
    for i in range(tl.max(size, 0)):
        more = i < size
        e = tl.load(order + start + i, mask=more, other=0)
        at = row.to(tl.int64)[:, None] * places * width + (e.to(tl.int64) * width + column)[None, :]
        for _ in range(chunks):
            total += tl.load(x + at, mask=(row < count)[:, None] & more[None, :], other=0.0)
            at += stride_chunk
    at = (row // group).to(tl.int64) * stride_group + (row % group).to(tl.int64) * lists * width
    tl.store(out + at[:, None] + lane[None, :], total, mask=(row < count)[:, None] & (s < lists)[None, :])
