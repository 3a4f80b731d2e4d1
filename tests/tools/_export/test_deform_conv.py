"""Deformable convolutions in ONNX files: both of mmcv's, as the standard operator, at sizes they were not traced at."""

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("mmdet")

import vertebra.engine  # noqa: F401  stands in for mmcv's operators
from mmcv import ops
from mmcv.cnn import build_conv_layer
from small_exports import dense, small_detector
from vertebra.tools._export.checks import TOLERANCE, difference
from vertebra.tools._export.deform_conv import exportable_deform_convs
from vertebra.tools._export.dense import export_dense
from vertebra.tools._export.onnx_graph import FREE_SIZE, answers, save, trace


class _Both(nn.Module):
    """Version 1 and then version 2 on (B, 4, H, W), with groups, a stride, and offsets of many sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ops.DeformConv2dPack(4, 4, 3, padding=1, groups=2, deform_groups=2)
        self.second = ops.ModulatedDeformConv2dPack(4, 6, 3, stride=2, padding=2, dilation=2, deform_groups=2)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.conv_offset.weight, std=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_both_versions_answer_as_mmcv_does_at_another_size(tmp_path: Path) -> None:
    model, out = _Both().eval(), tmp_path / "m.onnx"
    with exportable_deform_convs():
        save(trace("both", model, torch.randn(2, 4, 16, 20), ["out"], FREE_SIZE), out)
    assert operators(out)["DeformConv"] == 2
    images = torch.randn(1, 4, 23, 17)
    with torch.inference_mode():
        assert difference(answers(out)(images)[0], model(images)) <= TOLERANCE


def test_mmcvs_own_functions_are_back_afterwards() -> None:
    modules = ops.deform_conv, ops.modulated_deform_conv
    before = modules[0].deform_conv2d, modules[1].modulated_deform_conv2d
    with pytest.raises(KeyError), exportable_deform_convs():
        raise KeyError
    assert (modules[0].deform_conv2d, modules[1].modulated_deform_conv2d) == before


@pytest.mark.all
def test_detector_with_deformable_convolutions_is_exported_whole(tmp_path: Path) -> None:
    model = small_detector("retinanet")
    for part in model.bbox_head.cls_convs:
        old = part.conv
        part.conv = build_conv_layer({"type": "DCNv2"}, old.in_channels, old.out_channels, 3, padding=1)
        nn.init.normal_(part.conv.conv_offset.weight, std=0.05)
    report = export_dense(dense(model.eval(), False), tmp_path / "m.onnx")
    assert operators(tmp_path / "m.onnx")["DeformConv"] == 5 * len(model.bbox_head.cls_convs)
    assert min(check.share for check in report.checks) >= 0.95
