"""Where the tokens of regions lie on the map, and how a tile of them is read.

Token `t` of a region of tall x wide tokens lies in its row `t // wide` and its column `t % wide`. A tile may hold
tokens of many regions: the keys of a region are numbered through the regions of its list, and none is gathered.

MASKED is for regions of a few tokens, which would leave most of a tile empty. There, queries and keys are numbered
through all regions of an image, and a word of 64 bits for each region says which others it is routed to.
"""

import triton
import triton.language as tl


@triton.jit
def locate(region, t, tall, wide, columns):
    """Row and column on the map of token `t` of a region."""
    y, x = region // columns * tall + t // wide, region % columns * wide + t % wide
    return y.to(tl.int64), x.to(tl.int64)


@triton.jit
def load(
    pointer, y, x, stride_y, stride_x, exists, d, stride_d, D: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """Tokens of one head of one image, (tile, DP): zeros where there is none."""
    at = (y * stride_y + x * stride_x)[:, None] + d[None, :] * stride_d
    tile = tl.load(pointer + at, mask=exists[:, None] & (d[None, :] < D), other=0.0)
    if UPCAST:
        tile = tile.to(ACC)
    return tile


@triton.jit
def tokens_of(program, tiles, heads, count, tokens, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """The tile that a program owns: head, image, region, number in the region, and whether there is such a token.

    Heads are fastest: programs that are neighbours in time share the lines of a token's heads.
    """
    head, rest = program % heads, program // heads
    tile, group = rest % tiles, rest // tiles
    i = tile * BLOCK + tl.arange(0, BLOCK)
    if MASKED:
        image, region, t, inside = group, i // tokens, i % tokens, i < count * tokens
    else:
        image, region, t, inside = group // count, group % count, i, i < tokens
    return head, image.to(tl.int64), region, t, inside


@triton.jit
def keys_of(index, j, number, tokens, tall, wide, columns, count, MASKED: tl.constexpr):
    """Keys `j` of the regions that `index` points to, or of all: whether they exist, region, row and column."""
    exists = j < number
    region = j // tokens
    if not MASKED:
        region = tl.load(index + region, mask=exists, other=0).to(tl.int32)
        region = tl.minimum(tl.maximum(region, 0), count - 1)  # whatever a list says, reads stay inside the map
    y, x = locate(region, j % tokens, tall, wide, columns)
    return exists, region, y, x


@triton.jit
def routed(routes, regions, first):
    """Whether the words of queries name the regions of keys, all of them of the 32 that begin with `first`."""
    return (((routes >> first).to(tl.int32) >> (regions - first)) & 1) != 0
