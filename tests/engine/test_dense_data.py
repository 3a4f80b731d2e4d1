"""Damaged data of detectors and segmenters: what is skipped, left out, ignored or refused, and how it is told."""

import json
import logging
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope, init_default_scope
from PIL import Image
from vertebra.backbones._errors import UserError

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from vertebra.engine.dense_data import build_samples, checked_evaluator
from vertebra.engine.hooks import UnreadableImagesHook
from vertebra.engine.order import SeededSamples

SIZE = (32, 48)  # height and width of every sound image


@pytest.fixture(autouse=True)
def _scope() -> Iterator[None]:
    """The default scope is mmengine's global state."""
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture
def told() -> Iterator[list[str]]:
    """The warnings of mmengine's logger."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def draw(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    """An image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def coco(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`coco(change)` writes six images with a box each, after `change` of the annotations; the data set's config."""

    def write(change: Callable[[dict[str, Any]], None] = lambda content: None, **options: Any) -> dict[str, Any]:
        init_default_scope("mmdet")
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nut"}]}
        for i in range(1, 7):
            draw(tmp_path / f"images/{i}.png", i)
            content["images"].append({"id": i, "file_name": f"{i}.png", "width": SIZE[1], "height": SIZE[0]})
            box = {"id": i, "image_id": i, "category_id": 1, "bbox": [i, 4, 12, 10], "area": 120, "iscrowd": 0}
            content["annotations"].append({**box, "segmentation": [[i, 4, i + 12, 4, i + 12, 14, i, 14]]})
        change(content)
        (tmp_path / "boxes.json").write_text(json.dumps(content))
        masks = options.pop("masks", False)
        steps = [
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale=(96, 64), keep_ratio=True),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=masks),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackDetInputs"),
        ]
        return (
            dict(
                type="CocoDataset",
                data_root=str(tmp_path),
                ann_file="boxes.json",
                data_prefix=dict(img="images/"),
                metainfo=dict(classes=("nut",)),
                pipeline=steps,
                serialize_data=False,  # it collects garbage, which takes longer than a test
            )
            | options
        )

    return write


@pytest.fixture
def masks(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`masks()` writes four images with masks of three classes from 0; the data set's config."""

    def write(suffix: str = ".jpg", **options: Any) -> dict[str, Any]:
        init_default_scope("mmseg")
        (tmp_path / "masks").mkdir()
        for i in range(1, 5):
            draw(tmp_path / f"images/{i}{suffix}", i)
            labels = np.random.default_rng(i).integers(0, 3, SIZE, dtype=np.uint8)
            Image.fromarray(labels).save(tmp_path / f"masks/{i}.png")
        steps = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
        return (
            dict(
                type="BaseSegDataset",
                data_root=str(tmp_path),
                data_prefix=dict(img_path="images", seg_map_path="masks"),
                metainfo=dict(classes=("road", "sky", "rest"), palette=[[0, 0, 0]] * 3),
                pipeline=steps,
                serialize_data=False,
            )
            | options
        )

    return write


def skipped(sample: dict[str, Any]) -> list[str]:
    """Why others were left out before this sample."""
    return sample["data_samples"].get("skipped")


# --- missing files ---


def test_missing_images_are_left_out_with_one_line(coco: Callable, tmp_path: Path, told: list[str]) -> None:
    config = coco()
    for i in (2, 5):
        (tmp_path / f"images/{i}.png").unlink()
    samples = build_samples(config)
    assert [samples.get_data_info(i)["img_id"] for i in range(len(samples))] == [1, 3, 4, 6]
    (line,) = told
    assert line == f"{tmp_path}/boxes.json: images missing in {tmp_path}/images, left out: 2"
    assert samples.missing == 2


@pytest.mark.parametrize("test_mode", [False, True])
def test_where_every_image_is_missing_nothing_begins(coco: Callable, tmp_path: Path, test_mode: bool) -> None:
    config = coco(test_mode=test_mode)
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"boxes\.json gives no image to .*images missing in .*, left out: 6"):
        build_samples(config)


