"""Does an exported detector find the boxes that PyTorch finds? Box by box, without its threshold of scores.

Boxes come and go by comparisons: two of almost equal score may change places, and another neighbour of theirs is then
suppressed. So a few may differ where every number agrees to the last digits, and a share of them is asked for, not all;
an image on which PyTorch itself does not keep its boxes when rounding moves its weights gives way to another.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vertebra.backbones._errors import UserError
from vertebra.tools._common import need
from vertebra.tools._export.checks import (
    STATIC_HINT,
    Answer,
    Expected,
    Report,
    guarded,
    passed_over_note,
    run_pytorch,
    settled_distance,
    unsettled_note,
)
from vertebra.tools._export.onnx_graph import answers

SHARE = 0.95
"""Of the boxes, how many both have to find."""

CORNER, SCORE = 0.1, 1e-3
"""How far corners, in pixels, and scores of a box may lie apart, and the values of its mask too."""

_ALL = -0.5  # a threshold below all scores, above that of boxes that are none


@dataclass(frozen=True)
class BoxCheck:
    """One comparison: the image (1, C, H, W), how many boxes were found, and the share that agrees."""

    shape: tuple[int, ...]
    boxes: int
    share: float
    passed_over: int = 0
    """Images of this shape, before this one, of which rounding decides what is found."""

    @property
    def difference(self) -> float:
        return 1 - self.share

    def __str__(self) -> str:
        others = passed_over_note(self.passed_over)
        return f"  {'x'.join(map(str, self.shape)):>14}  {self.share:.0%} of {self.boxes}{others}"


@dataclass(frozen=True)
class DetectorReport(Report):
    """What was written, and how many boxes agree."""

    def __str__(self) -> str:
        first, outputs, _, *_ = super().__str__().splitlines()
        compared = "scores and masks" if "masks" in self.outputs else "scores"
        lines = [
            first.replace("free batch, height", "one image, free height").replace("free batch", "one image"),
            outputs,
            f"{self.runtime} against PyTorch, float32; boxes that agree (the same class, corners within {CORNER:g} "
            f"pixels, {compared} within {SCORE:g}), of all there are without a threshold; {SHARE:.0%} are asked for:",
            *map(str, self.checks),
        ]
        return "\n".join(lines)


def compare_boxes(
    file: Path, graph: nn.Module, shapes: Sequence[tuple[int, ...]], fixed: bool = False
) -> list[BoxCheck]:
    """ONNX Runtime's boxes against PyTorch's on noise, where any score is enough for a box.

    Args:
        file: the exported detector.
        graph: what it was exported from, a `DetectorGraph`.
        shapes: of the images, (1, C, H, W).
        fixed: this is the one size that was asked for, so that no other is advised.

    Raises:
        UserError: ONNX Runtime fails, or too few boxes agree.
    """
    kind = type(graph.model).__name__
    _check_threshold(file, graph.model)
    lowered = file.with_name(f"{file.name}.any_score")
    try:
        _save_with_any_score(file, lowered)
        answer = guarded(answers(lowered), fixed=fixed)
        with _any_score(graph.model):
            checks = [_check(graph, answer, run_pytorch(kind, graph, shape, fixed)) for shape in shapes]
    finally:
        lowered.unlink(missing_ok=True)
    worst = min(checks, key=lambda check: check.share)
    if worst.share < SHARE:
        raise UserError(
            f"ONNX Runtime finds {worst.share:.0%} of PyTorch's {worst.boxes} boxes at "
            f"{'x'.join(map(str, worst.shape))}, less than {SHARE:.0%}{unsettled_note(worst.passed_over)}: "
            f"nothing was written{'' if fixed else STATIC_HINT}"
        )
    return checks


def _check(graph: nn.Module, answer: Answer, expected: Expected) -> BoxCheck:
    far, wanted, passed_over = settled_distance(
        graph, answer, expected, lambda found, wanted: 1 - agreement(found, wanted), 1 - SHARE
    )
    return BoxCheck(tuple(expected[0].shape), len(wanted[0]), 1 - far, passed_over)


def agreement(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The share of boxes that both sides have, each counted once: same label, and corners, scores and masks alike.

    Args:
        found: boxes (N, 4), scores (N,), labels (N,) and, if any, masks (N, 1, h, w).
        expected: the same of the other side, M of them.

    Returns:
        Pairs over the larger of N and M; 1 where both found nothing.
    """
    (boxes, scores, labels), (others, their_scores, their_labels) = found[:3], expected[:3]
    if not len(boxes) or not len(others):
        return float(len(boxes) == len(others))
    alike = (boxes[:, None] - others).abs().amax(2) <= CORNER
    alike &= (scores[:, None] - their_scores).abs() <= SCORE
    alike &= labels[:, None] == their_labels
    for ours, theirs in zip(found[3:], expected[3:], strict=True):
        alike &= torch.stack([(ours - mask).abs().amax((1, 2, 3)) <= SCORE for mask in theirs], 1)
    left = alike.new_ones(len(others))
    pairs = 0
    for row in alike:  # best first on both sides, so that the first one that is left suits
        place = (row & left).nonzero()[:1, 0]
        left[place] = False
        pairs += len(place)
    return pairs / max(len(boxes), len(others))


def _last_head(model: Any) -> Any:
    return model.roi_head if hasattr(model, "roi_head") else model.bbox_head


def _check_threshold(file: Path, model: Any) -> None:
    """UserError where a file has another threshold of scores than its detector: the comparison goes without one."""
    onnx = need("onnx", extra="export")
    graph = onnx.load(file, load_external_data=False).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    last = [node for node in graph.node if node.op_type == "NonMaxSuppression"][-1]
    found = constants.get(last.input[4])
    wanted = max(_last_head(model).test_cfg.get("score_thr", 0), _ALL)
    value = float("nan") if found is None else onnx.numpy_helper.to_array(found).item()
    if not abs(value - wanted) <= 1e-6:
        raise UserError(
            f"the exported file has {value:g} for the least score of a box, its detector {wanted}: nothing was written"
        )


@contextlib.contextmanager
def _any_score(model: Any) -> Iterator[None]:
    """Inside, the detector's threshold of scores is below all of them."""
    head = _last_head(model)
    before = head.test_cfg
    head.test_cfg = copy.deepcopy(before)
    head.test_cfg.score_thr = _ALL
    try:
        yield
    finally:
        head.test_cfg = before


def _save_with_any_score(file: Path, lowered: Path) -> None:
    onnx = need("onnx", extra="export")
    model = onnx.load(file, load_external_data=False)  # both stand in one folder, and large weights beside them
    model.graph.initializer.append(onnx.numpy_helper.from_array(torch.tensor([_ALL]).numpy(), "any_score"))
    for node in model.graph.node:
        if node.op_type == "NonMaxSuppression":
            node.input[4] = "any_score"
    onnx.save(model, lowered)
