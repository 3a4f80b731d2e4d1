"""The backward kernels of `depthwise_conv`. Nothing is added up in memory, so that every run gives the same bits.

backward_sums    through gate and activation, to the gradient of the convolution's sums, which are computed anew
backward_taps    the gradients of the taps and of the bias

The gradient of x is a convolution again, by the forward kernel.
"""
# ruff: noqa: RUF005 - Triton knows no stars in tuples

import triton
import triton.language as tl

from .tiles import SIZES, convolve, gelu, locate, position, step, within


@triton.jit(do_not_specialize=SIZES)
def backward_sums(
    x, weight, bias, gate, grad, dsums, dgate,
    H, W, C, lanes, bands, blocks,
    xb, xy, xx, xc, gb, gy, gx, gc, db, dy, dx, dc, ob, oy, ox, oc,
    K: tl.constexpr, DILATION: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, GATE: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, CHANNELS: tl.constexpr, WHOLE: tl.constexpr,
    LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """x, gate, grad (B, C, H, W) with strides x*, g* and d* -> dsums and dgate (B, C, H, W) with strides o*."""
    program = tl.program_id(0)
    block, tile = program % blocks, program // blocks
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    exists, image, row, column = locate(tile, lanes, bands, W, ROWS, DILATION, LANES)
    at = position(image, row, column, c, xb, xy, xx, xc, LAST)
    sums = convolve(
        x, weight, bias, exists, row, column, at, c, H, W, C, xy, xx,
        K, DILATION, BIAS, False, ROWS, WHOLE, LAST, ACC,
    )  # fmt: skip
    to_gate = gate + position(image, row, column, c, gb, gy, gx, gc, LAST)
    to_grad = grad + position(image, row, column, c, db, dy, dx, dc, LAST)
    to_out = position(image, row, column, c, ob, oy, ox, oc, LAST)
    for r in tl.static_range(ROWS):
        mask = within(exists, row + r * DILATION, H, c, C, WHOLE, LAST)
        gradient = tl.load(to_grad + step(dy, DILATION) * r, mask=mask, other=0.0).to(ACC)
        z = sums[r]
        if GELU:
            active, slope = gelu(z)
        else:
            active, slope = z, 1.0
        here = to_out + step(oy, DILATION) * r
        if GATE:
            tl.store(dgate + here, (gradient * active).to(dgate.dtype.element_ty), mask=mask)
            gradient *= tl.load(to_gate + step(gy, DILATION) * r, mask=mask, other=0.0).to(ACC)
        tl.store(dsums + here, (gradient * slope).to(dsums.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def backward_taps(
    x, dsums, dtaps,
    H, W, C, lanes, bands, blocks, rounds,
    xb, xy, xx, xc, db, dy, dx, dc,
    K: tl.constexpr, DILATION: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, CHANNELS: tl.constexpr, WHOLE: tl.constexpr,
    LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """x, dsums (B, C, H, W) with strides -> dtaps (chunks, K * K + 1, C), to be summed; the last is the bias's.

    All taps keep their sums in registers, each thread's own until the end: so x and dsums come from memory once.
    """
    program = tl.program_id(0)
    block, chunk = program % blocks, program // blocks
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    down, right = step(xy, DILATION), step(xx, DILATION)
    sums = ()
    for _ in tl.static_range(K * K + 1):
        sums = sums + (tl.zeros((LANES, CHANNELS) if LAST else (CHANNELS, LANES), ACC),)
    for turn in range(rounds):
        exists, image, row, column = locate(chunk * rounds + turn, lanes, bands, W, ROWS, DILATION, LANES)
        source = x + position(image, row, column, c, xb, xy, xx, xc, LAST)
        to_dsums = dsums + position(image, row, column, c, db, dy, dx, dc, LAST)
        gradients = ()
        total = sums[K * K]
        for r in tl.static_range(ROWS):
            mask = within(exists, row + r * DILATION, H, c, C, WHOLE, LAST)
            gradient = tl.load(to_dsums + step(dy, DILATION) * r, mask=mask, other=0.0).to(ACC)
            gradients = gradients + (gradient,)
            total += gradient
        all_taps = ()
        for j in tl.static_range(K):
            beside = column + (j - K // 2) * DILATION
            there = exists & (beside.to(tl.uint32) < W)
            taps = ()
            for i in tl.static_range(K):
                taps = taps + (sums[j * K + i],)
            for i in tl.static_range(ROWS + K - 1):
                mask = within(there, row + (i - K // 2) * DILATION, H, c, C, WHOLE, LAST)
                at = source + right * (j - K // 2) + down * (i - K // 2)
                values = tl.load(at, mask=mask, other=0.0).to(ACC)
                added = ()
                for t in tl.static_range(K):
                    if i >= t and i < t + ROWS:
                        added = added + (taps[t] + values * gradients[i - t],)
                    else:
                        added = added + (taps[t],)
                taps = added
            all_taps = all_taps + taps
        sums = all_taps + (total,)
    to_dtaps = dtaps + chunk.to(tl.int64) * (K * K + 1) * C + c
    for n in tl.static_range(K * K + 1):
        number = n if n == K * K else (n % K) * K + n // K  # they are kept column by column
        tl.store(to_dtaps + number * C, tl.sum(sums[n], 0 if LAST else 1), mask=c < C)
