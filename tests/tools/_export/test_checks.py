"""How far an exported file is from PyTorch, and at which sizes and batch sizes it is looked at."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from small_networks import Scale
from torch import nn
from vertebra.backbones._errors import UserError
from vertebra.tools._classifier import Classifier
from vertebra.tools._export.checks import TRIES, Check, compare, difference, run_pytorch
from vertebra.tools._export.classifier import export
from vertebra.tools._export.model import settle_norms


class _LargeBatches(Scale):
    """Wrong as soon as there is one image alone, were it not for its twin in the graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alone = not torch.compiler.is_exporting() and len(x) == 1
        return super().forward(x) + (1.0 if alone else 0.0)


def test_graph_that_fails_for_one_image_alone_is_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"differs from PyTorch by .* at 1x3x32x32"):
        export(Classifier("test_resnet", _LargeBatches(2.0)), tmp_path / "m.onnx", static=(32, 32))
    assert not list(tmp_path.iterdir())


def test_difference_is_measured_in_standard_deviations_of_the_output() -> None:
    expected = torch.tensor([1.0, -1.0] * 50) * 1e-20
    assert difference(expected + 3e-24, expected) == pytest.approx(3e-4, rel=1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_infinitely_far_from_anything(bad: float) -> None:
    broken = torch.tensor([bad, 1.0])
    assert difference(broken, torch.ones(2)) == np.inf
    assert difference(broken, broken) == np.inf


def test_constant_outputs_are_compared_by_their_size_and_zeros_equal_zeros() -> None:
    assert difference(torch.zeros(4), torch.zeros(4)) == 0
    assert difference(torch.full((4,), 5.0 + 1e-6), torch.full((4,), 5.0)) < 1e-4
    assert difference(torch.full((4,), 5.1), torch.full((4,), 5.0)) > 1e-4
    assert difference(torch.full((4,), 1e-9), torch.zeros(4)) == np.inf


@pytest.mark.parametrize(("static", "advised"), [(None, True), ((150, 150), False)])
def test_a_fixed_size_is_advised_where_none_was_asked_for(
    static: tuple[int, int] | None, advised: bool, tmp_path: Path
) -> None:
    model = Classifier("test_vit", timm.create_model("test_vit", num_classes=3))
    with pytest.raises(UserError, match="test_vit cannot run on an image of") as refused:
        export(model, tmp_path / "m.onnx", static=static)
    assert ("--static" in str(refused.value)) is advised


@pytest.mark.parametrize("fixed", [True, False])
def test_a_runtime_that_answers_wrong_or_not_at_all_leaves_advice_where_sizes_are_free(fixed: bool) -> None:
    model = Scale(2.0)

    def fail(images: torch.Tensor) -> list[torch.Tensor]:
        raise ValueError("no such operator")

    for answer, sentence in ((lambda images: [model(images) + 1], "differs"), (fail, "cannot run the exported file")):
        with pytest.raises(UserError, match=sentence) as refused:
            compare(model, answer, [run_pytorch("m", model, SHAPE)], fixed=fixed)
        assert ("--static" in str(refused.value)) is not fixed


class _Chooses(Scale):
    """Adds one where the first channel's mean, times a weight, is above an edge; without an edge, rounding decides."""

    def __init__(self, edge: float | None = None) -> None:
        super().__init__(2.0)
        self.edge = edge

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = super().forward(x)
        edge = means[:, :1] if self.edge is None else self.edge
        return means + (means[:, :1] * self.factor / 2 > edge)


SHAPE = (1, 3, 32, 32)


def test_an_image_that_rounding_decides_on_gives_way_to_another() -> None:
    model = _Chooses()
    model.edge = model(run_pytorch("m", model, SHAPE)[0])[0, 0].item()
    other = _Chooses(model.edge * (1 - 1e-6))
    (check,) = compare(model, lambda images: [other(images)], [run_pytorch("m", model, SHAPE)])
    assert (check.passed_over, check.difference) == (1, 0)
    assert str(check).endswith("0.0e+00  (1 passed over, since rounding decides there what the model chooses)")
    assert str(Check(SHAPE, 0.0)).endswith("0.0e+00")


def test_a_wrong_answer_is_no_rounding() -> None:
    model = _Chooses(0.0)
    with pytest.raises(UserError, match=r"by 1\..* at 1x3x32x32, more than 1e-04: nothing was written"):
        compare(model, lambda images: [model(images) + 1], [run_pytorch("m", model, SHAPE)])


def test_a_model_that_rounding_moves_on_every_image_is_refused_with_that_reason() -> None:
    model, asked = _Chooses(), []

    def answer(images: torch.Tensor) -> list[torch.Tensor]:
        asked.append(images)
        return [model(images) + 1]

    with pytest.raises(UserError, match=f"rounding alone moves PyTorch's own answer on all of {TRIES} random images"):
        compare(model, answer, [run_pytorch("m", model, SHAPE)])
    assert len({images.sum().item() for images in asked}) == TRIES


def test_norms_of_fresh_weights_get_the_statistics_of_noise() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    model.num_classes, model.pretrained_cfg = 4, {"input_size": (3, 64, 64)}
    before = model(images := torch.randn(2, 3, 64, 64)).var((0, 2, 3))
    settle_norms(Classifier("test_resnet", model))
    assert not model.training
    assert model[1].momentum == 0.1
    assert (before - 1).abs().max() > 0.3
    assert (model(images).var((0, 2, 3)) - 1).abs().max() < 0.1
