"""Which detectors and segmenters can be exported whole, and in a few words why another one cannot."""

from collections.abc import Iterator
from typing import Any

from vertebra.tools._dense import Dense

_HEADS = {"RetinaNet": "bbox_head", "FasterRCNN": "roi_head", "MaskRCNN": "roi_head"}


def refusal(dense: Dense) -> str | None:
    """What keeps a model from being exported whole, to be read after its name; None where nothing does."""
    return next(_of_segmenter(dense.model) if dense.segments else _of_detector(dense.model), None)


def _of_segmenter(model: Any) -> Iterator[str]:
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    head = getattr(model, "decode_head", None)
    usual = isinstance(head, BaseDecodeHead) and all(
        getattr(type(head), name) is getattr(BaseDecodeHead, name) for name in ("predict", "predict_by_feat")
    )
    if not usual:
        yield (
            f"with {type(head).__name__} cannot be exported whole, "
            "as heads that give each pixel a score for each class can (UPerHead, FPNHead and others)"
        )
    mode = model.test_cfg.get("mode", "whole")
    if mode != "whole":
        yield (
            f"that slides windows over an image (test_cfg.mode={mode!r}) has no graph of one run: "
            "--cfg-options model.test_cfg.mode=whole exports one that sees the whole image at once"
        )


def _of_detector(model: Any) -> Iterator[str]:
    kind = type(model).__name__
    if kind not in _HEADS:
        yield "cannot be exported whole, as RetinaNet, FasterRCNN and MaskRCNN can"
        return
    dense_head = model.bbox_head if kind == "RetinaNet" else model.rpn_head
    yield from _of_parts([(dense_head, ("RetinaHead", "RPNHead"))])
    yield from _of_rules(dense_head)
    for rule in ("nms_pre", "max_per_img"):
        yield from _of_number(rule, dense_head.test_cfg)
    if getattr(dense_head.loss_cls, "custom_cls_channels", False):
        yield f"with {type(dense_head.loss_cls).__name__} cannot be exported whole, as it has channels of its own"
    if kind == "RetinaNet":
        return
    head = model.roi_head
    extractors = [head.bbox_roi_extractor, *([head.mask_roi_extractor] if head.with_mask else [])]
    yield from _of_parts([(head, ("StandardRoIHead",)), *((part, ("SingleRoIExtractor",)) for part in extractors)])
    if head.with_mask:
        yield from _of_parts([(head.mask_head, ("FCNMaskHead",))])
    if head.with_shared_head or head.bbox_head.custom_cls_channels or not head.bbox_head.with_reg:
        yield "cannot be exported whole with a shared head, a classifier of its own or no regression of boxes"
    layers = [layer for part in extractors for layer in part.roi_layers]
    if any(type(layer).__name__ != "RoIAlign" or layer.pool_mode != "avg" for layer in layers):
        yield "cannot be exported whole with another pooling than RoIAlign's average"
    yield from _of_rules(head.bbox_head, head.test_cfg)
    yield from _of_number("max_per_img", head.test_cfg)


def _of_number(rule: str, rules: Any) -> Iterator[str]:
    """Of how many there may be at most: mmdet takes all where it is -1, and no graph does."""
    if (rules.get(rule) or -1) <= 0:
        yield f"needs {rule} of its test_cfg above 0, and it is {rules.get(rule)}"


def _of_parts(parts: list[tuple[Any, tuple[str, ...]]]) -> Iterator[str]:
    for part, known in parts:
        if type(part).__name__ not in known:
            yield f"with {type(part).__name__} cannot be exported whole, as with {' or '.join(known)}"


def _of_rules(head: Any, rules: Any = None) -> Iterator[str]:
    """How boxes are told from deltas and chosen: what the graphs do is the usual way."""
    coder, nms = head.bbox_coder, (rules or head.test_cfg).get("nms") or {}
    if type(coder).__name__ != "DeltaXYWHBBoxCoder" or coder.add_ctr_clamp:
        yield f"with the coder {type(coder).__name__} cannot be exported whole, as with DeltaXYWHBBoxCoder"
    if nms.get("type", "nms") != "nms" or not {"iou_threshold"} <= nms.keys() <= {"type", "iou_threshold"}:
        yield f"with nms={dict(nms)} cannot be exported whole, as with type 'nms' and an iou_threshold"
