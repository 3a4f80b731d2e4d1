"""The backward kernels of `window_attention`. Nothing is added up in memory, so that every run gives the same bits.

backward_whole    a window, or a pack of small ones, in one tile: dq, dk and dv at once, windows of one head in turn
backward_queries  larger windows: dq of a tile of queries, and the sums `delta` that the other two need
backward_keys     larger windows: dk and dv of a tile of keys
backward_bias     larger windows: the gradient of the scores' bias, over all windows of a head
backward_lepe     the gradients of LePE's weights and biases

With p the weights, g the gradient of the result and delta = Σ p (g · v), the scores' gradient is p (g · v - delta).
"""

import triton
import triton.language as tl

from .tiles import SIZES, bias_of, lepe, load, load_padded, locate, scores


@triton.jit
def _store(
    pointer, gradient, image, y, x, head, inside, H, W, room_x, d, D: tl.constexpr
):  # fmt: skip
    """The gradient of one head's tokens, to its place in (B, H, W, heads, D) with a stride of tokens."""
    at = ((image * H + y) * W + x) * room_x + head * D
    mask = inside[:, None] & (d[None, :] < D)
    tl.store(pointer + at[:, None] + d[None, :], gradient.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _store_edge(dpad, gradient, program, part, exists, inside, d, DP: tl.constexpr):
    """The sum of what belongs to the padding, to `dpad` (programs, 2, DP): part 0 of keys, 1 of values."""
    edge = (exists & (inside == 0))[:, None]
    tl.store(dpad + (program.to(tl.int64) * 2 + part) * DP + d, tl.sum(tl.where(edge, gradient, 0.0), 0))


@triton.jit(do_not_specialize=SIZES)
def backward_whole(
    q, k, v, grad, lse, table, pad, lepe_weight, dq, dk, dv, dbias, dpad,
    H, W, rows, columns, top, left, wh, ww, windows, heads, rounds, room_x, scale,
    qb, qy, qx, qh, qd, kb, ky, kx, kh, kd, vb, vy, vx, vh, vd, gb, gy, gx, gc,
    D: tl.constexpr, DP: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, GRID: tl.constexpr, PACK: tl.constexpr,
    BIAS: tl.constexpr, PADDED: tl.constexpr, LEPE: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq, dk, dv (B, H, W, heads, D); dbias (programs, BLOCK, BLOCK) and dpad (programs, rounds, 2, DP), parts."""
    if WH:
        wh = WH
    if WW:
        ww = WW
    program = tl.program_id(0)
    head, chunk = program % heads, program // heads
    wide = head.to(tl.int64)
    d = tl.arange(0, DP)
    i = tl.arange(0, BLOCK)
    fill_k, fill_v = pad + (heads + head) * D, pad + (2 * heads + head) * D
    if BIAS:
        t = i % (wh * ww)
        bias = bias_of(table, head, t[:, None], t[None, :], wh, ww, ACC)
    bias_gradient = tl.zeros((BLOCK, BLOCK), ACC)
    for step in range(rounds):
        group = chunk * rounds + step
        window, t, exists, inside, image, y, x = locate(
            group, i, windows, rows, columns, H, W, top, left, wh, ww, GRID, PACK
        )
        queries = load(q, image * qb + y * qy + x * qx + wide * qh, inside, d, qd, D, ACC, UPCAST)
        at_k = image * kb + y * ky + x * kx + wide * kh
        at_v = image * vb + y * vy + x * vx + wide * vh
        keys = load_padded(k, at_k, exists, inside, d, kd, fill_k, D, PADDED, ACC, UPCAST)
        values = load_padded(v, at_v, exists, inside, d, vd, fill_v, D, PADDED, ACC, UPCAST)
        g = load(grad, image * gb + y * gy + x * gx + wide * D * gc, inside, d, gc, D, ACC, UPCAST)
        at = (wide * windows + window) * (wh * ww) + t
        level = tl.load(lse + at, mask=exists, other=float("inf"))  # no weight for queries that do not exist
        s = scores(queries, keys, scale, ACC, PRECISION)
        if BIAS:
            s += bias
        seen = exists[None, :]
        if PACK > 1:
            seen = seen & (window[:, None] == window[None, :])
        s = tl.where(seen, s, -float("inf"))
        p = tl.exp2(s - level[:, None])
        dp = tl.dot(g, tl.trans(values), out_dtype=ACC, input_precision=PRECISION)
        value_gradient = tl.dot(tl.trans(p.to(g.dtype)), g, out_dtype=ACC, input_precision=PRECISION)
        if LEPE:
            value_gradient += lepe(
                grad, lepe_weight, lepe_weight, head, t, exists, image, group, i,
                windows, rows, columns, H, W, top, left, wh, ww, gb, gy, gx, D * gc, gc, d, fill_v,
                D, DP, GRID, PACK, False, False, True, BLOCK, ACC,
            )  # fmt: skip
        _store(dv, value_gradient, image, y, x, head, inside, H, W, room_x, d, D)
        ds = p * (dp - tl.sum(p * dp, 1)[:, None])
        if BIAS:
            bias_gradient += ds
        ds = ds.to(queries.dtype)
        query_gradient = tl.dot(ds, keys, out_dtype=ACC, input_precision=PRECISION) * scale
        _store(dq, query_gradient, image, y, x, head, inside, H, W, room_x, d, D)
        key_gradient = tl.dot(tl.trans(ds), queries, out_dtype=ACC, input_precision=PRECISION) * scale
        _store(dk, key_gradient, image, y, x, head, inside, H, W, room_x, d, D)
        if PADDED:
            _store_edge(dpad, key_gradient, program * rounds + step, 0, exists, inside, d, DP)
            _store_edge(dpad, value_gradient, program * rounds + step, 1, exists, inside, d, DP)
    if BIAS:
        at = (program.to(tl.int64) * BLOCK + i)[:, None] * BLOCK + i[None, :]
        tl.store(dbias + at, bias_gradient)


@triton.jit(do_not_specialize=SIZES)
def backward_queries(
    q, k, v, out, grad, lse, table, pad, lepe_weight, lepe_bias, dq, delta,
    H, W, rows, columns, top, left, wh, ww, windows, tiles, heads, out_x, room_x, scale,
    qb, qy, qx, qh, qd, kb, ky, kx, kh, kd, vb, vy, vx, vh, vd, gb, gy, gx, gc,
    D: tl.constexpr, DP: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, GRID: tl.constexpr,
    BIAS: tl.constexpr, PADDED: tl.constexpr, LEPE: tl.constexpr, LEPE_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq (B, H, W, heads, D) and delta (heads, windows, T)."""
    if WH:
        wh = WH
    if WW:
        ww = WW
    program = tl.program_id(0)
    head, rest = program % heads, program // heads
    wide = head.to(tl.int64)
    tile, group = rest % tiles, rest // tiles
    d = tl.arange(0, DP)
    i = tile * BLOCK + tl.arange(0, BLOCK)
    window, t, exists, inside, image, y, x = locate(group, i, windows, rows, columns, H, W, top, left, wh, ww, GRID, 1)
    fill_k, fill_v = pad + (heads + head) * D, pad + (2 * heads + head) * D
    queries = load(q, image * qb + y * qy + x * qx + wide * qh, inside, d, qd, D, ACC, UPCAST)
    g = load(grad, image * gb + y * gy + x * gx + wide * D * gc, inside, d, gc, D, ACC, UPCAST)
    at = ((image * H + y) * W + x) * out_x + head * D
    result = load(out, at, inside, d, 1, D, ACC, True)
    if LEPE:
        result -= lepe(
            v, lepe_weight, lepe_bias, head, t, exists, image, group, i,
            windows, rows, columns, H, W, top, left, wh, ww, vb, vy, vx, vh, vd, d, fill_v,
            D, DP, GRID, 1, PADDED, LEPE_BIAS, False, BLOCK, ACC,
        )  # fmt: skip
    mean = tl.sum(g.to(ACC) * result, 1)
    row = (wide * windows + window) * (wh * ww) + t
    level = tl.load(lse + row, mask=exists, other=float("inf"))
    gradient = tl.zeros((BLOCK, DP), ACC)
    # LePE was rounded together with the result: what `mean` lacks is summed, and taken off times the mean of the keys
    lacking = tl.zeros((BLOCK,), ACC)
    mean_key = tl.zeros((BLOCK, DP), ACC)
    for step in range(tiles):
        _, kt, kexists, kinside, kimage, ky_, kx_ = locate(
            group, step * BLOCK + tl.arange(0, BLOCK), windows, rows, columns, H, W, top, left, wh, ww, GRID, 1
        )
        at_k = kimage * kb + ky_ * ky + kx_ * kx + wide * kh
        at_v = kimage * vb + ky_ * vy + kx_ * vx + wide * vh
        keys = load_padded(k, at_k, kexists, kinside, d, kd, fill_k, D, PADDED, ACC, UPCAST)
        values = load_padded(v, at_v, kexists, kinside, d, vd, fill_v, D, PADDED, ACC, UPCAST)
        s = scores(queries, keys, scale, ACC, PRECISION)
        if BIAS:
            s += bias_of(table, head, t[:, None], kt[None, :], wh, ww, ACC)
        s = tl.where(kexists[None, :], s, -float("inf"))
        p = tl.exp2(s - level[:, None])
        dp = tl.dot(g, tl.trans(values), out_dtype=ACC, input_precision=PRECISION)
        ds = p * (dp - mean[:, None])
        gradient += tl.dot(ds.to(keys.dtype), keys, out_dtype=ACC, input_precision=PRECISION)
        if LEPE:
            lacking += tl.sum(ds, 1)
            mean_key += tl.dot(p.to(keys.dtype), keys, out_dtype=ACC, input_precision=PRECISION)
    if LEPE:
        gradient -= lacking[:, None] * mean_key
        mean += lacking
    tl.store(delta + row, mean, mask=exists)
    _store(dq, gradient * scale, image, y, x, head, inside, H, W, room_x, d, D)


@triton.jit(do_not_specialize=SIZES)
def backward_keys(
    q, k, v, grad, lse, delta, table, pad, lepe_weight, dk, dv, dpad,
    H, W, rows, columns, top, left, wh, ww, windows, tiles, heads, room_x, scale,
    qb, qy, qx, qh, qd, kb, ky, kx, kh, kd, vb, vy, vx, vh, vd, gb, gy, gx, gc,
    D: tl.constexpr, DP: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, GRID: tl.constexpr,
    BIAS: tl.constexpr, PADDED: tl.constexpr, LEPE: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk, dv (B, H, W, heads, D) and dpad (programs, 2, DP), to be summed."""
    if WH:
        wh = WH
    if WW:
        ww = WW
    program = tl.program_id(0)
    head, rest = program % heads, program // heads
    wide = head.to(tl.int64)
    tile, group = rest % tiles, rest // tiles
    d = tl.arange(0, DP)
    j = tile * BLOCK + tl.arange(0, BLOCK)
    _, kt, kexists, kinside, kimage, row, column = locate(
        group, j, windows, rows, columns, H, W, top, left, wh, ww, GRID, 1
    )
    fill_k, fill_v = pad + (heads + head) * D, pad + (2 * heads + head) * D
    at_k = kimage * kb + row * ky + column * kx + wide * kh
    at_v = kimage * vb + row * vy + column * vx + wide * vh
    keys = load_padded(k, at_k, kexists, kinside, d, kd, fill_k, D, PADDED, ACC, UPCAST)
    values = load_padded(v, at_v, kexists, kinside, d, vd, fill_v, D, PADDED, ACC, UPCAST)
    key_gradient = tl.zeros((BLOCK, DP), ACC)
    value_gradient = tl.zeros((BLOCK, DP), ACC)
    for step in range(tiles):
        window, t, exists, inside, image, y, x = locate(
            group, step * BLOCK + tl.arange(0, BLOCK), windows, rows, columns, H, W, top, left, wh, ww, GRID, 1
        )
        queries = load(q, image * qb + y * qy + x * qx + wide * qh, inside, d, qd, D, ACC, UPCAST)
        g = load(grad, image * gb + y * gy + x * gx + wide * D * gc, inside, d, gc, D, ACC, UPCAST)
        at = (wide * windows + window) * (wh * ww) + t
        level = tl.load(lse + at, mask=exists, other=float("inf"))
        mean = tl.load(delta + at, mask=exists, other=0.0)
        s = scores(keys, queries, scale, ACC, PRECISION)  # a row for each key, as their gradients want it
        if BIAS:
            s += bias_of(table, head, t[None, :], kt[:, None], wh, ww, ACC)
        s = tl.where(kexists[:, None], s, -float("inf"))
        p = tl.exp2(s - level[None, :])
        value_gradient += tl.dot(p.to(g.dtype), g, out_dtype=ACC, input_precision=PRECISION)
        dp = tl.dot(values, tl.trans(g), out_dtype=ACC, input_precision=PRECISION)
        ds = p * (dp - mean[None, :])
        key_gradient += tl.dot(ds.to(queries.dtype), queries, out_dtype=ACC, input_precision=PRECISION)
    if LEPE:
        value_gradient += lepe(
            grad, lepe_weight, lepe_weight, head, kt, kexists, kimage, group, j,
            windows, rows, columns, H, W, top, left, wh, ww, gb, gy, gx, D * gc, gc, d, fill_v,
            D, DP, GRID, 1, False, False, True, BLOCK, ACC,
        )  # fmt: skip
    key_gradient *= scale
    _store(dk, key_gradient, kimage, row, column, head, kinside, H, W, room_x, d, D)
    _store(dv, value_gradient, kimage, row, column, head, kinside, H, W, room_x, d, D)
    if PADDED:
        _store_edge(dpad, key_gradient, program, 0, kexists, kinside, d, DP)
        _store_edge(dpad, value_gradient, program, 1, kexists, kinside, d, DP)


@triton.jit(do_not_specialize=SIZES)
def backward_bias(
    q, k, v, grad, lse, delta, table, pad, dbias,
    H, W, rows, columns, top, left, wh, ww, windows, tiles, heads, rounds, scale,
    qb, qy, qx, qh, qd, kb, ky, kx, kh, kd, vb, vy, vx, vh, vd, gb, gy, gx, gc,
    D: tl.constexpr, DP: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, GRID: tl.constexpr,
    PADDED: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dbias (chunks, heads, tiles * BLOCK, tiles * BLOCK), to be summed over chunks of windows."""
    if WH:
        wh = WH
    if WW:
        ww = WW
    program = tl.program_id(0)
    head, rest = program % heads, program // heads
    wide = head.to(tl.int64)
    key_tile, rest = rest % tiles, rest // tiles
    tile, chunk = rest % tiles, rest // tiles
    d = tl.arange(0, DP)
    i = tile * BLOCK + tl.arange(0, BLOCK)
    j = key_tile * BLOCK + tl.arange(0, BLOCK)
    fill_k, fill_v = pad + (heads + head) * D, pad + (2 * heads + head) * D
    total = tl.zeros((BLOCK, BLOCK), ACC)
    for step in range(rounds):
        group = chunk * rounds + step
        window, t, exists, inside, image, y, x = locate(
            group, i, windows, rows, columns, H, W, top, left, wh, ww, GRID, 1
        )
        _, kt, kexists, kinside, kimage, row, column = locate(
            group, j, windows, rows, columns, H, W, top, left, wh, ww, GRID, 1
        )
        queries = load(q, image * qb + y * qy + x * qx + wide * qh, inside, d, qd, D, ACC, UPCAST)
        g = load(grad, image * gb + y * gy + x * gx + wide * D * gc, inside, d, gc, D, ACC, UPCAST)
        at_k = kimage * kb + row * ky + column * kx + wide * kh
        at_v = kimage * vb + row * vy + column * vx + wide * vh
        keys = load_padded(k, at_k, kexists, kinside, d, kd, fill_k, D, PADDED, ACC, UPCAST)
        values = load_padded(v, at_v, kexists, kinside, d, vd, fill_v, D, PADDED, ACC, UPCAST)
        at = (wide * windows + window) * (wh * ww) + t
        level = tl.load(lse + at, mask=exists, other=float("inf"))
        mean = tl.load(delta + at, mask=exists, other=0.0)
        s = scores(queries, keys, scale, ACC, PRECISION) + bias_of(table, head, t[:, None], kt[None, :], wh, ww, ACC)
        s = tl.where(kexists[None, :], s, -float("inf"))
        p = tl.exp2(s - level[:, None])
        dp = tl.dot(g, tl.trans(values), out_dtype=ACC, input_precision=PRECISION)
        total += p * (dp - mean[:, None])
    at = ((chunk * heads + head).to(tl.int64) * tiles * BLOCK + i)[:, None] * (tiles * BLOCK) + j[None, :]
    tl.store(dbias + at, total)


@triton.jit(do_not_specialize=SIZES)
def backward_lepe(
    v, grad, pad, dlepe,
    H, W, rows, columns, top, left, wh, ww, windows, heads, rounds,
    vb, vy, vx, vh, vd, gb, gy, gx, gc,
    D: tl.constexpr, DP: tl.constexpr, WH: tl.constexpr, WW: tl.constexpr, GRID: tl.constexpr,
    PADDED: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dlepe (chunks, heads, 16, DP), to be summed: rows 0 to 8 of the weights, row 9 of the bias."""
    if WH:
        wh = WH
    if WW:
        ww = WW
    program = tl.program_id(0)
    head, chunk = program % heads, program // heads
    wide = head.to(tl.int64)
    d = tl.arange(0, DP)
    fill_v = pad + (2 * heads + head) * D
    number = tl.arange(0, 16)
    total = tl.zeros((16, DP), ACC)
    for step in range(rounds):
        i = (chunk.to(tl.int64) * rounds + step) * BLOCK + tl.arange(0, BLOCK)  # tokens of all windows in one row
        window, t = i // (wh * ww), i % (wh * ww)
        # every token is its own group of one window's tokens
        _, _, exists, inside, image, y, x = locate(window, t, windows, rows, columns, H, W, top, left, wh, ww, GRID, 1)
        g = load(grad, image * gb + y * gy + x * gx + wide * D * gc, inside, d, gc, D, ACC, True)
        total += tl.where(number[:, None] == 9, tl.sum(g, 0)[None, :], 0.0)
        for tap in tl.static_range(9):
            ty, tx = t // ww + (tap // 3 - 1), t % ww + (tap % 3 - 1)
            within = exists & (ty >= 0) & (ty < wh) & (tx >= 0) & (tx < ww)
            _, _, _, there, _, row, column = locate(
                window,
                t + (tap // 3 - 1) * ww + (tap % 3 - 1),
                windows,
                rows,
                columns,
                H,
                W,
                top,
                left,
                wh,
                ww,
                GRID,
                1,
            )
            at = image * vb + row * vy + column * vx + wide * vh
            values = load_padded(v, at, within, within & there, d, vd, fill_v, D, PADDED, ACC, True)
            total += tl.where(number[:, None] == tap, tl.sum(g * values, 0)[None, :], 0.0)
    at = (chunk.to(tl.int64) * heads + head) * 16 * DP + number[:, None] * DP + d[None, :]
    tl.store(dlepe + at, total)
