"""What channel and linear attention share: a state of D x D numbers for each image and head.

A state is a sum over all tokens, which is then applied to every token. One program does both where images and heads are
many. Where they are few, chunks of tokens go to programs of their own: one kernel writes a part of the sum for each
chunk, PyTorch adds the parts, and a second kernel applies the sum.

Programs are numbered (image * chunks + chunk) * heads + head: neighbours read what lies side by side in memory.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._triton import divide_up, numerics, power_of_two, sums_in

PROGRAMS = 1024
"""About so many share the work: fixed, so that sums are the same on every GPU."""

RUNTIME = ("N", "chunks", "rounds")
"""Arguments that change with the image: a kernel of its own for 1 and for multiples of 16 is not worth compiling."""


class Plan:
    """How tokens are dealt to programs: each takes `rounds` tiles of a chunk.

    Args:
        q: (B, N, heads, D).
        rows: of a state, with D numbers each.
    """

    def __init__(self, q: Tensor, rows: int) -> None:
        self.images, tokens, heads, head_dim = q.shape
        padded = power_of_two(head_dim)
        row = padded * q.element_size()  # bytes of a token
        block = 64 if row <= 128 else 32
        tiles = divide_up(tokens, block)
        wanted = max(1, PROGRAMS // max(1, self.images * heads))
        rounds = max(1, divide_up(tiles, wanted))
        self.chunks = max(1, divide_up(tiles, rounds))
        self.whole = self.chunks == 1
        self.programs = self.images * self.chunks * heads
        self.sizes = (tokens, heads, self.chunks, rounds)
        self.parts = (self.images, self.chunks, heads, rows, head_dim)
        self.wide = sums_in(q)
        self.constants: dict[str, Any] = {
            **numerics(q),
            "D": head_dim,
            "DP": padded,
            "BLOCK": block,
            "num_warps": 4 if row <= 64 else 8,
        }
        self.constants["UPCAST"] &= q.dtype == torch.bfloat16  # float16 can show how a state is split

    def state(self, like: Tensor) -> Tensor:
        """Room for a part of the state by each program, (B, chunks, heads, rows, D)."""
        return like.new_empty(self.parts, dtype=self.wide)

    def sum(self, parts: Tensor) -> Tensor:
        """The state of all chunks, (B, heads, rows, D)."""
        return parts[:, 0] if self.chunks == 1 else parts.sum(1)


def by_head(grad: Tensor, head_dim: int) -> tuple[int, int, int, int]:
    """The strides of a gradient (B, N, heads * D) as those of (B, N, heads, D)."""
    image, token, channel = grad.stride()
    return image, token, head_dim * channel, channel


@triton.jit
def locate(heads, chunks):
    """Image, chunk and head of this program."""
    program = tl.program_id(0).to(tl.int64)
    rest = program // heads
    return rest // chunks, rest % chunks, program % heads


@triton.jit
def tile(chunk, rounds, step, BLOCK: tl.constexpr):
    """The tokens of a step through a chunk."""
    return (chunk * rounds + step) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def load(
    pointer, image, n, head, N, stride_b, stride_n, stride_h, stride_d,
    D: tl.constexpr, DP: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Tokens of one head, (BLOCK, DP); zeros where there is none."""
    d = tl.arange(0, DP)
    at = image * stride_b + n * stride_n + head * stride_h
    mask = (n < N)[:, None] & (d < D)[None, :]
    tokens = tl.load(pointer + at[:, None] + d.to(tl.int64)[None, :] * stride_d, mask=mask, other=0.0)
    if UPCAST:
        tokens = tokens.to(ACC)
    return tokens


@triton.jit
def store(pointer, tokens, image, n, head, N, heads, D: tl.constexpr, DP: tl.constexpr):
    """(BLOCK, DP) to its place in (B, N, heads, D)."""
    d = tl.arange(0, DP)
    at = ((image * N + n) * heads + head) * D
    mask = (n < N)[:, None] & (d < D)[None, :]
    tl.store(pointer + at[:, None] + d[None, :], tokens.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def load_state(pointer, number, rows, D: tl.constexpr, DP: tl.constexpr):
    """The first D rows of state `number`, (DP, DP), with zeros around."""
    i = tl.arange(0, DP)
    at = number * rows * D + i[:, None] * D + i[None, :]
    return tl.load(pointer + at, mask=(i < D)[:, None] & (i < D)[None, :], other=0.0)


@triton.jit
def store_state(pointer, state, number, rows, D: tl.constexpr, DP: tl.constexpr):
    """The same, to be written."""
    i = tl.arange(0, DP)
    at = number * rows * D + i[:, None] * D + i[None, :]
    tl.store(pointer + at, state, mask=(i < D)[:, None] & (i < D)[None, :])


@triton.jit
def halves(x, DTYPE: tl.constexpr, ACC: tl.constexpr):
    """`x` as factor * (high + low) in the dtype of the tokens that it is multiplied by.

    Two 16-bit numbers hold twice the digits of one, more than TF32 does, and tensor cores multiply them faster. The
    factor keeps them within float16, wherever `x` lies. Wider dtypes need no second half.
    """
    if DTYPE.primitive_bitwidth > 16:
        return x.to(DTYPE), x.to(DTYPE), 1.0
    factor = 1.0
    if DTYPE.is_fp16():
        largest = tl.max(tl.max(tl.abs(x), 1), 0)
        factor = tl.where(largest > 0.0, largest, 1.0)
        x = x / factor
    high = x.to(DTYPE)
    return high, (x - high.to(ACC)).to(DTYPE), factor


@triton.jit
def times(tokens, high, low, factor, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """tokens (factor * (high + low))."""
    product = tl.dot(tokens, high, out_dtype=ACC, input_precision=PRECISION)
    if tokens.dtype.primitive_bitwidth > 16:
        return product
    return tl.dot(tokens, low, product, out_dtype=ACC, input_precision=PRECISION) * factor


@triton.jit
def masked(tokens, exists):
    """The same tokens. The zeros are there already, but asked for them Triton loads the tile ahead of its use, which it
    does not for a tile that goes straight into two kinds of products, or into one transposed.
    """
    return tl.where(exists[:, None], tokens, tl.zeros_like(tokens))


@triton.jit
def add_product(total, left, right, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """total + leftᵀ right, with `left` in float32 (float64) and `right` in the dtype of tokens."""
    high, low, factor = halves(left, right.dtype, ACC)
    if right.dtype.is_fp16():
        part = tl.dot(tl.trans(high), right, out_dtype=ACC, input_precision=PRECISION)
        return total + tl.dot(tl.trans(low), right, part, out_dtype=ACC, input_precision=PRECISION) * factor
    total = tl.dot(tl.trans(high), right, total, out_dtype=ACC, input_precision=PRECISION)
    if right.dtype.is_bf16():
        total = tl.dot(tl.trans(low), right, total, out_dtype=ACC, input_precision=PRECISION)
    return total
