"""Another backbone in a config: neck, heads and colours follow it, whatever the config's own backbone is."""

from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from vertebra.backbones._errors import UserError
from vertebra.engine.dense_backbone import Maps, maps_of, use_backbone


def detector(**neck: Any) -> Config:
    """RetinaNet on resnet50, as configs have it."""
    return Config(
        dict(
            default_scope="mmdet",
            model=dict(
                type="RetinaNet",
                backbone=dict(type="TimmPyramid", model_name="resnet50", out_indices=(-3, -2, -1), pretrained=True),
                neck=dict(type="FPN", in_channels=[512, 1024, 2048], out_channels=64, num_outs=5) | neck,
                bbox_head=dict(type="RetinaHead", num_classes=80, in_channels=64),
            ),
        )
    )


def segmenter() -> Config:
    """UPerNet on resnet50, which has no neck."""
    backbone = dict(type="TimmPyramid", model_name="resnet50", out_indices=(-4, -3, -2, -1))
    heads = [
        dict(type="UPerHead", in_channels=[256, 512, 1024, 2048], in_index=[0, 1, 2, 3], num_classes=150),
        dict(type="FCNHead", in_channels=1024, in_index=2, num_classes=150),
    ]
    model = dict(type="EncoderDecoder", backbone=backbone, decode_head=heads[0], auxiliary_head=heads[1])
    return Config(dict(default_scope="mmseg", model=model))


@pytest.mark.parametrize(
    ("name", "channels"),
    [("convnext_tiny", [192, 384, 768]), ("swin_tiny_patch4_window7_224", [192, 384, 768]), ("van_b0", [64, 160, 256])],
)
def test_a_neck_takes_the_channels_of_another_backbone(name: str, channels: list[int]) -> None:
    config = detector()
    use_backbone(config, name)
    assert config.model.neck.in_channels == channels
    assert config.model.backbone.model_name == name
    assert config.model.backbone.pretrained is True


def test_images_are_normalised_as_the_backbone_wants_them() -> None:
    config = detector()
    config.model.data_preprocessor = dict(type="DetDataPreprocessor", mean=[1, 2, 3], std=[1, 1, 1], bgr_to_rgb=True)
    use_backbone(config, "resnetv2_50x1_bit.goog_in21k")
    assert config.model.data_preprocessor.mean == config.model.data_preprocessor.std == [127.5, 127.5, 127.5]


def test_heads_without_a_neck_take_the_channels_of_their_maps() -> None:
    config = segmenter()
    use_backbone(config, "van_b0")
    assert config.model.decode_head.in_channels == [32, 64, 160, 256]
    assert config.model.auxiliary_head.in_channels == 160


def test_a_backbone_of_coarser_maps_gets_a_neck_that_grows_finer_ones() -> None:
    config = detector()
    use_backbone(config, "shvit_s1")
    neck = config.model.neck
    assert (neck.type, neck.extra_levels, neck.num_outs) == ("PyramidNeck", 1, 5)
    assert neck.in_channels == [128, 224, 320]


def test_options_of_the_former_backbone_do_not_reach_another() -> None:
    config = detector()
    config.model.backbone.update(drop_path_rate=0.1, replace_stem_pool=True, frozen_stages=1)
    use_backbone(config, "resnet18")
    assert config.model.backbone.frozen_stages == 1
    assert not {"drop_path_rate", "replace_stem_pool"} & set(config.model.backbone)


@pytest.mark.parametrize(
    ("config", "name", "sentence"),
    [
        (detector(), "vit_tiny_patch16_224", "gives 12 maps of one stride, 16, which are no pyramid"),
        (detector(), "van_b9", "there is no model 'van_b9'.*van_b6"),
        (
            segmenter(),
            "shvit_s1",
            r"shvit_s1 gives 3 maps \(strides 16, 32, 64\), .* made for 4 maps \(strides 4, 8, 16, 32\)",
        ),
    ],
)
def test_a_backbone_that_does_not_suit_is_refused(config: Config, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        use_backbone(config, name)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (dict(add_extra_convs=True), dict(add_extra_convs="on_input")),
        (dict(add_extra_convs="on_output", relu_before_extra_convs=True),) * 2,
        (dict(norm_cfg=dict(type="GN", num_groups=8)),) * 2,
        (dict(end_level=-1, conv_cfg=None, upsample_cfg=dict(mode="nearest"), no_norm_on_lateral=False), {}),
    ],
)
def test_a_neck_that_grows_finer_levels_keeps_what_the_former_said(given: dict[str, Any], kept: dict[str, Any]) -> None:
    config = detector(**given)
    use_backbone(config, "shvit_s1")
    sizes = dict(type="PyramidNeck", in_channels=[128, 224, 320], out_channels=64, num_outs=5, extra_levels=1)
    assert config.model.neck == sizes | kept


def test_what_a_neck_that_grows_finer_levels_cannot_do_is_named() -> None:
    with pytest.raises(UserError, match=r"has nothing for act_cfg=\{'type': 'ReLU'\} of this config's FPN"):
        use_backbone(detector(act_cfg=dict(type="ReLU")), "shvit_s1")


def test_maps_that_a_pyramid_leaves_out_are_not_made() -> None:
    config = detector(in_channels=[256, 512, 1024, 2048], start_level=1)
    config.model.backbone.out_indices = (-4, -3, -2, -1)
    use_backbone(config, "van_b0")
    assert config.model.backbone.out_indices == (1, 2, 3)
    assert config.model.neck.in_channels == [64, 160, 256]
    assert "start_level" not in config.model.neck


