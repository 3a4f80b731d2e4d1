"""Multi-scale deformable attention as mmcv's compiled operator defines it, in PyTorch.

Answers   mmcv's `ms_deform_attn_forward/backward`, which mmcv calls on CUDA; `deform_attention` is the same with
          autograd and the signature of `multi_scale_deformable_attn_pytorch`, which mmcv calls on a CPU
Samples   bilinear in a map whose locations run from 0 to 1 over its sides; outside the map is 0
How       one weighted sum of rows a query and head: `embedding_bag` over the four pixels around every sample
Gradients of the values come from the same sum with pixels as bags, after sorting: the order of adding is fixed
Memory    queries go in parts of `_CORNERS` pixels to read: some 200 MB beside inputs and outputs at any size
Precision float16 and bfloat16 are computed in float32 and rounded once at the end; mmcv rounds every step
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

_CORNERS = 1 << 22


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    im2col_step: int,
) -> Tensor:
    """Sum sampled values: -> (B, Q, heads * D).

    `value` (B, S, heads, D) holds L maps of `spatial_shapes` (L, 2: height, width) that begin at `level_start_index`
    (L,); `sampling_loc` is (B, Q, heads, L, P, 2: x, y) and `attn_weight` (B, Q, heads, L, P). `im2col_step` splits
    the batch in mmcv and has no use here.
    """
    batch, _, heads, head_dim = value.shape
    queries = sampling_loc.shape[1]
    rows = _wide(value).flatten(0, 2)
    bags = rows.new_empty(batch * queries, heads, head_dim)
    for part, corners in _parts(value, spatial_shapes, level_start_index, sampling_loc):
        weights = corners.spread(_wide(attn_weight.flatten(0, 1)[part].flatten(2)))
        bags[part] = _sum_rows(rows, corners.rows, weights).view(-1, heads, head_dim)
    return bags.view(batch, queries, heads * head_dim).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_loc: Tensor,
    attn_weight: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Add to `grad_value` and write to the other two what `grad_output` (B, Q, heads * D) asks of them."""
    heads, head_dim = value.shape[2:]
    rows = _wide(value).flatten(0, 2)
    total = torch.zeros_like(rows)
    grads = _wide(grad_output).unflatten(2, (heads, head_dim)).flatten(0, 1)  # (B Q, heads, D)
    levels = attn_weight.shape[3:]
    # Not written in place: mmcv passes these in as the forward's inputs lay, which need not be one block of memory.
    to_locations, to_weights = (
        torch.empty_like(x.flatten(0, 1), memory_format=torch.contiguous_format)
        for x in (grad_sampling_loc, grad_attn_weight)
    )
    for part, corners in _parts(value, spatial_shapes, level_start_index, sampling_loc):
        weight, grad = _wide(attn_weight.flatten(0, 1)[part].flatten(2)), grads[part].flatten(0, 1)
        total += _scatter_rows(grad, corners.rows, corners.spread(weight), len(rows))
        # What each of the four pixels would add to the loss by a weight of 1.
        pixels = _dot_rows(grad, rows, corners.rows).view(*weight.shape, 4)
        top_left, top_right, bottom_left, bottom_right = pixels.unbind(-1)
        x, y = corners.x, corners.y
        top = top_left * x.weight_first + top_right * x.weight_second
        bottom = bottom_left * x.weight_first + bottom_right * x.weight_second
        left = top_left * y.weight_first + bottom_left * y.weight_second
        right = top_right * y.weight_first + bottom_right * y.weight_second
        to_weights[part] = (top * y.weight_first + bottom * y.weight_second).to(to_weights.dtype).unflatten(2, levels)
        along_x = (right * x.has_second - left * x.has_first) * x.side * weight
        along_y = (bottom * y.has_second - top * y.has_first) * y.side * weight
        to_locations[part] = torch.stack([along_x, along_y], -1).to(to_locations.dtype).unflatten(2, levels)
    grad_value.add_(total.view_as(value))
    grad_sampling_loc.copy_(to_locations.view_as(grad_sampling_loc))
    grad_attn_weight.copy_(to_weights.view_as(grad_attn_weight))


class _Axis(NamedTuple):
    """The two rows, or columns, of pixels that samples lie between; each is (n, heads, samples) but `side`."""

    first: Tensor  # in int32, one that is there
    second: Tensor
    weight_first: Tensor  # 0 where it is not there
    weight_second: Tensor
    has_first: Tensor
    has_second: Tensor
    side: Tensor  # (samples,): how many there are


class _Corners(NamedTuple):
    """The four pixels around samples of n queries: top left, top right, bottom left, bottom right."""

    rows: Tensor  # (n, heads, samples, 4) in int32, of value (B * S * heads, D)
    x: _Axis
    y: _Axis

    def spread(self, weight: Tensor) -> Tensor:
        """Bilinear weights times `weight` (n, heads, samples): -> (n, heads, samples, 4)."""
        top, bottom = self.y.weight_first * weight, self.y.weight_second * weight
        left, right = self.x.weight_first, self.x.weight_second
        return torch.stack([top * left, top * right, bottom * left, bottom * right], -1)