def test_data_sets_inside_of_others_are_read_in_the_same_way(coco: Callable, tmp_path: Path) -> None:
    from mmengine.registry import DATASETS
    from vertebra.engine.dense_data import checked_loader

    config = coco()
    (tmp_path / "images/2.png").unlink()
    joined = dict(type="ConcatDataset", datasets=[config, config])
    loader = checked_loader(dict(dataset=dict(type="RepeatDataset", times=3, dataset=joined)))
    assert len(DATASETS.build(loader["dataset"])) == 3 * 2 * 5


# --- images that do not belong to their annotations ---


def damage(path: Path, how: str) -> None:
    """Make an image unreadable, or of another size."""
    if how == "unreadable":
        path.write_bytes(b"no image")
    else:
        draw(path, 0, (64, 64))


SAYS = {"unreadable": "cannot be read", "resized": "is 64 x 64 pixels, and its annotations are for 48 x 32"}


@pytest.mark.parametrize("how", SAYS)
def test_in_training_another_sample_takes_the_place_and_it_is_always_the_same(
    coco: Callable, tmp_path: Path, how: str
) -> None:
    samples = SeededSamples(build_samples(coco()), seed=3)
    damage(tmp_path / "images/2.png", how)
    first = samples[0, 1]
    (reason,) = skipped(first)
    assert f"images/2.png {SAYS[how]}" in reason
    assert samples[0, 0] is not None  # whatever came in between
    again = samples[0, 1]
    assert torch.equal(first["inputs"], again["inputs"])
    assert first["data_samples"].img_id == again["data_samples"].img_id != 2
    assert {samples[epoch, 1]["data_samples"].img_id for epoch in range(20)} == {1, 3, 4, 5, 6}


def test_a_pipeline_that_is_put_in_the_place_of_another_is_checked_too(coco: Callable, tmp_path: Path) -> None:
    from mmdet.engine.hooks import PipelineSwitchHook

    config = coco()
    loader = SimpleNamespace(dataset=SeededSamples(build_samples(config), seed=3))
    runner = SimpleNamespace(epoch=1, train_dataloader=loader, logger=MMLogger.get_current_instance())
    steps = [step for step in config["pipeline"] if step["type"] != "Resize"]
    PipelineSwitchHook(switch_epoch=1, switch_pipeline=steps).before_train_epoch(runner)
    damage(tmp_path / "images/2.png", "unreadable")
    sample = loader.dataset[1, 1]
    assert sample["inputs"].shape[1:] == SIZE  # not enlarged any more
    (reason,) = skipped(sample)
    assert "images/2.png cannot be read" in reason


@pytest.mark.parametrize("how", SAYS)
def test_in_evaluation_a_black_image_takes_the_place_with_a_mark(coco: Callable, tmp_path: Path, how: str) -> None:
    samples = build_samples(coco(test_mode=True))
    damage(tmp_path / "images/2.png", how)
    sample = samples[1]
    assert sample["inputs"].max() == 0
    assert sample["data_samples"].img_id == 2
    assert sample["data_samples"].get("unreadable") is True
    assert samples[0]["data_samples"].get("unreadable") is False


def test_a_fault_of_the_pipeline_is_no_fault_of_the_image(coco: Callable) -> None:
    samples = build_samples(coco())
    samples.pipeline.transforms.insert(1, lambda results: results["nothing of that name"])
    with pytest.raises(KeyError, match="nothing of that name"):
        samples[0]


def test_a_sample_without_a_file_is_no_unreadable_image(coco: Callable) -> None:
    samples = build_samples(coco())
    with pytest.raises(KeyError, match="img_path"):
        samples.pipeline({"img_id": 1})


def test_where_nothing_can_be_used_the_run_ends(coco: Callable, tmp_path: Path) -> None:
    samples = build_samples(coco())
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of 100 samples in a row can be used, the last because image"):
        samples[0]


def test_samples_that_are_mixed_before_they_are_packed_are_told_too(
    coco: Callable, tmp_path: Path, told: list[str]
) -> None:
    samples = build_samples(coco())
    samples.pipeline.transforms.pop()
    damage(tmp_path / "images/2.png", "unreadable")
    assert samples[1]["img_id"] != 2
    assert told == [f"image {tmp_path}/images/2.png cannot be read (it cannot be decoded)"]


def test_a_data_set_reaches_the_workers_of_any_start_method(coco: Callable) -> None:
    samples = pickle.loads(pickle.dumps(build_samples(coco(test_mode=True))))
    assert samples[0]["data_samples"].img_id == 1


