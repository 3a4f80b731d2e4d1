"""The forward kernel of `depthwise_conv`, which with its taps turned around is also that of the gradient of x."""

import triton
import triton.language as tl

from .tiles import SIZES, convolve, gelu, locate, position, step, within


@triton.jit(do_not_specialize=SIZES)
def forward(
    x, weight, bias, gate, residual, out,
    H, W, C, lanes, bands, blocks,
    xb, xy, xx, xc, gb, gy, gx, gc, rb, ry, rx, rc, ob, oy, ox, oc,
    K: tl.constexpr, DILATION: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, GATE: tl.constexpr,
    RESIDUAL: tl.constexpr, REVERSED: tl.constexpr,
    ROWS: tl.constexpr, LANES: tl.constexpr, CHANNELS: tl.constexpr, WHOLE: tl.constexpr,
    LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """x, gate, residual, out (B, C, H, W) with strides, weight (K * K, C), bias (C,)."""
    program = tl.program_id(0)
    block, tile = program % blocks, program // blocks
    c = block * CHANNELS + tl.arange(0, CHANNELS)
    exists, image, row, column = locate(tile, lanes, bands, W, ROWS, DILATION, LANES)
    at = position(image, row, column, c, xb, xy, xx, xc, LAST)
    sums = convolve(
        x, weight, bias, exists, row, column, at, c, H, W, C, xy, xx,
        K, DILATION, BIAS, REVERSED, ROWS, WHOLE, LAST, ACC,
    )  # fmt: skip
    to_out = out + position(image, row, column, c, ob, oy, ox, oc, LAST)
    to_gate = gate + position(image, row, column, c, gb, gy, gx, gc, LAST)
    to_residual = residual + position(image, row, column, c, rb, ry, rx, rc, LAST)
    for r in tl.static_range(ROWS):
        mask = within(exists, row + r * DILATION, H, c, C, WHOLE, LAST)
        result = sums[r]
        if GELU:
            result, _ = gelu(result)
        if GATE:
            result *= tl.load(to_gate + step(gy, DILATION) * r, mask=mask, other=0.0).to(ACC)
        if RESIDUAL:
            result += tl.load(to_residual + step(ry, DILATION) * r, mask=mask, other=0.0).to(ACC)
        tl.store(to_out + step(oy, DILATION) * r, result.to(out.dtype.element_ty), mask=mask)
