"""nms, soft_nms, batched_nms and nms_match through mmcv.ops, against the greedy algorithm written plainly."""

import importlib
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor
from vertebra.engine.operators import live
from vertebra.engine.operators.nms import _BLOCK

ops = pytest.importorskip("mmcv.ops")
pytestmark = pytest.mark.skipif(live()["source"] != "vertebra", reason="this mmcv has compiled operators")

FIVE_OF_EIGHT = [[0, 0, 8, 1], [3, 0, 8, 1]]  # overlap by 5 / 8, which no rounding touches


def crowd(count: int, size: int = 60) -> tuple[Tensor, Tensor]:
    """Boxes with whole coordinates, so that every area is exact, and scores of which no two are equal."""
    corner = torch.randint(0, size, (count, 2))
    boxes = torch.cat([corner, corner + torch.randint(1, size, (count, 2))], 1).float()
    return boxes, torch.randperm(count).add(1).div(count)


def overlap(a: Sequence[float], b: Sequence[float], offset: int = 0) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + offset, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + offset, 0)
    area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
    area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
    return width * height / (area_a + area_b - width * height)


def greedy(boxes: Tensor, scores: Tensor, threshold: float, offset: int = 0) -> list[int]:
    """The definition: the best box stays and removes all that overlap it by more than the threshold."""
    rows, stay = boxes.tolist(), []
    left = sorted(range(len(rows)), key=lambda i: -scores[i].item())
    while left:
        best, *left = left
        stay.append(best)
        left = [i for i in left if overlap(rows[best], rows[i], offset) <= threshold]
    return stay


def greedy_soft(boxes: Tensor, scores: Tensor, method: str, offset: int = 0) -> list[tuple[int, float]]:
    """Bodla et al.: the best box stays and lowers the others' scores; those below 0.05 are dropped."""
    rows, left, stay = boxes.tolist(), dict(enumerate(scores.tolist())), []
    while left:
        best = max(left, key=left.__getitem__)
        stay.append((best, left.pop(best)))
        for i in left:
            iou = overlap(rows[best], rows[i], offset)
            if method == "gaussian":
                left[i] *= math.exp(-(iou**2) / 0.4)
            elif iou >= 0.3:
                left[i] *= 1 - iou if method == "linear" else 0
        left = {i: score for i, score in left.items() if score >= 0.05}
    return stay


# --- nms ---


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.75])
def test_nms_is_the_greedy_algorithm(threshold: float, offset: int) -> None:
    boxes, scores = crowd(200)
    dets, kept = ops.nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == greedy(boxes, scores, threshold, offset)
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


def test_nms_with_offset_over_several_blocks() -> None:
    boxes, scores = crowd(3 * _BLOCK, size=200)
    kept = ops.nms(boxes, scores, 0.3, offset=1)[1].tolist()
    assert len(kept) < len(boxes) / 2
    assert kept == greedy(boxes, scores, 0.3, 1)


def test_nms_with_offset_where_each_box_would_remove_the_next() -> None:
    left = torch.arange(100.0)
    boxes = torch.stack([left, left * 0, left + 2, left * 0 + 9], 1)  # neighbours share 2 of 4 columns of pixels
    kept = ops.nms(boxes, -left, 0.4, offset=1)[1]
    assert kept.tolist() == list(range(0, 100, 2))


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_what_overlaps_by_the_threshold(offset: int) -> None:
    boxes = torch.tensor(FIVE_OF_EIGHT, dtype=torch.float32) - torch.tensor([0, 0, offset, offset])
    scores = torch.tensor([0.9, 0.8])
    assert len(ops.nms(boxes, scores, 5 / 8, offset=offset)[1]) == 2
    assert len(ops.nms(boxes, scores, 5 / 8 - 1e-6, offset=offset)[1]) == 1


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("tenths", range(1, 10))
def test_nms_rounds_the_threshold_like_the_overlap(tenths: int, offset: int) -> None:
    boxes = torch.tensor([[0, 0, 10, 1], [10 - tenths, 0, 10, 1]]).float() - torch.tensor([0, 0, offset, offset])
    assert len(ops.nms(boxes, torch.tensor([0.9, 0.8]), tenths / 10, offset=offset)[1]) == 2


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_takes_equal_scores_in_order(offset: int) -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(50, 1) + 20 * torch.arange(50.0)[:, None].div(2).floor()
    assert ops.nms(boxes, torch.ones(50), 0.5, offset=offset)[1].tolist() == list(range(0, 50, 2))


