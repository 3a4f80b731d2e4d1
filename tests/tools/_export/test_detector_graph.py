"""Detectors as graphs find what mmdet's own `predict` finds, before anything is exported."""

from typing import Any

import pytest
import torch

pytest.importorskip("mmdet")

import vertebra.engine  # noqa: F401  stands in for mmcv's operators, before mmdet asks for them
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.structures import DetDataSample
from small_exports import small_detector
from vertebra.tools._export.detector_check import agreement
from vertebra.tools._export.detector_graph import DetectorGraph, best_boxes, decode
from vertebra.tools._export.segmenter_graph import pad
from vertebra.tools._onnx_infer import paste


@torch.inference_mode()
def predicted(model: Any, image: torch.Tensor) -> Any:
    """What mmdet finds in one normalised image (1, 3, H, W), of which it pads the sides itself."""
    height, width = image.shape[2:]
    padded = pad(image, model.data_preprocessor.pad_size_divisor)
    size = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
    sample = DetDataSample(metainfo={**size, "batch_input_shape": tuple(padded.shape[2:])})
    return model.predict(padded, [sample], rescale=True)[0].pred_instances


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("head", ["retinanet", "mask-rcnn"])
@pytest.mark.parametrize("size", [(85, 70), pytest.param((96, 128), marks=pytest.mark.all)], ids=["padded", "whole"])
def test_graph_finds_the_boxes_that_mmdet_finds(head: str, size: tuple[int, int]) -> None:
    model = small_detector(head)
    expected = predicted(model, noise(1, 3, *size))
    with torch.inference_mode():
        found = DetectorGraph(model)(noise(1, 3, *size))
    assert len(expected) >= 10
    assert agreement(found[:3], [expected.bboxes, expected.scores, expected.labels]) == 1


def test_masks_within_boxes_pasted_into_the_image_are_those_of_mmdet() -> None:
    model = small_detector("mask-rcnn")
    expected = predicted(model, noise(1, 3, 85, 70))
    with torch.inference_mode():
        boxes, scores, _, masks = DetectorGraph(model)(noise(1, 3, 85, 70))
    torch.testing.assert_close(scores, expected.scores)
    pasted = paste(masks[:, 0], boxes, (85, 70), model.roi_head.test_cfg.mask_thr_binary)
    assert 0.001 < expected.masks.float().mean() < 0.999
    assert (pasted != expected.masks).float().mean() < 1e-3


def test_boxes_are_decoded_as_mmdets_coder_does() -> None:
    coder = DeltaXYWHBBoxCoder(target_means=(0.1, 0.0, -0.1, 0.2), target_stds=(0.1, 0.2, 0.3, 0.4))
    corners = noise(50, 2) * 40
    anchors = torch.cat([corners, corners + noise(50, 2).abs() * 30], 1)
    deltas = noise(50, 4) * 5
    found = decode(coder, anchors, deltas, torch.tensor([90.0, 60.0, 90.0, 60.0]))
    torch.testing.assert_close(found, coder.decode(anchors, deltas, max_shape=(60, 90)))


def test_best_boxes_keeps_the_best_of_those_that_overlap_and_no_more_than_asked_for() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [1, 0, 11, 10], [50, 0, 60, 10], [0, 50, 10, 60], [0, 80, 10, 90.0]])
    scores = torch.tensor([0.5, 0.9, 0.7, 0.2, -1.0])
    assert best_boxes(boxes, scores, 0.5, 0.1, 10).tolist() == [1, 2, 3]
    assert best_boxes(boxes, scores, 0.5, 0.3, 10).tolist() == [1, 2]
    assert best_boxes(boxes, scores, 0.5, 0.1, 1).tolist() == [1]
    assert best_boxes(boxes, scores, 0.9, 0.1, 10).tolist() == [1, 2, 0, 3]
    assert best_boxes(boxes, scores, 0.5, 0.95, 10).tolist() == []
