"""Test-time augmentation: each image is seen in several views, larger, smaller and flipped, and predicted from all.

Boxes      of all views, turned back, through one NMS
Masks      of heads on regions: the mean over the views for the merged boxes; of others: each box keeps its own
Segments   the mean of the views' probabilities at the size of the image, summed view by view
Classes    the mean of the views' probabilities; the views are zoomed and flipped, and of one size
Views      a config's own `tta_pipeline`, else its test pipeline at several scales; flipped if training flips
"""

import copy
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData, PixelData
from torch import Tensor
from torch.nn import functional as F

from ..backbones._errors import UserError
from .dense_config import is_dense, walk

RATIOS = {"mmdet": (0.8, 1.0, 1.25), "mmseg": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)}
ZOOMS = (1.0, 1.125, 1.25)
_OURS = {"DetTTAModel": "DetectorTTA", "SegTTAModel": "SegmenterTTA"}
_DEFAULTS = {"mmdet": "DetectorTTA", "mmseg": "SegmenterTTA"}
_WITHOUT_NMS = {"type": "nms", "iou_threshold": 0.7}  # a model that needs none finds an object once in every view
_OF_FLIPS = ("flip", "flip_direction")


# --- what a config tests ---


def use_views(config: Any, flips: bool | None = None) -> int:
    """Wrap a config's model, and let its test data come in several views; how many of each image.

    The config's `tta_pipeline` and `tta_model` are taken where it has them; mmdet's and mmseg's models for that give
    way to ours, which take the same arguments, and masks too.

    Args:
        config: it is changed.
        flips: whether training flipped; None: as the config's training data says.

    Raises:
        UserError: neither the test data nor the config has a pipeline to make views of.
    """
    flips = trained_with_flips(config) if flips is None else flips
    if not is_dense(config):
        config.model = dict(type="ClassifierTTA", module=config.model, flips=flips)
        return len(ZOOMS) * (1 + flips)
    scope = config.get("default_scope", "mmdet")
    given = dict(config.get("tta_model") or {"type": _DEFAULTS[scope]})
    kind = str(given["type"]).rpartition(".")[2]
    config.model = dict(given, type=_OURS.get(kind, given["type"]), module=config.model)
    counts, pipeline = [], config.get("tta_pipeline")
    for dataset in _with_pipelines(config.test_dataloader.dataset):
        if not pipeline and not dataset.get("pipeline"):
            raise UserError("test_dataloader's data has no pipeline to make views of, and the config no tta_pipeline")
        dataset.pipeline = pipeline or views_of(dataset.pipeline, RATIOS[scope], flips)
        counts.append(_count_views(dataset.pipeline))
    return max(counts)


def _with_pipelines(dataset: Any) -> Iterator[Any]:
    """The data sets' configs that prepare samples: inside of what repeats or joins them."""
    if "pipeline" not in dataset and "dataset" in dataset:
        yield from _with_pipelines(dataset.dataset)
    elif "pipeline" not in dataset and "datasets" in dataset:
        for part in dataset.datasets:
            yield from _with_pipelines(part)
    else:
        yield dataset


def _count_views(pipeline: Sequence[Mapping[str, Any]]) -> int:
    steps = [step for step in pipeline if step["type"].endswith("TestTimeAug")]
    return math.prod(len(choices) for step in steps for choices in step.get("transforms", ()))


def trained_with_flips(config: Mapping[str, Any]) -> bool:
    """Whether training flips images; what is never seen mirrored, digits say, is not to be tested mirrored."""
    dataset = (config.get("train_dataloader") or {}).get("dataset")
    if dataset is None:
        return True
    if not is_dense(config):
        return bool((dataset.get("transform") or {}).get("hflip", 0.5))
    return any("RandomFlip" in str(entry.get("type", "")) for entry in walk(dataset))


