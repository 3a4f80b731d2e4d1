"""COCO's annotations and mean average precision as mmdet has them, without their talk on the terminal.

Imports mmdet, so nothing that is to be imported without it imports this.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation.metrics import CocoMetric
from mmengine.fileio import get_local_path
from mmengine.logging import MMLogger
from mmengine.registry import METRICS

from ..backbones._errors import UserError
from . import coco_file


class MendedCoco(COCO):
    """An annotation file of which `coco_file` has refused, left out or mended what cannot be used.

    Args:
        annotation_file: its path.
        masks: whether masks are wanted.
        training: see `coco_file.mend`.
    """

    def __init__(self, annotation_file: str, masks: bool = False, training: bool = False) -> None:
        self.file, self.masks, self.training = annotation_file, masks, training
        self.counts: dict[str, int] = {}
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                super().__init__(annotation_file)
        except UserError:
            raise
        except (ValueError, AssertionError) as error:  # no JSON, no text at all, or no dictionary
            raise UserError(f"{self.file} is no COCO annotation file: {type(error).__name__}: {error}") from error

    def createIndex(self) -> None:
        """Called by pycocotools as soon as the file is read."""
        coco_file.check(self.dataset, self.file)
        self.counts = coco_file.mend(self.dataset, self.masks, self.training)
        annotations = self.dataset["annotations"]
        if annotations and self.counts.get(coco_file.WITHOUT_MASK) == len(annotations):
            raise UserError(f"{self.file} has no masks ('segmentation'), and this config is of a model with masks")
        super().createIndex()


@METRICS.register_module()
class ReadCocoMetric(CocoMetric):
    """mmdet's CocoMetric over the images that could be read; the table of all scores goes to the log file.

    Where nothing is found at all it says that the scores are 0, and writes its files; mmdet's says no scores.
    """

    def __init__(self, ann_file: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        if ann_file is not None:
            with get_local_path(ann_file, backend_args=self.backend_args) as path:
                self._coco_api = MendedCoco(path, masks="segm" in self.metrics)

    def process(self, data_batch: dict[str, Any], data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep a batch's results, with a mark on images that could not be read."""
        super().process(data_batch, data_samples)
        for (truth, _), sample in zip(self.results[-len(data_samples) :], data_samples, strict=True):
            truth["unreadable"] = sample.get("unreadable", False)

    def compute_metrics(self, results: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, float]:
        """The scores of all ranks' results."""
        read = [result for result in results if not result[0]["unreadable"]]
        if not read:
            raise UserError(f"none of the {len(results)} images of the evaluation can be read")
        self.img_ids = [truth["img_id"] for truth, _ in read]
        if not self.format_only and not any(len(found["scores"]) for _, found in read):
            if self.outfile_prefix is not None:
                self.results2json([found for _, found in read], self.outfile_prefix)
            kinds = [kind for kind in self.metrics if kind in ("bbox", "segm")]
            return {f"{kind}_{name}": 0.0 for kind in kinds for name in ("mAP", "mAP_50")}
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            scores = super().compute_metrics(read)
        table = [line for line in said.getvalue().splitlines() if line.startswith(" Average")]
        if table:
            MMLogger.get_current_instance().info("\n".join(["COCO's scores:", *table]))
        return scores
