"""What `vertebra infer FILE.onnx` makes of a detector's or segmenter's outputs: boxes, masks and classes of pixels."""

from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.ops import masks_to_boxes
from vertebra.tools._onnx_infer import OnnxDense, paste


class Outputs:
    """A network that answers what it was given, whatever the image."""

    size = ("height", "width")

    def __init__(self, *outputs: torch.Tensor) -> None:
        self.outputs = list(outputs)

    def run(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.outputs

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.outputs[0]


def onnx_dense(network: Any, segments: bool, **known: Any) -> OnnxDense:
    preparation = {"channels": "RGB", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    known |= preparation | {"resize": [{"scale": [80, 40], "keep_ratio": True}]}
    return OnnxDense(network, ["a", "b"], [(0, 0, 0)] * 2, None, segments, known=known)


def test_boxes_and_masks_are_those_of_the_image_and_not_of_the_resized_one() -> None:
    network = Outputs(
        torch.tensor([[8.0, 4.0, 40.0, 20.0]]), torch.tensor([0.9]), torch.tensor([1]), torch.ones(1, 1, 28, 28)
    )
    found = onnx_dense(network, False, mask_threshold=0.5).boxes(Image.new("RGB", (160, 80)))
    assert found.corners.tolist() == [[16, 8, 80, 40]]
    assert found.masks is not None
    assert found.masks.shape == (1, 80, 160)
    assert masks_to_boxes(torch.as_tensor(found.masks)).tolist() == [[16, 8, 79, 39]]


def test_no_boxes_are_no_error() -> None:
    empty = Outputs(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, 1, 28, 28))
    found = onnx_dense(empty, False, mask_threshold=0.5).boxes(Image.new("RGB", (160, 80)))
    assert found.corners.shape == (0, 4)
    assert found.masks is not None
    assert found.masks.shape == (0, 80, 160)


def test_classes_are_told_at_the_images_size() -> None:
    logits = torch.zeros(1, 2, 40, 80)
    logits[:, 1, :, 40:] = 1
    classes = onnx_dense(Outputs(logits), True, align_corners=False).classes(Image.new("RGB", (160, 80)))
    assert classes.shape == (80, 160)
    assert not classes[:, :79].any()
    assert classes[:, 81:].all()


def test_a_segmenter_of_one_class_goes_by_its_threshold() -> None:
    logits = torch.full((1, 1, 40, 80), 0.5)  # 0.62 after a sigmoid
    for threshold, expected in ((0.6, True), (0.7, False)):
        model = onnx_dense(Outputs(logits), True, align_corners=False, threshold=threshold)
        assert bool(model.classes(Image.new("RGB", (160, 80))).all()) is expected


def test_masks_are_pasted_as_mmdet_pastes_them() -> None:
    pytest.importorskip("mmdet")
    import vertebra.engine  # noqa: F401  stands in for mmcv's operators, before mmdet asks for them
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head as head

    draw = torch.Generator().manual_seed(0)
    masks = nn.functional.interpolate(torch.rand(6, 1, 4, 4, generator=draw), (28, 28), mode="bilinear")
    corners = torch.tensor([[3.2, 4.7, 30.1, 40.9], [0, 0, 64, 48], [-5, -3, 10, 9], [60.5, 40, 70, 52.0]])
    corners = torch.cat([corners, torch.tensor([[10.0, 10, 10.4, 30], [20.3, 20.3, 21.2, 21.2]])])
    whole, _ = head._do_paste_mask(masks, corners, 48, 64, skip_empty=False)
    assert torch.equal(paste(masks[:, 0], corners, (48, 64), 0.5), whole >= 0.5)


def test_boxes_that_lie_outside_of_the_image_have_empty_masks() -> None:
    around = [[-20.0, 4, -9, 12], [4, -20, 12, -9], [40, 4, 52, 12], [4, 40, 12, 52]]
    assert not paste(torch.ones(4, 28, 28), torch.tensor(around), (30, 30), 0.5).any()


def test_boxes_in_the_margins_of_a_fixed_size_are_left_out_with_all_that_is_theirs() -> None:
    network = Outputs(
        torch.tensor([[8.0, 50, 40, 60], [8, 4, 40, 20]]),  # the image ends at 40
        torch.tensor([0.9, 0.8]),
        torch.tensor([0, 1]),
        torch.ones(2, 1, 28, 28),
    )
    found = onnx_dense(network, False, mask_threshold=0.5).boxes(Image.new("RGB", (160, 80)))
    assert found.corners.tolist() == [[16, 8, 80, 40]]
    assert (len(found.scores), found.labels.tolist()) == (1, [1])
    assert found.masks is not None
    assert len(found.masks) == 1


def test_a_box_without_area_has_an_empty_mask() -> None:
    assert not paste(torch.ones(1, 28, 28), torch.tensor([[5.0, 5, 5, 20]]), (30, 30), 0.5).any()