def test_a_pyramid_of_four_levels_takes_the_maps_that_are_its_levels() -> None:
    config = detector(in_channels=[256, 512, 1024, 2048], num_outs=4)
    config.model.backbone.out_indices = (-4, -3, -2, -1)
    use_backbone(config, "shvit_s1")
    assert config.model.backbone.out_indices == (0, 1)
    assert (config.model.neck.in_channels, config.model.neck.extra_levels) == ([128, 224], 2)
    use_backbone(config, "van_b0")
    assert config.model.backbone.out_indices == (0, 1, 2, 3)
    assert (config.model.neck.in_channels, config.model.neck.extra_levels) == ([32, 64, 160, 256], 0)


def test_the_first_of_several_necks_is_the_one_that_follows() -> None:
    config = detector()
    config.model.neck = [config.model.neck, dict(type="DyHead", in_channels=64, out_channels=64, num_blocks=1)]
    use_backbone(config, "shvit_s1")
    assert [neck.type for neck in config.model.neck] == ["PyramidNeck", "DyHead"]
    assert config.model.neck[1].in_channels == 64


def test_every_head_without_a_neck_follows_its_own_maps() -> None:
    config = segmenter()
    config.model.auxiliary_head = [config.model.auxiliary_head, dict(type="FCNHead", in_channels=2048, num_classes=150)]
    use_backbone(config, "van_b0")
    assert [head.in_channels for head in config.model.auxiliary_head] == [160, 256]


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        (dict(neck=dict(type="Feature2Pyramid", embed_dim=768)), r"neck.in_channels of .* Feature2Pyramid is None"),
        (dict(neck=dict(type="FPN", in_channels=[1, 2, 3], num_outs=5)), r"is \[1, 2, 3\], .* \[512, 1024, 2048\]"),
        (dict(neck=None), "RetinaNet has no neck"),
    ],
)
def test_channels_that_cannot_be_told_apart_are_refused(part: dict[str, Any], sentence: str) -> None:
    config = detector()
    for key, value in part.items():
        config.model[key] = value
    with pytest.raises(UserError, match=sentence):
        use_backbone(config, "van_b0")


@pytest.mark.parametrize(
    ("given", "after"),
    [
        (dict(bgr_to_rgb=False), True),  # Caffe's, in BGR
        (dict(rgb_to_bgr=True), False),  # of images that are read as RGB
        ({}, True),
    ],
)
def test_the_backbone_gets_red_green_and_blue(given: dict[str, bool], after: bool) -> None:
    config = detector()
    config.model.data_preprocessor = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], **given)
    use_backbone(config, "van_b0")
    assert config.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert config.model.data_preprocessor.bgr_to_rgb is after
    assert not config.model.data_preprocessor.get("rgb_to_bgr")


@pytest.mark.parametrize(
    ("given", "after"),
    [
        (dict(init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50")), True),
        (dict(init_cfg=dict(type="Kaiming", layer="Conv2d")), False),
        (dict(pretrained="old.pth"), True),
        ({}, False),
    ],
)
def test_another_backbone_begins_with_its_own_weights(given: dict[str, Any], after: bool) -> None:
    config = detector()
    config.model.backbone = dict(type="TimmPyramid", model_name="resnet50", out_indices=(-3, -2, -1), **given)
    use_backbone(config, "van_b0")
    assert config.model.backbone.pretrained is after
    assert "init_cfg" not in config.model.backbone


# --- configs of mmdet and mmseg ---


def of_mmdet(**backbone: Any) -> Config:
    """RetinaNet as mmdet writes it, whose backbone does not say what it gives."""
    pytest.importorskip("mmdet")
    config = detector(in_channels=[256, 512, 1024, 2048], start_level=1, add_extra_convs="on_input")
    config.model.backbone = dict(type="ResNet", frozen_stages=1, norm_eval=True) | dict(depth=18) | backbone
    config.model.neck.in_channels = [64, 128, 256, 512]
    return config


def test_a_backbone_of_mmdet_is_asked_for_its_maps() -> None:
    assert maps_of(of_mmdet()) == Maps([64, 128, 256, 512], [4, 8, 16, 32])


def test_a_config_of_mmdet_takes_any_backbone() -> None:
    config = of_mmdet()
    use_backbone(config, "van_b0")
    config.model.backbone.pretrained = False
    maps = MODELS.build(config.model.backbone)(torch.zeros(1, 3, 64, 64))
    assert [x.shape[1] for x in maps] == config.model.neck.in_channels == [64, 160, 256]
    assert config.model.backbone.frozen_stages == 1
    assert "depth" not in config.model.backbone


def test_weights_that_mmseg_names_beside_the_backbone_do_not_reach_another() -> None:
    config = of_mmdet(init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet18"))
    config.model.pretrained = "open-mmlab://resnet18_v1c"
    use_backbone(config, "van_b0")
    assert "pretrained" not in config.model
    assert config.model.backbone.pretrained is True


def test_dilated_maps_have_no_counterpart() -> None:
    config = of_mmdet(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    with pytest.raises(UserError, match=r"made for 3 maps \(strides 8, 8, 8\)"):
        use_backbone(config, "van_b0")


def test_a_backbone_that_cannot_be_asked_is_named() -> None:
    with pytest.raises(UserError, match=r"the config's own backbone, ResNet, gives: .*depth"):
        use_backbone(of_mmdet(depth=19), "van_b0")
