"""`routing_attention` as fast as plain PyTorch gets: SDPA on gathered regions, or on the whole map behind a mask."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from .._kept import kept
from .._layout import divided, is_eager

_PART = 4 << 20  # bytes of gathered keys and values at once on a CPU, where no gradient keeps them
_PART_ELSEWHERE = 256 << 20  # a GPU wants few and large launches
_MASKED = 1024  # tokens of a map, at most, for a mask of all pairs
_COPY, _COPY_LEARNING = 16, 45  # hidden scores that cost as much as a copied key, without and with a backward pass


def routing_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    scale: float | None = None,
    regions: tuple[int, int] | None = None,
) -> Tensor:
    """See `vertebra.kernels.routing_attention`."""
    rows, columns = square(index) if regions is None else regions
    if torch.jit.is_scripting():
        return _gathered(q, k, v, index, scale, rows, columns)
    if is_eager(q):
        learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        if _mask_is_cheaper(q, index, learns):
            return _masked(q, k, v, index, scale, rows, columns)
        if not learns:
            return _gathered_in_parts(q, k, v, index, scale, rows, columns)
    if torch.compiler.is_compiling():
        return _by_number(q, k, v, index, scale, rows, columns)
    return _gathered(q, k, v, index, scale, rows, columns)


def square(index: Tensor) -> tuple[int, int]:
    side = int(math.sqrt(index.shape[1]))
    return side, side


def _mask_is_cheaper(q: Tensor, index: Tensor, learns: bool) -> bool:
    """Whether scores that a mask then hides cost less than the copies of keys that it would take to avoid them.

    A copy costs as much as a number of hidden scores; more where its gradients have to be added up again.
    """
    tokens, regions, picks = q.shape[1] * q.shape[2], index.shape[1], index.shape[2]
    hidden = tokens - picks * tokens // regions
    return tokens <= _MASKED and hidden <= picks * (_COPY_LEARNING if learns else _COPY)


def _masked(q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float | None, rows: int, columns: int) -> Tensor:
    batch, height, width, heads, head_dim = q.shape
    region = kept(q, _numbers, rows, columns, height, width, q.device)
    hidden = torch.full((batch, rows * columns, rows * columns), -math.inf, dtype=q.dtype, device=q.device)
    hidden = hidden.scatter_(2, index, 0.0).index_select(2, region).index_select(1, region)
    q, k, v = (x.reshape(batch, height * width, heads, head_dim).transpose(1, 2) for x in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=hidden[:, None], scale=scale)
    return out.transpose(1, 2).reshape(batch, height, width, heads * head_dim)


def _numbers(rows: int, columns: int, height: int, width: int, device: torch.device) -> Tensor:
    """The region of each token: (H * W,)."""
    region = torch.arange(rows * columns, device=device).reshape(rows, columns)
    return region.repeat_interleave(height // rows, 0).repeat_interleave(width // columns, 1).flatten()


def _gathered(q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float | None, rows: int, columns: int) -> Tensor:
    out = _attend(
        _regions(q, rows, columns), _regions(k, rows, columns), _regions(v, rows, columns), _flat(index), scale
    )
    return _map(out, q, rows, columns)


def _gathered_in_parts(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float | None, rows: int, columns: int
) -> Tensor:
    """The same a few regions at a time, which keeps what is gathered in the processor's cache, and memory small."""
    regions, keys, values = _regions(q, rows, columns), _regions(k, rows, columns), _regions(v, rows, columns)
    index = _flat(index)
    out = torch.empty_like(regions)
    part = _PART if q.device.type == "cpu" else _PART_ELSEWHERE
    step = part // (2 * index.shape[1] * math.prod(regions.shape[1:]) * regions.element_size()) + 1
    for start in range(0, len(index), step):
        part = slice(start, start + step)
        out[part] = _attend(regions[part], keys, values, index[part], scale)
    return _map(out, q, rows, columns)


def _by_number(q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float | None, rows: int, columns: int) -> Tensor:
    """The same without a dimension that can be 1, the side of a region: compilers tell 1 from other numbers.

    Tokens are found by number, and each region carries one more, a copy that a mask hides.
    """
    batch, height, width, heads, head_dim = q.shape
    count, picks = index.shape[1], index.shape[2]
    tall, wide = height // rows, width // columns
    tokens = tall * wide + 1
    place = torch.arange(count * tokens, device=q.device)
    region, token = divided(place, tokens)
    (row, column), (y, x) = divided(region, columns), divided(token.clamp(max=tall * wide - 1), wide)
    source = (row * tall + y) * width + column * wide + x
    q, k, v = (
        x.reshape(batch, height * width, heads * head_dim)
        .index_select(1, source)
        .reshape(batch * count, tokens, heads, head_dim)
        for x in (q, k, v)
    )
    seen = divided(torch.arange(picks * tokens, device=q.device), tokens)[1] < tall * wide
    out = _attend(q, k, v, _flat(index), scale, seen[None, None, None])
    row, y = divided(torch.arange(height, device=q.device)[:, None], tall)
    column, x = divided(torch.arange(width, device=q.device), wide)
    place = (row * columns + column) * tokens + y * wide + x
    out = out.reshape(batch, count * tokens, heads * head_dim).index_select(1, place.flatten())
    return out.reshape(batch, height, width, heads * head_dim)


def _flat(index: Tensor) -> Tensor:
    """Regions counted through all images: (B, regions, K) -> (B * regions, K)."""
    batch, count, picks = index.shape
    first = torch.arange(batch, device=index.device) * count
    return (index + first[:, None, None]).reshape(batch * count, picks)


def _regions(x: Tensor, rows: int, columns: int) -> Tensor:
    """(B, H, W, heads, D) -> (B * regions, T, heads, D)."""
    batch, height, width, heads, head_dim = x.shape
    x = x.reshape(batch, rows, height // rows, columns, width // columns, heads, head_dim).transpose(2, 3)
    return x.reshape(batch * rows * columns, (height // rows) * (width // columns), heads, head_dim)


def _map(regions: Tensor, like: Tensor, rows: int, columns: int) -> Tensor:
    """(B * regions, T, heads, D) -> (B, H, W, heads * D)."""
    batch, height, width, heads, head_dim = like.shape
    x = regions.reshape(batch, rows, columns, height // rows, width // columns, heads * head_dim)
    return x.transpose(2, 3).reshape(batch, height, width, heads * head_dim)


def _attend(q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float | None, mask: Tensor | None = None) -> Tensor:
    """Regions (N, T, heads, D) to the regions that `index` (N, K) names: (N, T, heads, D)."""
    _, tokens, heads, head_dim = q.shape
    count, picks = index.shape[0], index.shape[1]
    flat = index.reshape(count * picks)
    k = k.index_select(0, flat).reshape(count, picks * tokens, heads, head_dim)
    v = v.index_select(0, flat).reshape(count, picks * tokens, heads, head_dim)
    out = functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, scale=scale
    )
    return out.transpose(1, 2)
