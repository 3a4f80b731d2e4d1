"""How boxes are compared, and that files which find others are refused."""

import contextlib
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from vertebra.backbones._errors import UserError

pytest.importorskip("mmdet")

from small_exports import small_detector
from vertebra.tools._export import checks, detector_check
from vertebra.tools._export.detector_check import agreement
from vertebra.tools._export.detector_graph import DetectorGraph


def test_detector_that_disagrees_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector_check, "agreement", lambda found, _: 1.0 if found else 0.5)
    monkeypatch.setattr(detector_check, "answers", lambda *_: lambda _: [])
    monkeypatch.setattr(detector_check, "_save_with_any_score", lambda *_: None)
    monkeypatch.setattr(detector_check, "_check_threshold", lambda *_: None)
    with pytest.raises(UserError, match=r"finds 50% of PyTorch's 20 boxes at 1x3x96x128, less than 95%: nothing was"):
        detector_check.compare_boxes(tmp_path / "m.onnx", DetectorGraph(small_detector("retinanet")), [(1, 3, 96, 128)])


def suppressing(path: Path, least: float, outside: bool = False) -> Path:
    """A file with one NonMaxSuppression, whose threshold of scores is `least`, and a weight."""
    constants = {"most": np.array([9]), "overlap": np.float32(0.5), "least": np.float32(least)}
    inits = [onnx.numpy_helper.from_array(np.reshape(value, -1), name) for name, value in constants.items()]
    inits.append(onnx.numpy_helper.from_array(np.ones(300, np.float32), "weight"))
    node = onnx.helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "overlap", "least"], ["kept"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [], inits))
    onnx.save_model(model, path, save_as_external_data=outside, location="m.onnx.data", size_threshold=1000)
    return path


def test_file_with_another_threshold_of_scores_is_refused(tmp_path: Path) -> None:
    model = small_detector("retinanet")
    model.bbox_head.test_cfg.score_thr = 0.05
    detector_check._check_threshold(suppressing(tmp_path / "m.onnx", 0.05), model)
    with pytest.raises(UserError, match=r"has 0\.9 for the least score of a box, its detector 0\.05: nothing was"):
        detector_check._check_threshold(suppressing(tmp_path / "m.onnx", 0.9), model)


def test_weights_beside_a_file_are_left_there_while_its_boxes_are_compared(tmp_path: Path) -> None:
    file, lowered = suppressing(tmp_path / "m.onnx", 0.05, outside=True), tmp_path / "lowered"
    detector_check._save_with_any_score(file, lowered)
    assert lowered.stat().st_size < 1000
    (weight,) = [x for x in onnx.load(lowered).graph.initializer if x.name == "weight"]
    assert onnx.numpy_helper.to_array(weight).sum() == 300


def test_threshold_of_scores_is_looked_at_before_boxes_are_compared_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, looked = suppressing(tmp_path / "m.onnx", 0.05), []

    def refuse(*given: object) -> None:
        looked.append(given)
        raise UserError("another threshold")

    graph = types.SimpleNamespace(model=object())
    monkeypatch.setattr(detector_check, "_any_score", contextlib.nullcontext)
    monkeypatch.setattr(detector_check, "run_pytorch", lambda *_: (torch.zeros(1, 3, 8, 8), some_boxes()))
    monkeypatch.setattr(detector_check, "_check_threshold", refuse)
    with pytest.raises(UserError, match="another threshold"):
        detector_check.compare_boxes(file, graph, [(1, 3, 8, 8)])  # type: ignore[arg-type]
    assert looked == [(file, graph.model)]
    assert list(tmp_path.iterdir()) == [file]


class Edge(torch.nn.Module):
    """Finds two boxes, and a third one where the image's mean, times a weight, is above an edge."""

    model = None

    def __init__(self, edge: float) -> None:
        super().__init__()
        self.edge, self.factor = edge, torch.nn.Parameter(torch.ones(()))

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [x[: 2 + int(image.double().mean() * self.factor > self.edge)] for x in some_boxes()]


@pytest.mark.parametrize("settled", [False, True])
def test_an_image_that_rounding_decides_on_gives_way_to_another_and_no_other_does(
    settled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (1, 3, 32, 32)
    mean = checks.noise(shape).double().mean().item()
    apart = 1.0 if settled else 1e-9 * abs(mean)
    graph, exported = Edge(mean - apart), Edge(mean + apart)
    monkeypatch.setattr(detector_check, "_any_score", contextlib.nullcontext)
    monkeypatch.setattr(detector_check, "answers", lambda _: exported)
    for name in ("_check_threshold", "_save_with_any_score"):
        monkeypatch.setattr(detector_check, name, lambda *_: None)
    if settled:
        with pytest.raises(UserError, match=r"finds 67% of PyTorch's 3 boxes at 1x3x32x32, less than 95%: nothing"):
            detector_check.compare_boxes(tmp_path / "m.onnx", graph, [shape])
        return
    (check,) = detector_check.compare_boxes(tmp_path / "m.onnx", graph, [shape])
    assert (check.passed_over, check.share) == (1, 1)
    assert str(check).endswith("  (1 passed over, since rounding decides there what the model chooses)")


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
