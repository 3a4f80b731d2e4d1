"""What a detector's or segmenter's config leaves open: channels from the backbone, classes from the annotations."""

import json
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from vertebra.backbones._errors import UserError
from vertebra.engine import dense_config


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
    dense_config.use_backbone(config, name)
    assert config.model.neck.in_channels == channels
    assert config.model.backbone.model_name == name
    assert config.model.backbone.pretrained is True


def test_images_are_normalised_as_the_backbone_wants_them() -> None:
    config = detector()
    config.model.data_preprocessor = dict(type="DetDataPreprocessor", mean=[1, 2, 3], std=[1, 1, 1], bgr_to_rgb=True)
    dense_config.use_backbone(config, "resnetv2_50x1_bit.goog_in21k")
    assert config.model.data_preprocessor.mean == config.model.data_preprocessor.std == [127.5, 127.5, 127.5]


def test_heads_without_a_neck_take_the_channels_of_their_maps() -> None:
    config = segmenter()
    dense_config.use_backbone(config, "van_b0")
    assert config.model.decode_head.in_channels == [32, 64, 160, 256]
    assert config.model.auxiliary_head.in_channels == 160


def test_a_backbone_of_coarser_maps_gets_a_neck_that_grows_finer_ones() -> None:
    config = detector()
    dense_config.use_backbone(config, "shvit_s1")
    neck = config.model.neck
    assert (neck.type, neck.extra_levels, neck.num_outs) == ("PyramidNeck", 1, 5)
    assert neck.in_channels == [128, 224, 320]


def test_options_of_the_former_backbone_do_not_reach_another() -> None:
    config = detector()
    config.model.backbone.update(drop_path_rate=0.1, replace_stem_pool=True, frozen_stages=1)
    dense_config.use_backbone(config, "resnet18")
    assert config.model.backbone.frozen_stages == 1
    assert not {"drop_path_rate", "replace_stem_pool"} & set(config.model.backbone)


