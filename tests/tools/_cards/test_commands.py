"""Every command of every card runs, on small data made here; VAN's for classifiers with all their epochs."""

import importlib
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
import timm
import torch
from cards import FAMILIES, KEYS, commands
from safetensors.torch import save_file
from small_images import write_images
from tool_processes import start_tool

pytest.importorskip("mmdet")

from vertebra.engine.config import read_config
from vertebra.tools import make_dataset
from vertebra.tools._cards.use import EPOCHS
from vertebra.tools._common import run_tool

pytestmark = [pytest.mark.all, pytest.mark.timeout(1500)]

SMALLER = [
    "train_cfg.val_interval=30",
    "train_dataloader.batch_size=8",
    "optim_wrapper.accumulative_counts=1",
    "train_dataloader.num_workers=0",
    "val_dataloader.num_workers=0",
    "train_dataloader.dataset.transform.input_size=[3,64,64]",
]

_LOADERS = ["train_dataloader", "val_dataloader"]
_IN_PROCESS = [f"{loader}.{key}" for loader in _LOADERS for key in ("num_workers=0", "persistent_workers=False")]
SMALL = {
    "coco": ["train_cfg.max_epochs=1"],
    "ade20k": [
        "train_cfg.max_iters=2",
        "train_cfg.val_interval=2",
        "default_hooks.checkpoint.interval=2",
        "model.data_preprocessor.size=(64,64)",
    ],
}
"""Options of a training that ends after some steps."""
LAST = {"coco": 1, "ade20k": 2}
"""The epoch or iteration that it ends with."""

_RESIZE = "[[{'type':'RandomChoiceResize','scales':[(96,160)],'keep_ratio':True}]]"
_SIZES = {"Resize": "scale=(160,96)", "RandomResize": "scale=(160,96)", "RandomCrop": "crop_size=(64,64)"}
_SIZES["RandomChoice"] = f"transforms={_RESIZE}"


def small_sizes(config: str) -> Sequence[str]:
    """Options that make the training images of a config small, wherever its pipeline says how large they are."""
    steps = read_config(config).train_dataloader.dataset.pipeline
    place = "train_dataloader.dataset.pipeline"
    return [f"{place}.{i}.{_SIZES[step['type']]}" for i, step in enumerate(steps) if step["type"] in _SIZES]


def lay_out() -> None:
    """What the commands of a card find in the folder that they are run in."""
    write_images(Path("my_folder"), classes=7, train=4, val=2)
    write_images(Path("data/imagenet"), classes=7, train=1, val=2)
    Path("pictures").symlink_to("my_folder/val/class0")
    Path("photo.jpg").symlink_to(next(Path("my_folder/val/class0").iterdir()))


def check_outcomes(name: str) -> None:
    """What the commands of a classifier leave."""
    assert Path(f"{name}.onnx").stat().st_size > 1e6
    assert Path(f"{name}_features.onnx").is_file()
    assert {"README.md", "config.json", "model.safetensors"} == {path.name for path in Path("hub").iterdir()}
    assert json.loads(Path("inside/results.json").read_text())
    for folder in ("predictions", "predictions_onnx"):
        assert len(json.loads(Path(folder, "results.json").read_text())) == 2, folder


def is_dense(words: Sequence[str]) -> bool:
    return words[0].startswith(("coco/", "ade20k/"))


def test_the_commands_of_a_card_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder with seven classes; a file stands for published weights, and the training images are small."""
    monkeypatch.chdir(tmp_path)
    lay_out()
    torch.save({"state_dict": timm.create_model("van_b0", num_classes=7).state_dict()}, "published.pth")
    stand_in = {"pretrained": "published.pth", "model.weights=van_b0.in1k": "model.weights=published.pth"}
    for name, *words in commands("van"):
        if not is_dense(words):
            line = [stand_in.get(word, word) for word in words] + (SMALLER if name == "train" else [])
            assert run_tool(importlib.import_module(f"vertebra.tools.{name}").main, line) == 0, line
    check_outcomes("van_b0")


@pytest.mark.parametrize("key", KEYS)
def test_the_commands_for_classifiers_run_with_a_block_a_stage_for_one_epoch(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lay_out()
    family = FAMILIES[key]
    name = family.example.name
    depths = [1] * len(timm.create_model(name, device="meta").stages)
    model = timm.create_model(name, num_classes=7, depths=depths)
    meta = {"model_name": name, "num_classes": 7, "options": {"depths": depths}}
    save_file(model.state_dict(), "published.safetensors", metadata={"vertebra": json.dumps(meta)})
    short = [*SMALLER, "train_cfg.val_interval=1", f"model.depths={depths}".replace(" ", "")]
    for tool, *words in commands(key):
        if is_dense(words):
            continue
        line = ["published.safetensors" if word == family.weights_word else word for word in words]
        line = [word.replace(f"max_epochs={EPOCHS}", "max_epochs=1") for word in line]
        line = [word.replace(f"epoch_{EPOCHS}", "epoch_1") for word in line]
        line = ["model.weights=published.safetensors" if word.startswith("model.weights=") else word for word in line]
        said = tmp_path / "said.txt"
        done = start_tool(tmp_path, tool, line + (short if tool == "train" else []), said).wait(900)
        assert done.code == 0, f"{shlex.join(line)}: {done.said}"
    check_outcomes(name)


@pytest.mark.parametrize("data", SMALL)
@pytest.mark.parametrize("key", KEYS)
def test_the_commands_for_detectors_and_segmenters_run_for_some_steps(
    key: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On four scenes of digits, without pretrained weights; test images are as large as the config has them."""
    monkeypatch.chdir(tmp_path)
    make_dataset.make_digits(Path("made"), scenes=4)
    Path("data").mkdir()
    Path(f"data/{data}").symlink_to(f"../made/{data}")
    write_images(Path("my_folder"), classes=1, train=1, val=1)
    Path("pictures").symlink_to("my_folder/val/class0")
    ran = []
    for tool, *words in commands(key):
        if not words[0].startswith(f"{data}/"):
            continue
        line = [re.sub(r"(epoch|iter)_\d+\.pth", rf"\1_{LAST[data]}.pth", word) for word in words]
        if tool == "train":
            line += [
                "--cfg-options",
                "model.backbone.pretrained=False",
                *_IN_PROCESS,
                *SMALL[data],
                *small_sizes(words[0]),
            ]
        done = start_tool(tmp_path, tool, line, tmp_path / "said.txt").wait(900)
        assert done.code == 0, f"{shlex.join(line)}: {done.said}"
        ran.append(tool)
    assert ran == ["train", "test", "infer"]
    (found,) = json.loads(Path(f"predictions_{data}/results.json").read_text())
    assert ("boxes" if data == "coco" else "labels") in found
