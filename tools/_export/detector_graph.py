"""RetinaNet, Faster and Mask R-CNN of mmdet as modules that an exporter can trace: an image in, boxes out.

mmdet's own `predict` counts boxes in Python and ends early where there are none, which no graph can. Here every level
of the pyramid offers the same number of boxes, with a score below all others where it has fewer, and `best_boxes` is
the one step whose result has a length that depends on the image: NonMaxSuppression, with its threshold of scores.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from vertebra.tools._export.segmenter_graph import pad

_NONE = -1.0
"""The score of a box that is none."""


@torch.library.custom_op("vertebra::best_boxes", mutates_args=())
def best_boxes(boxes: Tensor, scores: Tensor, overlap: float, least: float, most: int) -> Tensor:
    """Indices of the boxes (K, 4) that stay, best first, at most `most`: those with a score above `least`.

    A box goes where it overlaps a better one by more than `overlap`.
    """
    above = (scores > least).nonzero()[:, 0]
    return above[torchvision.ops.nms(boxes[above], scores[above], overlap)[:most]]


@best_boxes.register_fake
def _(boxes: Tensor, scores: Tensor, overlap: float, least: float, most: int) -> Tensor:
    count = torch.library.get_ctx().new_dynamic_size(min=0, max=most)
    return boxes.new_empty(count, dtype=torch.int64)


def translations() -> dict[Callable, Callable]:
    """What `torch.onnx.export` takes as `custom_translation_table` for these graphs."""
    from onnxscript import opset18 as op

    def to_onnx(boxes: Any, scores: Any, overlap: float, least: float, most: int) -> Any:
        selected = op.NonMaxSuppression(
            op.Unsqueeze(boxes, [0]), op.Unsqueeze(scores, [0, 1]), most, overlap, least
        )  # (N, 3): image, class, box
        return op.Squeeze(op.Slice(selected, [2], [3], [1]), [1])

    return {torch.ops.vertebra.best_boxes.default: to_onnx}


class DetectorGraph(nn.Module):
    """One normalised image (1, 3, H, W) -> boxes (N, 4) as x0, y0, x1, y1 in its pixels, scores (N,), labels (N,).

    Best first. A detector with masks gives a fourth result: what each box's mask is in it, (N, 1, h, w), 0 to 1.

    Args:
        model: a detector in eval mode that `refusal` has nothing against.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.divisor = model, model.data_preprocessor.pad_size_divisor

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.model.extract_feat(pad(image, self.divisor))
        limits = torch.stack([torch.scalar_tensor(side) for side in (image.shape[3], image.shape[2])] * 2).to(image)
        if not hasattr(self.model, "roi_head"):
            return one_stage(self.model.bbox_head, maps, limits)
        proposals = propose(self.model.rpn_head, maps, limits)
        boxes, scores, labels = second_stage(self.model.roi_head, maps, proposals, limits)
        if not self.model.roi_head.with_mask:
            return boxes, scores, labels
        return boxes, scores, labels, masks(self.model.roi_head, maps, boxes, labels)


