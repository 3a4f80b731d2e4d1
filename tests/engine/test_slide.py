"""Slide test: windows that are said on the command line, or follow from the crops of training."""

from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from vertebra.backbones._errors import UserError
from vertebra.engine.config import change, check_model, read_config
from vertebra.tools._common import parse_changes

LEAF = "ade20k/upernet_160k"


def changed(*options: str) -> Config:
    """The config as the tools change and check it."""
    config = read_config(LEAF)
    change(config, parse_changes(options))
    check_model(config)
    return config


@pytest.mark.parametrize(
    ("options", "crop", "stride"),
    [
        ([], (512, 512), (341, 341)),
        (["model.test_cfg.crop_size=(640,320)"], (640, 320), (426, 213)),
        (["model.test_cfg.crop_size=64", "model.test_cfg.stride=(32,64)"], (64, 64), (32, 64)),
    ],
    ids=["crops of training", "two thirds of the windows", "all said"],
)
def test_windows_are_as_large_as_crops_and_two_thirds_apart(
    options: list[str], crop: tuple[int, int], stride: tuple[int, int]
) -> None:
    test = changed("model.test_cfg.mode=slide", *options).model.test_cfg
    assert (test.mode, test.crop_size, test.stride) == ("slide", crop, stride)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("mode=slid", "mode is 'slid'; whole and slide are accepted"),
        ("crop_size=(512,)", r"crop_size is \(512,\); a height and a width"),
        ("stride=0", "stride is 0; a height and a width"),
        ("stride=600", r"stride \(600, 600\) is more than crop_size \(512, 512\)"),
    ],
)
def test_windows_that_cannot_be_are_refused(option: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        changed("model.test_cfg.mode=slide", f"model.test_cfg.{option}")


def test_a_model_without_crops_of_training_has_to_be_told() -> None:
    config = read_config(LEAF)
    config.model.data_preprocessor.pop("size")
    config.model.test_cfg.mode = "slide"
    with pytest.raises(UserError, match=r"needs model\.test_cfg\.crop_size"):
        check_model(config)


def segmenter(*options: str) -> Any:
    """A small UPerNet, the same at every call."""
    small = ["backbone.model_name=van_b0", "backbone.pretrained=False", "backbone.depths=(1,1,1,1)"]
    small += ["decode_head.in_channels=(32,64,160,256)", "decode_head.channels=8", "auxiliary_head=None"]
    config = changed(*(f"model.{option}" for option in small), *options)
    config.model.decode_head.norm_cfg = dict(type="BN")
    init_default_scope("mmseg")
    torch.manual_seed(0)
    model: Any = MODELS.build(config.model).eval()
    model.init_weights()
    return model


def logits(model: Any, images: torch.Tensor) -> torch.Tensor:
    """(B, classes, H, W) of images (B, 3, H, W)."""
    shape = tuple(images.shape[2:])
    with torch.no_grad():
        return model.inference(images, [dict(ori_shape=shape, img_shape=shape, pad_shape=shape)])


def test_a_window_larger_than_the_image_sees_it_whole() -> None:
    pytest.importorskip("mmseg")
    images = torch.randn(1, 3, 64, 96, generator=torch.manual_seed(1))
    whole = logits(segmenter(), images)
    for crop in ("(512,512)", "(64,512)"):
        slid = logits(segmenter("model.test_cfg.mode=slide", f"model.test_cfg.crop_size={crop}"), images)
        torch.testing.assert_close(slid, whole)


def test_windows_that_overlap_are_averaged() -> None:
    """Windows of 64 x 64, 32 apart, on 64 x 96 pixels: the middle third is in both."""
    pytest.importorskip("mmseg")
    images = torch.randn(1, 3, 64, 96, generator=torch.manual_seed(1))
    model = segmenter("model.test_cfg.mode=slide", "model.test_cfg.crop_size=64", "model.test_cfg.stride=32")
    slid = logits(model, images)
    left, right = logits(model, images[..., :64]), logits(model, images[..., 32:])
    torch.testing.assert_close(slid[..., :32], left[..., :32])
    torch.testing.assert_close(slid[..., 32:64], (left[..., 32:] + right[..., :32]) / 2)
    torch.testing.assert_close(slid[..., 64:], right[..., 32:])
