"""The forward kernel of `window_attention`: one program for a tile of queries of one window, or of some, and one head.

It goes through the keys of the window tile by tile with a running softmax, and writes each result to its place on the
map. `lse`, the logarithm of each softmax's sum in base 2, is what the backward pass needs to find its weights again.
"""

import triton
import triton.language as tl

from .tiles import SIZES, bias_of, lepe, load, load_padded, locate, scores


@triton.jit(do_not_specialize=SIZES)
def forward(
    q, k, v, out, lse, table, pad, lepe_weight, lepe_bias,
    H, W, rows, columns, top, left, wh, ww, windows, tiles, heads, out_x, scale,
    qb, qy, qx, qh, qd, kb, ky, kx, kh, kd, vb, vy, vx, vh, vd,
    D: tl.constexpr, DP: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, GRID: tl.constexpr, PACK: tl.constexpr,
    BIAS: tl.constexpr, PADDED: tl.constexpr, LEPE: tl.constexpr, LEPE_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """q, k, v (B, H, W, heads, D) -> out (B, H, W, heads * D), whose tokens may lie apart, lse (heads, windows, T)."""
    if WH:
        wh = WH
    if WW:
        ww = WW
    program = tl.program_id(0)
    head, rest = program % heads, program // heads  # neighbours in time share the lines of a token's heads
    wide = head.to(tl.int64)
    tile, group = rest % tiles, rest // tiles
    d = tl.arange(0, DP)
    i = tile * BLOCK + tl.arange(0, BLOCK)
    window, t, exists, inside, image, y, x = locate(
        group, i, windows, rows, columns, H, W, top, left, wh, ww, GRID, PACK
    )
    queries = load(q, image * qb + y * qy + x * qx + wide * qh, inside, d, qd, D, ACC, UPCAST)
    largest = tl.full((BLOCK,), -float("inf"), ACC)
    total = tl.zeros((BLOCK,), ACC)
    mean = tl.zeros((BLOCK, DP), ACC)
    fill_k, fill_v = pad + (heads + head) * D, pad + (2 * heads + head) * D
    for step in range(tiles):
        kwindow, kt, kexists, kinside, kimage, row, column = locate(
            group, step * BLOCK + tl.arange(0, BLOCK), windows, rows, columns, H, W, top, left, wh, ww, GRID, PACK
        )
        at_k = kimage * kb + row * ky + column * kx + wide * kh
        at_v = kimage * vb + row * vy + column * vx + wide * vh
        keys = load_padded(k, at_k, kexists, kinside, d, kd, fill_k, D, PADDED, ACC, UPCAST)
        values = load_padded(v, at_v, kexists, kinside, d, vd, fill_v, D, PADDED, ACC, UPCAST)
        s = scores(queries, keys, scale, ACC, PRECISION)
        if BIAS:
            s += bias_of(table, head, t[:, None], kt[None, :], wh, ww, ACC)
        seen = kexists[None, :]
        if PACK > 1:
            seen = seen & (window[:, None] == kwindow[None, :])
        s = tl.where(seen, s, -float("inf"))
        now = tl.maximum(largest, tl.max(s, 1))
        now = tl.where(now == -float("inf"), 0.0, now)  # a query that does not exist sees no key
        p = tl.exp2(s - now[:, None])
        shrink = tl.exp2(largest - now)
        total = total * shrink + tl.sum(p, 1)
        product = tl.dot(p.to(values.dtype), values, out_dtype=ACC, input_precision=PRECISION)
        mean = mean * shrink[:, None] + product
        largest = now
    total = tl.where(total == 0.0, 1.0, total)
    mean = mean / total[:, None]
    tl.store(lse + (wide * windows + window) * (wh * ww) + t, largest + tl.log2(total), mask=exists)
    if LEPE:
        mean += lepe(
            v, lepe_weight, lepe_bias, head, t, exists, image, group, i,
            windows, rows, columns, H, W, top, left, wh, ww, vb, vy, vx, vh, vd, d, fill_v,
            D, DP, GRID, PACK, PADDED, LEPE_BIAS, False, BLOCK, ACC,
        )  # fmt: skip
    at = ((image * H + y) * W + x) * out_x + head * D
    tl.store(out + at[:, None] + d[None, :], mean.to(out.dtype.element_ty), mask=inside[:, None] & (d[None, :] < D))
