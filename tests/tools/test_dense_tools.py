"""Detectors and segmenters from training to pictures, on a few scenes of digits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tool_processes import Started, start_tool
from vertebra.engine.config import read_config
from vertebra.tools import make_dataset, plot

pytest.importorskip("mmdet")

SMALL = "backbone=dict(model_name='van_b0', pretrained=False, depths=(1, 1, 1, 1))"
CONFIGS = {
    "boxes": """
_base_ = "demo/retinanet_digits"
pretraining = None
model = dict({small})
train_dataloader = dict(batch_size=2, num_workers=0)
val_dataloader = dict(num_workers=0)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1, save_best=None), logger=dict(interval=1))
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
""",
    "masks": """
_base_ = "demo/mask-rcnn_digits"
pretraining = None
levels = dict(out_channels=16)
model = dict(
    {small},
    neck=dict(out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=levels,
        bbox_head=dict(in_channels=16, fc_out_channels=32),
        mask_roi_extractor=levels,
        mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1),
    ),
    test_cfg=dict(rcnn=dict(score_thr=0.0, max_per_img=5)),
)
train_dataloader = dict(batch_size=4, num_workers=0)
val_dataloader = dict(num_workers=0)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1, val_begin=2)
default_hooks = dict(checkpoint=dict(interval=1, save_best=None))
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
""",
    "segments": """
_base_ = "ade20k/semantic-fpn_80k"
model = dict(
    {small},
    data_preprocessor=dict(size=(64, 64), test_cfg=dict(size_divisor=32)),
    neck=dict(in_channels=[32, 64, 160, 256], out_channels=16),
    decode_head=dict(in_channels=[16] * 4, channels=16, norm_cfg=dict(type="BN")),
)
crops = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomCrop", crop_size=(64, 64)),
    dict(type="PackSegInputs"),
]
whole = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(batch_size=4, num_workers=0, dataset=dict(pipeline=crops))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=whole))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=3, val_interval=3)
default_hooks = dict(checkpoint=dict(interval=3), logger=dict(interval=1))
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
""",
}
NAMES = ["canvas", *"0123456789"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes to train on and two for validation, with names for the masks, and the configs beside them."""
    path = tmp_path_factory.mktemp("dense")
    assert make_dataset.main(["digits", str(path / "digits"), "--scenes", "8"]) == 0
    (path / "digits/ade20k/classes.txt").write_text("\n".join(NAMES))
    for kind, text in CONFIGS.items():
        (path / f"{kind}.py").write_text(text.replace("{small}", SMALL))
    return path


@pytest.fixture(scope="module")
def tool(folder: Path) -> Callable[..., Started]:
    """`tool("train", ...)` runs a tool in that folder to its end."""
    count = iter(range(100))

    def run(name: str, *words: object) -> Started:
        return start_tool(folder, name, [str(word) for word in words], folder / f"said_{next(count)}.txt").wait()

    return run


@pytest.fixture(scope="module", params=["boxes", "segments"])
def trained(request: pytest.FixtureRequest, folder: Path, tool: Callable[..., Started]) -> tuple[str, Path]:
    """A kind of model, and the checkpoint of a run that has barely begun."""
    kind = request.param
    done = tool("train", f"{kind}.py", "--data", "digits", "--work-dir", f"wd_{kind}")
    assert done.code == 0, done.said
    assert ("11 classes as the data names them" in done.said) == (kind == "segments")
    return kind, Path((folder / f"wd_{kind}/last_checkpoint").read_text())


def test_metrics_are_fractions_under_our_names(
    trained: tuple[str, Path], folder: Path, tool: Callable[..., Started]
) -> None:
    kind, checkpoint = trained
    done = tool("test", f"{kind}.py", checkpoint, "--data", "digits", "--out", f"{kind}.json")
    assert done.code == 0, done.said
    metrics = json.loads((folder / f"{kind}.json").read_text())
    names = {"segments": {"mIoU", "mAcc", "aAcc"}, "boxes": {"box_AP", "box_AP50"}}[kind]
    assert names <= metrics.keys()
    assert all(0 <= metrics[name] <= 1 for name in names)
    assert metrics["images"] == 2
    assert metrics["checkpoint"] == str(checkpoint)


def test_every_training_line_of_the_log_has_its_columns(trained: tuple[str, Path], folder: Path) -> None:
    (log,) = (folder / f"wd_{trained[0]}").glob("*/vis_data/scalars.json")
    rows = [row for row in map(json.loads, log.read_text().splitlines()) if "loss" in row]
    steps = {"boxes": [(1, 1), (2, 1), (3, 1), (4, 1)], "segments": [(1, 1), (2, 1), (3, 2)]}[trained[0]]
    assert [(row["step"], row["epoch"]) for row in rows] == steps  # of 8 images, 2 or 4 a step
    for row in rows:
        assert row.keys() >= {"step", "epoch", "loss", "lr", "time", "memory"}
        assert row["memory"] > 100, "MiB of a process that has loaded PyTorch"


