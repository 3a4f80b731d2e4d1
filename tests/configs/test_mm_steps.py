"""Every family under every kind of head takes a training step and makes a prediction, on a CPU, without a compiler."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")
import vertebra.engine  # noqa: F401  stands in for mmcv's operators, before mmdet asks for them
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from small_dense import DETECTORS, HEADS, SMALLEST, STUFF, THINGS, build, images, small_config

TIMMS = ("resnet50", "convnext_tiny", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224")
QUICK = {
    ("cascade-mask-rcnn", "cswin"),
    ("gfl", "biformer"),
    ("dino-5scale", "transnext"),
    ("upernet", "shvit"),
    ("mask2former", "litv2"),
    ("mask-rcnn", "vit_tiny_patch16_224"),
}
PAIRS = [(head, backbone) for backbone in (*SMALLEST, *TIMMS) for head in HEADS]


def without_gradient(model: nn.Module) -> list[str]:
    """The parameters that should train and have no gradient, or none that is finite."""
    training = [(key, value.grad) for key, value in model.named_parameters() if value.requires_grad]
    return [key for key, gradient in training if gradient is None or not gradient.isfinite().all()]


def optimizer_of(config: Config, model: nn.Module) -> Any:
    """The config's own optimizer with its groups, in float32."""
    wrapper = config.optim_wrapper
    parts = {key: wrapper[key] for key in ("optimizer", "paramwise_cfg", "clip_grad") if key in wrapper}
    return build_optim_wrapper(model, dict(type="OptimWrapper", **parts))


def assert_boxes(sample: Any, head: str) -> None:
    """Boxes in the image, each with a class, a score and, where the head makes them, a mask."""
    found, (height, width) = sample.pred_instances, sample.ori_shape
    assert len(found) > 0
    assert found.bboxes.shape == (len(found), 4)
    assert found.bboxes.min() >= 0
    assert (found.bboxes <= Tensor([width, height, width, height])).all()
    assert (found.scores.diff() <= 0).all()
    assert 0 <= found.scores.min() <= found.scores.max() <= 1
    assert 0 <= found.labels.min() <= found.labels.max() < THINGS
    if "mask" in head:
        assert found.masks.shape == (len(found), height, width)
        assert found.masks.dtype == torch.bool


@pytest.mark.parametrize(
    ("head", "backbone"),
    [pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.all, id="-".join(pair)) for pair in PAIRS],
)
def test_a_step_gives_all_parameters_gradients_and_a_prediction_is_one(head: str, backbone: str) -> None:
    config = small_config(head, backbone)
    model, data = build(config), images(head)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        wrapper, idle = optimizer_of(config, model), []
        wrapper.optimizer.register_step_pre_hook(lambda *_: idle.append(without_gradient(model)))
        losses = model.train().train_step(data, wrapper)
        assert idle == [[]]
        assert torch.isfinite(losses["loss"])
        model.eval()
        samples = model.test_step(data)
    assert len(samples) == 2
    for sample in samples:
        if head in DETECTORS:
            assert_boxes(sample, head)
        else:
            classes = sample.pred_sem_seg.data
            assert classes.shape == (1, 64, 64)
            assert 0 <= classes.min() <= classes.max() < STUFF
