"""bbox_overlaps: intersection over union, or over the first box, of boxes given by their corners.

Boxes      (..., 4) as x1, y1, x2, y2; with offset 1 the corners are pixels, and a box is x2 - x1 + 1 wide
Zero area  as mmcv: what has no area to divide by is 0 / 0 = NaN. CPU and CUDA differ in mmcv, and so here, where the
           area is negative (corners swapped): CUDA divides by no less than `offset`
Precision  half precision is computed in float32 and rounded once; mmcv computes it in half, where an area above 65504
           (256 x 256 pixels) is infinite
Gradient   through PyTorch's own operations, as compiled mmcv on the CPU; on CUDA mmcv has none
"""

import torch
from torch import Tensor


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int = 0, aligned: bool = False, offset: int = 0
) -> None:
    """Write the overlaps of (M, 4) and (N, 4) into `ious` (M, N), or of pairs into (M,) where `aligned`.

    `mode` 0 divides by the union, 1 by the first box.
    """
    first = bboxes1 if aligned else bboxes1[:, None]
    ious.copy_(box_overlaps(working(first), working(bboxes2), offset, mode == 1))


def working(x: Tensor) -> Tensor:
    """The precision to compute in: float32 for halves, else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def box_overlaps(first: Tensor, second: Tensor, offset: int = 0, foreground: bool = False) -> Tensor:
    """Overlaps of boxes that broadcast: (..., 4), (..., 4) -> (...). Each rounding is one of mmcv's, in its order."""
    left1, top1, right1, bottom1 = first.unbind(-1)
    left2, top2, right2, bottom2 = second.unbind(-1)
    width = (torch.minimum(right1, right2) - torch.maximum(left1, left2) + offset).clamp(min=0)
    height = (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2) + offset).clamp(min=0)
    shared = width * height
    whole = (right1 - left1 + offset) * (bottom1 - top1 + offset)
    if not foreground:
        whole = whole + (right2 - left2 + offset) * (bottom2 - top2 + offset) - shared
    if shared.is_cuda:
        whole = whole.clamp(min=offset)
    return shared / whole