# --- annotations ---


def test_a_crowd_is_ignored_in_training(coco: Callable) -> None:
    samples = build_samples(coco(lambda content: content["annotations"][0].update(iscrowd=1)))
    sample = samples[0]["data_samples"]
    assert (len(sample.gt_instances), len(sample.ignored_instances)) == (0, 1)


def test_an_object_without_a_mask_is_ignored_in_training(coco: Callable, told: list[str]) -> None:
    samples = build_samples(coco(lambda content: content["annotations"][0].pop("segmentation"), masks=True))
    sample = samples[0]["data_samples"]
    assert (len(sample.gt_instances), len(sample.ignored_instances)) == (0, 1)
    assert told[0].endswith("annotations without a mask, ignored: 1")


def without_masks(content: dict[str, Any]) -> None:
    for entry in content["annotations"]:
        del entry["segmentation"]


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (without_masks, dict(masks=True), r"has no masks \('segmentation'\)"),
        (lambda content: content["annotations"].clear(), {}, "has no annotation that can be trained on: it lists none"),
        (lambda content: content["annotations"][0].update(category_id=5), {}, "of category 5"),
    ],
)
def test_annotations_that_are_of_no_use_stop_the_run(
    coco: Callable, change: Callable, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=rf"boxes\.json.*{sentence}"):
        build_samples(coco(change, **options))


@pytest.mark.parametrize("content", [b'{"images": [', b"\xff\xfe\xff", b"7"])
def test_what_is_no_annotation_file_is_named(coco: Callable, tmp_path: Path, content: bytes) -> None:
    from mmengine.registry import METRICS

    config = coco()
    (tmp_path / "boxes.json").write_bytes(content)
    with pytest.raises(UserError, match=r"boxes\.json is no COCO annotation file"):
        build_samples(config)
    evaluator = checked_evaluator(dict(type="CocoMetric", ann_file=str(tmp_path / "boxes.json")))
    with pytest.raises(UserError, match=r"boxes\.json is no COCO annotation file"):
        METRICS.build(evaluator)


def test_reading_annotations_says_nothing(coco: Callable, capsys: pytest.CaptureFixture) -> None:
    build_samples(coco())
    assert capsys.readouterr().out == ""


# --- COCO's score ---


def score(
    tmp_path: Path, found: dict[int, float], unreadable: int | None = None, ours: bool = True, **options: Any
) -> dict[str, float]:
    """AP where image `i` is given its true box, moved to the right by `found[i]`; the others are given none."""
    from mmengine.registry import METRICS

    config = dict(type="CocoMetric", ann_file=str(tmp_path / "boxes.json"), **options)
    metric = METRICS.build(checked_evaluator(config) if ours else config)
    metric.dataset_meta = dict(classes=("nut",))
    for i in range(1, 7):
        boxes = [[i + found[i], 4.0, i + found[i] + 12, 14.0]] if i in found else []
        boxes = torch.tensor(boxes).reshape(-1, 4)
        instances = dict(bboxes=boxes, scores=torch.ones(len(boxes)), labels=torch.zeros(len(boxes), dtype=torch.long))
        sample = dict(img_id=i, ori_shape=SIZE, pred_instances=instances, unreadable=i == unreadable)
        metric.process({}, [sample])
    return metric.evaluate(6)


EXACT = dict.fromkeys(range(1, 7), 0.0)


def test_where_all_is_well_the_score_is_mmdets_own(coco: Callable, tmp_path: Path) -> None:
    coco()
    found = {1: 0.0, 2: 1.0, 3: 2.5, 4: 9.0}
    expected = score(tmp_path, found, ours=False)
    assert 0 < expected["coco/bbox_mAP"] < 1
    assert score(tmp_path, found) == expected


