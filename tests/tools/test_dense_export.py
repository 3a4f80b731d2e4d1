"""Whole detectors and segmenters as ONNX: what mm's own `predict` finds, at sizes they were not traced at."""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from vertebra.backbones._errors import UserError
from vertebra.tools._common import run_tool
from vertebra.tools._export_model import read_metadata

pytest.importorskip("mmdet")

from small_exports import dense, small_detector, small_segmenter
from vertebra.tools import _dense_export, _detector_check, export_onnx
from vertebra.tools._dense_export import export_dense, resizing
from vertebra.tools._dense_refusals import refusal
from vertebra.tools._detector_check import agreement
from vertebra.tools._detector_graph import DetectorGraph
from vertebra.tools._segmenter_graph import MapsGraph, SegmenterGraph

STEPS = [
    {"type": "mmdet.LoadImageFromNDArray"},
    {"type": "Resize", "scale": (1333, 800), "keep_ratio": True},
    {"type": "PackDetInputs", "meta_keys": ("img_id",)},
]
OURS = "van_b0"


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def run(path: Path, image: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(x) for x in session.run(None, {"image": image.numpy()})]


def metadata(path: Path) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return read_metadata(session.get_modelmeta().custom_metadata_map)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.std()


# ---- detectors


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Any]:
    """A Mask R-CNN, its file and the export's report."""
    model, out = small_detector("mask-rcnn"), tmp_path_factory.mktemp("detector") / "m.onnx"
    return model, out, export_dense(dense(model, False, STEPS), out)


@pytest.mark.all
def test_detector_finds_the_same_boxes_and_masks_at_a_size_that_nothing_was_traced_or_checked_at(
    detector: tuple[Any, Path, Any],
) -> None:
    model, out, _ = detector
    image = noise(1, 3, 110, 75)
    with torch.inference_mode():
        expected = DetectorGraph(model)(image)  # test_detector_graph.py compares that with mmdet
    assert len(expected[0]) >= 10
    assert agreement(run(out, image), expected) == 1


@pytest.mark.all
def test_report_counts_the_boxes_that_agree(detector: tuple[Any, Path, Any]) -> None:
    _, out, report = detector
    assert [(check.shape, check.boxes) for check in report.checks] == [((1, 3, 171, 259), 20), ((1, 3, 203, 333), 20)]
    assert all(check.share >= 0.95 for check in report.checks)
    assert "one image, free height and width" in str(report)
    assert "% of 20" in str(report)
    assert report.outputs == ("boxes", "scores", "labels", "masks")
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.all
def test_file_names_classes_colours_and_the_preparation_of_images(detector: tuple[Any, Path, Any]) -> None:
    known = metadata(detector[1])
    assert (known["task"], known["kind"], known["model_name"]) == ("detection", "MaskRCNN", "test_resnet")
    assert (known["labels"], known["palette"]) == (["one", "two"], [[200, 0, 0], [0, 0, 200]])
    assert known["resize"] == [{"scale": [1333, 800], "keep_ratio": True}]
    assert known["channels"] == "RGB"
    assert known["mean"] == pytest.approx([0.5] * 3)  # timm's for this backbone
    assert known["std"] == pytest.approx([0.5] * 3)
    assert known["mask_threshold"] == 0.5


def test_detector_that_disagrees_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_detector_check, "agreement", lambda *_: 0.5)
    monkeypatch.setattr(_detector_check, "answers", lambda *_: lambda _: [])
    monkeypatch.setattr(_detector_check, "_save_with_any_score", lambda *_: None)
    with pytest.raises(UserError, match=r"finds 50% of PyTorch's 20 boxes at 1x3x96x128, less than 95%: nothing was"):
        _detector_check.compare_boxes(
            tmp_path / "m.onnx", DetectorGraph(small_detector("retinanet")), [(1, 3, 96, 128)]
        )


@pytest.mark.all
@pytest.mark.parametrize("head", ["retinanet", "mask-rcnn"])
def test_detectors_on_our_backbones_are_exported(head: str, tmp_path: Path) -> None:
    model = small_detector(head, OURS)
    report = export_dense(dense(model, False, STEPS), tmp_path / "m.onnx")
    assert min(check.share for check in report.checks) >= 0.95
    image = noise(1, 3, 75, 110)
    with torch.inference_mode():
        expected = DetectorGraph(model)(image)
    assert agreement(run(tmp_path / "m.onnx", image), expected) >= 0.95


@pytest.mark.all
def test_detector_of_a_fixed_size_finds_nothing_where_no_score_is_high_enough(tmp_path: Path) -> None:
    model = small_detector("mask-rcnn")
    model.roi_head.test_cfg.score_thr = 1.0
    report = export_dense(dense(model, False, STEPS), tmp_path / "m.onnx", static=(96, 128))
    assert "one image (fixed size)" in str(report)
    assert [check.boxes for check in report.checks] == [20, 20]
    assert [x.shape[0] for x in run(tmp_path / "m.onnx", noise(1, 3, 96, 128))] == [0] * 4


# ---- how boxes are compared


def some_boxes() -> list[torch.Tensor]:
    corners = torch.arange(20.0).view(5, 4) * 7
    return [corners, torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]), torch.tensor([0, 1, 0, 1, 0])]


def test_boxes_agree_in_any_order() -> None:
    order = torch.tensor([1, 0, 2, 4, 3])
    assert agreement([x[order] for x in some_boxes()], some_boxes()) == 1


