"""The classifier around a timm model: its images, targets and losses."""

import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from mmengine.logging import MMLogger
from torch import nn
from torch.nn import functional
from vertebra.backbones._errors import UserError
from vertebra.engine import classifier as module
from vertebra.engine.classifier import TimmClassifier, TimmPreprocessor
from vertebra.engine.metrics import TopK
from vertebra.engine.runner import VertebraRunner

SMALL: dict[str, Any] = {"model_name": "van_b0", "num_classes": 3, "depths": (1, 1, 1, 1)}
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


# --- fine-tuning ---


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is warned of."""
    lines: list[str] = []
    monkeypatch.setattr(MMLogger, "warning", lambda self, text: lines.append(text))
    return lines


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """What `van_b0.in1k` is taken to be: a small network with five classes."""
    torch.manual_seed(0)
    model = timm.create_model("van_b0", num_classes=5, depths=(1, 1, 1, 1))
    real = module.create

    def fetch(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        assert not pretrained or name == "van_b0.in1k"
        return model if pretrained else real(name, **options)

    monkeypatch.setattr(module, "create", fetch)
    return model


def test_a_head_of_another_size_starts_anew_and_that_is_said(published: nn.Module, said: list[str]) -> None:
    found = TimmClassifier(**SMALL, weights="van_b0.in1k").backbone.state_dict()
    for key, value in published.state_dict().items():
        assert key.startswith("head.") or torch.equal(found[key], value), key
    assert found["head.fc.weight"].shape == (3, 256)
    assert said == ["van_b0.in1k: head.fc.bias, head.fc.weight start anew"]


def test_a_head_of_the_same_size_is_taken_over_in_silence(published: nn.Module, said: list[str]) -> None:
    found = TimmClassifier(**{**SMALL, "num_classes": 5}, weights="van_b0.in1k", head_init_scale=0.1)
    assert torch.equal(found.backbone.head.fc.weight, published.head.fc.weight)
    assert said == []


def test_a_file_is_read_and_its_fresh_head_made_small(tmp_path: Path, said: list[str]) -> None:
    source = timm.create_model("van_b0", num_classes=5, depths=(1, 1, 1, 1))
    torch.save({"state_dict": source.state_dict()}, tmp_path / "mine.pth")
    heads = []
    for scale in (1.0, 0.001):
        torch.manual_seed(0)
        model = TimmClassifier(**SMALL, weights=str(tmp_path / "mine.pth"), head_init_scale=scale)
        heads.append(model.backbone.head.fc.weight)
    torch.testing.assert_close(heads[1], heads[0] * 0.001)
    assert heads[0].abs().max() > 0
    assert len(said) == 2


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ("van_b4.in22k", "model.weights is 'van_b4.in22k', which cannot be had .* taken as model.weights=FILE"),
        ("van_b0.in2k", "model.weights is 'van_b0.in2k'; published weights of van_b0 are van_b0.in1k"),
        ("van_b77", "there is no model 'van_b77'.* Did you mean"),
        ("mine.pth", "checkpoint mine.pth does not exist"),
        ("runs/best", "checkpoint runs/best does not exist"),
    ],
)
def test_weights_that_cannot_be_had_are_one_sentence(weights: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TimmClassifier(**SMALL, weights=weights)


@pytest.mark.parametrize("follows", ["load_from", "resume", "nothing"])
def test_weights_are_left_alone_where_a_checkpoint_follows(follows: str, tmp_path: Path) -> None:
    (tmp_path / "epoch_1.pth").touch() if follows == "resume" else None
    given = {"load_from": "some.pth"} if follows == "load_from" else {"resume": True}
    model = {"type": "TimmClassifier", **SMALL, "weights": "missing.pth"}

    def build() -> VertebraRunner:
        return VertebraRunner(model, str(tmp_path), experiment_name=f"{tmp_path.name}_{follows}", **given)

    if follows != "nothing":
        assert build().model.backbone.num_classes == 3
        return
    with pytest.raises(UserError, match=r"missing\.pth does not exist"):
        build()


# --- options ---


def test_batch_norm_keeps_to_its_statistics_where_asked() -> None:
    for norm_eval in (True, False):
        model = TimmClassifier(**SMALL, norm_eval=norm_eval).train()
        norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
        assert norms
        assert all(part.training is not norm_eval for part in norms)
        assert model.backbone.head.training
        before = norms[0].running_mean.clone()
        model(batch()["inputs"].float())
        assert torch.equal(norms[0].running_mean, before) is norm_eval
        assert all(parameter.requires_grad for part in norms for parameter in part.parameters())


def test_blocks_are_computed_again_in_the_backward_pass_where_asked() -> None:
    for asked in (True, False):
        model = TimmClassifier(**SMALL, grad_checkpointing=asked).train()
        calls: list[int] = []
        model.backbone.stages[0].blocks[0].mlp.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(**model.data_preprocessor(batch()), mode="loss")["loss"].backward()
        assert len(calls) == 1 + asked


def test_a_model_without_gradient_checkpointing_is_refused() -> None:
    with pytest.raises(UserError, match="grad_checkpointing is set, and dla34 has no gradient checkpointing"):
        TimmClassifier("dla34", num_classes=3, grad_checkpointing=True, device="meta")


@pytest.mark.parametrize(("processes", "kind"), [(1, nn.BatchNorm2d), (2, nn.SyncBatchNorm)])
def test_batch_norm_is_shared_among_several_processes(
    processes: int, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "get_world_size", lambda: processes)
    monkeypatch.setattr(module, "get_device", lambda: "cuda")
    model = TimmClassifier(**SMALL, sync_bn=True)
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(type(part) is kind for part in norms)


def test_sharing_batch_norm_without_gpus_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "get_world_size", lambda: 2)
    monkeypatch.setattr(module, "get_device", lambda: "cpu")
    with pytest.raises(UserError, match="sync_bn is for GPUs, and this runs on cpu"):
        TimmClassifier(**SMALL, sync_bn=True)
