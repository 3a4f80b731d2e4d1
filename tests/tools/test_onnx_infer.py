"""`vertebra infer FILE.onnx`: the pictures and results of the model that the file was exported from."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from torch import nn
from vertebra.tools import infer
from vertebra.tools._classifier import Classifier
from vertebra.tools._common import run_tool
from vertebra.tools._export.model import metadata, to_properties
from vertebra.tools._onnx_infer import OnnxDense, load_onnx, prepare

RGB = {"channels": "RGB", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


class Means(nn.Module):
    """Tells images by their mean colour: (B, 3, H, W) -> (B, 3)."""

    num_classes, pretrained_cfg = 3, {"input_size": (3, 24, 24), "crop_pct": 0.9, "mean": (0.5, 0.4, 0.3)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * x.mean((2, 3))


def save(path: Path, properties: dict[str, Any], factor: float = 3.0) -> Path:
    """`Means`, or anything that a file says of itself, as a graph of two nodes."""
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "factor"], ["logits"]),
    ]
    given = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, "height", "width"])]
    answer = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])]
    constants = [onnx.numpy_helper.from_array(np.array([2, 3]), "axes")]
    constants.append(onnx.numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    graph = helper.make_graph(nodes, "means", given, answer, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, to_properties(properties))
    onnx.save(model, path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with three pictures of one colour and a little noise each."""
    folder = tmp_path / "images"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for i, colour in enumerate([(220, 30, 30), (30, 220, 30), (30, 30, 220)]):
        pixels = np.clip(draw.normal(colour, 20, (40, 60, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def of_mm(module: str) -> ModuleType:
    """A module of mmdet or mmseg, which wants mmcv's operators when it is imported."""
    pytest.importorskip(module.partition(".")[0])
    import vertebra.engine  # noqa: F401  stands in for them

    return importlib.import_module(module)


# ---- classifiers


def test_classifier_draws_and_writes_what_pytorch_does_and_needs_no_mm_package(images: Path, tmp_path: Path) -> None:
    classifier = Classifier("means", Means(), ["red", "green", "blue"])
    file = save(tmp_path / "means.onnx", metadata(classifier, False, (3, 24, 24)))
    names = infer.picture_names(infer.find_images([str(images)]))
    expected = list(infer.write_classes(classifier, infer.read_images(list(names)), names, tmp_path / "pytorch"))
    code = (
        "import sys\n"
        "for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg'): sys.modules[name] = None\n"
        "from vertebra.tools import infer\n"
        f"sys.exit(infer.main([{str(file)!r}, {str(images)!r}, '--out', {str(tmp_path / 'onnx')!r}]))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "onnx/results.json").read_text())
    assert [entry["classes"][0]["label"] for entry in found] == ["red", "green", "blue"]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours["image"], ours["size"]) == (theirs["image"], theirs["size"])
        for ours_class, theirs_class in zip(ours["classes"], theirs["classes"], strict=True):
            assert ours_class["label"] == theirs_class["label"]
            assert ours_class["score"] == pytest.approx(theirs_class["score"], abs=1e-5)
        name = Path(ours["image"]).name
        assert Image.open(tmp_path / "onnx" / name).tobytes() == Image.open(tmp_path / "pytorch" / name).tobytes()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["gone.onnx", "images"], "gone.onnx does not exist: infer takes a file that `vertebra export_onnx` wrote"),
        (["text.onnx", "images"], "text.onnx is no ONNX file that ONNX Runtime can run"),
        (["bare.onnx", "images"], "bare.onnx lacks labels, task in its metadata"),
        (["part.onnx", "images"], "part.onnx lacks mean, std in its metadata"),
        (["maps.onnx", "images"], "maps.onnx holds feature maps, which predict nothing: export it without --features"),
        (["good.onnx", "epoch_1.pth", "images"], "good.onnx holds its weights; after it come images"),
        (["good.onnx", "pretrained", "images"], "good.onnx holds its weights; after it come images"),
        (["good.onnx", "gone.png"], "gone.png does not exist"),
        (["good.onnx", "images", "--device", "mps"], "--device mps: an ONNX file runs on cpu, cuda or cuda:N"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    argv: list[str],
    sentence: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.onnx").write_text("no graph")
    known = metadata(Classifier("means", Means()), False, (3, 24, 24))
    save(tmp_path / "good.onnx", known)
    save(tmp_path / "bare.onnx", {})
    save(tmp_path / "part.onnx", {key: value for key, value in known.items() if key not in ("mean", "std")})
    save(tmp_path / "maps.onnx", known | {"task": "features"})
    assert run_tool(infer.main, [*argv, "--out", "out"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert re.search(re.escape(sentence), said)
    assert not (tmp_path / "out").exists()


# ---- how an image is prepared for a detector or segmenter


def picture(width: int, height: int) -> Image.Image:
    """Waves, since noise would lie between any two ways of resizing."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin((x + shift) / 9) * np.cos(y / 7) for shift in (0, 5, 11)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


@pytest.mark.parametrize("size", [(90, 61), (61, 90), (333, 100), (40, 40)])
@pytest.mark.parametrize(
    ("kind", "options", "step"),
    [
        ("Resize", {"scale": (133, 80), "keep_ratio": True}, {"scale": [133, 80], "keep_ratio": True}),
        ("Resize", {"scale": (96, 64)}, {"scale": [96, 64], "keep_ratio": False}),
        ("ResizeToMultiple", {"size_divisor": 32}, {"multiple": 32}),
    ],
    ids=["ratio", "stretch", "multiple"],
)
def test_images_are_resized_as_mm_resizes_them(
    size: tuple[int, int], kind: str, options: dict[str, Any], step: dict[str, Any]
) -> None:
    transforms = of_mm("mmseg.datasets.transforms")
    image = picture(*size)
    expected = getattr(transforms, kind)(**options).transform({"img": np.asarray(image), "seg_fields": []})["img"]
    plain = {"channels": "RGB", "mean": [0.0] * 3, "std": [1 / 255] * 3, "resize": [step]}
    found, inside = prepare(image, plain)
    assert tuple(found.shape) == (1, 3, *expected.shape[:2])
    assert inside == expected.shape[:2]
    assert torch.equal(found[0].permute(1, 2, 0).round(), torch.from_numpy(expected).float())


def test_images_are_normalised_in_the_order_of_channels_that_the_file_asks_for() -> None:
    image = Image.new("RGB", (4, 4), (255, 51, 0))
    (found,), _ = prepare(image, {**RGB, "resize": []})
    assert found[:, 0, 0].tolist() == pytest.approx([2.5, -2 / 3, -0.75])
    (found,), _ = prepare(image, {**RGB, "resize": [], "channels": "BGR"})
    assert found[:, 0, 0].tolist() == pytest.approx([-2.5, -2 / 3, 1.75])


@pytest.mark.parametrize("size", [(40, 30), (64, 48), (160, 40)])
def test_for_a_fixed_size_images_are_shrunk_and_margins_filled(size: tuple[int, int]) -> None:
    found, (height, width) = prepare(Image.new("RGB", size, (255, 255, 255)), {**RGB, "resize": []}, fixed=(48, 64))
    assert found.shape == (1, 3, 48, 64)
    assert height / width == pytest.approx(size[1] / size[0], rel=0.1)
    assert (found[:, :, :height, :width] > 1).all()
    assert not found[:, :, height:].any()
    assert not found[:, :, :, width:].any()


# ---- from an exported file


@pytest.mark.all
@pytest.mark.parametrize("head", ["retinanet", "mask-rcnn", "semantic-fpn"])
def test_exported_detectors_and_segmenters_give_what_pytorch_gives(head: str, tmp_path: Path) -> None:
    of_mm("mmdet.models")
    of_mm("mmseg.models")
    from mmengine.dataset import Compose
    from mmengine.registry import init_default_scope
    from small_exports import dense, small_detector, small_segmenter
    from vertebra.tools._export.dense import export_dense

    segments, scope = head == "semantic-fpn", "mmseg" if head == "semantic-fpn" else "mmdet"
    init_default_scope(scope)
    pack = {"type": "PackSegInputs"} if segments else {"type": "PackDetInputs"}
    steps = [
        {"type": f"{scope}.LoadImageFromNDArray"},
        {"type": "Resize", "scale": (160, 96), "keep_ratio": True},
        pack,
    ]
    model = (small_segmenter if segments else small_detector)(head)
    built = dense(model, segments, steps, Compose([dict(step) for step in steps]))
    export_dense(built, tmp_path / "m.onnx")
    exported, image = load_onnx(str(tmp_path / "m.onnx"), "cpu"), picture(200, 140)
    assert isinstance(exported, OnnxDense)
    assert (exported.labels, exported.palette) == (built.labels, built.palette)
    if segments:
        assert (exported.classes(image) == built.classes(image)).double().mean() > 0.999
        return
    ours, theirs = exported.boxes(image), built.boxes(image)
    assert len(theirs.scores) >= 10
    near = (ours.corners[:, None] - theirs.corners).abs().amax(2) < 0.5  # pixels
    near &= (ours.scores[:, None] - theirs.scores).abs() < 1e-3
    near &= ours.labels[:, None] == theirs.labels
    assert near.any(0).float().mean() >= 0.95