def test_nms_leaves_boxes_without_area() -> None:
    boxes, scores = torch.ones(3, 4), torch.tensor([0.1, 0.3, 0.2])
    assert ops.nms(boxes, scores, 0.5)[1].tolist() == [1, 2, 0]
    assert ops.nms(boxes, scores, 0.5, offset=1)[1].tolist() == [1]


def test_nms_score_threshold_and_max_num() -> None:
    boxes, scores = crowd(100)
    expected = [i for i in greedy(boxes, scores, 0.5) if scores[i] > 0.4]
    assert len(expected) > 5
    assert ops.nms(boxes, scores, 0.5, score_threshold=0.4)[1].tolist() == expected
    assert ops.nms(boxes, scores, 0.5, score_threshold=0.4, max_num=5)[1].tolist() == expected[:5]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nms_of_other_precisions(dtype: torch.dtype, offset: int) -> None:
    boxes, scores = crowd(80)
    boxes, scores = (boxes * 8).to(dtype), scores.to(dtype)  # areas that a half cannot hold
    dets, kept = ops.nms(boxes, scores, 0.5, offset=offset)
    assert dets.dtype == dtype
    assert kept.tolist() == greedy(boxes, scores, 0.5, offset)


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_of_arrays(offset: int) -> None:
    boxes, scores = crowd(40)
    dets, kept = ops.nms(boxes.numpy(), scores.numpy(), 0.5, offset=offset)
    assert isinstance(dets, np.ndarray)
    assert kept.tolist() == greedy(boxes, scores, 0.5, offset)


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_of_views(offset: int) -> None:
    boxes, scores = crowd(40)
    kept = ops.nms(boxes.t().contiguous().t(), torch.stack([scores, scores], 1)[:, 0], 0.5, offset=offset)[1]
    assert kept.tolist() == greedy(boxes, scores, 0.5, offset)


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_of_boxes_that_need_gradients(offset: int) -> None:
    boxes, scores = crowd(20)
    boxes.requires_grad_()
    scores.requires_grad_()
    dets, kept = ops.nms(boxes, scores, 0.5, offset=offset)
    dets.sum().backward()
    stays = torch.zeros(20).index_fill(0, kept, 1)
    assert torch.equal(scores.grad, stays)
    assert torch.equal(boxes.grad, stays[:, None].expand(-1, 4))


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_of_no_boxes(offset: int) -> None:
    dets, kept = ops.nms(torch.empty(0, 4), torch.empty(0), 0.5, offset=offset)
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


# --- soft_nms ---


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms_is_the_greedy_algorithm(method: str, offset: int) -> None:
    boxes, scores = crowd(150)
    dets, kept = ops.soft_nms(boxes, scores, 0.3, sigma=0.4, min_score=0.05, method=method, offset=offset)
    expected = greedy_soft(boxes, scores, method, offset)
    assert 20 < len(expected) < 140
    assert kept.tolist() == [i for i, _ in expected]
    assert torch.equal(dets[:, :4], boxes[kept])
    assert dets[:, 4].tolist() == pytest.approx([score for _, score in expected], rel=1e-5)


def test_soft_nms_lowers_at_the_threshold() -> None:
    boxes, scores = torch.tensor(FIVE_OF_EIGHT).float(), torch.tensor([0.9, 0.8])
    assert len(ops.soft_nms(boxes, scores, 5 / 8, method="naive")[1]) == 1
    assert ops.soft_nms(boxes, scores, 5 / 8, method="linear")[0][1, 4] == pytest.approx(0.8 * 3 / 8)
    assert ops.soft_nms(boxes, scores, 5 / 8 + 1e-6, method="linear")[0][1, 4] == pytest.approx(0.8)


