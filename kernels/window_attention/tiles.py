"""Where the tokens of a window lie on the map, and how a tile of them is read.

A tile holds the tokens of one window, part of them, or several small windows packed together: token `i` of a group of
PACK windows is token `i % T` of the window `i // T`, with T = wh * ww.

`wh` and `ww` are constants in kernels for windows of a few rows and columns, which makes divisions cheap, and numbers
otherwise, so that stripes as long as the map need no kernel of their own for every image size.
"""

import triton
import triton.language as tl

SIZES = ("H", "W", "rows", "columns", "top", "left", "wh", "ww", "windows")
"""Of images: Triton would compile anew for those that 16 divides, or that are 1. Not so rounds: a loop of 1 is none."""


@triton.jit
def locate(
    group, i, windows, rows, columns, H, W, top, left, wh, ww, GRID: tl.constexpr, PACK: tl.constexpr
):  # fmt: skip
    """Tokens `i` of a group: window, number in it, whether they exist, whether on the map, and image, row, column."""
    if PACK == 1:
        window = group
        exists = (i < wh * ww) & (window < windows)
        t = tl.minimum(i, wh * ww - 1)
    else:
        window = group * PACK + i // (wh * ww)
        exists = (i < wh * ww * PACK) & (window < windows)
        t = i % (wh * ww)
    place = window % (rows * columns)
    wy, wx = place // columns, place % columns
    if GRID:
        y, x = (t // ww) * rows + wy - top, (t % ww) * columns + wx - left
    else:
        y, x = wy * wh + t // ww - top, wx * ww + t % ww - left
    inside = exists & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    image = (window // (rows * columns)).to(tl.int64)
    return window, t, exists, inside, image, y.to(tl.int64), x.to(tl.int64)


@triton.jit
def load(pointer, at, inside, d, stride_d, D: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr):
    """Tokens of one head, (tile, DP): zeros where there is none."""
    at = at[:, None] + d[None, :].to(tl.int64) * stride_d
    tile = tl.load(pointer + at, mask=inside[:, None] & (d[None, :] < D), other=0.0)
    if UPCAST:
        tile = tile.to(ACC)
    return tile


@triton.jit
def load_padded(
    pointer, at, exists, inside, d, stride_d, fill,
    D: tl.constexpr, PADDED: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The same of keys or values, with `fill`, a pointer to D numbers, beyond the edge of the map."""
    tile = load(pointer, at, inside, d, stride_d, D, ACC, UPCAST)
    if PADDED:
        edge = tl.load(fill + d, mask=d < D, other=0.0)
        tile = tl.where((exists & (inside == 0))[:, None], edge[None, :].to(tile.dtype), tile)
    return tile


@triton.jit
def bias_of(table, head, t, kt, wh, ww, ACC: tl.constexpr):
    """The bias of queries `t` and keys `kt`, which broadcast, in units of ln 2: the table's entry at key - query."""
    dy, dx = kt // ww - t // ww, kt % ww - t % ww
    at = (head * (2 * wh - 1) + dy + wh - 1) * (2 * ww - 1) + dx + ww - 1
    return tl.load(table + at).to(ACC) * 1.4426950408889634


@triton.jit
def scores(a, b, scale, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """scale * a bᵀ in units of ln 2, which exp2 wants."""
    return tl.dot(a, tl.trans(b), out_dtype=ACC, input_precision=PRECISION) * (scale * 1.4426950408889634)


@triton.jit
def lepe(
    pointer, weight, bias, head, t, exists, image, group, i,
    windows, rows, columns, H, W, top, left, wh, ww, stride_b, stride_y, stride_x, stride_h, stride_d, d, fill,
    D: tl.constexpr, DP: tl.constexpr, GRID: tl.constexpr, PACK: tl.constexpr,
    PADDED: tl.constexpr, HAS_BIAS: tl.constexpr, REVERSED: tl.constexpr, BM: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A 3 x 3 depthwise convolution inside each window, (tile, DP); REVERSED: its transpose, of the gradient."""
    out = tl.zeros((BM, DP), ACC)
    if HAS_BIAS:
        out += tl.load(bias + head * D + d, mask=d < D, other=0.0).to(ACC)[None, :]
    for tap in tl.static_range(9):
        ty, tx = t // ww + (tap // 3 - 1), t % ww + (tap % 3 - 1)
        within = exists & (ty >= 0) & (ty < wh) & (tx >= 0) & (tx < ww)
        _, _, _, inside, _, y, x = locate(
            group, i + (tap // 3 - 1) * ww + (tap % 3 - 1), windows, rows, columns, H, W, top, left, wh, ww, GRID, PACK
        )
        at = image * stride_b + y * stride_y + x * stride_x + head.to(tl.int64) * stride_h
        tile = load_padded(pointer, at, within, within & inside, d, stride_d, fill, D, PADDED, ACC, True)
        number = 8 - tap if REVERSED else tap
        taps = tl.load(weight + (head * D + d) * 9 + number, mask=d < D, other=0.0).to(ACC)
        out += tile * taps[None, :]
    return out
