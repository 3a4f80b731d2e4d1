"""`window_attention` as fast as plain PyTorch gets.

Windows that are whole rows of the map are views of it. On a CPU others are cut out a few at a time, so that a core's
cache still holds them when they are used, and in inference their results go straight to their places.
"""

import torch
from torch import Tensor
from torch.nn import functional

from .._layout import is_eager, missing, pad_map
from .halves import half

_CUT_AT_ONCE = 2**18  # numbers of q, k and v
_FEW_TOKENS = 64  # up to here, matrices of scores train faster on a CPU than flash attention


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: tuple[int, int],
    partition: str = "block",
    scale: float | None = None,
    bias_table: Tensor | None = None,
    pad: Tensor | None = None,
    pad_offset: tuple[int, int] = (0, 0),
    lepe_weight: Tensor | None = None,
    lepe_bias: Tensor | None = None,
    cross_window: tuple[int, int] | None = None,
    cross_offset: tuple[int, int] = (0, 0),
) -> Tensor:
    """See `vertebra.kernels.window_attention`."""
    if cross_window is not None:
        a = half(False, q, k, v, pad, lepe_weight, lepe_bias)
        b = half(True, q, k, v, pad, lepe_weight, lepe_bias)
        first = _attention(a[0], a[1], a[2], window, partition, scale, None, a[3], pad_offset, a[4], a[5])
        second = _attention(b[0], b[1], b[2], cross_window, partition, scale, None, b[3], cross_offset, b[4], b[5])
        return torch.cat([first, second], -1)
    return _attention(q, k, v, window, partition, scale, bias_table, pad, pad_offset, lepe_weight, lepe_bias)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: tuple[int, int],
    partition: str,
    scale: float | None,
    bias_table: Tensor | None,
    pad: Tensor | None,
    pad_offset: tuple[int, int],
    lepe_weight: Tensor | None,
    lepe_bias: Tensor | None,
) -> Tensor:
    height, width = q.shape[1], q.shape[2]
    wh, ww = window
    top, left = pad_offset
    edges = (top, missing(top + height, wh), left, missing(left + width, ww))
    grid = partition == "grid"
    q = _cut(_surround(q, None if pad is None else pad[0], edges), wh, ww, grid)
    k = _cut(_surround(k, None if pad is None else pad[1], edges), wh, ww, grid)
    v = _cut(_surround(v, None if pad is None else pad[2], edges), wh, ww, grid)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    bias = None if bias_table is None else position_bias(bias_table, window).to(q.dtype)
    if torch.jit.is_scripting():
        out = _join(_attend(q, k, v, scale, bias, lepe_weight, lepe_bias), grid)
    elif is_eager(q) and q.device.type == "cpu" and (grid or q.shape[2] > 1):
        out = _by_parts(q, k, v, grid, scale, bias, lepe_weight, lepe_bias)
    else:
        if not is_eager(q):
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # compilers reckon long with other strides
        out = _join(_attend(q, k, v, scale, bias, lepe_weight, lepe_bias), grid)
    return out.narrow(1, top, height).narrow(2, left, width)


def _surround(x: Tensor, fill: Tensor | None, edges: tuple[int, int, int, int]) -> Tensor:
    """(B, H, W, heads, D) with rows and columns of `fill` (heads, D), or of zeros, around it."""
    top, bottom, left, right = edges
    padded = pad_map(x, top, bottom, left, right)
    if fill is None:
        return padded
    if not torch.jit.is_scripting() and padded is x:
        return x
    inside = pad_map(x.new_ones(1, x.shape[1], x.shape[2], 1, 1), top, bottom, left, right)
    return padded + (1 - inside) * fill.to(x.dtype)


def _cut(x: Tensor, wh: int, ww: int, grid: bool) -> Tensor:
    """(B, H, W, ...) -> a view (B, rows, columns, wh, ww, ...): rows and columns count windows."""
    if grid:
        x = x.unflatten(2, [ww, -1]).unflatten(1, [wh, -1]).transpose(3, 4).transpose(1, 2)
    else:
        x = x.unflatten(2, [-1, ww]).unflatten(1, [-1, wh])
    return x.transpose(2, 3)


def _join(x: Tensor, grid: bool) -> Tensor:
    """(B, rows, columns, wh, ww, heads, D) -> (B, H, W, heads * D)."""
    x = x.transpose(2, 3)
    if grid:
        x = x.transpose(1, 2).transpose(3, 4)
    return x.contiguous().flatten(5).flatten(3, 4).flatten(1, 2)