def test_images_that_cannot_be_read_are_left_out_of_the_score(
    coco: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    coco()
    five = dict.fromkeys(range(1, 6), 0.0)
    assert score(tmp_path, five)["coco/bbox_mAP"] < 0.9
    assert score(tmp_path, five, unreadable=6)["coco/bbox_mAP"] == 1
    assert "Accumulating evaluation results" not in capsys.readouterr().out  # pycocotools' talk


def test_an_annotation_of_id_0_can_be_found(coco: Callable, tmp_path: Path) -> None:
    coco(lambda content: content["annotations"][0].update(id=0))
    assert score(tmp_path, EXACT)["coco/bbox_mAP"] == 1


def test_a_crowd_is_neither_right_nor_wrong_to_find(coco: Callable, tmp_path: Path) -> None:
    coco(lambda content: content["annotations"][0].update(iscrowd=1))
    assert score(tmp_path, EXACT)["coco/bbox_mAP"] == 1
    assert score(tmp_path, dict.fromkeys(range(2, 7), 0.0))["coco/bbox_mAP"] == 1


def test_annotations_that_pycocotools_would_stumble_over_are_mended(coco: Callable, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0].pop("area")
        content["annotations"][1].pop("iscrowd")
        content["annotations"].append({"id": 7, "image_id": 3, "category_id": 1, "bbox": []})

    coco(change)
    assert score(tmp_path, EXACT)["coco/bbox_mAP"] == 1


def test_who_finds_nothing_scores_0(coco: Callable, tmp_path: Path) -> None:
    coco()
    assert score(tmp_path, {}) == {"coco/bbox_mAP": 0, "coco/bbox_mAP_50": 0}


@pytest.mark.parametrize("format_only", [True, False])
def test_who_finds_nothing_writes_empty_files(coco: Callable, tmp_path: Path, format_only: bool) -> None:
    coco()
    scores = score(tmp_path, {}, format_only=format_only, outfile_prefix=str(tmp_path / "found"))
    assert bool(scores) is not format_only
    assert json.loads((tmp_path / "found.bbox.json").read_text()) == []


# --- masks ---


def save_mask(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda mask: mask[:20, :20], r"masks/2\.png is 20 x 20 pixels, and its image .*2\.jpg 48 x 32"),
        (lambda mask: np.stack([mask] * 3, 2), r"masks/2\.png is an image of Pillow's mode RGB; a mask has"),
        (lambda mask: mask.astype(np.uint16) + 300, r"masks/2\.png is an image of Pillow's mode I;16"),
        (None, r"masks/2\.png cannot be read \(cannot identify image file\)"),
    ],
)
def test_a_mask_that_does_not_fit_is_skipped(
    masks: Callable, tmp_path: Path, change: Callable | None, reason: str
) -> None:
    samples = build_samples(masks())
    if change is None:
        (tmp_path / "masks/2.png").write_bytes(b"no image")
    else:
        save_mask(tmp_path / "masks/2.png", change)
    (said,) = skipped(samples[1])
    assert re.search(reason, said)


def test_in_evaluation_a_mask_that_does_not_fit_is_not_counted(masks: Callable, tmp_path: Path) -> None:
    from mmseg.evaluation import IoUMetric

    samples = build_samples(masks(), training=False)  # mmseg's data sets have no test_mode in evaluations
    save_mask(tmp_path / "masks/2.png", lambda mask: mask[:20, :20])
    sample = samples[1]["data_samples"]
    assert sample.unreadable
    truth = sample.gt_sem_seg.data[0]
    areas = IoUMetric.intersect_and_union(torch.zeros_like(truth), truth, 3, 255)
    assert sum(area.sum() for area in areas) == 0


def test_a_segmenter_is_not_scored_where_nothing_can_be_read(masks: Callable, tmp_path: Path) -> None:
    from mmengine.registry import METRICS

    samples = build_samples(masks(test_mode=True))

    def scores() -> dict[str, float]:
        metric = METRICS.build(checked_evaluator(dict(type="IoUMetric")))
        metric.dataset_meta = samples.metainfo
        for i in range(4):
            sample = samples[i]["data_samples"]
            truth = sample.gt_sem_seg.data
            found = {"pred_sem_seg": {"data": truth % 3}, "gt_sem_seg": {"data": truth}, "img_path": sample.img_path}
            metric.process({}, [found])
        return metric.evaluate(4)

    for i in (1, 2, 3):
        (tmp_path / f"masks/{i}.png").write_bytes(b"no image")
    assert scores()["mIoU"] == 100
    (tmp_path / "images/4.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the 4 images of the evaluation counts"):
        scores()