def views_of(pipeline: Sequence[Mapping[str, Any]], ratios: Sequence[float], flips: bool) -> list[dict[str, Any]]:
    """A test pipeline whose images leave at several scales around its own, each flipped too if `flips`.

    Annotations are loaded after that, since what is found is compared with them in the image as it was.
    """
    load, *rest = [dict(copy.deepcopy(step)) for step in pipeline]
    pack = rest.pop()
    if "meta_keys" in pack:
        pack["meta_keys"] = (*pack["meta_keys"], *(key for key in _OF_FLIPS if key not in pack["meta_keys"]))
    changes: list[list[dict[str, Any]]] = []
    for step in rest:
        if step["type"].endswith("LoadAnnotations"):
            continue
        changes.append(_scaled(step, ratios) if step["type"].rpartition(".")[2] == "Resize" else [step])
    if all(len(choices) == 1 for choices in changes):
        changes.insert(0, [dict(type="Resize", scale_factor=ratio, keep_ratio=True) for ratio in ratios])
    if flips:
        changes.append([dict(type="RandomFlip", prob=prob) for prob in (0.0, 1.0)])
    changes += [[step] for step in rest if step["type"].endswith("LoadAnnotations")]
    return [load, dict(type="TestTimeAug", transforms=[*changes, [pack]])]


def _scaled(resize: dict[str, Any], ratios: Sequence[float]) -> list[dict[str, Any]]:
    """The same step for each ratio."""
    key = "scale" if resize.get("scale") else "scale_factor"
    size = resize[key]
    if key == "scale_factor":
        return [{**resize, key: size * ratio} for ratio in ratios]
    sides = (size, size) if isinstance(size, int) else size
    return [{**resize, key: tuple(round(side * ratio) for side in sides)} for ratio in ratios]


