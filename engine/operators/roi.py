"""RoIAlign and RoIPool as mmcv's compiled operators define them, from torchvision and PyTorch.

Answers   mmcv's `roi_align_forward/backward` and `roi_pool_forward/backward`; results go into the tensors passed in
Average   RoIAlign's average is torchvision's operator, line for line the same function, forward and backward
Own       RoIAlign's maximum, RoIPool (torchvision rounds boxes first, mmcv does not), the average in float64 with
          adaptive sampling (mmcv counts samples in float32), and the average's backward where PyTorch is told to be
          deterministic, which torchvision's CUDA kernel refuses
Memory    a few tensors of `_ELEMENTS` numbers beside inputs and outputs, however many RoIs there are
Precision float16 and bfloat16 are computed in float32 and rounded once at the end; mmcv rounds every step
"""

from collections.abc import Iterator

import torch
import torchvision.ops  # noqa: F401  it registers torch.ops.torchvision
from torch import Tensor
from torch.nn import functional

from ...backbones._errors import UserError

_ELEMENTS = 1 << 22
_LOWEST = torch.finfo(torch.float32).min


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool `input` (N, C, H, W) in `rois` (R, 5) into `output` (R, C, h, w).

    `pool_mode` 1 averages the samples of a bin. 0 takes the largest and stores where it was: `argmax_y`, `argmax_x`
    (R, C, h, w), in pixels of the map, -1 where no sample was above the lowest number.
    """
    _refuse_bad_boxes(rois, len(input), aligned)
    features, boxes, bins = _wide(input), _wide(rois).to(_wide(input)), (aligned_height, aligned_width)
    how = bins, _single(spatial_scale), sampling_ratio, aligned
    if pool_mode == 1 and not _counts_otherwise(features, sampling_ratio):
        scale = how[1]
        output.copy_(torch.ops.torchvision.roi_align(features, boxes, scale, *bins, sampling_ratio, aligned))
        return
    pixels = features.permute(0, 2, 3, 1).contiguous()  # (N, H, W, C)
    for part in _parts(output):
        if pool_mode == 1:
            targets, found = (output,), (_average(pixels, boxes[part], *how),)
        else:
            targets, found = (output, argmax_y, argmax_x), _maximum(pixels, boxes[part], *how)
        for target, values in zip(targets, found, strict=True):
            target[part] = values.transpose(1, 2).unflatten(2, bins).to(target.dtype)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add to `grad_input` (N, C, H, W) the gradient of the features, given that of the output (R, C, h, w)."""
    shape, grad, bins = grad_input.shape, _wide(grad_output), (aligned_height, aligned_width)
    boxes, scale = _wide(rois).to(grad), _single(spatial_scale)
    if pool_mode == 0:
        total = _maximum_backward(grad, boxes, argmax_y, argmax_x, shape)
    elif torch.are_deterministic_algorithms_enabled() or _counts_otherwise(grad, sampling_ratio):
        total = _average_backward(grad, boxes, shape, bins, scale, sampling_ratio, aligned)
    else:
        total = torch.ops.torchvision._roi_align_backward(grad, boxes, scale, *bins, *shape, sampling_ratio, aligned)
    grad_input.add_(total)


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the largest pixel of each bin to `output` (R, C, h, w) and its index in the map to `argmax` (int32).

    A bin outside the map gives 0 and index -1. A box without area is skipped, as mmcv does: what was passed in stays.
    """
    features, bins = _wide(input), (pooled_height, pooled_width)
    height, width = features.shape[2:]
    boxes = _wide(rois).to(features)
    low = boxes[:, [2, 1]] * _single(spatial_scale)  # (R, 2): y, x
    size = (boxes[:, [4, 3]] + 1) * _single(spatial_scale) - low
    pixels = features.permute(0, 2, 3, 1).flatten(0, 2)  # (N H W, C)
    for part in _parts(output):
        kept = (size[part] > 0).all(1).nonzero()[:, 0] + part.start
        (y1, y2), (x1, x2) = (
            _pool_edges(low[kept, axis], size[kept, axis], bins[axis], limit)
            for axis, limit in enumerate((height, width))
        )  # each (r, h) or (r, w)
        best = pixels.new_full((len(kept), pooled_height * pooled_width, len(pixels[0])), _LOWEST)
        place = torch.full_like(best, -1, dtype=torch.int32)
        tallest, widest = (y2 - y1).amax(1, keepdim=True), (x2 - x1).amax(1, keepdim=True)
        for index, dy, dx in _steps(torch.cat([tallest, widest], 1)):
            y, x = y1[index] + dy, x1[index] + dx
            inside = ((y < y2[index])[:, :, None] & (x < x2[index])[:, None]).flatten(1)  # (r, h w)
            pixel = (y.clamp(max=height - 1)[:, :, None] * width + x.clamp(max=width - 1)[:, None]).flatten(1)
            value = pixels[pixel + _images(boxes[kept[index]]) * (height * width)]  # (r, h w, C)
            higher = (value > best[index]) & inside[..., None]
            best[index] = torch.where(higher, value, best[index])
            place[index] = torch.where(higher, pixel[..., None].int(), place[index])
        empty = ((y2 <= y1)[:, :, None] | (x2 <= x1)[:, None]).flatten(1)
        best = best.masked_fill(empty[..., None], 0)
        output[kept] = best.transpose(1, 2).unflatten(2, bins).to(output.dtype)
        argmax[kept] = place.transpose(1, 2).unflatten(2, bins)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add to `grad_input` (N, C, H, W) the gradients (R, C, h, w) of the pixels that were the largest of their bins."""
    grad = _wide(grad_output)
    total = grad.new_zeros(grad_input.shape)
    for part in _parts(grad):
        index = argmax[part].long()
        value = grad[part].masked_fill(index == -1, 0)
        _add_pixels(total, rois[part], index.clamp(min=0)[..., None], value[..., None])
    grad_input.add_(total)


