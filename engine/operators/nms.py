"""Non-maximum suppression: nms, softnms and nms_match.

nms        removes what overlaps a better box by more than the threshold; offset 0 is torchvision's
softnms    lowers such scores instead (naive: to zero, linear, gaussian); on the CPU, as in mmcv
nms_match  removes at the threshold too, and says which box removed which; on the CPU, as in mmcv
Ties       of equal scores the first box comes first. mmcv leaves that to a sort that is not stable: its order then
           depends on the processor and on the version of torch
Precision  boxes of half precision are computed in float32; mmcv refuses all but float32. A threshold is rounded to the
           precision of the boxes before it is compared, as in mmcv: an overlap of 3/5 is not above 0.6
"""

import numpy as np
import torch
import torchvision
from torch import Tensor

from .overlaps import box_overlaps, working

_BLOCK = 256  # boxes that are compared with all others at once
_PAIRS = 2**22  # and pairs, at most: six matrices of 16 MB
_NAIVE, _LINEAR, _GAUSSIAN = range(3)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that stay, best first: boxes (N, 4), scores (N,) -> (K,)."""
    boxes, scores = _same_precision(boxes, scores)
    if offset == 0:
        rounded = torch.tensor(iou_threshold, dtype=boxes.dtype).item()  # torchvision compares in double precision
        return torchvision.ops.nms(boxes, scores, rounded)
    order = scores.argsort(descending=True, stable=True)
    joined = _join(boxes[order], iou_threshold, offset, at_threshold=False)
    return order[joined == torch.arange(len(order), device=order.device)]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of boxes: the one that stays, then those that it removed, by score; dets (N, 5) with the score last."""
    boxes, scores = working(dets[:, :4]), dets[:, 4]
    order = scores.argsort(descending=True, stable=True)
    joined, members = _join(boxes[order], iou_threshold, 0, at_threshold=True).sort(stable=True)
    sizes = joined.unique_consecutive(return_counts=True)[1].tolist()
    return [group.tolist() for group in order[members].split(sizes)]


def _same_precision(boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(working(boxes).dtype, working(scores).dtype)
    return boxes.detach().to(dtype), scores.detach().to(dtype)


def _join(boxes: Tensor, threshold: float, offset: int, at_threshold: bool) -> Tensor:
    """The position of the box that removes each, its own for those that stay: (N, 4), best first -> (N,)."""
    left = torch.arange(len(boxes), device=boxes.device)
    joined = left.clone()
    while len(left):
        head = left[: max(1, min(_BLOCK, _PAIRS // len(left)))]
        overlap = box_overlaps(boxes[head][:, None], boxes[left], offset)  # (H, L); the first H of L are the head
        over = (overlap >= threshold if at_threshold else overlap > threshold).triu(1)
        stays = _stays(over[:, : len(head)])
        over = over[stays]
        removed = over.any(0)
        joined[left[removed]] = head[stays][over[:, removed].byte().argmax(0)]  # argmax: the first, hence the best
        left = left[len(head) :][~removed[len(head) :]]
    return joined


def _stays(over: Tensor) -> Tensor:
    """Which boxes stay where box i, if it stays, removes the later box j with over[i, j]: (H, H) -> (H,)."""
    stays = over.new_ones(len(over))
    while True:  # after n rounds the first n are final
        now = ~(over & stays[:, None]).any(0)
        if torch.equal(now, stays):
            return stays
        stays = now


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Write K boxes with their new scores into `dets` (N, 5), best first, and return their indices (K,).

    One box after another is the best; each lowers the scores of what is left, so the steps cannot be made at once.
    NumPy, since on arrays of this size a call of PyTorch costs more than its work.
    """
    corners, score = (x.cpu().numpy() for x in _same_precision(boxes, scores))
    x1, y1, x2, y2 = corners.T
    table = np.stack([x1, y1, x2, y2, score, (x2 - x1 + offset) * (y2 - y1 + offset)])  # (6, N)
    indices = np.arange(len(score))
    scalar = table.dtype.type
    threshold, sigma, min_score = scalar(iou_threshold), scalar(sigma), scalar(min_score)
    count, at = len(indices), 0
    while at < count:
        best = at + _first_best(table[4, at:count])
        table[:, [at, best]] = table[:, [best, at]]
        indices[[at, best]] = indices[[best, at]]
        rest = table[:, at + 1 : count]
        rest[4] *= _weights(_overlaps_with(table[:, at], rest, offset), method, threshold, sigma)
        stays = ~(rest[4] < min_score)
        at += 1
        count = at + _close_gaps(stays, rest, indices[at:count])
    dets[:count] = torch.from_numpy(table[:5, :count].T)
    return torch.from_numpy(indices[:count]).to(boxes.device)


def _first_best(scores: np.ndarray) -> int:
    best = int(scores.argmax())
    if np.isnan(scores[best]):  # mmcv never picks a NaN, except where it comes first
        best = 0 if np.isnan(scores[0]) else int(np.nanargmax(scores))
    return best


def _overlaps_with(box: np.ndarray, rest: np.ndarray, offset: int) -> np.ndarray:
    """IoU of one column of softnms's table (6,) with others (6, R): (R,)."""
    width = np.maximum(np.minimum(box[2], rest[2]) - np.maximum(box[0], rest[0]) + offset, 0)
    height = np.maximum(np.minimum(box[3], rest[3]) - np.maximum(box[1], rest[1]) + offset, 0)
    shared = width * height
    with np.errstate(divide="ignore", invalid="ignore"):
        return shared / (box[5] + rest[5] - shared)


def _weights(overlap: np.ndarray, method: int, threshold: np.floating, sigma: np.floating) -> np.ndarray:
    if method == _GAUSSIAN:
        power = -(overlap * overlap) / sigma
        return np.exp(power, dtype=np.float64).astype(overlap.dtype)  # NumPy's float32 exp is less exact than C's
    lowered = 1 - overlap if method == _LINEAR else np.zeros_like(overlap)
    return np.where(overlap >= threshold, lowered, np.ones_like(overlap))


def _close_gaps(stays: np.ndarray, rest: np.ndarray, indices: np.ndarray) -> int:
    """Move what stays to the front, in place, and return how many; the last fill the gaps from the left, as in mmcv.

    That order decides between equal scores later on.
    """
    count = int(stays.sum())
    gaps = np.flatnonzero(~stays[:count])
    last = count + np.flatnonzero(stays[count:])[::-1]
    rest[:, gaps] = rest[:, last]
    indices[gaps] = indices[last]
    return count