@pytest.mark.parametrize("part", [0, 1, 2], ids=["corner", "score", "label"])
def test_a_box_that_differs_does_not_count(part: int) -> None:
    other = some_boxes()
    other[part][2] += 1
    assert agreement(other, some_boxes()) == 0.8


def test_a_box_counts_once_and_missing_ones_do_not() -> None:
    twice = [torch.cat([x[:1], x[:1]]) for x in some_boxes()]
    assert agreement(twice, [x[:1] for x in some_boxes()]) == 0.5
    assert agreement([x[:0] for x in some_boxes()], some_boxes()) == 0
    assert agreement([x[:0] for x in some_boxes()], [x[:0] for x in some_boxes()]) == 1


# ---- segmenters, and maps of any head


@pytest.mark.parametrize("head", ["semantic-fpn", pytest.param("upernet", marks=pytest.mark.all)])
def test_segmenter_answers_alike_at_a_size_that_nothing_was_traced_or_checked_at(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dense_export, "CHECKS", ((2, 33, 97), (1, 90, 51)))  # smaller, for the sake of time
    model, out = small_segmenter(head, test_cfg={"size_divisor": 32}), tmp_path / "m.onnx"
    report = export_dense(dense(model, True), out)
    assert report.outputs == ("logits",)
    assert [check.shape for check in report.checks] == [(2, 3, 33, 97), (1, 3, 90, 51)]
    images = noise(1, 3, 75, 110)
    with torch.inference_mode():
        expected = SegmenterGraph(model).eval()(images)  # test_segmenter_graph.py compares that with mmseg
    assert_close(run(out, images)[0], expected)
    known = metadata(out)
    assert (known["task"], known["align_corners"], known["threshold"]) == ("segmentation", False, None)


@pytest.mark.all
@pytest.mark.parametrize("head", ["semantic-fpn", "upernet"])
def test_segmenters_on_our_backbones_are_exported(head: str, tmp_path: Path) -> None:
    model = small_segmenter(head, OURS)
    assert export_dense(dense(model, True), tmp_path / "m.onnx").difference <= 1e-4


@pytest.mark.all
@pytest.mark.parametrize("head", ["atss", "mask2former"])
def test_features_are_backbone_and_neck_named_by_stride(head: str, tmp_path: Path) -> None:
    segments = head == "mask2former"
    model, out = (small_segmenter if segments else small_detector)(head), tmp_path / "m.onnx"
    report = export_dense(dense(model, segments), out, features=True)
    strides = (4, 8, 16, 32) if segments else (8, 16, 32, 64, 128)
    assert report.outputs == tuple(f"stride{s}" for s in strides)
    images = noise(2, 3, 75, 110)
    with torch.inference_mode():
        expected = MapsGraph(model).eval()(images)
    for ours, theirs in zip(run(out, images), expected, strict=True):
        assert_close(ours, theirs)
    assert metadata(out)["task"] == "features"


# ---- what is not exported


@pytest.mark.parametrize("kind", ["CascadeRCNN", "DINO", "ATSS", "GFL"])
def test_other_detectors_are_refused_with_what_can_be_had(kind: str, tmp_path: Path) -> None:
    model = type(kind, (torch.nn.Module,), {})()
    sentence = rf"a {kind} cannot be exported whole, as RetinaNet, FasterRCNN and MaskRCNN can; --features exports"
    with pytest.raises(UserError, match=sentence):
        export_dense(dense(model, False), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"nms": {"type": "soft_nms", "iou_threshold": 0.5}}, "with nms={'type': 'soft_nms'"),
        ({"nms_pre": -1}, "needs nms_pre of its test_cfg above 0, and it is -1"),
    ],
)
def test_rules_that_the_graph_does_not_have_are_refused(change: dict[str, Any], reason: str) -> None:
    model = small_detector("retinanet")
    assert refusal(dense(model, False)) is None
    model.bbox_head.test_cfg.update(change)
    assert reason in (refusal(dense(model, False)) or "")


def test_segmenters_that_slide_are_refused() -> None:
    model = small_segmenter("semantic-fpn")
    assert refusal(dense(model, True)) is None
    model.test_cfg = {"mode": "slide"}
    assert "test_cfg.mode='whole' can be exported" in (refusal(dense(model, True)) or "")


@pytest.mark.parametrize("step", [{"type": "Resize", "scale_factor": 2.0}, {"type": "mmdet.RandomFlip", "prob": 0.5}])
def test_preparation_that_metadata_cannot_tell_of_is_refused(step: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="what an exported file can tell of is Resize with scale"):
        resizing([*STEPS, step])


def test_preparation_is_told_step_by_step() -> None:
    steps = [{"type": "LoadImageFromNDArray"}, {"type": "mmseg.Resize", "scale": 96}, {"type": "ResizeToMultiple"}]
    assert resizing(steps) == [{"scale": [96, 96], "keep_ratio": False}, {"multiple": 32}]


@pytest.mark.all
def test_command_exports_a_config_and_prints_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.onnx"
    assert run_tool(export_onnx.main, ["demo/retinanet_digits", "--out", str(out)]) == 0
    printed, said = capsys.readouterr()
    assert "boxes that agree" in printed
    assert said == "demo/retinanet_digits: no --checkpoint given, the file gets fresh, random weights\n"
    assert metadata(out)["labels"] == list("0123456789")