def test_curves_are_drawn_of_epochs_and_of_steps(trained: tuple[str, Path], folder: Path) -> None:
    kind, _ = trained
    run = plot.read_run(folder / f"wd_{kind}")
    assert (run.by_epoch, [row["step"] for row in run.val]) == {"boxes": (True, [1]), "segments": (False, [3])}[kind]
    assert Image.open(folder / f"wd_{kind}/curve.png").width > 300


@pytest.mark.all
def test_views_of_each_image_are_counted_in_the_metrics(
    trained: tuple[str, Path], folder: Path, tool: Callable[..., Started]
) -> None:
    kind, checkpoint = trained
    where = ["--data", "digits", "--out", f"{kind}_views.json"]
    done = tool("test", f"{kind}.py", checkpoint, *where, "--tta", "--cfg-options", "tta_pipeline=None")
    assert done.code == 0, done.said
    metrics = json.loads((folder / f"{kind}_views.json").read_text())
    assert (metrics["tta"], metrics["views"], metrics["images"]) == (True, {"boxes": 3, "segments": 6}[kind], 2)
    assert 0 <= metrics[{"boxes": "box_AP", "segments": "mIoU"}[kind]] <= 1


@pytest.mark.all
def test_the_views_that_a_config_ships_are_those_it_is_tested_in(
    trained: tuple[str, Path], folder: Path, tool: Callable[..., Started]
) -> None:
    kind, checkpoint = trained
    shipped, count = {"boxes": ("coco/retinanet_fpn_1x", 6), "segments": ("ade20k/semantic-fpn_80k", 12)}[kind]
    views = read_config(shipped).to_dict()["tta_pipeline"]
    for resize in views[1]["transforms"][0]:  # to a tenth, which is about the size of the scenes
        resize["scale"] = tuple(side // 10 for side in resize["scale"])
    where = ["--data", "digits", "--out", f"{kind}_shipped.json"]
    done = tool("test", f"{kind}.py", checkpoint, *where, "--tta", "--cfg-options", f"tta_pipeline={views}")
    assert done.code == 0, done.said
    assert f"each image is seen in {count} views, as its tta_pipeline says" in done.said
    metrics = json.loads((folder / f"{kind}_shipped.json").read_text())
    assert (metrics["tta"], metrics["views"], metrics["images"]) == (True, count, 2)
    assert 0 <= metrics[{"boxes": "box_AP", "segments": "mIoU"}[kind]] <= 1


@pytest.mark.all
def test_a_run_with_another_backbone_is_tested_by_its_config_and_by_the_one_it_came_from(
    folder: Path, tool: Callable[..., Started]
) -> None:
    done = tool("train", "segments.py", "--backbone", "resnet10t", "--data", "digits", "--work-dir", "wd_other")
    assert done.code == 0, done.said
    checkpoint = "wd_other/iter_3.pth"
    done = tool("test", "segments.py", checkpoint, "--data", "digits", "--out", "other.json")
    assert done.code == 0, done.said
    assert "was trained with resnet10t, which takes the place of the config's van_b0" in done.said
    assert json.loads((folder / "other.json").read_text())["model"] == "EncoderDecoder on resnet10t"
    image = next((folder / "digits/coco/val2017").iterdir())
    for config in ("segments.py", "wd_other/segments.py"):
        done = tool("infer", config, checkpoint, image, "--out", "out_other")
        assert done.code == 0, done.said
        assert ("takes the place" in done.said) == (config == "segments.py")
        (result,) = json.loads((folder / "out_other/results.json").read_text())
        assert result["labels"].keys() <= set(NAMES)


def test_predictions_are_drawn_and_listed(
    trained: tuple[str, Path], folder: Path, tool: Callable[..., Started]
) -> None:
    kind, checkpoint = trained
    images = folder / "digits/coco/val2017"
    done = tool("infer", f"{kind}.py", checkpoint, images, "--out", f"out_{kind}", "--score-thr", 0)
    assert done.code == 0, done.said
    results = json.loads((folder / f"out_{kind}/results.json").read_text())
    assert [entry["size"] for entry in results] == [[128, 128]] * 2
    for entry in results:
        name = Path(entry["image"]).with_suffix(".png").name
        assert Image.open(folder / f"out_{kind}" / name).width >= 512
        if kind == "boxes":
            scores = [box["score"] for box in entry["boxes"]]
            assert scores == sorted(scores, reverse=True)
            assert {box["label"] for box in entry["boxes"]} <= set("0123456789")
        else:
            assert sum(entry["labels"].values()) == pytest.approx(1, abs=1e-4)
            assert entry["labels"].keys() <= set(NAMES)
            classes = np.asarray(Image.open(folder / f"out_{kind}" / entry["segmentation"]))
            assert classes.shape == (128, 128)


@pytest.mark.parametrize("trained", ["masks"], indirect=True)
def test_masks_have_metrics_of_their_own(trained: tuple[str, Path], folder: Path, tool: Callable[..., Started]) -> None:
    done = tool("test", "masks.py", trained[1], "--data", "digits", "--out", "masks.json")
    assert done.code == 0, done.said
    metrics = json.loads((folder / "masks.json").read_text())
    assert all(0 <= metrics[name] <= 1 for name in ("box_AP", "box_AP50", "mask_AP", "mask_AP50"))


@pytest.mark.parametrize("trained", ["masks"], indirect=True)
def test_masks_are_drawn_and_listed_at_the_images_size(
    trained: tuple[str, Path], folder: Path, tool: Callable[..., Started]
) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    image = folder / "wide.png"
    Image.open(next((folder / "digits/coco/val2017").iterdir())).crop((0, 20, 128, 100)).save(image)
    done = tool("infer", "masks.py", trained[1], image, "--out", "out_masks", "--score-thr", 0)
    assert done.code == 0, done.said
    (result,) = json.loads((folder / "out_masks/results.json").read_text())
    assert result["size"] == [80, 128]
    assert result["boxes"]
    for box in result["boxes"]:
        assert box["mask"]["size"] == [80, 128]
        assert coco.decode(box["mask"]).shape == (80, 128)
    assert Image.open(folder / "out_masks/wide.png").size == (512, 320)


def test_a_checkpoint_of_another_model_is_refused_in_a_sentence(
    trained: tuple[str, Path], tool: Callable[..., Started]
) -> None:
    kind, checkpoint = trained
    other = "coco/retinanet_fpn_1x" if kind == "segments" else "ade20k/semantic-fpn_80k"
    done = tool("infer", other, checkpoint, "digits/coco/val2017", "--out", "never")
    assert done.code == 2
    assert done.said.count("error: ") == 1
    assert "does not fit" in done.said or "has nothing of" in done.said


@pytest.fixture(scope="module")
def damaged(folder: Path) -> Path:
    """The scenes, of which some files are missing, unreadable, of another size or with a label that no class has."""
    path = folder / "damaged"
    shutil.copytree(folder / "digits", path, ignore=shutil.ignore_patterns("imagenet"))
    (path / "coco/train2017/000000000001.jpg").unlink()
    (path / "coco/train2017/000000000002.jpg").write_bytes(b"no image")
    Image.new("RGB", (64, 64)).save(path / "coco/val2017/000000000009.jpg")
    file = path / "coco/annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][-1]["bbox"] = []
    file.write_text(json.dumps(content))
    first, second = sorted((path / "ade20k/annotations/validation").iterdir())
    Image.new("L", (64, 64)).save(first)
    labels = np.full((128, 128), 77, np.uint8)
    labels[:64] = 1
    Image.fromarray(labels).save(second)
    return path


def test_damaged_images_and_annotations_are_told_and_trained_on(damaged: Path, tool: Callable[..., Started]) -> None:
    done = tool("train", "boxes.py", "--data", damaged, "--work-dir", "wd_damaged")
    assert done.code == 0, done.said
    assert "annotations without a box of four numbers, left out: 1; images missing in" in done.said
    assert "train2017/000000000002.jpg cannot be read (it cannot be decoded): skipped (1 so far)" in done.said
    assert "val2017/000000000009.jpg is 64 x 64 pixels, and its annotations are for 128 x 128: skipped" in done.said
    assert "loading annotations" not in done.said
    assert "OneDL" not in done.said


@pytest.mark.parametrize("trained", ["segments"], indirect=True)
def test_masks_that_cannot_be_counted_are_told_in_the_metrics(
    trained: tuple[str, Path], folder: Path, damaged: Path, tool: Callable[..., Started]
) -> None:
    done = tool("test", "segments.py", trained[1], "--data", damaged, "--out", "damaged.json")
    assert done.code == 0, done.said
    assert "00000001.png is 64 x 64 pixels, and its image" in done.said
    assert "00000002.png holds the label 77, and the classes end with 11" in done.said
    metrics = json.loads((folder / "damaged.json").read_text())
    assert (metrics["images"], metrics["unreadable"]) == (1, 1)
    assert 0 <= metrics["mIoU"] <= 1


@pytest.mark.parametrize("trained", ["segments"], indirect=True)
def test_masks_none_of_which_counts_are_refused_in_a_sentence(
    trained: tuple[str, Path], folder: Path, tool: Callable[..., Started]
) -> None:
    shutil.copytree(folder / "digits/ade20k", folder / "unreadable")
    for mask in (folder / "unreadable/annotations/validation").iterdir():
        mask.write_bytes(b"no image")
    done = tool("test", "segments.py", trained[1], "--data", "unreadable", "--out", "unreadable.json")
    assert done.code == 2
    assert "error: none of the 2 images of the evaluation counts" in done.said
    assert "Traceback" not in done.said
    assert not (folder / "unreadable.json").exists()
