"""Focal loss over sigmoids and over a softmax, forward and backward.

Paper      Lin et al., Focal Loss for Dense Object Detection, https://arxiv.org/abs/1708.02002
Labels     0 to C - 1. Sigmoid: any other (C, the background, or a negative one) makes every class of the row a
           negative. Softmax: any other makes loss and gradient of the row zero. Above C is an error, as in mmcv
Weights    one a class, by the row's label; a row without a class weighs 1. mmcv reads beyond the weights there, and for
           label C beyond the row of the softmax
Extremes   probabilities enter logarithms as no less than FLT_MIN, so a loss ends at 87.3, as in mmcv
Precision  half precision is computed in float32 and rounded once; mmcv computes it in half, where FLT_MIN is zero
Devices    CPU and CUDA; mmcv has CUDA alone
"""

import torch
from torch import Tensor

from ...backbones._errors import UserError
from .overlaps import working

_FLT_MIN = torch.finfo(torch.float32).tiny


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of logits `input` (N, C) for labels `target` (N,) into `output` (N, C)."""
    _check_labels(target, input.shape[1])
    p = working(input).sigmoid()
    own = p.gather(1, _own_column(target, input.shape[1]))
    positive = -alpha * (1 - own) ** gamma * _log(own)
    negative = _log(1 - p).mul_(p.pow_(gamma)).mul_(alpha - 1)
    output.copy_(_assemble(positive, negative, target, weight))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of the forward's values by its logits into `grad_input` (N, C)."""
    p = working(input).sigmoid()
    own = p.gather(1, _own_column(target, input.shape[1]))
    positive = -alpha * (1 - own) ** gamma * (1 - own - gamma * own * _log(own))
    negative = _log(1 - p).mul_(1 - p).mul_(gamma).sub_(p).mul_(p.pow_(gamma)).mul_(alpha - 1)
    grad_input.copy_(_assemble(positive, negative, target, weight))


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of probabilities `input` (N, C) for labels `target` (N,) into `output` (N,)."""
    _check_labels(target, input.shape[1])
    p = working(input).gather(1, _own_column(target, input.shape[1]))[:, 0]
    loss = -alpha * (1 - p) ** gamma * _log(p)
    output.copy_(torch.where(_has_class(target, input.shape[1]), loss * _row_weights(target, weight, loss), 0))


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative by the logits under the softmax into `grad_input` (N, C), its row factor into `buff` (N,).

    With gamma below 1 and a probability of 1, mmcv's gradient is NaN; here it is the limit.
    """
    column = _own_column(target, input.shape[1])
    probabilities = working(input)
    p = probabilities.gather(1, column)[:, 0]
    rest = (1 - p).clamp(min=_FLT_MIN)
    slope = alpha * (gamma * rest ** (gamma - 1) * p * _log(p) - (1 - p) ** gamma)
    slope = torch.where(_has_class(target, input.shape[1]), slope * _row_weights(target, weight, slope), 0)
    buff.copy_(slope)
    to_own = torch.zeros_like(probabilities).scatter_(1, column, 1)
    grad_input.copy_(to_own.sub_(probabilities).mul_(slope[:, None]))


def _check_labels(target: Tensor, classes: int) -> None:
    highest = int(target.max()) if target.numel() else 0
    if highest > classes:
        raise UserError(
            f"focal loss got the label {highest} for {classes} classes: labels are 0 to {classes - 1}, and {classes} "
            "is the background"
        )


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=_FLT_MIN).log_()


def _has_class(target: Tensor, classes: int) -> Tensor:
    return (target >= 0) & (target < classes)


def _own_column(target: Tensor, classes: int) -> Tensor:
    """The column of each row's own class, some column where it has none: (N,) -> (N, 1)."""
    return target.clamp(0, classes - 1)[:, None]


def _row_weights(target: Tensor, weight: Tensor, like: Tensor) -> Tensor:
    """(N,) of `like`'s precision, 1 for rows without a class and where there are no weights (`weight` is empty)."""
    if weight.numel() == 0:
        return like.new_ones(len(target))
    rows = weight.to(like.dtype)[target.clamp(0, len(weight) - 1)]
    return torch.where(_has_class(target, len(weight)), rows, 1)


def _assemble(positive: Tensor, negative: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Put `positive` (N, 1) in each row's own column of `negative` (N, C), which is overwritten, and weigh the rows."""
    classes = negative.shape[1]
    column = _own_column(target, classes)
    own = torch.where(_has_class(target, classes)[:, None], positive, negative.gather(1, column))
    negative.scatter_(1, column, own)
    return negative.mul_(_row_weights(target, weight, negative)[:, None]) if weight.numel() else negative
