"""RoIAlign and RoIPool through mmcv.ops, against plain loops over the bins of mmcv's definition."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from vertebra.engine.operators import live
from vertebra.engine.operators.roi import roi_align_forward

ops = pytest.importorskip("mmcv.ops")
pytestmark = pytest.mark.skipif(live()["source"] != "vertebra", reason="this mmcv has compiled operators")

SCALE = 0.25
BOTH = (torch.float32, torch.float64)
BOXES = torch.tensor(  # on maps of 12 x 15 at a quarter of the image
    [
        [0, 3.0, 5.0, 41.0, 33.0],
        [1, 10.5, 0.0, 22.0, 47.0],
        [1, -9.0, -7.0, 13.0, 11.0],  # out at the upper left
        [0, 40.0, 30.0, 75.0, 61.0],  # out at the lower right
        [0, 8.0, 8.0, 8.5, 8.5],  # a small part of a pixel
        [1, 0.0, 0.0, 59.0, 47.0],
        [0, 200.0, 200.0, 230.0, 220.0],  # not on the map
    ],
    dtype=torch.float64,
)


def features(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, 12, 15, dtype=torch.float64).to(dtype)


def bilinear(plane: Tensor, y: float, x: float) -> Tensor:
    """The value between pixels; the border's up to one pixel outside, and 0 farther out."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(())
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = plane[top, left] * (1 - dx) + plane[top, right] * dx
    return upper * (1 - dy) + (plane[bottom, left] * (1 - dx) + plane[bottom, right] * dx) * dy