def _by_parts(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: bool,
    scale: float,
    bias: Tensor | None,
    lepe_weight: Tensor | None,
    lepe_bias: Tensor | None,
) -> Tensor:
    """`_attend` and `_join`, some windows at a time."""
    batch, rows, columns, wh, ww, heads, head_dim = q.shape
    fit = max(_CUT_AT_ONCE // (3 * wh * ww * heads * head_dim), 1)
    learned = [x for x in (q, k, v, bias, lepe_weight, lepe_bias) if x is not None and x.requires_grad]
    if learned and torch.is_grad_enabled():
        images = max(fit // (rows * columns), 1)
        parts = zip(q.split(images), k.split(images), v.split(images), strict=True)
        return torch.cat([_join(_attend(*part, scale, bias, lepe_weight, lepe_bias), grid) for part in parts])
    out = q.new_empty(batch, rows * wh, columns * ww, heads, head_dim)
    places = _cut(out, wh, ww, grid)
    packed = _packed(q, k, v)
    for part in _parts(batch, rows, columns, fit):
        a, b, c = (q[part], k[part], v[part]) if packed is None else packed[part].contiguous().unbind(5)
        places[part] = _attend(a, b, c, scale, bias, lepe_weight, lepe_bias)
    return out.flatten(3)


def _parts(batch: int, rows: int, columns: int, fit: int) -> list[tuple[slice, ...]]:
    """Windows (B, rows, columns) in parts of about `fit`, by images, else by rows, else by columns."""
    if rows * columns <= fit:
        step = fit // (rows * columns)
        return [(slice(b, b + step),) for b in range(0, batch, step)]
    if columns <= fit:
        step = fit // columns
        return [(slice(b, b + 1), slice(r, r + step)) for b in range(batch) for r in range(0, rows, step)]
    return [
        (slice(b, b + 1), slice(r, r + 1), slice(c, c + fit))
        for b in range(batch)
        for r in range(rows)
        for c in range(0, columns, fit)
    ]


def _packed(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """q, k and v as one tensor (B, rows, columns, wh, ww, 3, heads, D), if they lie as one projection leaves them."""
    heads, head_dim = q.shape[5:]
    step = heads * head_dim
    if (
        q.stride() == k.stride() == v.stride()
        and q.stride()[4:] == (3 * step, head_dim, 1)
        and k.storage_offset() - q.storage_offset() == v.storage_offset() - k.storage_offset() == step
        and q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    ):
        return q.as_strided((*q.shape[:5], 3, heads, head_dim), (*q.stride()[:5], step, head_dim, 1))
    return None


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    bias: Tensor | None,
    lepe_weight: Tensor | None,
    lepe_bias: Tensor | None,
) -> Tensor:
    """Attention and LePE inside windows, (B, rows, columns, wh, ww, heads, D) -> the same shape."""
    batch, rows, columns, wh, ww, heads, head_dim = q.shape
    lepe: Tensor | None = None
    if lepe_weight is not None:
        v = v.contiguous()
        images = v.reshape(batch * rows * columns, wh, ww, heads * head_dim).permute(0, 3, 1, 2)
        lepe = functional.conv2d(images, lepe_weight, lepe_bias, padding=1, groups=heads * head_dim)
    if torch.jit.is_scripting():
        out = _flash(q, k, v, scale, bias)
    elif _prefers_matrices(q, k, v, bias):
        out = _matrices(q, k, v, scale, bias)
    else:
        out = _flash(q, k, v, scale, bias)
    if lepe is not None:
        out = out + lepe.permute(0, 2, 3, 1).reshape(out.shape)
    return out.unflatten(0, [batch, rows, columns]).unflatten(3, [wh, ww])


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """(B, rows, columns, wh, ww, heads, D) -> (windows, T, heads, D)."""
    q = q.flatten(3, 4).flatten(0, 2).transpose(1, 2)  # (windows, heads, T, D)
    k = k.flatten(3, 4).flatten(0, 2).transpose(1, 2)
    v = v.flatten(3, 4).flatten(0, 2).transpose(1, 2)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).transpose(1, 2)


def _prefers_matrices(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
    """Whether matrices of scores are faster than SDPA: on a CPU with a bias, and in training with small windows."""
    if not is_eager(q) or q.device.type != "cpu" or q.dtype not in (torch.float32, torch.float64):
        return False
    if bias is not None:
        return True
    learned = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    return learned and q.shape[3] * q.shape[4] <= _FEW_TOKENS


def _matrices(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """`_flash` by two products of matrices."""
    wh, ww, heads, head_dim = q.shape[3:]
    q, k, v = (x.permute(0, 1, 2, 5, 3, 4, 6).reshape(-1, wh * ww, head_dim) for x in (q, k, v))
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.mT, beta=0, alpha=scale).unflatten(0, (-1, heads))
    if bias is not None:
        scores += bias  # in place: no gradient needs what was there before
    out = scores.softmax(-1).flatten(0, 1) @ v
    return out.unflatten(0, (-1, heads)).transpose(1, 2)


def position_bias(table: Tensor, window: tuple[int, int]) -> Tensor:
    """(heads, 2 wh - 1, 2 ww - 1) -> (heads, T, T), rows are queries: without a table of indices."""
    wh, ww = window
    windows = table.unfold(1, wh, 1).unfold(2, ww, 1)  # (heads, wh, ww, wh, ww), the first window is the last query's
    return windows.flip(1, 2).reshape(-1, wh * ww, wh * ww)
