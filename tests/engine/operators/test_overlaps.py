"""bbox_overlaps through mmcv.ops, against areas counted by hand and by a plain loop."""

import importlib

import pytest
import torch
from torch import Tensor
from vertebra.engine.operators import live

ops = pytest.importorskip("mmcv.ops")
pytestmark = pytest.mark.skipif(live()["source"] != "vertebra", reason="this mmcv has compiled operators")


def random_boxes(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    corner = torch.rand(count, 2, dtype=dtype) * 50
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, dtype=dtype) * 50], 1)


def by_definition(first: Tensor, second: Tensor, mode: str, offset: int) -> float:
    """The overlap of one box with another, in Python's own numbers."""
    ax1, ay1, ax2, ay2 = first.tolist()
    bx1, by1, bx2, by2 = second.tolist()
    width = max(min(ax2, bx2) - max(ax1, bx1) + offset, 0)
    height = max(min(ay2, by2) - max(ay1, by1) + offset, 0)
    area = (ax2 - ax1 + offset) * (ay2 - ay1 + offset)
    other = (bx2 - bx1 + offset) * (by2 - by1 + offset)
    return width * height / (area if mode == "iof" else area + other - width * height)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_every_pair_by_its_definition(mode: str, offset: int) -> None:
    first, second = random_boxes(9), random_boxes(7)
    expected = [[by_definition(a, b, mode, offset) for b in second] for a in first]
    found = ops.bbox_overlaps(first, second, mode=mode, offset=offset)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_aligned_is_the_diagonal(mode: str, offset: int) -> None:
    first, second = random_boxes(8), random_boxes(8)
    pairs = ops.bbox_overlaps(first, second, mode=mode, aligned=True, offset=offset)
    assert pairs.shape == (8,)
    assert torch.equal(pairs, ops.bbox_overlaps(first, second, mode=mode, offset=offset).diagonal())


def test_numbers_counted_by_hand() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    others = torch.tensor([[0.0, 0.0, 10.0, 20.0], [5.0, 5.0, 15.0, 15.0], [10.0, 0.0, 20.0, 10.0]])
    assert ops.bbox_overlaps(box, others)[0].tolist() == pytest.approx([0.5, 25 / 175, 0])
    assert ops.bbox_overlaps(box, others, offset=1)[0].tolist() == pytest.approx([121 / 231, 36 / 206, 11 / 231])
    assert ops.bbox_overlaps(others, box, mode="iof")[:, 0].tolist() == pytest.approx([0.5, 0.25, 0])


def test_nothing_over_nothing_is_nan_as_in_mmcv() -> None:
    point, box = torch.tensor([[3.0, 3.0, 3.0, 3.0]]), torch.tensor([[0.0, 0.0, 5.0, 5.0]])
    assert ops.bbox_overlaps(point, point).isnan().all()
    assert ops.bbox_overlaps(point, box, mode="iof").isnan().all()
    assert ops.bbox_overlaps(point, box).item() == 0
    assert ops.bbox_overlaps(point, point, offset=1).item() == 1


@pytest.mark.parametrize(("rows", "columns"), [(0, 4), (4, 0), (0, 0)])
def test_no_boxes(rows: int, columns: int) -> None:
    assert ops.bbox_overlaps(random_boxes(rows), random_boxes(columns)).shape == (rows, columns)


def test_no_boxes_called_directly() -> None:
    ious = torch.empty(0, 3)
    extension = importlib.import_module("mmcv._ext")
    extension.bbox_overlaps(torch.empty(0, 4), torch.rand(3, 4), ious, mode=0, aligned=False, offset=0)
    assert ious.shape == (0, 3)


@pytest.mark.parametrize("aligned", [False, True])
def test_gradient(aligned: bool) -> None:
    first, second = random_boxes(5).requires_grad_(), random_boxes(5).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: ops.bbox_overlaps(a, b, aligned=aligned), (first, second))


def test_half_precision_survives_large_areas() -> None:
    boxes = torch.tensor([[0.0, 0.0, 1000.0, 1000.0], [0.0, 0.0, 500.0, 1000.0]])
    for dtype in (torch.float16, torch.bfloat16):
        found = ops.bbox_overlaps(boxes.to(dtype), boxes.to(dtype))
        assert found.dtype == dtype
        assert found.tolist() == [[1, 0.5], [0.5, 1]]


def test_boxes_that_are_not_contiguous() -> None:
    boxes = random_boxes(6)
    found = ops.bbox_overlaps(boxes.t().contiguous().t(), torch.cat([boxes, boxes], 1)[:, 4:])
    assert torch.equal(found, ops.bbox_overlaps(boxes, boxes))