def _parts(value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor) -> Iterator[tuple[slice, _Corners]]:
    """Slices of the B * Q queries, and the pixels that they read."""
    batch, tokens, heads = value.shape[:3]
    queries = locations.shape[1]
    flat = locations.flatten(0, 1)
    images = torch.arange(batch, device=value.device).repeat_interleave(queries, output_size=batch * queries)
    step = max(1, _CORNERS // max(1, 4 * flat.shape[1:-1].numel()))
    for first in range(0, len(flat), step):
        part = slice(first, first + step)
        yield part, _corners(_wide(flat[part]), images[part] * tokens, shapes, starts, heads)


def _corners(locations: Tensor, images: Tensor, shapes: Tensor, starts: Tensor, heads: int) -> _Corners:
    """Find the pixels around `locations` (n, heads, L, P, 2); `images` (n,): where each query's image begins.

    x and y lie apart, and levels and points in one dimension: dimensions of 2 or 4 would cost more than the sums.
    """
    points = locations.shape[3]
    height, width = shapes.int().repeat_interleave(points, 0, output_size=len(shapes) * points).unbind(1)  # (samples,)
    starts = starts.int().repeat_interleave(points, output_size=len(starts) * points)
    x, y = locations.flatten(2, 3).unbind(-1)
    x, y = x * width - 0.5, y * height - 0.5
    # A sample one pixel outside or farther is left out whole: its gradient is 0, also where it just touches the map.
    near = (x > -1) & (x < width) & (y > -1) & (y < height)
    along_x, along_y = _axis(x, width, near), _axis(y, height, near)
    head = torch.arange(heads, dtype=torch.int32, device=x.device)[:, None]
    base = (images.int()[:, None, None] + starts) * heads + head
    top, bottom = (row * (width * heads) + base for row in (along_y.first, along_y.second))
    left, right = along_x.first * heads, along_x.second * heads
    return _Corners(torch.stack([top + left, top + right, bottom + left, bottom + right], -1), along_x, along_y)


def _axis(place: Tensor, side: Tensor, near: Tensor) -> _Axis:
    floor = place.floor()
    fraction = place - floor
    first = torch.where(near, floor, 0).int()
    second = first + 1
    has_first, has_second = near & (first >= 0), near & (second < side)
    return _Axis(
        first.clamp(min=0),
        torch.minimum(second, side - 1),
        torch.where(has_first, 1 - fraction, 0),
        torch.where(has_second, fraction, 0),
        has_first,
        has_second,
        side,
    )


def _sum_rows(rows: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """`rows` (R, D) weighed and summed by `index` and `weights` (n, heads, ...): -> (n * heads, D)."""
    index, weights = index.flatten(0, 1).flatten(1), weights.flatten(0, 1).flatten(1)
    return functional.embedding_bag(index, rows, per_sample_weights=weights, mode="sum")


def _scatter_rows(grad: Tensor, index: Tensor, weights: Tensor, count: int) -> Tensor:
    """The transpose of `_sum_rows`: `grad` (n * heads, D) -> (count, D)."""
    order = index.flatten().sort(stable=True)
    wanted = torch.arange(count, dtype=torch.int32, device=index.device)
    offsets = torch.searchsorted(order.values, wanted, out_int32=True)
    bags = (order.indices // weights[0, 0].numel()).int()
    return functional.embedding_bag(
        bags, grad, offsets, per_sample_weights=weights.flatten()[order.indices], mode="sum"
    )


def _dot_rows(grad: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """`grad` (n * heads, D) times each of the rows that its bag read: -> (n * heads, K)."""
    index = index.flatten(0, 1).flatten(1)
    # PyTorch has this product only as the gradient of embedding_bag's weights.
    with torch.enable_grad():
        weights = grad.new_ones(index.shape, requires_grad=True)
        bags = functional.embedding_bag(index, rows.detach(), per_sample_weights=weights, mode="sum")
    return torch.autograd.grad(bags, weights, grad)[0]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _DeformAttention(Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
    ) -> Tensor:
        ctx.save_for_backward(value, shapes, starts, locations, weights)
        return ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        value, shapes, starts, locations, weights = ctx.saved_tensors
        grads = torch.zeros_like(value), torch.zeros_like(locations), torch.zeros_like(weights)
        ms_deform_attn_backward(value, shapes, starts, locations, weights, grad, *grads, im2col_step=1)
        return grads[0], None, None, *grads[1:]


def deform_attention(
    value: Tensor, value_spatial_shapes: Tensor | Sequence, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """`ms_deform_attn_forward` with gradients, for maps that lie one after the other: -> (B, Q, heads * D)."""
    shapes = torch.as_tensor(value_spatial_shapes, device=value.device)
    areas = shapes.prod(1)
    return _DeformAttention.apply(value, shapes, areas.cumsum(0) - areas, sampling_locations, attention_weights)