def test_soft_nms_drops_below_the_lowest_score_only() -> None:
    boxes, scores = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]]), torch.tensor([0.5, 0.25, 0.2])
    assert ops.soft_nms(boxes, scores, 0.5, min_score=0.25)[1].tolist() == [0, 1]


def test_soft_nms_keeps_the_best_whatever_its_score() -> None:
    boxes, scores = crowd(5)
    assert ops.soft_nms(boxes, scores * 1e-3, min_score=0.5)[1].tolist() == [scores.argmax().item()]


def test_soft_nms_fills_gaps_from_the_end() -> None:
    """Equal scores: 1 and 2 are dropped, 5 and 4 take their places, and from then on come first."""
    left = torch.tensor([0.0, 0, 0, 20, 40, 60])
    boxes = torch.stack([left, left * 0, left + 10, left * 0 + 10], 1)
    scores = torch.tensor([0.9, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert ops.soft_nms(boxes, scores, 0.3, method="naive")[1].tolist() == [0, 5, 4, 3]


@pytest.mark.parametrize("method", ["naive", "linear"])
def test_soft_nms_leaves_boxes_without_area(method: str) -> None:
    scores = torch.tensor([0.5, 0.9, 0.8, 0.7])
    assert ops.soft_nms(torch.ones(4, 4), scores, 0.3, method=method)[1].tolist() == [1, 2, 3, 0]


def test_soft_nms_gaussian_of_boxes_without_area() -> None:
    """Two equal points overlap by 0 / 0; a score of NaN is the best only where it comes first, as in mmcv."""
    boxes = torch.tensor([[1.0, 1, 1, 1], [5, 5, 9, 9], [1, 1, 1, 1], [15, 15, 19, 19]])
    dets, kept = ops.soft_nms(boxes, torch.tensor([0.9, 0.5, 0.8, 0.4]), method="gaussian")
    assert kept.tolist() == [0, 1, 2, 3]
    assert dets[:, 4].isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_soft_nms_of_other_precisions(dtype: torch.dtype) -> None:
    boxes, scores = crowd(40)
    boxes, scores = (boxes * 8).to(dtype), scores.to(dtype)
    dets, kept = ops.soft_nms(boxes, scores, 0.3, sigma=0.4, min_score=0.05, method="gaussian")
    expected = greedy_soft(boxes, scores, "gaussian")
    assert dets.dtype == dtype
    assert kept.tolist() == [i for i, _ in expected]
    assert dets[:, 4].tolist() == pytest.approx([score for _, score in expected], rel=torch.finfo(dtype).eps)


def test_soft_nms_leaves_its_inputs_alone() -> None:
    boxes, scores = crowd(30)
    before = boxes.clone(), scores.clone()
    ops.soft_nms(boxes, scores, method="gaussian")
    assert torch.equal(boxes, before[0])
    assert torch.equal(scores, before[1])


def test_soft_nms_of_views_and_arrays() -> None:
    boxes, scores = crowd(30)
    expected = ops.soft_nms(boxes, scores)[1]
    views = ops.soft_nms(boxes.t().contiguous().t(), torch.stack([scores, scores], 1)[:, 0])[1]
    arrays = ops.soft_nms(boxes.numpy(), scores.numpy())[1]
    assert torch.equal(views, expected)
    assert arrays.tolist() == expected.tolist()


def test_soft_nms_of_no_boxes() -> None:
    dets, kept = ops.soft_nms(torch.empty(0, 4), torch.empty(0))
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)


# --- batched_nms ---


def by_class(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> list[int]:
    """Greedy inside each class, then all by score."""
    kept = []
    for label in classes.unique():
        members = (classes == label).nonzero()[:, 0]
        kept += members[greedy(boxes[members], scores[members], threshold)].tolist()
    return sorted(kept, key=lambda i: -scores[i].item())


@pytest.mark.parametrize("split", [10, 10_000])
@pytest.mark.parametrize("offset", [0, 1])
def test_batched_nms_keeps_classes_apart(split: int, offset: int) -> None:
    boxes, scores = crowd(120)
    classes = torch.randint(0, 3, (120,))
    cfg = {"type": "nms", "iou_threshold": 0.5, "offset": offset, "split_thr": split}
    dets, kept = ops.batched_nms(boxes, scores, classes, cfg)
    wide = boxes + torch.tensor([0, 0, offset, offset])
    assert kept.tolist() == by_class(wide, scores, classes, 0.5)
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


@pytest.mark.parametrize("split", [10, 10_000])
def test_batched_nms_max_num(split: int) -> None:
    boxes, scores = crowd(120)
    classes = torch.randint(0, 3, (120,))
    cfg = {"type": "nms", "iou_threshold": 0.5, "max_num": 7, "split_thr": split}
    assert ops.batched_nms(boxes, scores, classes, cfg)[1].tolist() == by_class(boxes, scores, classes, 0.5)[:7]


def test_batched_nms_class_agnostic() -> None:
    boxes, scores = crowd(120)
    classes = torch.randint(0, 3, (120,))
    kept = ops.batched_nms(boxes, scores, classes, {"type": "nms", "iou_threshold": 0.5}, class_agnostic=True)[1]
    assert kept.tolist() == greedy(boxes, scores, 0.5)


@pytest.mark.parametrize("split", [10, 10_000])
def test_batched_nms_with_soft_nms(split: int) -> None:
    boxes, scores = crowd(60)
    classes = torch.randint(0, 3, (60,))
    cfg = {"type": "soft_nms", "iou_threshold": 0.3, "min_score": 0.05, "method": "linear", "split_thr": split}
    dets, kept = ops.batched_nms(boxes, scores, classes, cfg)
    expected = {}
    for label in classes.unique():
        members = (classes == label).nonzero()[:, 0]
        expected |= {members[i].item(): new for i, new in greedy_soft(boxes[members], scores[members], "linear")}
    assert sorted(kept.tolist()) == sorted(expected)
    assert dets[:, 4].tolist() == pytest.approx([expected[i] for i in kept.tolist()], rel=1e-5)
    assert dets[:, 4].tolist() == sorted(dets[:, 4].tolist(), reverse=True)


# --- nms_match ---


def test_nms_match_says_who_removed_whom() -> None:
    boxes, scores = crowd(2 * _BLOCK)
    rows, expected = boxes.tolist(), []
    left = scores.argsort(descending=True).tolist()
    while left:
        best = left[0]
        group = [best, *(i for i in left[1:] if overlap(rows[best], rows[i]) >= 0.4)]
        left = [i for i in left if i not in group]
        expected.append(group)
    found = ops.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.4)
    assert [group.tolist() for group in found] == expected


def test_nms_match_removes_at_the_threshold() -> None:
    dets = torch.cat([torch.tensor(FIVE_OF_EIGHT), torch.tensor([[0.9], [0.8]])], 1)
    assert len(ops.nms_match(dets, 5 / 8)) == 1
    assert len(ops.nms_match(dets, 5 / 8 + 1e-6)) == 2


def test_nms_match_of_an_array() -> None:
    dets = np.array([[0, 0, 9, 9, 0.2], [20, 20, 29, 29, 0.1], [0, 0, 9, 9, 0.3]], dtype=np.float32)
    assert [group.tolist() for group in ops.nms_match(dets, 0.5)] == [[2, 0], [1]]


def test_nms_match_of_no_boxes() -> None:
    assert ops.nms_match(torch.empty(0, 5), 0.5) == []
    assert importlib.import_module("mmcv._ext").nms_match(torch.empty(0, 5), 0.5) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("offset", [0, 1])
def test_nms_on_cuda_as_on_the_cpu(offset: int) -> None:
    boxes, scores = crowd(3 * _BLOCK, size=200)
    kept = ops.nms(boxes.cuda(), scores.cuda(), 0.45, offset=offset)[1]
    assert kept.tolist() == ops.nms(boxes, scores, 0.45, offset=offset)[1].tolist()
    kept = ops.soft_nms(boxes.cuda(), scores.cuda())[1]
    assert kept.is_cuda
    assert kept.tolist() == ops.soft_nms(boxes, scores)[1].tolist()
