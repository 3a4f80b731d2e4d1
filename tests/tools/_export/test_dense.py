"""Whole detectors and segmenters as ONNX: what mm's own `predict` finds, at sizes they were not traced at."""

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from vertebra.backbones._errors import UserError
from vertebra.tools._common import run_tool
from vertebra.tools._export.model import read_metadata

pytest.importorskip("mmdet")

from onnx_files import assert_close, constant_bytes, free_axes, run
from small_dense import SMALLEST, leaf
from small_exports import BACKBONE, dense, small_detector, small_segmenter
from small_networks import one_per_family
from vertebra.tools import export_onnx
from vertebra.tools._export import checks
from vertebra.tools._export.dense import export_dense, resizing
from vertebra.tools._export.dense_refusals import refusal
from vertebra.tools._export.detector_check import agreement, compare_boxes
from vertebra.tools._export.detector_graph import DetectorGraph
from vertebra.tools._export.segmenter_graph import MapsGraph, SegmenterGraph

STEPS = [
    {"type": "mmdet.LoadImageFromNDArray"},
    {"type": "Resize", "scale": (1333, 800), "keep_ratio": True},
    {"type": "PackDetInputs", "meta_keys": ("img_id",)},
]


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def metadata(path: Path) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return read_metadata(session.get_modelmeta().custom_metadata_map)


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
def test_file_that_finds_other_boxes_than_its_detector_is_refused(
    detector: tuple[Any, Path, Any], tmp_path: Path
) -> None:
    model, out, _ = detector
    graph = onnx.load(out)
    weight = next(x for x in graph.graph.initializer if x.name.endswith("bbox_head.fc_cls.weight"))
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(graph, tmp_path / "other.onnx")
    compare_boxes(out, DetectorGraph(model), [(1, 3, 96, 128)])
    with pytest.raises(UserError, match=r"finds \d+% of PyTorch's 20 boxes at 1x3x96x128, less than 95%: nothing was"):
        compare_boxes(tmp_path / "other.onnx", DetectorGraph(model), [(1, 3, 96, 128)])


@pytest.mark.all
def test_report_counts_the_boxes_that_agree(detector: tuple[Any, Path, Any]) -> None:
    _, out, report = detector
    assert [(check.shape, check.boxes) for check in report.checks] == [((1, 3, 171, 259), 20), ((1, 3, 203, 333), 20)]
    assert all(check.share >= 0.95 for check in report.checks)
    assert "one image, free height and width" in str(report)
    assert "% of 20" in str(report)
    assert free_axes(out) == [2, 3]
    assert "corners within 0.1 pixels, scores and masks within 0.001" in str(report)
    assert "95% are asked for" in str(report)
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


OURS = [("mask-rcnn", "van_b0"), *(("retinanet", name) for name in one_per_family())]


@pytest.mark.parametrize(
    ("head", "name"), [("retinanet", BACKBONE), *(pytest.param(*each, marks=pytest.mark.all) for each in OURS)]
)
def test_detectors_are_exported_whole(head: str, name: str, tmp_path: Path) -> None:
    model = small_detector(head, name)
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
    assert free_axes(tmp_path / "m.onnx") == []
    assert [check.boxes for check in report.checks] == [20, 20]
    assert metadata(tmp_path / "m.onnx")["input_size"] == [3, 96, 128]
    assert [x.shape[0] for x in run(tmp_path / "m.onnx", noise(1, 3, 96, 128))] == [0] * 4


# ---- segmenters, and maps of any head


@pytest.mark.parametrize("head", ["semantic-fpn", pytest.param("upernet", marks=pytest.mark.all)])
def test_segmenter_answers_alike_at_a_size_that_nothing_was_traced_or_checked_at(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "CHECKS", ((2, 33, 97), (1, 90, 51)))  # smaller, for the sake of time
    model, out = small_segmenter(head, test_cfg={"size_divisor": 32}), tmp_path / "m.onnx"
    report = export_dense(dense(model, True), out)
    assert report.outputs == ("logits",)
    assert [check.shape for check in report.checks] == [(2, 3, 33, 97), (1, 3, 90, 51), (1, 3, 128, 160)]
    images = noise(1, 3, 75, 110)
    with torch.inference_mode():
        expected = SegmenterGraph(model).eval()(images)  # test_segmenter_graph.py compares that with mmseg
    assert_close(run(out, images)[0], expected)
    known = metadata(out)
    assert (known["task"], known["align_corners"], known["threshold"]) == ("segmentation", False, None)
    assert known["input_size"] is None  # sizes are free, and the traced one means nothing
    assert free_axes(out) == [0, 2, 3]


