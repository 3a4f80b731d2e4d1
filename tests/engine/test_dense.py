"""Checkpoints for detectors and segmenters: what starts anew, and what is refused."""

import pytest
import torch
from torch import Tensor, nn
from vertebra.backbones._errors import UserError
from vertebra.engine.dense import load_dense


class Detector(nn.Module):
    """As much of one as a checkpoint sees."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.bbox_head = nn.Conv2d(4, classes, 1)


def test_all_of_a_file_is_loaded_without_a_word() -> None:
    source, model = Detector(), Detector()
    assert load_dense(model, {"state_dict": source.state_dict()}, "f.pth", training=False) == []
    assert torch.equal(model.bbox_head.weight, source.bbox_head.weight)


def test_a_head_of_another_size_starts_anew_in_training_and_is_refused_elsewhere() -> None:
    checkpoint, model = {"state_dict": Detector(80).state_dict()}, Detector()
    with pytest.raises(
        UserError, match=r"f\.pth does not fit .*: bbox_head\.weight is \(80, 4, 1, 1\) there and \(3, 4"
    ):
        load_dense(model, checkpoint, "f.pth", training=False)
    (said,) = load_dense(model, checkpoint, "f.pth", training=True)
    assert said == "f.pth: bbox_head start anew (2 of 9 tensors)"


@pytest.mark.parametrize("training", [True, False])
def test_a_file_of_something_else_is_refused(training: bool) -> None:
    weights: dict[str, Tensor] = {"foo.weight": torch.zeros(3)}
    with pytest.raises(UserError, match=r"f\.pth has nothing of a Detector; it has foo\.weight"):
        load_dense(Detector(), weights, "f.pth", training)


def test_what_a_file_has_beside_is_named() -> None:
    weights = Detector().state_dict() | {"mask_head.weight": torch.zeros(3)}
    assert load_dense(Detector(), weights, "f.pth", training=False) == ["f.pth: mask_head.weight in it is not used"]