def one_stage(head: Any, maps: Sequence[Tensor], limits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of a RetinaNet's head."""
    rules = head.test_cfg
    boxes, scores, labels = candidates(head, maps, limits)
    kept = suppress(boxes, scores, labels, rules, rules.get("score_thr", 0), rules.max_per_img)
    return boxes[kept], scores[kept], labels[kept]


def propose(head: Any, maps: Sequence[Tensor], limits: Tensor) -> Tensor:
    """Where a region proposal network sees something: (N, 4); levels do not suppress each other."""
    rules = head.test_cfg
    boxes, scores, _ = candidates(head, maps, limits)
    levels = torch.arange(len(maps), device=boxes.device).repeat_interleave(rules.nms_pre)
    return boxes[suppress(boxes, scores, levels, rules, _NONE / 2, rules.max_per_img)]


def candidates(head: Any, maps: Sequence[Tensor], limits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The `nms_pre` best pairs of anchor and class of every level: boxes (K, 4), scores (K,) and labels (K,)."""
    all_scores, all_deltas = head(maps)
    sizes = [level.shape[2:] for level in all_scores]
    all_anchors = head.prior_generator.grid_priors(sizes, dtype=limits.dtype, device=limits.device)
    found = [
        _best_of_level(head, *level) for level in zip(all_scores, all_deltas, all_anchors, strict=True)
    ]  # of each level its anchors, deltas, scores and labels
    anchors, deltas, scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    boxes = decode(head.bbox_coder, anchors, deltas, limits)
    smallest = head.test_cfg.get("min_bbox_size", -1)
    if smallest >= 0:
        large = (boxes[:, 2:] - boxes[:, :2] > smallest).all(1)
        scores = torch.where(large, scores, _NONE)
    return boxes, scores, labels


def _best_of_level(head: Any, scores: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, ...]:
    most, classes = head.test_cfg.nms_pre, head.cls_out_channels
    logits = scores[0].permute(1, 2, 0).reshape(-1, classes)
    if head.use_sigmoid_cls:
        scores = logits.sigmoid()
    else:
        scores, classes = logits.softmax(1)[:, :-1], classes - 1
    # a coarse level has fewer pairs than are taken: no length may depend on the image's size
    best, place = F.pad(scores.flatten(), (0, most), value=_NONE).topk(most)
    anchor = torch.where(best > _NONE, place // classes, 0)
    return anchors[anchor], deltas[0].permute(1, 2, 0).reshape(-1, 4)[anchor], best, place % classes


def decode(coder: Any, anchors: Tensor, deltas: Tensor, limits: Tensor) -> Tensor:
    """Boxes (K, 4) that `deltas` (K, 4: shift and log of growth) make of anchors, within `limits` (4,)."""
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    size = anchors[:, 2:] - anchors[:, :2]
    most = abs(math.log(16 / 1000))  # mmdet's default, which no config changes
    centre = (anchors[:, :2] + anchors[:, 2:]) * 0.5 + deltas[:, :2] * size
    half = size * deltas[:, 2:].clamp(-most, most).exp() * 0.5
    boxes = torch.cat([centre - half, centre + half], 1)
    return torch.minimum(boxes.clamp(min=0), limits) if coder.clip_border else boxes


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, rules: Any, least: float, most: int) -> Tensor:
    """Indices of the boxes (K, 4) that stay; those of different `groups` (K,) are moved apart, as mmdet does."""
    reach = F.pad(boxes, (0, 0, 0, 1)).amax((0, 1)) + 1  # one row more: there may be no box at all
    apart = boxes + (groups.to(boxes) * reach)[:, None]
    return torch.ops.vertebra.best_boxes(apart, scores, rules.nms.iou_threshold, max(least, _NONE / 2), most)


def second_stage(head: Any, maps: Sequence[Tensor], rois: Tensor, limits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels of what is in the proposals `rois` (N, 4)."""
    rules, box_head = head.test_cfg, head.bbox_head
    pooled, order = pool(head.bbox_roi_extractor, maps, rois)
    rois = rois[order]
    logits, deltas = box_head(pooled)
    scores = logits.softmax(1)[:, :-1]
    classes = scores.shape[1]
    if box_head.reg_class_agnostic:
        deltas = deltas[:, None].expand(-1, classes, 4)
    anchors = rois[:, None].expand(-1, classes, 4).reshape(-1, 4)
    boxes = decode(box_head.bbox_coder, anchors, deltas.reshape(-1, 4), limits)
    labels = torch.arange(classes, device=boxes.device).expand(rois.shape[0], classes).reshape(-1)
    scores = scores.reshape(-1)
    kept = suppress(boxes, scores, labels, rules, rules.score_thr, rules.max_per_img)
    return boxes[kept], scores[kept], labels[kept]


def masks(head: Any, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
    """The mask of each box's class, within the box: (N, 1, h, w), 0 to 1."""
    pooled, order = pool(head.mask_roi_extractor, maps, boxes)
    found = head.mask_head(pooled).sigmoid()
    if not head.mask_head.class_agnostic:
        found = found.gather(1, labels[order][:, None, None, None].expand(-1, 1, *found.shape[2:]))
    return found[order.argsort()]


def pool(extractor: Any, maps: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
    """RoIAlign of each box (N, 4) in the level that suits its size.

    Returns (N, C, h, w) level by level, and which box each is of, (N,).
    """
    maps = maps[: extractor.num_inputs]
    rois = F.pad(rois, (1, 0))  # the image's number before the corners
    levels = extractor.map_roi_levels(rois, len(maps))
    order = [(levels == i).nonzero()[:, 0] for i in range(len(maps))]
    pooled = [
        torchvision.ops.roi_align(
            level, rois[index], layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
        )
        for level, index, layer in zip(maps, order, extractor.roi_layers, strict=True)
    ]
    return torch.cat(pooled), torch.cat(order)
