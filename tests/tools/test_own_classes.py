"""Data of one's own, from a file with other classes to pictures: heads that start anew, names that are shown."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tool_processes import Started, start_tool

pytest.importorskip("mmdet")

NAMES = ["nut", "bolt", "washer"]
COLOURS = ["red", "green", "blue"]
SIDE = 64
SHARED = """
optim_wrapper = dict(optimizer=dict(lr=0.0))  # so that a run's last weights are its first
train_dataloader.update(batch_size=2, num_workers=0)
val_dataloader = test_dataloader = dict(num_workers=0)
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
"""
CONFIGS = {
    "boxes": """
_base_ = "demo/retinanet_digits"
pretraining = None
model = dict(
    backbone=dict(model_name="van_b0", pretrained=False, depths=(1, 1, 1, 1)),
    test_cfg=dict(score_thr=0.0),  # nothing that is untrained is sure of anything
)
train_dataloader = dict()
train_cfg = dict(max_epochs=1, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=1, save_best=None))
""",
    "masks": """
_base_ = "ade20k/semantic-fpn_80k"
crops = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomCrop", crop_size=(64, 64)),
    dict(type="PackSegInputs"),
]
model = dict(
    backbone=dict(model_name="van_b0", pretrained=False, depths=(1, 1, 1, 1)),
    data_preprocessor=dict(size=(64, 64), test_cfg=dict(size_divisor=32)),
    neck=dict(in_channels=[32, 64, 160, 256], out_channels=16),
    decode_head=dict(in_channels=[16] * 4, channels=16, norm_cfg=dict(type="BN")),
)
train_dataloader = dict(dataset=dict(pipeline=crops))
train_cfg = dict(max_iters=2, val_interval=4)
default_hooks = dict(checkpoint=dict(interval=2))
""",
}
ANEW = {"boxes": "bbox_head.retina_cls", "masks": "decode_head.conv_seg"}
"""The layer of each model whose size is the number of classes."""


def write_data(root: Path) -> None:
    """Four pictures with a part of each kind, as a COCO file whose ids have gaps, and as masks: 0 is not labelled."""
    folders = {"train2017": "training", "val2017": "validation"}
    for part, place in folders.items():
        images, boxes = [], []
        for kind in ("images", "annotations"):
            (root / "masks" / kind / place).mkdir(parents=True)
        (root / "boxes" / part).mkdir(parents=True)
        for number in range(4):
            picture, mask = Image.new("RGB", (SIDE, SIDE), "white"), Image.new("L", (SIDE, SIDE))
            for kind, colour in enumerate(COLOURS):
                left, top = 4 + 20 * kind, 4 + 12 * number
                corners = (left, top, left + 15, top + 15)
                ImageDraw.Draw(picture).rectangle(corners, fill=colour)
                ImageDraw.Draw(mask).rectangle(corners, fill=kind + 1)
                box = {"bbox": [left, top, 16, 16], "area": 256, "iscrowd": 0, "category_id": 90 - kind}
                boxes.append({"id": len(boxes) + 1, "image_id": number, **box})
            picture.save(root / "boxes" / part / f"{number}.png")
            picture.save(root / "masks/images" / place / f"{number}.jpg")
            mask.save(root / "masks/annotations" / place / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
        categories = [{"id": 90 - kind, "name": name} for kind, name in enumerate(NAMES)]
        content = {"images": images, "annotations": boxes, "categories": categories}
        (root / "boxes/annotations").mkdir(exist_ok=True)
        (root / f"boxes/annotations/instances_{part}.json").write_text(json.dumps(content))
    (root / "masks/classes.txt").write_text("\n".join(NAMES))


def write_weights(config: Path, file: Path) -> None:
    """A file as a run on the config's own classes leaves it."""
    import vertebra.engine  # noqa: F401  before anything imports mmcv
    from mmengine.registry import MODELS, init_default_scope
    from vertebra.engine.config import read_config

    described = read_config(str(config))
    init_default_scope(described.default_scope)
    torch.manual_seed(0)
    torch.save({"state_dict": MODELS.build(described.model).state_dict()}, file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data, a config for boxes and one for masks, and weights of ten and of 150 classes."""
    path = tmp_path_factory.mktemp("own")
    write_data(path)
    for kind, text in CONFIGS.items():
        (path / f"{kind}.py").write_text(text + SHARED)
        write_weights(path / f"{kind}.py", path / f"{kind}.pth")
    return path


@pytest.fixture(scope="module")
def tool(folder: Path) -> Callable[..., Started]:
    """`tool("train", ...)` runs a tool in that folder to its end."""
    count = iter(range(100))

    def run(name: str, *words: object) -> Started:
        done = start_tool(folder, name, [str(word) for word in words], folder / f"said_{next(count)}.txt").wait()
        assert done.code == 0, done.said
        return done

    return run


@pytest.fixture(scope="module", params=CONFIGS)
def trained(request: pytest.FixtureRequest, folder: Path, tool: Callable[..., Started]) -> tuple[str, str]:
    """A kind of data, and what its run said that began with the weights of other classes.

    The weights that its backbone would begin with cannot be had, and nobody asks for them.
    """
    kind = request.param
    changes = [f"load_from={kind}.pth", "model.backbone.pretrained=not_there.pth"]
    return kind, tool("train", f"{kind}.py", "--data", kind, "--work-dir", f"wd_{kind}", "--cfg-options", *changes).said


def test_train_says_the_classes_and_which_heads_start_anew(trained: tuple[str, str]) -> None:
    kind, said = trained
    assert "3 classes as the data names them: nut, bolt, washer" in said
    anew = next(line for line in said.splitlines() if "start anew" in line)
    assert f"{kind}.pth: {ANEW[kind]} start anew" in anew
    assert "backbone" not in anew
    assert "neck" not in anew


def test_everything_but_those_heads_begins_with_the_weights_of_the_file(trained: tuple[str, str], folder: Path) -> None:
    kind, _ = trained
    saved = torch.load((folder / f"wd_{kind}/last_checkpoint").read_text(), weights_only=False)["state_dict"]
    given = torch.load(folder / f"{kind}.pth")["state_dict"]
    learnt = [key for key in given if key.endswith((".weight", ".bias")) and not key.startswith(ANEW[kind])]
    assert [key for key in learnt if not torch.equal(saved[key], given[key])] == []
    anchors = {"boxes": 9, "masks": 1}[kind]
    assert len(saved[f"{ANEW[kind]}.bias"]) == len(NAMES) * anchors


def test_a_file_without_a_backbone_leaves_it_the_weights_of_its_own(folder: Path, tool: Callable[..., Started]) -> None:
    given = torch.load(folder / "boxes.pth")["state_dict"]
    torch.save({key: value for key, value in given.items() if not key.startswith("backbone.")}, folder / "heads.pth")
    own = {key.removeprefix("backbone."): value + 1 for key, value in given.items() if key.startswith("backbone.")}
    torch.save(own, folder / "backbone.pth")
    changes = ["load_from=heads.pth", "model.backbone.pretrained=backbone.pth"]
    tool("train", "boxes.py", "--data", "boxes", "--work-dir", "wd_heads", "--cfg-options", *changes)
    saved = torch.load((folder / "wd_heads/last_checkpoint").read_text(), weights_only=False)["state_dict"]
    learnt = [key for key in own if key.endswith((".weight", ".bias"))]
    assert [key for key in learnt if not torch.equal(saved[f"backbone.{key}"], own[key])] == []


def test_infer_shows_these_names(trained: tuple[str, str], folder: Path, tool: Callable[..., Started]) -> None:
    kind, _ = trained
    checkpoint = (folder / f"wd_{kind}/last_checkpoint").read_text()
    images = folder / {"boxes": "boxes/val2017", "masks": "masks/images/validation"}[kind]
    tool("infer", f"{kind}.py", checkpoint, images, "--out", f"out_{kind}", "--score-thr", 0)
    results = json.loads((folder / f"out_{kind}/results.json").read_text())
    assert len(results) == 4
    for entry in results:
        if kind == "boxes":
            assert entry["boxes"]
            assert all(box["label"] == NAMES[box["index"]] for box in entry["boxes"])
        else:
            numbers = np.unique(Image.open(folder / "out_masks" / entry["segmentation"]))
            assert {NAMES[number] for number in numbers} == entry["labels"].keys()
