"""mmseg's mean intersection over union, which says where there is nothing to compute it from.

Imports mmseg, so nothing that is to be imported without it imports this.
"""

from typing import Any

from mmengine.registry import METRICS
from mmseg.evaluation.metrics import IoUMetric

from ..backbones._errors import UserError


@METRICS.register_module()
class ReadIoUMetric(IoUMetric):
    """mmseg's IoUMetric; images that could not be read count no pixel, and where all are such it gives no NaN."""

    def compute_metrics(self, results: list[tuple[Any, ...]]) -> dict[str, float]:
        """The scores from the areas of all ranks' images: intersection, union, prediction and truth, (classes,) each.

        Raises:
            UserError: no pixel of any mask counts.
        """
        if not self.format_only and not any(truth.any() for *_, truth in results):
            raise UserError(
                f"none of the {len(results)} images of the evaluation counts: each, or its mask, cannot be read, or "
                "the mask has no pixel of a class"
            )
        return super().compute_metrics(results)