def test_labels_of_no_class_are_ignored_and_told(masks: Callable, tmp_path: Path) -> None:
    samples = build_samples(masks())
    before = samples[0]["data_samples"].gt_sem_seg.data[0].clone()

    def change(mask: np.ndarray) -> np.ndarray:
        mask = mask.copy()
        mask[:4], mask[4:8] = 77, 255
        return mask

    save_mask(tmp_path / "masks/1.png", change)
    sample = samples[0]["data_samples"]
    after = sample.gt_sem_seg.data[0]
    assert (after[:8] == 255).all()
    assert torch.equal(after[8:], before[8:])
    (note,) = sample.get("ignored")
    assert "masks/1.png holds the label 77, and the classes end with 2 (255 is for what has none)" in note


def test_labels_are_told_as_the_file_has_them(masks: Callable, tmp_path: Path) -> None:
    samples = build_samples(masks(reduce_zero_label=True))
    save_mask(tmp_path / "masks/1.png", lambda mask: np.full_like(mask, 9))
    (note,) = samples[0]["data_samples"].get("ignored")
    assert "the label 9, and the classes end with 3" in note


def test_a_mask_with_a_palette_holds_numbers(masks: Callable, tmp_path: Path) -> None:
    samples = build_samples(masks())
    before = samples[0]["data_samples"].gt_sem_seg.data.clone()
    mask = Image.open(tmp_path / "masks/1.png")
    mask.putpalette([200 - i for i in range(3 * 60)])
    mask.save(tmp_path / "masks/1.png")
    sample = samples[0]["data_samples"]
    assert Image.open(tmp_path / "masks/1.png").mode == "P"
    assert torch.equal(sample.gt_sem_seg.data, before)


def test_images_without_masks_and_masks_without_images_are_counted(
    masks: Callable, tmp_path: Path, told: list[str]
) -> None:
    config = masks()
    (tmp_path / "masks/1.png").unlink()
    (tmp_path / "images/2.jpg").unlink()
    assert len(build_samples(config)) == 2
    assert told == [
        f"{tmp_path}/masks: 1 masks have no image in {tmp_path}/images",
        f"{tmp_path}/images: masks missing in {tmp_path}/masks, left out: 1",
    ]


# --- suffixes ---


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg"])
def test_the_suffix_of_images_is_found(masks: Callable, suffix: str, told: list[str]) -> None:
    samples = build_samples(masks(suffix))
    assert len(samples) == 4
    assert samples[0]["data_samples"].img_path.endswith(suffix)
    assert told == []


def test_images_of_another_suffix_are_counted(masks: Callable, tmp_path: Path, told: list[str]) -> None:
    config = masks()
    draw(tmp_path / "images/9.png", 9)
    assert len(build_samples(config)) == 4
    assert told == [f"{tmp_path}/images: 1 images that do not end with .jpg are left out"]


def test_suffixes_that_leave_a_choice_are_named(masks: Callable, tmp_path: Path) -> None:
    config = masks(".png")
    draw(tmp_path / "images/9.bmp", 9)
    with pytest.raises(
        UserError, match=r"none of the images in .* ends with \.jpg, img_suffix .* it has 4 \.png, 1 \.bmp"
    ):
        build_samples(config)


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_a_folder_that_holds_no_such_file_is_named(masks: Callable, tmp_path: Path, folder: str) -> None:
    config = masks()
    for path in (tmp_path / folder).iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(UserError, match=rf"/{folder} holds no {folder} \(\..*; it holds .*\.txt"):
        build_samples(config)


# --- what the main process makes of it ---


def test_each_fault_is_counted_once_and_too_many_end_the_run(told: list[str]) -> None:
    hook = UnreadableImagesHook(limit=2)
    runner = SimpleNamespace(iter=0, logger=MMLogger.get_current_instance(), train_dataloader=None)

    def step(*reasons: str, kind: str = "skipped") -> None:
        hook.after_train_iter(runner, 0, {"inputs": [], "data_samples": [{kind: list(reasons)}, {}]})

    step("image a cannot be read", "image b cannot be read")
    step("image a cannot be read")
    step("mask a holds the label 7", kind="ignored")
    assert told == [
        "train image a cannot be read: skipped (1 so far)",
        "train image b cannot be read: skipped (2 so far)",
        "train mask a holds the label 7: ignored (1 so far)",
    ]
    with pytest.raises(UserError, match=r"image c cannot be read.*number 3, and 2 are skipped at most"):
        step("image c cannot be read")
