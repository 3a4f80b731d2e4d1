"""What a detector's or segmenter's config leaves open: channels from the backbone, classes from the annotations."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from vertebra.backbones._errors import UserError
from vertebra.engine import dense_config
from vertebra.engine.config import read_config


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
    ("head", "after"),
    [
        (dict(num_classes=80), dict(num_classes=3)),
        (dict(num_things_classes=80, num_stuff_classes=0), dict(num_things_classes=3, num_stuff_classes=0)),
        (dict(num_classes=2, out_channels=1), dict(num_classes=3)),
        (dict(num_classes=19, out_channels=19), dict(num_classes=3)),
        (dict(num_classes=150, out_channels=256), dict(num_classes=3, out_channels=256)),
        (
            dict(num_classes=2, loss=[dict(class_weight=[0.2, 5.0])]),
            dict(num_classes=3, loss=[dict(class_weight=[1] * 3)]),
        ),
        (
            dict(num_classes=2, loss_cls=dict(type="mmdet.CrossEntropyLoss", class_weight=[1.0, 1.0, 0.1])),
            dict(num_classes=3, loss_cls=dict(type="mmdet.CrossEntropyLoss", class_weight=[1.0, 1.0, 1.0, 0.1])),
        ),
        (dict(num_classes=2, loss_cls=dict(class_weight=1.0)), dict(num_classes=3, loss_cls=dict(class_weight=1.0))),
    ],
)
def test_a_head_and_its_losses_follow_the_number_of_classes(head: dict[str, Any], after: dict[str, Any]) -> None:
    model = dict(roi_head=dict(bbox_head=[head, copy.deepcopy(head)]))
    dense_config.set_class_count(model, 3)
    assert model["roi_head"]["bbox_head"] == [after, after]


def test_two_classes_may_share_one_channel() -> None:
    head = dict(num_classes=2, out_channels=1)
    dense_config.set_class_count(dict(decode_head=head), 2)
    assert head == dict(num_classes=2, out_channels=1)


def test_heads_that_count_something_else_keep_their_number() -> None:
    model = dict(
        rpn_head=dict(type="CascadeRPNHead", num_classes=1, stages=[dict(num_classes=1)]),
        roi_head=dict(semantic_head=dict(num_classes=183), bbox_head=dict(num_classes=80)),
        auxiliary_head=[dict(num_classes=19), dict(type="STDCHead", num_classes=2, boundary_threshold=0.1)],
    )
    dense_config.set_class_count(model, 5)
    assert model == dict(
        rpn_head=dict(type="CascadeRPNHead", num_classes=1, stages=[dict(num_classes=1)]),
        roi_head=dict(semantic_head=dict(num_classes=183), bbox_head=dict(num_classes=5)),
        auxiliary_head=[dict(num_classes=5), dict(type="STDCHead", num_classes=2, boundary_threshold=0.1)],
    )


def test_things_and_stuff_are_not_settled_by_a_list_of_names() -> None:
    model = dict(panoptic_head=dict(type="MaskFormerHead", num_things_classes=80, num_stuff_classes=53))
    dense_config.set_class_count(model, 133)
    with pytest.raises(UserError, match="MaskFormerHead tells things from stuff"):
        dense_config.set_class_count(model, 3)


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
    write_coco(tmp_path, ["nut"])
    with pytest.raises(UserError, match=r"val\.json does not exist: the data folder is to hold COCO's"):
        dense_config.check_data(with_data(tmp_path), "train")
    write_coco(tmp_path, ["nut"], "val.json")
    dense_config.check_data(with_data(tmp_path), "train")


def test_classes_of_the_annotation_file_size_the_heads(tmp_path: Path) -> None:
    write_coco(tmp_path, ["nut", "bolt", "washer"])
    config = with_data(tmp_path)
    assert dense_config.use_classes(config) == ["nut", "bolt", "washer"]
    assert config.model.bbox_head.num_classes == 3
    assert config.train_dataloader.dataset.dataset.metainfo["classes"] == ("nut", "bolt", "washer")
    assert config.val_dataloader.dataset.metainfo["classes"] == ("nut", "bolt", "washer")


def test_a_config_that_names_some_of_the_files_classes_keeps_them(tmp_path: Path) -> None:
    write_coco(tmp_path, ["nut", "bolt", "washer"])
    config = with_data(tmp_path)
    for entry in (config.train_dataloader.dataset.dataset, config.val_dataloader.dataset):
        entry.metainfo = dict(classes=("nut", "washer"), palette=[(1, 2, 3), (4, 5, 6)])
    assert dense_config.use_classes(config) == ["nut", "washer"]
    assert config.model.bbox_head.num_classes == 2
    assert config.val_dataloader.dataset.metainfo["palette"] == [(1, 2, 3), (4, 5, 6)]
    assert dense_config.use_classes(config) is None


def test_classes_that_a_config_names_are_in_the_files_order_which_numbers_them(tmp_path: Path) -> None:
    CocoDataset = pytest.importorskip("mmdet.datasets").CocoDataset
    write_coco(tmp_path, ["nut", "bolt", "washer"])
    content = json.loads((tmp_path / "annotations" / "train.json").read_text())
    config = with_data(tmp_path)
    for entry in (config.train_dataloader.dataset.dataset, config.val_dataloader.dataset):
        entry.metainfo = dict(classes=("washer", "nut"), palette=[(1, 2, 3), (4, 5, 6)])
    assert dense_config.use_classes(config) == ["nut", "washer"]
    described = config.train_dataloader.dataset.dataset.metainfo
    assert described == {"classes": ("nut", "washer"), "palette": [(4, 5, 6), (1, 2, 3)]}
    content["images"] = [{"id": 1, "file_name": "1.jpg", "width": 9, "height": 9}]
    washer = {"id": 1, "image_id": 1, "category_id": content["categories"][2]["id"], "bbox": [1, 1, 3, 3], "area": 9}
    content["annotations"] = [{**washer, "iscrowd": 0}]
    (tmp_path / "one.json").write_text(json.dumps(content))
    samples = CocoDataset(ann_file=str(tmp_path / "one.json"), data_prefix=dict(img=""), metainfo=dict(described))
    (instance,) = samples.get_data_info(0)["instances"]
    assert described["classes"][instance["bbox_label"]] == "washer"


def test_an_evaluation_reads_no_training_file(tmp_path: Path) -> None:
    write_coco(tmp_path, ["nut", "bolt"], "val.json")
    (tmp_path / "train.json").write_text("{")
    assert dense_config.use_classes(with_data(tmp_path), parts=("val",)) == ["nut", "bolt"]


def test_classes_in_another_order_than_the_checkpoints_are_refused(tmp_path: Path) -> None:
    write_coco(tmp_path, ["nut", "bolt", "washer"])
    config = with_data(tmp_path)
    dense_config.use_classes(config)
    dense_config.check_classes(config, ["nut", "bolt", "washer"], "f.pth")
    with pytest.raises(UserError, match=r"f\.pth was trained .* number 1 is 'washer', and the data's 'bolt'"):
        dense_config.check_classes(config, ["nut", "washer", "bolt"], "f.pth")


def test_another_number_of_classes_than_the_checkpoints_is_refused_by_names(tmp_path: Path) -> None:
    write_coco(tmp_path, ["nut", "bolt"])
    config = with_data(tmp_path)
    dense_config.use_classes(config)
    with pytest.raises(UserError, match=r"f\.pth was trained with 3 classes \(nut, bolt, washer\), .* 2 \(nut, bolt\)"):
        dense_config.check_classes(config, ["nut", "bolt", "washer"], "f.pth")


@pytest.mark.parametrize("other", ["parts", "data", "data/digits/", "."])
def test_another_folder_moves_the_evaluators_file_whatever_the_training_data_was(tmp_path: Path, other: str) -> None:
    config = read_config("demo/mask-rcnn_digits")
    config.train_dataloader.dataset.data_root = other
    dense_config.use_data(config, str(tmp_path))
    for part in ("val", "test"):
        assert config[f"{part}_evaluator"].ann_file == str(tmp_path / "annotations/instances_val2017.json")
    dataset = config.train_dataloader.dataset
    assert (dataset.data_root, dataset.ann_file) == (str(tmp_path), "annotations/instances_train2017.json")


def test_an_evaluation_with_a_file_that_lacks_the_images_is_refused(tmp_path: Path) -> None:
    config = read_config("demo/mask-rcnn_digits")
    dense_config.use_data(config, str(tmp_path))
    for part in ("train2017", "val2017", "annotations"):
        (tmp_path / part).mkdir()
    images = [{"id": i, "file_name": f"{i}.png", "width": 9, "height": 9} for i in range(4)]

    def write(name: str, listed: list[dict[str, Any]]) -> str:
        content = {"images": listed, "annotations": [], "categories": [{"id": 1, "name": "nut"}]}
        (tmp_path / "annotations" / name).write_text(json.dumps(content))
        return str(tmp_path / "annotations" / name)

    for part in ("train", "val"):
        write(f"instances_{part}2017.json", images[:2])
    dense_config.check_data(config, "train")
    config.val_evaluator.ann_file = write("more.json", images)
    dense_config.check_data(config, "train")
    others = [{**image, "file_name": f"{image['id']}.jpg"} for image in images]
    config.val_evaluator.ann_file = write("others.json", others)
    with pytest.raises(UserError, match=r"val_evaluator.ann_file is .*others.json, and does not list .*val2017.json"):
        dense_config.check_data(config, "train")


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
    config.model.bbox_head.num_classes = 2
    before = config.to_dict()
    assert dense_config.use_classes(config) is None
    assert config.to_dict() == before


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
