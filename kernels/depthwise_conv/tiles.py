"""How the pixels of a map are dealt to programs, and the sums that two kernels need.

A lane is ROWS pixels of one column of one image, `dilation` rows apart, so that a row that is read serves all of them:
it is some tap of the kernel for each. The lanes of all images stand in one row, columns fastest, and a tile is some of
them with some channels; no lane is lost where maps are narrow.

A tile has the axis along which memory is contiguous as its last: channels if LAST, else lanes.
"""
# ruff: noqa: RUF005 - Triton knows no stars in tuples

import triton
import triton.language as tl

SIZES = ("H", "W", "lanes", "bands", "rounds")
"""Of images: Triton would compile anew for those that 16 divides, or that are 1."""


@triton.jit
def lanewise(values, LAST: tl.constexpr):
    """A vector over lanes, as a tile of one channel."""
    if LAST:
        return values[:, None]
    else:
        return values[None, :]


@triton.jit
def channelwise(values, LAST: tl.constexpr):
    """A vector over channels, as a tile of one lane."""
    if LAST:
        return values[None, :]
    else:
        return values[:, None]


@triton.jit
def locate(tile, lanes, bands, W, ROWS: tl.constexpr, DILATION: tl.constexpr, LANES: tl.constexpr):
    """The lanes of a tile: whether they exist, and image, row of the first pixel, column."""
    lane = tile * LANES + tl.arange(0, LANES)
    column, rest = lane % W, lane // W
    band, rest = rest % bands, rest // bands
    row = rest % DILATION + band * (ROWS * DILATION)
    return lane < lanes, (rest // DILATION).to(tl.int64), row, column


@triton.jit
def position(image, row, column, c, stride_b, stride_y, stride_x, stride_c, LAST: tl.constexpr):
    """Where a tile's first pixels lie in memory."""
    first = image * stride_b + row.to(tl.int64) * stride_y + column.to(tl.int64) * stride_x
    return lanewise(first, LAST) + channelwise(c.to(tl.int64) * stride_c, LAST)


@triton.jit
def step(stride, DILATION: tl.constexpr):
    """From one tap to the next in memory."""
    return tl.full((), DILATION, tl.int64) * stride


@triton.jit
def within(exists, row, H, c, C, WHOLE: tl.constexpr, LAST: tl.constexpr):
    """Which pixels of a tile are on the map, of lanes that are at this row; WHOLE: all channels of all tiles exist."""
    there = lanewise(exists & (row.to(tl.uint32) < H), LAST)  # a negative number is a large one: one comparison does
    if WHOLE:
        return there
    else:
        return there & channelwise(c < C, LAST)


@triton.jit
def convolve(
    x, weight, bias, exists, row, column, at, c, H, W, C, stride_y, stride_x,
    K: tl.constexpr, DILATION: tl.constexpr, BIAS: tl.constexpr, REVERSED: tl.constexpr,
    ROWS: tl.constexpr, WHOLE: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """ROWS tiles of sums over the taps: weight (K * K, C), read from its end if REVERSED, and bias (C,)."""
    down, right = step(stride_y, DILATION), step(stride_x, DILATION)
    start = tl.zeros(at.shape, ACC)
    if BIAS:
        start += channelwise(tl.load(bias + c, mask=c < C, other=0.0).to(ACC), LAST)
    sums = ()
    for _ in tl.static_range(ROWS):
        sums = sums + (start,)
    # columns of taps that reach beyond both edges from everywhere are left out
    unseen = tl.maximum(K // 2 - (W - 1) // DILATION, 0)
    for j in range(unseen, K - unseen):
        taps = ()
        for i in tl.static_range(K):
            number = K * K - 1 - (i * K + j) if REVERSED else i * K + j
            tap = tl.load(weight + number * C + c, mask=c < C, other=0.0)
            taps = taps + (channelwise(tap.to(ACC), LAST),)
        beside = column + (j - K // 2) * DILATION
        there = exists & (beside.to(tl.uint32) < W)
        source = x + (at + right * (j - K // 2))
        for i in tl.static_range(ROWS + K - 1):
            mask = within(there, row + (i - K // 2) * DILATION, H, c, C, WHOLE, LAST)
            values = tl.load(source + down * (i - K // 2), mask=mask, other=0.0).to(ACC)
            added = ()
            for r in tl.static_range(ROWS):
                if i >= r and i < r + K:
                    added = added + (sums[r] + values * taps[i - r],)
                else:
                    added = added + (sums[r],)
            sums = added
    return sums


@triton.jit
def gelu(z):
    """z Φ(z) and its derivative, with Φ the normal distribution.

    Φ(-|z|) is a polynomial in 1 / (1 + a |z|) times exp(-z² / 2), to 8e-8 (Abramowitz and Stegun, 7.1.26): a third of
    the instructions of erf, which would take longer than a 3 x 3 convolution.
    """
    bell = tl.exp2(z * z * -0.7213475204444817)
    if z.dtype == tl.float64:
        share = 0.5 + 0.5 * tl.math.erf(z * 0.7071067811865476)
    else:
        t = 1.0 / (1.0 + 0.23164189 * tl.abs(z))
        polynomial = t * (
            0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145)))
        )
        share = tl.where(z > 0, 1.0 - polynomial * bell, polynomial * bell)
    return z * share, share + z * bell * 0.3989422804014327