@pytest.mark.parametrize(
    ("config", "name", "sentence"),
    [
        (detector(), "vit_tiny_patch16_224", "gives 3 maps of one stride, 16, which are no pyramid"),
        (detector(), "van_b9", "there is no model 'van_b9'.*van_b6"),
        (segmenter(), "shvit_s1", r"out_indices is \(-4, .*shvit_s1 has 3 maps"),
    ],
)
def test_a_backbone_that_does_not_suit_is_refused(config: Config, name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        dense_config.use_backbone(config, name)


def with_data(root: Path, classes: tuple[str, ...] | None = None) -> Config:
    """The detector with a COCO folder."""
    config = detector()
    dataset = dict(type="CocoDataset", data_root=str(root), ann_file="annotations/train.json", pipeline=[])
    if classes is not None:
        dataset["metainfo"] = dict(classes=classes)
    config.train_dataloader = dict(dataset=dict(type="RepeatDataset", times=2, dataset=dataset))
    config.val_dataloader = dict(dataset=dict(dataset, ann_file="annotations/val.json"))
    config.val_evaluator = dict(type="CocoMetric", ann_file=f"{root}/annotations/val.json")
    return config


def write_coco(root: Path, names: list[str], file: str = "train.json") -> None:
    """An annotation file with these categories, whose ids are in another order."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    categories = [{"id": 10 - i, "name": name} for i, name in enumerate(names)]
    content = {"images": [], "annotations": [], "categories": categories}
    (root / "annotations" / file).write_text(json.dumps(content))


def test_another_folder_takes_the_place_of_every_path_in_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "out" / "coco").mkdir(parents=True)
    config = with_data(Path("data/coco"))
    dense_config.use_data(config, str(tmp_path / "out"))
    root = str(tmp_path / "out" / "coco")
    assert config.train_dataloader.dataset.dataset.data_root == root
    assert config.val_dataloader.dataset.data_root == root
    assert config.val_evaluator.ann_file == f"{root}/annotations/val.json"
    with pytest.raises(UserError, match="nowhere does not exist"):
        dense_config.use_data(config, "nowhere")


def test_data_that_is_not_there_is_told_its_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist: put COCO's train2017/.* or name it by --data"):
        dense_config.check_data(with_data(tmp_path / "nowhere"), "train")
    dense_config.check_data(with_data(tmp_path), "train")


def test_classes_of_the_annotation_file_size_the_heads(tmp_path: Path) -> None:
    write_coco(tmp_path, ["nut", "bolt", "washer"])
    config = with_data(tmp_path)
    assert dense_config.use_classes(config) == ["nut", "bolt", "washer"]
    assert config.model.bbox_head.num_classes == 3
    assert config.train_dataloader.dataset.dataset.metainfo["classes"] == ("nut", "bolt", "washer")
    assert config.val_dataloader.dataset.metainfo["classes"] == ("nut", "bolt", "washer")


def test_names_are_those_that_the_data_set_numbers_its_boxes_by(tmp_path: Path) -> None:
    CocoDataset = pytest.importorskip("mmdet.datasets").CocoDataset
    write_coco(tmp_path, ["washer", "nut", "bolt"])
    file = tmp_path / "annotations" / "train.json"
    content = json.loads(file.read_text())
    content["images"] = [{"id": 1, "file_name": "1.jpg", "width": 9, "height": 9}]
    box = {"id": 1, "image_id": 1, "category_id": 8, "bbox": [1, 1, 3, 3], "area": 9, "iscrowd": 0}  # a bolt
    content["annotations"] = [box]
    file.write_text(json.dumps(content))
    names = dense_config.use_classes(with_data(tmp_path))
    samples = CocoDataset(ann_file=str(file), data_prefix=dict(img=""), metainfo=dict(classes=names))
    (instance,) = samples.get_data_info(0)["instances"]
    assert names[instance["bbox_label"]] == "bolt"


def test_parts_whose_categories_differ_are_refused(tmp_path: Path) -> None:
    write_coco(tmp_path, ["nut", "bolt"])
    write_coco(tmp_path, ["bolt", "nut"], "val.json")
    with pytest.raises(UserError, match=r"val\.json lists other categories.*train\.json"):
        dense_config.use_classes(with_data(tmp_path))


def test_classes_of_validation_serve_where_there_is_no_training_file(tmp_path: Path) -> None:
    write_coco(tmp_path, ["nut", "bolt"], "val.json")
    assert dense_config.use_classes(with_data(tmp_path)) == ["nut", "bolt"]


def test_classes_that_the_config_names_already_change_nothing(tmp_path: Path) -> None:
    write_coco(tmp_path, ["nut", "bolt"])
    config = with_data(tmp_path, ("nut", "bolt"))
    assert dense_config.use_classes(config) is None
    assert config.model.bbox_head.num_classes == 80


def test_classes_of_masks_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("road\n\nsky\nrest \n")
    config = segmenter()
    config.train_dataloader = dict(dataset=dict(type="ADE20KDataset", data_root=str(tmp_path), pipeline=[]))
    assert dense_config.use_classes(config) == ["road", "sky", "rest"]
    assert config.model.decode_head.num_classes == config.model.auxiliary_head.num_classes == 3
    metainfo = config.train_dataloader.dataset.metainfo
    assert metainfo["classes"] == ("road", "sky", "rest")
    assert len({tuple(colour) for colour in metainfo["palette"]}) == 3


@pytest.mark.parametrize("content", ["{", '{"categories": 3}', '{"categories": []}', "[]"])
def test_a_file_that_is_no_coco_file_is_named(content: str, tmp_path: Path) -> None:
    write_coco(tmp_path, ["nut"])
    (tmp_path / "annotations" / "train.json").write_text(content)
    with pytest.raises(UserError, match=r"train\.json"):
        dense_config.use_classes(with_data(tmp_path))
