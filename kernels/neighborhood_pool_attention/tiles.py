"""What the kernels of `neighborhood_pool_attention` share: patches of pixels, tiles of pooled ones, and scores of both.

A piece is a patch of SIDE x SIDE pixels of one image, whose neighbours are few beside those of 64 pixels in a row.

Scores are in units of ln 2, which exp2 wants. Those of pooled keys come from a product of q and k as they are in
memory; what normalises and scales them is applied to the product, so that no score is rounded to 16 bits.

Strides arrive divided by UNIT, which is 8 where all are multiples of it: that is how the compiler learns that rows of
24 channels can be read 16 bytes at a time.
"""

import triton
import triton.language as tl

SIZES = (
    *("H", "W", "patches", "across", "images", "whole", "first", "bottom", "tiles", "rounds"),
    *("P", "PW", "TH", "TW", "rs", "cs"),
    *("count", "places", "lists", "width", "chunks", "stride_chunk", "group", "stride_group"),
)
"""Of images: Triton would compile anew for those that 16 divides, or that are 1."""

LOG2E = tl.constexpr(1.4426950408889634)
SIDE = tl.constexpr(8)
BLOCK = tl.constexpr(64)


@triton.jit
def locate(piece, patches, across, H, W):
    """Image, rows and columns of a piece's pixels (BLOCK,), and whether they are on the map; `patches` an image."""
    patch, image = piece % patches, piece // patches
    i = tl.arange(0, BLOCK)
    y, x = patch // across * SIDE + i // SIDE, patch % across * SIDE + i % SIDE
    return image.to(tl.int64), y, x, (y < H) & (x < W)


@triton.jit
def address(image, y, x, head, stride_b, stride_y, stride_x, stride_h, UNIT: tl.constexpr):
    """Where the pixels of one head begin, in elements."""
    return (image * stride_b + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x + head * stride_h) * UNIT


@triton.jit
def load(pointer, at, inside, d, stride_d, D: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr):
    """Pixels of one head, (tile, DP): zeros where there is none."""
    tile = tl.load(pointer + at[:, None] + d[None, :] * stride_d, mask=inside[:, None] & (d[None, :] < D), other=0.0)
    if UPCAST:
        tile = tile.to(ACC)
    return tile


@triton.jit
def inverse_norm(x):
    """What normalises each row: 1 / max(norm, 1e-12), as torch.nn.functional.normalize has it."""
    return 1.0 / tl.maximum(tl.sqrt(tl.sum(x * x, 1)), 1e-12)


@triton.jit
def through_norm(gradient, x, inverse):
    """From the gradient of x * inverse to that of x; where the norm is cut off, `inverse` does not depend on x."""
    unit = x * inverse[:, None]
    along = tl.where(inverse < 0.999e12, tl.sum(unit * gradient, 1), 0.0)
    return (gradient - unit * along[:, None]) * inverse[:, None]


@triton.jit
def neighbour(t, y, x, H, W, exists):
    """The neighbour number `t`, row by row, of each pixel: its row, column and whether it is on the map."""
    y, x = y + t // 3 - 1, x + t % 3 - 1
    return y, x, exists & (y >= 0) & (y < H) & (x >= 0) & (x < W)


@triton.jit
def embed(embedding, head, d, D: tl.constexpr, ACC: tl.constexpr):
    """The query embedding of a head, (DP,)."""
    return tl.load(embedding + head * D + d, mask=d < D, other=0.0).to(ACC)


@triton.jit
def sharpness(temperature, head, ACC: tl.constexpr):
    """softplus(temperature), a number; exact where exp(temperature) is small beside 1."""
    t = tl.load(temperature + head).to(ACC)
    e = tl.exp(tl.minimum(t, 20.0))
    more = e + 1.0
    soft = tl.where(more == 1.0, e, tl.log(more) * (e / tl.where(more == 1.0, 1.0, more - 1.0)))
    return tl.where(t > 20.0, t, soft)


@triton.jit
def length(y, x, H, W, P, ACC: tl.constexpr):
    """The logarithm of how many keys a pixel has: neighbours on the map and pooled ones."""
    rows = 1 + (y > 0).to(tl.int32) + (y < H - 1).to(tl.int32)
    columns = 1 + (x > 0).to(tl.int32) + (x < W - 1).to(tl.int32)
    return tl.log((rows * columns + P).to(ACC))


@triton.jit
def pooled_keys(step, P, BP: tl.constexpr):
    """Numbers of a tile of pooled keys (BP,), and whether they exist."""
    p = step * BP + tl.arange(0, BP)
    return p, p < P


@triton.jit
def pooled_bias(table, rows, columns, y, x, p, H, W, P, PW, TW, rs, rp, cs, cp, ACC: tl.constexpr):
    """table[head, rows[y, py], columns[x, px]] in units of ln 2, (pixels, keys); of those that do not exist, any."""
    y, x, p = tl.minimum(y, H - 1), tl.minimum(x, W - 1), tl.minimum(p, P - 1)
    row = tl.load(rows + y[:, None] * rs + (p // PW)[None, :] * rp)
    column = tl.load(columns + x[:, None] * cs + (p % PW)[None, :] * cp)
    return tl.load(table + row * TW + column).to(ACC) * LOG2E


@triton.jit
def pooled_scores(
    queries, inverse, factor, keys, key_inverse, embedding, exists, bias, ACC: tl.constexpr, PRECISION: tl.constexpr
):
    """factor * (queries * inverse + embedding) · keys * key_inverse + bias, (pixels, keys); -inf for no key."""
    s = tl.dot(queries, tl.trans(keys), out_dtype=ACC, input_precision=PRECISION) * key_inverse[None, :]
    extra = tl.sum(keys.to(ACC) * embedding[None, :], 1) * key_inverse
    s = s * (factor * inverse)[:, None] + extra[None, :] * factor[:, None] + bias
    return tl.where(exists[None, :], s, -float("inf"))