def split_views(data: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """A collated batch of views as one batch for each view."""
    return [{key: value[i] for key, value in data.items()} for i in range(len(data["inputs"]))]


# --- detectors ---


@MODELS.register_module()
class DetectorTTA(BaseTTAModel):
    """A detector of mmdet whose boxes come from all views of an image, through one NMS; masks follow the boxes.

    Args:
        module: the detector, or its config.
        tta_cfg: `nms` and `max_per_img`, as mmdet's DetTTAModel takes them; default: the detector's own.
    """

    def __init__(self, module: Any, tta_cfg: Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__(module, **options)
        own = self.module.test_cfg or {}
        own = own.get("rcnn", own)
        given = {**{key: own[key] for key in ("nms", "max_per_img") if key in own}, **(tta_cfg or {})}
        self.nms = dict(given.get("nms") or _WITHOUT_NMS)
        self.most = int(given.get("max_per_img", 100))

    @torch.no_grad()
    def test_step(self, data: Mapping[str, Any]) -> list[Any]:
        """Views of a batch of images -> one sample an image, in its own coordinates."""
        views = split_views(data)
        if not _has_region_masks(self.module):
            return self.merge_preds(list(zip(*(self.module.test_step(view) for view in views), strict=True)))
        seen, samples = [], []
        for view in views:
            maps, found = self._boxes(view)
            samples.append(found)
            seen.append((maps, [sample.metainfo for sample in found]))
        merged = self.merge_preds(list(zip(*samples, strict=True)))
        self._add_masks(seen, [sample.pred_instances for sample in merged])
        return merged

    def merge_preds(self, data_samples_list: Sequence[Sequence[Any]]) -> list[Any]:
        """For each image, the samples of its views -> the first of them, with what was found in all."""
        for views in data_samples_list:
            parts = [turned_back(sample.pred_instances, sample.metainfo) for sample in views]
            views[0].pred_instances = self._suppressed(InstanceData.cat(parts))
        return [views[0] for views in data_samples_list]

    def _suppressed(self, found: InstanceData) -> InstanceData:
        from mmcv.ops import batched_nms

        if not len(found):
            return found
        boxes, kept = batched_nms(found.bboxes, found.scores, found.labels, self.nms)  # boxes (n, 5), best first
        found = found[kept[: self.most]]
        found.scores = boxes[: self.most, 4]
        return found

    def _boxes(self, view: dict[str, Any]) -> tuple[Any, list[Any]]:
        """The maps of a view, and its samples with boxes alone."""
        detector = self.module
        batch = detector.data_preprocessor(view, False)
        samples = batch["data_samples"]
        maps = detector.extract_feat(batch["inputs"])
        proposals = detector.rpn_head.predict(maps, samples, rescale=False)
        head = detector.roi_head
        metas = [sample.metainfo for sample in samples]
        found = head.predict_bbox(maps, metas, proposals, rcnn_test_cfg=head.test_cfg, rescale=True)
        return maps, detector.add_pred_to_datasample(samples, found)

    def _add_masks(self, seen: Sequence[tuple[Any, list[dict[str, Any]]]], found: list[InstanceData]) -> None:
        """Give each image's boxes the mean of the masks that the head sees at their place in each view."""
        from mmdet.structures.bbox import bbox2roi

        head: Any = self.module.roi_head
        counts = [len(instances) for instances in found]
        views = []
        for maps, metas in seen:
            places = [place_in_view(one.bboxes, meta) for one, meta in zip(found, metas, strict=True)]
            shares = _mask_shares(head, maps, bbox2roi(places)) if sum(counts) else None
            parts = shares.split(counts) if shares is not None else [None] * len(counts)
            views.append([_flipped(part, meta) for part, meta in zip(parts, metas, strict=True)])
        last: Any = head.mask_head[-1] if isinstance(head.mask_head, torch.nn.ModuleList) else head.mask_head
        for image, instances in enumerate(found):
            size = seen[0][1][image]["ori_shape"][:2]
            if not len(instances):
                instances.masks = torch.zeros(0, *size, dtype=torch.bool, device=instances.bboxes.device)
                continue
            mean = torch.stack([view[image] for view in views]).mean(0)
            meta = {"ori_shape": size, "scale_factor": (1.0, 1.0)}
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="To copy construct")  # mmdet's way to take probabilities
                last.predict_by_feat([mean], [instances], [meta], head.test_cfg, rescale=True, activate_map=True)


def turned_back(found: InstanceData, meta: Mapping[str, Any]) -> InstanceData:
    """What was found in a flipped view, as it lies in the image; boxes have the image's scale already."""
    from mmdet.structures.bbox import bbox_flip

    if not meta.get("flip"):
        return found
    found.bboxes = bbox_flip(found.bboxes, meta["ori_shape"], meta["flip_direction"])
    if "masks" in found:
        found.masks = _flipped(found.masks, meta)
    return found


def place_in_view(boxes: Tensor, meta: Mapping[str, Any]) -> Tensor:
    """Boxes (n, 4) of an image in the coordinates of a view of it."""
    from mmdet.structures.bbox import bbox_flip

    boxes = boxes * boxes.new_tensor(meta["scale_factor"]).repeat(2)
    return bbox_flip(boxes, meta["img_shape"], meta["flip_direction"]) if meta.get("flip") else boxes


def _flipped(masks: Tensor | None, meta: Mapping[str, Any]) -> Any:
    """Masks (..., H, W) mirrored as a view is."""
    if masks is None or not meta.get("flip"):
        return masks
    return masks.flip({"horizontal": (-1,), "vertical": (-2,), "diagonal": (-2, -1)}[meta["flip_direction"]])


def _has_region_masks(detector: Any) -> bool:
    """Whether masks are those of Mask R-CNN or its cascade, which can be asked for any box."""
    if not getattr(getattr(detector, "roi_head", None), "with_mask", False):
        return False
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead

    kind = type(detector.roi_head)  # one that predicts its masks in a way of its own keeps that
    return kind.predict_mask in (StandardRoIHead.predict_mask, CascadeRoIHead.predict_mask)


def _mask_shares(head: Any, maps: Any, rois: Tensor) -> Tensor:
    """Probabilities (regions, classes or 1, h, w) of the mask head, of a cascade the mean of its stages."""
    stages = getattr(head, "num_stages", None)
    if stages is None:
        return head._mask_forward(maps, rois)["mask_preds"].sigmoid()
    return torch.stack([head._mask_forward(i, maps, rois)["mask_preds"].sigmoid() for i in range(stages)]).mean(0)


# --- segmenters ---


@MODELS.register_module()
class SegmenterTTA(BaseTTAModel):
    """A segmenter of mmseg whose probabilities are the mean over all views of an image.

    What mmseg's SegTTAModel computes, but only one view's probabilities are held beside the sum: a dozen of them, with
    150 classes at the size of a photograph, would not fit into memory.
    """

    @torch.no_grad()
    def test_step(self, data: Mapping[str, Any]) -> list[Any]:
        """Views of a batch of images -> one sample an image."""
        return self._merged(self.module.test_step(view) for view in split_views(data))

    def merge_preds(self, data_samples_list: Sequence[Sequence[Any]]) -> list[Any]:
        """For each image, the samples of its views -> the first of them, with the mean of all."""
        return self._merged(zip(*data_samples_list, strict=True))

    def _merged(self, views: Iterable[Sequence[Any]]) -> list[Any]:
        first, sums, count = [], [], 0
        for samples in views:
            shares = [_shares(sample.seg_logits.data) for sample in samples]
            for sample in samples:
                del sample.seg_logits
            first = first or list(samples)
            sums = [total.add_(one) for total, one in zip(sums, shares, strict=True)] if sums else shares
            count += 1
        for sample, total in zip(first, sums, strict=True):
            mean = total.div_(count)  # (classes, H, W), or (1, H, W)
            least: Any = getattr(self.module.decode_head, "threshold", None)
            classes = mean.argmax(0, keepdim=True) if len(mean) > 1 else (mean > least).to(mean)
            sample.set_data({"seg_logits": PixelData(data=mean), "pred_sem_seg": PixelData(data=classes)})
        return first


def _shares(logits: Tensor) -> Tensor:
    """Probabilities (classes, H, W); of one class, mmseg's segmenters give them themselves."""
    return logits.softmax(0) if len(logits) > 1 else logits.clone()


# --- classifiers ---


@MODELS.register_module()
class ClassifierTTA(BaseTTAModel):
    """A `TimmClassifier` whose probabilities are the mean over zoomed and flipped views of what it is given.

    Views keep the size of the images, which many models are made for.

    Args:
        module: the classifier, or its config.
        flips: also see each view mirrored.
        zooms: how much larger the views are, before their middle is cut out.
    """

    def __init__(self, module: Any, flips: bool = True, zooms: Sequence[float] = ZOOMS, **options: Any) -> None:
        super().__init__(module, **options)
        self.flips, self.zooms = flips, tuple(zooms)

    @torch.no_grad()
    def test_step(self, data: Mapping[str, Any]) -> list[dict[str, Tensor]]:
        """A batch of images -> one dict, as the classifier's own."""
        batch = self.module.data_preprocessor(data, False)
        found = [self.module(view, batch["targets"], mode="predict") for view in self.views(batch["inputs"])]
        return self.merge_preds(list(zip(*found, strict=True)))

    def views(self, images: Tensor) -> Iterator[Tensor]:
        """Views (B, C, H, W) of images of that size."""
        height, width = images.shape[-2:]
        for zoom in self.zooms:
            size = (round(height * zoom), round(width * zoom))
            larger = F.interpolate(images, size, mode="bilinear", align_corners=False) if zoom != 1 else images
            top, left = (size[0] - height) // 2, (size[1] - width) // 2
            view = larger[..., top : top + height, left : left + width]
            yield view
            if self.flips:
                yield view.flip(-1)

    def merge_preds(self, data_samples_list: Sequence[Sequence[Mapping[str, Tensor]]]) -> list[dict[str, Tensor]]:
        """The predictions of all views -> the logarithm of their mean probability as logits."""
        return [
            {**views[0], "logits": torch.stack([view["logits"].softmax(1) for view in views]).mean(0).log()}
            for views in data_samples_list
        ]
