"""The classifier around a timm model: its images, targets and losses."""

import math

import pytest
import timm
import torch
from torch.nn import functional
from vertebra.backbones._errors import UserError
from vertebra.engine.classifier import TimmClassifier, TimmPreprocessor
from vertebra.engine.metrics import TopK

SMALL = {"model_name": "van_b0", "num_classes": 3, "depths": (1, 1, 1, 1)}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def batch(size: int = 4) -> dict[str, torch.Tensor]:
    images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8)
    return {"inputs": images, "targets": torch.arange(size) % 3, "unreadable": torch.full((size,), -1)}


def test_images_are_normalised_as_timm_does_it() -> None:
    data = batch()
    found = TimmPreprocessor(MEAN, STD, 3)(data)["inputs"]
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (MEAN, STD))
    torch.testing.assert_close(found, (data["inputs"] / 255 - mean) / std)


def test_mixing_and_erasing_happen_in_training_alone() -> None:
    prepare = TimmPreprocessor(MEAN, STD, 3, mixup={"mixup_alpha": 1.0}, erasing={"probability": 1.0})
    data = batch()
    plain, mixed = prepare(data), prepare(data, training=True)
    assert plain["targets"].shape == (4,)
    assert mixed["targets"].shape == (4, 3)
    torch.testing.assert_close(mixed["targets"].sum(1), torch.ones(4))
    assert not torch.equal(plain["inputs"], mixed["inputs"])


def test_mixing_an_odd_batch_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size 3 is odd"):
        TimmPreprocessor(MEAN, STD, 3, mixup={"mixup_alpha": 1.0})(batch(3), training=True)


def test_smoothing_of_mixed_targets_is_timms() -> None:
    from timm.data.mixup import mixup_target

    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    smoothed = mixup_target(targets, 3, lam=0.7, smoothing=0.1)
    theirs = torch.sum(-smoothed * functional.log_softmax(logits, -1), -1).mean()
    ours = functional.cross_entropy(logits, mixup_target(targets, 3, lam=0.7), label_smoothing=0.1)
    torch.testing.assert_close(ours, theirs)


def test_building_for_the_runner_does_not_initialise_again() -> None:
    model = TimmClassifier(**SMALL)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_state_dict_is_timms_behind_a_prefix() -> None:
    model = TimmClassifier(**SMALL)
    names = timm.create_model("van_b0", num_classes=3, depths=(1, 1, 1, 1)).state_dict()
    assert set(model.state_dict()) == {f"backbone.{name}" for name in names}


def test_a_loss_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match="the loss is nan"):
        TimmClassifier(**SMALL).parse_losses({"loss": torch.tensor(math.nan)})


def test_metrics_leave_unreadable_images_out() -> None:
    metric = TopK()
    logits = torch.zeros(4, 10)
    logits[:, :5] = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])  # the best class is 0, the next four are 1 to 4
    metric.process(None, [{"logits": logits, "targets": torch.tensor([0, 4, 5, -1])}])
    assert metric.evaluate(4) == {"top1": 1 / 3, "top5": 2 / 3, "images": 3, "unreadable": 1}
    assert metric.confusion is not None
    assert metric.confusion[5, 0] == 1


def test_fewer_than_five_classes_have_a_top5_of_one() -> None:
    metric = TopK()
    metric.process(None, [{"logits": torch.randn(6, 3), "targets": torch.arange(6) % 3}])
    assert metric.evaluate(6)["top5"] == 1.0