@pytest.mark.all
def test_whole_files_hold_little_more_than_their_weights(detector: tuple[Any, Path, Any], tmp_path: Path) -> None:
    segmenter, out = small_segmenter("upernet"), tmp_path / "m.onnx"
    export_dense(dense(segmenter, True), out)
    for model, file in ((detector[0], detector[1]), (segmenter, out)):
        own = sum(value.nbytes for value in model.state_dict().values())
        assert constant_bytes(file) <= 1.02 * own + 50_000


@pytest.mark.all
@pytest.mark.parametrize(
    ("head", "name"), [("upernet", "van_b0"), *(("semantic-fpn", name) for name in one_per_family())]
)
def test_segmenters_on_our_backbones_are_exported(head: str, name: str, tmp_path: Path) -> None:
    model = small_segmenter(head, name)
    assert export_dense(dense(model, True), tmp_path / "m.onnx").difference <= 1e-4


@pytest.mark.all
@pytest.mark.parametrize("family", SMALLEST)
def test_segmenters_of_the_published_configs_are_exported_whole(family: str, tmp_path: Path) -> None:
    """Those that slide as `--cfg-options model.test_cfg.mode=whole` makes them."""
    for head in ("upernet", "semantic-fpn"):
        if leaf(head, family) is None:
            continue
        model = small_segmenter(head, family)
        model.test_cfg.mode = "whole"
        out = tmp_path / f"{head}.onnx"
        assert export_dense(dense(model, True), out).difference <= 1e-4
        assert free_axes(out) == [0, 2, 3]


@pytest.mark.all
@pytest.mark.parametrize(
    ("head", "name"),
    [("atss", BACKBONE), ("mask2former", BACKBONE), ("atss", "cswin_tiny"), ("dino-4scale", "shvit_s1_fused")],
)
def test_features_are_backbone_and_neck_named_by_stride(head: str, name: str, tmp_path: Path) -> None:
    segments = head == "mask2former"
    model, out = (small_segmenter if segments else small_detector)(head, name), tmp_path / "m.onnx"
    report = export_dense(dense(model, segments), out, features=True)
    strides = {"mask2former": (4, 8, 16, 32), "dino-4scale": (8, 16, 32, 64)}.get(head, (8, 16, 32, 64, 128))
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
    sentence = rf"{kind} cannot be exported whole, as RetinaNet, FasterRCNN and MaskRCNN can; --features exports"
    with pytest.raises(UserError, match=sentence):
        export_dense(dense(model, False), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"nms": {"type": "soft_nms", "iou_threshold": 0.5}}, "with nms={'type': 'soft_nms'"),
        ({"nms": {"type": "nms"}}, "with nms={'type': 'nms'} cannot be exported whole"),
        ({"nms_pre": -1}, "needs nms_pre of its test_cfg above 0, and it is -1"),
        ({"max_per_img": -1}, "needs max_per_img of its test_cfg above 0, and it is -1"),
    ],
)
def test_rules_that_the_graph_does_not_have_are_refused(change: dict[str, Any], reason: str) -> None:
    model = small_detector("retinanet")
    assert refusal(dense(model, False)) is None
    for key, value in change.items():
        model.bbox_head.test_cfg[key] = value
    assert reason in (refusal(dense(model, False)) or "")


@pytest.mark.parametrize("part", ["rpn_head", "roi_head"])
def test_both_stages_need_a_number_of_boxes(part: str) -> None:
    model = small_detector("mask-rcnn")
    assert refusal(dense(model, False)) is None
    getattr(model, part).test_cfg.max_per_img = -1
    assert "needs max_per_img of its test_cfg above 0" in (refusal(dense(model, False)) or "")


def test_a_loss_that_adds_channels_of_its_own_is_refused() -> None:
    model = small_detector("retinanet")
    model.bbox_head.loss_cls.custom_cls_channels = True
    assert "with FocalLoss cannot be exported whole" in (refusal(dense(model, False)) or "")


@pytest.mark.parametrize("option", [["--fp16"], ["--csv", "t.csv"], ["--format", "exported", "--out", "m.pt2"]])
def test_options_of_classifiers_are_refused_before_a_detector_is_built(
    option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vertebra.tools._dense.load_dense_target", lambda *_: pytest.fail("it was built"))
    assert run_tool(export_onnx.main, ["demo/retinanet_digits", "--out", "m.onnx", *option]) == 2
    said = f"error: {' '.join(option[: 1 + (option[0] == '--format')])} is for classifiers and their maps"
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_segmenters_that_slide_are_refused() -> None:
    model = small_segmenter("semantic-fpn")
    assert refusal(dense(model, True)) is None
    model.test_cfg = {"mode": "slide"}
    assert "--cfg-options model.test_cfg.mode=whole exports one" in (refusal(dense(model, True)) or "")


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
