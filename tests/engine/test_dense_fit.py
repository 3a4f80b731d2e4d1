"""Necks and heads that do not fit the backbone are named, with what they should be."""

from typing import Any

import pytest
import vertebra.engine  # noqa: F401  registers the backbone
from vertebra.backbones._errors import UserError
from vertebra.engine.config import check_model, config_names, read_config
from vertebra.engine.dense_fit import check_fit, other_colours

VAN = dict(type="TimmPyramid", model_name="van_b0")  # maps of 32, 64, 160 and 256 channels


def detector(**changes: Any) -> dict[str, Any]:
    """Mask R-CNN's parts that have to fit; `changes` name parts by dotted keys."""
    reader = dict(out_channels=64, featmap_strides=[4, 8, 16, 32])
    model = dict(
        backbone=VAN,
        neck=dict(type="FPN", in_channels=[32, 64, 160, 256], out_channels=64, num_outs=5),
        rpn_head=dict(in_channels=64, anchor_generator=dict(strides=[4, 8, 16, 32, 64])),
        roi_head=dict(
            bbox_roi_extractor=dict(reader),
            bbox_head=[dict(in_channels=64), dict(in_channels=64)],
            mask_roi_extractor=dict(reader),
            mask_head=dict(in_channels=64),
        ),
    )
    return changed(model, changes)


def segmenter(**changes: Any) -> dict[str, Any]:
    """UPerNet's."""
    heads = dict(
        decode_head=dict(in_channels=[32, 64, 160, 256], in_index=[0, 1, 2, 3]),
        auxiliary_head=[dict(in_channels=160, in_index=2)],
    )
    return changed(dict(backbone=VAN) | heads, changes)


def changed(model: Any, changes: dict[str, Any]) -> Any:
    for key, value in changes.items():
        place = model
        *parents, last = key.split("__")
        for part in parents:
            place = place[int(part) if part.isdigit() else part]
        place[last] = value
    return model


def behind_a_neck(**changes: Any) -> dict[str, Any]:
    """Semantic FPN's."""
    neck = dict(type="FPN", in_channels=[32, 64, 160, 256], out_channels=16, num_outs=4)
    head = dict(in_channels=[16] * 4, in_index=[0, 1, 2, 3])
    return changed(dict(backbone=VAN, neck=neck, decode_head=head), changes)


@pytest.mark.parametrize("model", [detector(), segmenter(), behind_a_neck()])
def test_what_fits_is_accepted(model: dict[str, Any]) -> None:
    check_fit(model)


MAPS = "the maps of van_b0 have 32, 64, 160, 256 channels"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            detector(neck__in_channels=[256, 512, 1024, 2048]),
            f"model.neck.in_channels is [256, 512, 1024, 2048], but {MAPS}: it should be [32, 64, 160, 256]",
        ),
        (
            detector(neck__in_channels=[64, 160, 256]),
            f"model.neck.in_channels is [64, 160, 256], but {MAPS}: it should be [32, 64, 160, 256]",
        ),
        (
            detector(neck=[dict(in_channels=[1, 2, 3, 4], out_channels=64)]),
            f"model.neck.0.in_channels is [1, 2, 3, 4], but {MAPS}: it should be [32, 64, 160, 256]",
        ),
        (
            detector(neck=dict(type="SimplePyramid", in_channels=192, out_channels=64, num_outs=5)),
            f"model.neck.in_channels is 192, but {MAPS}: it should be 256",
        ),
        (
            detector(rpn_head__in_channels=256),
            "model.rpn_head.in_channels is 256, but the neck gives 5 maps of 64 channels: it should be 64",
        ),
        (
            detector(neck__num_outs=4),
            "model.rpn_head.anchor_generator.strides is [4, 8, 16, 32, 64], but the neck gives 4 maps of 64 channels: "
            "it takes 4 strides, or model.neck.num_outs another number",
        ),
        (
            detector(roi_head__bbox_roi_extractor__out_channels=256),
            "model.roi_head.bbox_roi_extractor.out_channels is 256, but the neck gives 5 maps of 64 channels: it "
            "should be 64",
        ),
        (
            detector(roi_head__bbox_head__1__in_channels=256),
            "model.roi_head.bbox_head.1.in_channels is 256, but the neck gives 5 maps of 64 channels: it should be 64",
        ),
        (
            segmenter(decode_head__in_channels=[64, 128, 320, 512]),
            f"model.decode_head.in_channels is [64, 128, 320, 512], but {MAPS} at in_index [0, 1, 2, 3]: it should be "
            "[32, 64, 160, 256]",
        ),
        (
            segmenter(auxiliary_head__0__in_channels=320),
            f"model.auxiliary_head.0.in_channels is 320, but {MAPS} at in_index 2: it should be 160",
        ),
        (
            segmenter(auxiliary_head__0__in_index=4),
            f"model.auxiliary_head.0.in_index is 4, but {MAPS}: the last is number 3",
        ),
        (
            behind_a_neck(decode_head__in_channels=[256] * 4),
            "model.decode_head.in_channels is [256, 256, 256, 256], but the neck gives 4 maps of 16 channels at "
            "in_index [0, 1, 2, 3]: it should be [16, 16, 16, 16]",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(model: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        check_fit(model)
    assert str(error.value) == sentence


def test_a_backbone_of_another_kind_is_not_judged() -> None:
    check_fit(detector(backbone=dict(type="ResNet", depth=50)))


@pytest.mark.parametrize(
    ("neck", "maps", "count"),
    [
        (dict(type="SimplePyramid", in_channels=[256]), (-1,), 4),
        (dict(type="HRFPN", in_channels=[32, 64, 160, 256]), None, 5),
        (dict(type="mmdet.ChannelMapper", in_channels=[64, 160, 256]), (1, 2, 3), 3),
    ],
)
def test_a_neck_that_leaves_num_outs_out_gives_as_many_maps_as_its_class_says(
    neck: dict[str, Any], maps: tuple[int, ...] | None, count: int
) -> None:
    pytest.importorskip("mmdet")
    model = detector(backbone=VAN | dict(out_indices=maps), neck=neck | dict(out_channels=64))
    model["roi_head"] = None
    model["rpn_head"]["anchor_generator"]["strides"] = [4, 8, 16, 32, 64][:count]
    check_fit(model)
    model["rpn_head"]["anchor_generator"]["strides"].pop()
    with pytest.raises(UserError, match=f"the neck gives {count} maps of 64 channels"):
        check_fit(model)


def test_what_a_neck_without_num_outs_gives_is_not_judged() -> None:
    pytest.importorskip("mmseg")
    neck = dict(type="MultiLevelNeck", in_channels=[256], out_channels=16)  # four maps of one
    check_fit(behind_a_neck(backbone=VAN | dict(out_indices=(-1,)), neck=neck))


@pytest.mark.all
@pytest.mark.parametrize("name", [name for name in config_names() if name.startswith(("coco/", "ade20k/", "demo/"))])
def test_every_config_that_is_shipped_fits(name: str) -> None:
    check_model(read_config(name))


@pytest.mark.parametrize(("mean", "said"), [([127.5] * 3, "[123.675, 116.28, 103.53]"), ([123.7, 116.3, 103.5], "")])
def test_other_colours_than_the_published_weights_want_are_told(mean: list[float], said: str) -> None:
    model = detector(backbone=dict(VAN, pretrained=True)) | {"data_preprocessor": dict(mean=mean)}
    told = " ".join(other_colours(model))
    assert (said in told and "van_b0" in told) if said else not told
    assert other_colours(model | {"backbone": VAN}) == []
