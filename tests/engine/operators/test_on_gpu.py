"""Operators of mmcv.ops on a GPU as on the CPU: the result, and the gradient of every argument that learns.

nms, soft-nms and the focal losses have theirs beside their other tests.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from vertebra.engine.operators import live

ops = pytest.importorskip("mmcv.ops")
attention = pytest.importorskip("mmcv.ops.multi_scale_deform_attn")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(live()["source"] != "vertebra", reason="this mmcv has compiled operators"),
]

DEVICE = "cuda"
LEVELS, STARTS = torch.tensor([[9, 7], [5, 4], [2, 3]]), torch.tensor([0, 63, 83])


class Call(NamedTuple):
    """An operator, the arguments that learn, and what comes after them."""

    function: Callable[..., Tensor]
    learned: list[Tensor]
    fixed: list[Tensor]


def corners(count: int, width: int, height: int) -> Tensor:
    """Boxes (count, 4), parts of which may lie outside of a map."""
    first = torch.rand(count, 2) * torch.tensor([width, height]) - 2
    return torch.cat([first, first + 1 + torch.rand(count, 2) * torch.tensor([width, height]) / 2], 1)


def regions(count: int) -> Tensor:
    """Boxes (count, 5) of two images of 30 x 28; the first is 21 pixels wide, each of 7 bins exactly 3 of them."""
    boxes = torch.cat([torch.randint(2, (count, 1)).float(), corners(count, 30, 28)], 1)
    boxes[:1, 1:] = torch.tensor([2.0, 3.0, 22.0, 23.0])
    return boxes


def align(mode: str, ratio: int, aligned: bool, count: int = 20) -> Call:
    def function(x: Tensor, boxes: Tensor) -> Tensor:
        return ops.roi_align(x, boxes, (7, 5), 0.5, ratio, mode, aligned)

    return Call(function, [torch.randn(2, 3, 14, 15)], [regions(count)])


def pool(count: int = 20) -> Call:
    return Call(lambda x, boxes: ops.roi_pool(x, boxes, (7, 7), 1.0), [torch.randn(2, 3, 28, 30)], [regions(count)])


def deform(masked: bool) -> Call:
    """3 x 3, in two groups of channels and of offsets; offsets carry some samples out of the map."""
    x, offset, weight = torch.randn(2, 4, 9, 11), torch.randn(2, 36, 5, 6) * 3, torch.randn(6, 2, 3, 3)
    how = (2, 1, 1, 2, 2)
    if not masked:
        return Call(lambda *given: ops.deform_conv2d(*given, *how), [x, offset, weight], [])
    given = [x, offset, torch.rand(2, 18, 5, 6), weight, torch.randn(6)]
    return Call(lambda *given: ops.modulated_deform_conv2d(*given, *how), given, [])


def attend(queries: int = 40) -> Call:
    def function(value: Tensor, places: Tensor, weights: Tensor, shapes: Tensor, starts: Tensor) -> Tensor:
        return attention.MultiScaleDeformableAttnFunction.apply(value, shapes, starts, places, weights, 64)

    places = torch.rand(2, queries, 4, 3, 2, 2) * 1.4 - 0.2
    return Call(function, [torch.randn(2, 89, 4, 8), places, torch.rand(places.shape[:-1])], [LEVELS, STARTS])


def overlaps(mode: str, aligned: bool, offset: int, count: int = 30) -> Call:
    def function(first: Tensor, second: Tensor) -> Tensor:
        return ops.bbox_overlaps(first, second, mode, aligned, offset)

    return Call(function, [corners(count, 40, 40), corners(30 if aligned else 20, 40, 40)], [])


def points(images: int = 2, count: int = 50) -> Call:
    return Call(ops.point_sample, [torch.randn(images, 3, 9, 11), torch.rand(images, count, 2) * 1.2 - 0.1], [])


CASES: dict[str, Callable[[], Call]] = {
    "RoIAlign": lambda: align("avg", 2, True),
    "RoIAlign, as many samples as pixels": lambda: align("avg", 0, True),
    "RoIAlign, as mmdet 1": lambda: align("avg", 2, False),
    "RoIAlign, maximum": lambda: align("max", 2, True),
    "RoIAlign of no boxes": lambda: align("avg", 0, True, 0),
    "RoIAlign, maximum of no boxes": lambda: align("max", 0, True, 0),
    "RoIPool": pool,
    "RoIPool of no boxes": lambda: pool(0),
    "deformable convolution 1": lambda: deform(masked=False),
    "deformable convolution 2": lambda: deform(masked=True),
    "deformable attention": attend,
    "deformable attention of no queries": lambda: attend(0),
    "overlaps": lambda: overlaps("iou", False, 0),
    "overlaps with pixels for corners": lambda: overlaps("iou", False, 1),
    "overlaps with the first": lambda: overlaps("iof", False, 0),
    "overlaps of pairs": lambda: overlaps("iou", True, 0),
    "overlaps of no boxes": lambda: overlaps("iou", False, 0, 0),
    "points": points,
    "points of no maps": lambda: points(images=0),
    "no points": lambda: points(count=0),
}


def results(call: Call, device: str, dtype: torch.dtype) -> list[Tensor]:
    """The result and the gradients, on the CPU; no gradients where nothing of the result learns."""
    learned = [x.to(device, dtype).requires_grad_() for x in call.learned]
    fixed = [x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in call.fixed]
    out = call.function(*learned, *fixed)
    assert out.device.type == device
    found = [out.detach()]
    if out.requires_grad:
        ahead = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out)
        found += torch.autograd.grad(out, learned, ahead)
    return [x.cpu() for x in found]


def assert_same(call: Call, dtype: torch.dtype) -> None:
    tolerance = {} if dtype == torch.float64 else dict(rtol=1e-4, atol=1e-4)  # sums in another order
    torch.testing.assert_close(results(call, DEVICE, dtype), results(call, "cpu", dtype), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_cuda_as_the_cpu(case: str, dtype: torch.dtype) -> None:
    assert_same(CASES[case](), dtype)


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_deterministic")
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_where_torch_is_told_to_be_deterministic(ratio: int) -> None:
    assert_same(align("avg", ratio, True), torch.float32)


@pytest.mark.parametrize("count", [60, 0])
def test_nms_match_takes_boxes_of_a_gpu_and_gives_indices_there(count: int) -> None:
    boxes = torch.cat([corners(count, 40, 40), torch.randperm(count)[:, None] / 60], 1)
    found, expected = ops.nms_match(boxes.to(DEVICE), 0.4), ops.nms_match(boxes, 0.4)
    assert all(group.device.type == DEVICE for group in found)
    assert [group.tolist() for group in found] == [group.tolist() for group in expected]