def align_by_definition(maps: Tensor, boxes: Tensor, bins: tuple[int, int], ratio: int, mode: str, aligned: bool):
    shift = 0.5 if aligned else 0.0
    pooled = []
    for image, *corners in boxes.tolist():
        x1, y1, x2, y2 = (corner * SCALE - shift for corner in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        rows, columns = (ratio or math.ceil(size / n) for size, n in zip((height, width), bins, strict=True))
        for plane in maps[int(image)]:
            for i in range(bins[0]):
                for j in range(bins[1]):
                    samples = [
                        bilinear(
                            plane,
                            y1 + (i + (a + 0.5) / rows) * height / bins[0],
                            x1 + (j + (b + 0.5) / columns) * width / bins[1],
                        )
                        for a in range(rows)
                        for b in range(columns)
                    ]
                    pooled.append(torch.stack(samples).mean() if mode == "avg" else torch.stack(samples).amax())
    return torch.stack(pooled).view(len(boxes), -1, *bins)


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align_and_its_gradient_by_their_definition(mode: str, aligned: bool, ratio: int) -> None:
    maps, bins = features().requires_grad_(), (3, 2)
    found = ops.roi_align(maps, BOXES, bins, SCALE, ratio, mode, aligned)
    expected = align_by_definition(maps, BOXES, bins, ratio, mode, aligned)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    found, expected = (torch.autograd.grad(x, maps, weights)[0] for x in (found, expected))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_in_float32_is_that_in_float64(aligned: bool) -> None:
    maps = features().requires_grad_()
    pooled = [ops.roi_align(maps.to(dtype), BOXES.to(dtype), (3, 2), SCALE, 0, "avg", aligned) for dtype in BOTH]
    torch.testing.assert_close(pooled[0].double(), pooled[1], atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(pooled[1])
    grads = [torch.autograd.grad(x.double(), maps, weights)[0] for x in pooled]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-5)


def test_roi_align_counts_samples_in_float32_as_mmcv_does() -> None:
    maps, box = features(), torch.tensor([[0, 5, 5, 25, 25]], dtype=torch.float64)
    adaptive, two, three = (ops.roi_align(maps, box, 1, 0.1, ratio) for ratio in (0, 2, 3))
    torch.testing.assert_close(adaptive, two)  # 20 * float32(0.1) is 2.00000003, which float32 does not tell from 2
    assert not torch.allclose(adaptive, three)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align_agrees_with_finite_differences(mode: str) -> None:
    maps = torch.randn(2, 1, 6, 7, dtype=torch.float64, requires_grad=True)
    boxes = BOXES[:4] * torch.tensor([1, 0.5, 0.5, 0.5, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: ops.roi_align(x, boxes, (2, 2), SCALE, 0, mode, True), (maps,), fast_mode=True
    )


def test_roi_align_max_keeps_the_place_of_the_largest_sample() -> None:
    maps = torch.zeros(1, 1, 8, 8)
    maps[0, 0, 5, 2] = 1
    output, y, x = (torch.zeros(1, 1, 1, 1) for _ in range(3))
    box = torch.tensor([[0, 0.0, 0.0, 8.0, 8.0]])
    roi_align_forward(maps, box, output, y, x, 1, 1, 1.0, 8, 0, True)
    assert [output.item(), y.item(), x.item()] == [1, 5, 2]


def test_roi_align_max_finds_the_first_of_equal_samples() -> None:
    maps = torch.zeros(1, 1, 4, 4, requires_grad=True)
    box = torch.tensor([[0, 0.0, 0.0, 4.0, 4.0]])
    ops.roi_align(maps, box, (1, 1), 1.0, 4, "max", True).sum().backward()
    assert maps.grad.nonzero().tolist() == [[0, 0, 0, 0]]


def test_roi_align_max_sends_nothing_to_a_sample_at_row_minus_1_as_mmcv_does() -> None:
    maps = torch.ones(1, 1, 4, 4, requires_grad=True)
    box = torch.tensor([[0, 1.0, -1.5, 2.0, -0.5]])
    pooled = ops.roi_align(maps, box, 1, 1.0, 1, "max", False)
    pooled.sum().backward()
    assert pooled.item() == 1
    assert not maps.grad.any()


def test_roi_align_max_of_no_samples_is_where_mmcv_starts_to_search() -> None:
    box = torch.tensor([[0, 5.0, 5.0, 5.0, 9.0]])
    assert (ops.roi_align(features(torch.float32), box, (2, 2), SCALE, 0, "max", True) == -10000).all()


@pytest.mark.parametrize("ratio", [0, 2])
def test_deterministic_backward_is_the_same(ratio: int) -> None:
    maps = features(torch.float32).requires_grad_()
    pooled = ops.roi_align(maps, BOXES.float(), (3, 2), SCALE, ratio, "avg", True)
    weights = torch.randn_like(pooled)
    expected = torch.autograd.grad(pooled, maps, weights, retain_graph=True)[0]
    torch.use_deterministic_algorithms(True)
    try:
        found = torch.autograd.grad(pooled, maps, weights)[0]
    finally:
        torch.use_deterministic_algorithms(False)
    assert not torch.equal(found, torch.zeros_like(found))
    torch.testing.assert_close(found, expected)


def pool_by_definition(maps: Tensor, boxes: Tensor, bins: tuple[int, int]) -> Tensor:
    height, width = maps.shape[2:]
    pooled = []
    for image, x1, y1, x2, y2 in boxes.tolist():
        top, left = y1 * SCALE, x1 * SCALE
        rows, columns = (y2 + 1) * SCALE - top, (x2 + 1) * SCALE - left
        for plane in maps[int(image)]:
            for i in range(bins[0]):
                for j in range(bins[1]):
                    first = max(math.floor(i * rows / bins[0] + top), 0)
                    last = min(math.ceil((i + 1) * rows / bins[0] + top), height)
                    start = max(math.floor(j * columns / bins[1] + left), 0)
                    stop = min(math.ceil((j + 1) * columns / bins[1] + left), width)
                    part = plane[first:last, start:stop]
                    pooled.append(part.amax() if part.numel() else plane.new_zeros(()))
    return torch.stack(pooled).view(len(boxes), -1, *bins)


def test_roi_pool_and_its_gradient_by_their_definition() -> None:
    maps, bins = features().requires_grad_(), (3, 4)
    found, expected = ops.roi_pool(maps, BOXES, bins, SCALE), pool_by_definition(maps, BOXES, bins)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    found, expected = (torch.autograd.grad(x, maps, weights)[0] for x in (found, expected))
    torch.testing.assert_close(found, expected)


def test_roi_pool_leaves_out_a_box_without_area_and_its_gradient_goes_to_the_first_pixel_as_mmcv_has_it() -> None:
    maps = (features() + 10).requires_grad_()
    box = torch.tensor([[0, 20.0, 8.0, 10.0, 30.0]], dtype=torch.float64)
    pooled = ops.roi_pool(maps, box, (2, 2), SCALE)
    assert not pooled.any()
    pooled.sum().backward()
    assert maps.grad.nonzero().tolist() == [[0, channel, 0, 0] for channel in range(3)]


OPERATORS = {
    "align avg": lambda maps, boxes: ops.roi_align(maps, boxes, (3, 2), SCALE, 0, "avg", True),
    "align max": lambda maps, boxes: ops.roi_align(maps, boxes, (3, 2), SCALE, 0, "max", True),
    "pool": lambda maps, boxes: ops.roi_pool(maps, boxes, (3, 2), SCALE),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_no_boxes(name: str) -> None:
    maps = features(torch.float32).requires_grad_()
    pooled = OPERATORS[name](maps, torch.zeros(0, 5))
    pooled.sum().backward()
    assert pooled.shape == (0, 3, 3, 2)
    assert torch.equal(maps.grad, torch.zeros_like(maps))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATORS)
def test_half_precision_is_rounded_once(name: str, dtype: torch.dtype) -> None:
    maps, boxes = features(dtype).requires_grad_(), BOXES.to(dtype)
    pooled = OPERATORS[name](maps, boxes)
    assert pooled.dtype == dtype
    assert torch.equal(pooled, OPERATORS[name](maps.float(), boxes.float()).to(dtype))
    pooled.sum().backward()
    assert maps.grad.dtype == dtype


@pytest.mark.parametrize("name", OPERATORS)
def test_memory_layout_does_not_matter(name: str) -> None:
    maps = features(torch.float32)
    boxes = BOXES.float()
    strided = maps.contiguous(memory_format=torch.channels_last).requires_grad_()
    dense = maps.clone().requires_grad_()
    weights = torch.randn(2, 3, 3, len(boxes)).permute(3, 2, 1, 0)
    wide = torch.cat([boxes, boxes], 1)[:, :5]
    outputs = [OPERATORS[name](strided, wide), OPERATORS[name](dense, boxes)]
    torch.testing.assert_close(outputs[0], outputs[1])
    grads = [torch.autograd.grad(x, y, weights)[0] for x, y in zip(outputs, (strided, dense), strict=True)]
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("name", OPERATORS)
def test_many_boxes_are_taken_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = features().requires_grad_()
    whole = OPERATORS[name](maps, BOXES)
    weights = torch.randn_like(whole)
    expected = torch.autograd.grad(whole, maps, weights)[0]
    monkeypatch.setattr("vertebra.engine.operators.roi._ELEMENTS", 2 * whole[0].numel())
    parts = OPERATORS[name](maps, BOXES)
    assert torch.equal(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, maps, weights)[0], expected)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ([0, 1, 1, float("nan"), 4], "finite"),
        ([2, 1, 1, 4, 4], "batch of 2"),
        ([0, 9, 9, 4, 4], "second corner"),
    ],
)
def test_boxes_that_would_end_the_process_are_refused(box: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OPERATORS["align avg"](features(torch.float32), torch.tensor([box], dtype=torch.float32))


def test_points_are_sampled_between_pixels() -> None:
    maps = features()
    points = torch.tensor([[[0.5, 0.5], [0.1, 0.9]], [[0.33, 0.2], [0.7, 0.4]]], dtype=torch.float64)
    found = ops.point_sample(maps, points)
    for image, place in np.ndindex(2, 2):
        x, y = (points[image, place] * torch.tensor([15, 12]) - 0.5).tolist()
        expected = torch.stack([bilinear(plane, y, x) for plane in maps[image]])
        torch.testing.assert_close(found[image, :, place], expected)


def test_simple_roi_align_takes_one_sample_a_bin() -> None:
    maps, boxes = features(torch.float32), BOXES[[0, 5]].float()
    found = ops.SimpleRoIAlign((3, 2), SCALE)(maps, boxes)
    torch.testing.assert_close(found, ops.roi_align(maps, boxes, (3, 2), SCALE, 1, "avg", True))
