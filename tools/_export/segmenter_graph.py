"""A segmenter of mmseg, or the maps of any detector or segmenter, as a module that an exporter can trace.

What depends on Python lists in mm's own `predict` stands here as operations on tensors, so that height and width stay
free. The weights are the model's own, nothing is copied but the modules that are replaced.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SegmenterGraph(nn.Module):
    """Images (B, 3, H, W), normalised -> logits (B, classes, H, W), as mmseg has them before it picks a class.

    Args:
        model: an `EncoderDecoder` in eval mode, which looks at images whole.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = _with_free_sizes(model)
        self.align_corners = model.align_corners
        padding = model.data_preprocessor.test_cfg or {}
        self.divisor, self.least = padding.get("size_divisor") or 1, padding.get("size") or (0, 0)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        padded = pad(image, self.divisor, self.least)
        logits = self.model.decode_head(self.model.extract_feat(padded))
        logits = F.interpolate(logits, padded.shape[2:], mode="bilinear", align_corners=self.align_corners)
        return logits[:, :, :height, :width]


class MapsGraph(nn.Module):
    """Images (B, 3, H, W) -> the maps of backbone and neck, a tuple of (B, C, H', W'), finest first."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone, self.neck = model.backbone, model.neck if model.with_neck else nn.Identity()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.neck(self.backbone(image)))


def pad(image: Tensor, divisor: int, least: tuple[int, int] = (0, 0)) -> Tensor:
    """Zeros to the right and below (B, C, H, W) until both sides are multiples, and no shorter than `least`."""
    height, width = image.shape[2:]
    if any(least):
        down, right = torch.sym_max(least[0] - height, 0), torch.sym_max(least[1] - width, 0)
    else:
        # counted up: what Python makes of a negative number and what ONNX does may differ
        down, right = ((side + divisor - 1) // divisor * divisor - side for side in (height, width))
    return F.pad(image, (0, right, 0, down))


class BinMeans(nn.Module):
    """`nn.AdaptiveAvgPool2d` by two matrix products: (B, C, H, W) -> (B, C, bins, bins).

    ONNX has no such operator, and what exporters write in its place holds for the traced size alone.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (_bin_weights(side, self.bins).to(x) for side in x.shape[2:])
        return rows @ x @ columns.T


def _bin_weights(side: int, bins: int) -> Tensor:
    """What each pixel of a side weighs in each bin: (bins, side); bins overlap where the side is no multiple."""
    index, place = torch.arange(bins)[:, None], torch.arange(side)
    inside = (place >= index * side // bins) & (place < ((index + 1) * side + bins - 1) // bins)
    return inside / inside.sum(1, keepdim=True)


class Enlarge(nn.Module):
    """mmseg's `Upsample` by a whole number: (B, C, H, W) -> (B, C, factor * H, factor * W).

    mmseg multiplies sides by a float and rounds in Python, and an exporter takes the result for a constant.
    """

    def __init__(self, factor: int, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.factor, self.mode, self.align_corners = factor, mode, align_corners

    def forward(self, x: Tensor) -> Tensor:
        size = [side * self.factor for side in x.shape[2:]]
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)


def _with_free_sizes(model: Any) -> Any:
    """The model with `BinMeans` and `Enlarge` where its head needs them: a copy with the same weights, if it does."""
    if not any(map(_instead, model.decode_head.modules())):
        return model
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, shared)
    for module in list(model.decode_head.modules()):
        for name, child in module.named_children():
            setattr(module, name, _instead(child) or child)
    return model


def _instead(module: nn.Module) -> nn.Module | None:
    """What does the same at any size, for a module that an exporter would tie to one."""
    if isinstance(module, nn.AdaptiveAvgPool2d) and isinstance(module.output_size, int):
        return BinMeans(module.output_size)
    factor: Any = getattr(module, "scale_factor", None)
    if type(module).__name__ == "Upsample" and not module.size and isinstance(factor, float) and factor.is_integer():
        return Enlarge(int(factor), module.mode, module.align_corners)
    return None