def _refuse_bad_boxes(rois: Tensor, images: int, aligned: bool) -> None:
    """Stop before a box that would end the process; not on a GPU, where looking at boxes would make it wait."""
    if rois.device.type != "cpu" or not len(rois):
        return
    if not torch.isfinite(rois).all():
        raise UserError("RoIAlign got boxes that are not finite numbers")
    if rois[:, 0].min() < 0 or rois[:, 0].max() >= images:
        raise UserError(f"RoIAlign got boxes of images that are not in the batch of {images}")
    if aligned and (rois[:, 3:] < rois[:, 1:3]).any():
        raise UserError("RoIAlign got boxes whose second corner lies left of the first or above it")


def _counts_otherwise(features: Tensor, sampling_ratio: int) -> bool:
    """Whether torchvision may take another number of samples: it rounds up in float64, mmcv always in float32."""
    return features.dtype == torch.float64 and sampling_ratio <= 0


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _single(scale: float) -> float:
    """The number as mmcv's kernels get it: a C++ float, also where everything else is float64."""
    return torch.tensor(scale, dtype=torch.float32).item()


def _images(rois: Tensor) -> Tensor:
    """The index of each RoI's image: (R, 5) -> (R, 1)."""
    return rois[:, :1].long()


def _parts(output: Tensor) -> Iterator[slice]:
    """Slices over the R of (R, C, h, w) that hold about `_ELEMENTS` numbers each."""
    rows = max(1, _ELEMENTS // max(1, output[0].numel())) if len(output) else 1
    for start in range(0, len(output), rows):
        yield slice(start, start + rows)


def _steps(counts: Tensor) -> Iterator[tuple[Tensor, int, int]]:
    """Walk the cells of R grids (R, 2) at once, row by row: the RoIs that have the cell, its row and its column.

    A pass a cell and none a RoI. The order decides which of two equal values is found first.
    """
    on_host = counts.cpu()  # the number of passes is needed here
    rows, columns = on_host.amax(0).tolist() if len(counts) else (0, 0)
    for i in range(int(rows)):
        for j in range(int(columns)):
            index = ((on_host[:, 0] > i) & (on_host[:, 1] > j)).nonzero()[:, 0]
            if len(index):
                yield index.to(counts.device), i, j


def _samples(
    boxes: Tensor, bins: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """RoIAlign's samples, one of each bin at a time.

    Gives the RoIs (r,) that have this sample, its y and x (r, h w) and how many samples their bins have (r, 1).
    """
    shift = 0.5 if aligned else 0.0
    start = boxes[:, [2, 1]] * scale - shift  # (R, 2): y, x
    size = boxes[:, [4, 3]] * scale - shift - start
    if not aligned:
        size = size.clamp(min=1)
    step = size / size.new_tensor(bins)
    grid = torch.full_like(step, sampling_ratio) if sampling_ratio > 0 else step.float().ceil().to(step)
    places = [torch.arange(n, device=boxes.device) for n in bins]
    for index, i, j in _steps(grid):
        y, x = (
            start[index, axis, None]
            + places[axis] * step[index, axis, None]
            + (cell + 0.5) * step[index, axis, None] / grid[index, axis, None]
            for axis, cell in enumerate((i, j))
        )  # (r, h), (r, w)
        shape = (len(index), *bins)
        yield (
            index,
            y[:, :, None].expand(shape).flatten(1),
            x[:, None].expand(shape).flatten(1),
            grid[index].prod(1, keepdim=True),
        )


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around points and their weights: two tensors of y's shape and a last dimension of 4.

    Points up to one pixel outside take the border's value; farther ones weigh nothing.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y = torch.where(inside, y, 0).clamp(0, height - 1)
    x = torch.where(inside, x, 0).clamp(0, width - 1)
    top, left = y.long(), x.long()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    low, near = y - top, x - left
    pixels = torch.stack([top * width + left, top * width + right, bottom * width + left, bottom * width + right], -1)
    weights = torch.stack([(1 - low) * (1 - near), (1 - low) * near, low * (1 - near), low * near], -1)
    return pixels, weights * inside[..., None]


def _pool_edges(low: Tensor, size: Tensor, bins: int, limit: int) -> tuple[Tensor, Tensor]:
    """First and one past the last pixel of RoIPool's bins along one axis, within the map: (R,) -> two of (R, bins)."""
    # By a number, CUDA would multiply with its inverse, and 21 / 7 be a bit more than 3: a pixel more in the bin.
    step = (size / size.new_tensor(bins))[:, None]
    places = torch.arange(bins + 1, device=low.device)
    edges = (places * step + low[:, None]).float()  # mmcv rounds to whole pixels in float32
    return edges[:, :-1].floor().long().clamp(0, limit), edges[:, 1:].ceil().long().clamp(0, limit)


def _at(pixels: Tensor, boxes: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The values of maps (N, H, W, C) at points (r, P) of the images that `boxes` (r, 5) are in: -> (r, P, C)."""
    height, width, channels = pixels.shape[1:]
    index, weights = _corners(y, x, height, width)
    index = index + (_images(boxes) * (height * width))[..., None]
    return functional.embedding_bag(
        index.flatten(0, 1), pixels.view(-1, channels), per_sample_weights=weights.flatten(0, 1), mode="sum"
    ).view(*y.shape, channels)


def _average(
    pixels: Tensor, boxes: Tensor, bins: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """(N, H, W, C) and (r, 5) -> (r, h w, C)."""
    total = pixels.new_zeros(len(boxes), bins[0] * bins[1], pixels.shape[3])
    samples = pixels.new_ones(len(boxes), 1, 1)
    for index, y, x, count in _samples(boxes, bins, scale, sampling_ratio, aligned):
        total[index] += _at(pixels, boxes[index], y, x)
        samples[index] = count[..., None]
    return total / samples


def _maximum(
    pixels: Tensor, boxes: Tensor, bins: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(N, H, W, C) and (r, 5) -> the largest sample of each bin, its y and its x, each (r, h w, C)."""
    # What a bin without samples answers: mmcv starts its search there, on a CPU from another number than on a GPU.
    lowest = -10000.0 if pixels.device.type == "cpu" else _LOWEST
    best = pixels.new_full((len(boxes), bins[0] * bins[1], pixels.shape[3]), lowest)
    best_y, best_x = torch.full_like(best, -1), torch.full_like(best, -1)
    for index, y, x, _ in _samples(boxes, bins, scale, sampling_ratio, aligned):
        value = _at(pixels, boxes[index], y, x)
        higher = value > best[index]
        best[index] = torch.where(higher, value, best[index])
        best_y[index] = torch.where(higher, y[..., None], best_y[index])
        best_x[index] = torch.where(higher, x[..., None], best_x[index])
    return best, best_y, best_x


def _maximum_backward(grad: Tensor, boxes: Tensor, argmax_y: Tensor, argmax_x: Tensor, shape: torch.Size) -> Tensor:
    total = grad.new_zeros(shape)
    for part in _parts(grad):
        y, x = argmax_y[part].to(grad), argmax_x[part].to(grad)
        pixels, weights = _corners(y, x, *shape[2:])
        # To mmcv a y of -1 says that nothing was found, even where it is a sample's own coordinate.
        value = grad[part].masked_fill(y == -1, 0)[..., None] * weights
        _add_pixels(total, boxes[part], pixels, value)
    return total


def _average_backward(
    grad: Tensor,
    boxes: Tensor,
    shape: torch.Size,
    bins: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    images, channels, height, width = shape
    total = grad.new_zeros(images * height * width, channels)
    for part in _parts(grad):
        source = grad[part].flatten(2).transpose(1, 2)  # (r, h w, C)
        for index, y, x, count in _samples(boxes[part], bins, scale, sampling_ratio, aligned):
            rows, weights = _corners(y, x, height, width)
            rows = rows + (_images(boxes[part][index]) * (height * width))[..., None]
            share = source[index] / count[..., None]
            for corner in range(4):
                total.index_add_(0, rows[..., corner].flatten(), (share * weights[..., corner, None]).flatten(0, 1))
    return total.view(images, height, width, channels).permute(0, 3, 1, 2)


def _add_pixels(total: Tensor, rois: Tensor, pixels: Tensor, values: Tensor) -> None:
    """Add `values` to `total` (N, C, H, W) at `pixels`, indices in a map; both are (R, C, h, w, K)."""
    channels, size = total.shape[1], total[0, 0].numel()
    planes = _images(rois) * channels + torch.arange(channels, device=total.device)  # (R, C)
    index = planes[:, :, None, None, None] * size + pixels
    total.view(-1).index_add_(0, index.flatten(), values.flatten())
