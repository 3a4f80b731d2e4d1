"""Top-1, top-5 and the confusion of classes, summed so that any number of ranks counts each image once."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from ..backbones._errors import UserError
from .classifier import has_target

MAX_CLASSES_SHOWN = 50  # a confusion of more classes is not kept

_FRACTIONS = {  # mmdet's and mmseg's names -> ours, and what they are to be divided by
    "coco/bbox_mAP": ("box_AP", 1),
    "coco/bbox_mAP_50": ("box_AP50", 1),
    "coco/segm_mAP": ("mask_AP", 1),
    "coco/segm_mAP_50": ("mask_AP50", 1),
    "mIoU": ("mIoU", 100),
    "mAcc": ("mAcc", 100),
    "aAcc": ("aAcc", 100),
}


def flat_metrics(found: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of any task, those of mmdet and mmseg under our names and as fractions; mmengine's times are left out."""
    known = {ours: float(found[key]) / scale for key, (ours, scale) in _FRACTIONS.items() if key in found}
    return known or {key: value for key, value in found.items() if key not in ("time", "data_time")}


@METRICS.register_module()
class TopK(BaseMetric):
    """`top1` and `top5` as fractions, `images` that were counted, `unreadable` ones that were not."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, float] = {}  # of the last evaluation
        self.confusion: torch.Tensor | None = None  # the same, (true, predicted)
        self._classes = 0  # of the model, as the batches of this rank show; 0 before there is one

    def process(self, data_batch: Any, data_samples: list[dict[str, torch.Tensor]]) -> None:
        """Sum up one batch of `TimmClassifier`'s predictions."""
        logits, targets = data_samples[0]["logits"], data_samples[0]["targets"]
        known = has_target(targets)
        logits, truth = logits[known], targets[known]
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == truth[:, None]  # (B, 5)
        self._classes = classes = logits.shape[1]
        pairs = None
        if classes <= MAX_CLASSES_SHOWN:
            pairs = torch.bincount(truth * classes + logits.argmax(1), minlength=classes**2).cpu()
        counts = [best[:, 0].sum(), best.any(1).sum(), known.sum(), (~known).sum()]
        self.results.append((torch.stack(counts).double().cpu(), pairs))

    def evaluate(self, size: int) -> dict[str, float]:
        """Add up the batches of all ranks; `size` is mmengine's and not needed.

        A rank that had no image takes part with zeros, or the others would wait for it for ever.

        Raises:
            UserError: no rank had an image.
        """
        counts = torch.zeros(4, dtype=torch.float64)
        for count, _ in self.results:
            counts += count
        classes = torch.tensor(self._classes)
        all_reduce(classes, "max")
        all_reduce(counts)
        if not classes:
            raise UserError("there is nothing to evaluate: the data holds no image")
        if classes <= MAX_CLASSES_SHOWN:
            pairs = torch.zeros(int(classes) ** 2, dtype=torch.long)
            for _, pair in self.results:
                pairs += pair
            all_reduce(pairs)
            self.confusion = pairs.view(int(classes), int(classes))
        self.results.clear()
        self._classes = 0
        self.last = self.compute_metrics([counts])
        return self.last

    def compute_metrics(self, results: list[torch.Tensor]) -> dict[str, float]:
        """The summed counts as fractions."""
        top1, top5, images, unreadable = results[0].tolist()
        shares = {"top1": top1 / max(images, 1), "top5": top5 / max(images, 1)}
        return {**shares, "images": int(images), "unreadable": int(unreadable)}
