"""The commands and the Python of a card are commands and Python, and run."""

import argparse
import importlib
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small_images import write_images
from vertebra.tools._cards.facts import ROOT, families
from vertebra.tools._common import run_tool

FAMILIES = {family.key: family for family in families()}
KEYS = [*FAMILIES]


def blocks(key: str, language: str) -> str:
    """The code of a card in one language."""
    text = (ROOT / "model_cards" / f"{key}.md").read_text(encoding="utf-8")
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def commands(key: str) -> Sequence[Sequence[str]]:
    return [shlex.split(line)[1:] for line in blocks(key, "bash").splitlines() if line]


def _last_file(config: Any) -> str:
    """The name of the last checkpoint that a config's training writes."""
    loop = config.train_cfg
    return f"epoch_{loop.max_epochs}.pth" if "max_epochs" in loop else f"iter_{loop.max_iters}.pth"


@pytest.mark.parametrize("key", KEYS)
def test_commands_parse_and_name_configs_that_are_there(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = pytest.importorskip("vertebra.engine.config", reason="needs mmengine")
    find_config, read_config = engine.find_config, engine.read_config
    tools = []
    for name, *words in commands(key):
        parser: argparse.ArgumentParser = importlib.import_module(f"vertebra.tools.{name}").build_parser()
        monkeypatch.setattr(parser, "error", lambda message, words=words: pytest.fail(f"{words}: {message}"))
        parser.parse_args(words)
        if "/" in words[0]:
            stem = find_config(words[0]).stem
            assert name == "train" or words[1] == f"work_dirs/{stem}/{_last_file(read_config(words[0]))}"
        else:
            timm.get_pretrained_cfg(words[0])
        tools.append(name)
    assert {*tools} == {"train", "test", "infer", "export_onnx", "visualize", "publish"}
    assert [tools.count(name) for name in ("train", "infer")] == [3, 3], "fine-tuning, detection, segmentation"


@pytest.mark.parametrize(
    "key", [key if key in ("van", "biformer") else pytest.param(key, marks=pytest.mark.all) for key in KEYS]
)
def test_python_of_a_card_runs(key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    made, example = timm.create_model, FAMILIES[key].example

    def fresh(name: str, pretrained: bool, **options: object) -> torch.nn.Module:
        assert pretrained
        if example.url is None:
            assert options["pretrained_cfg_overlay"] == {"file": f"{example.name}.pth"}
        return made(name, **options)

    monkeypatch.setattr(timm, "create_model", fresh)
    with torch.device("meta"):
        exec(blocks(key, "python"), {})
    shapes = [[*map(int, re.findall(r"\d+", line))] for line in capsys.readouterr().out.splitlines()]
    strides = FAMILIES[key].card["strides"]
    assert [round(333 / width) for *_, width in shapes] == pytest.approx(strides, rel=0.2)
    assert len(shapes) == len(strides)


@pytest.mark.all
def test_python_of_a_card_reads_the_file_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": timm.create_model("biformer_tiny").state_dict()}, "biformer_tiny.pth")
    exec(blocks("biformer", "python"), {})
    assert capsys.readouterr().out.count("torch.Size") == 4


SMALLER = [
    "train_cfg.val_interval=30",
    "train_dataloader.batch_size=8",
    "train_dataloader.num_workers=0",
    "val_dataloader.num_workers=0",
    "train_dataloader.dataset.transform.input_size=[3,64,64]",
]


@pytest.mark.all
@pytest.mark.timeout(1500)
def test_the_commands_of_a_card_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder with seven classes; a file stands for published weights, and the training images are small."""
    monkeypatch.chdir(tmp_path)
    write_images(Path("my_folder"), classes=7, train=4, val=2)
    write_images(Path("data/imagenet"), classes=7, train=1, val=2)
    Path("pictures").symlink_to("my_folder/val/class0")
    Path("photo.jpg").symlink_to(next(Path("my_folder/val/class0").iterdir()))
    torch.save({"state_dict": timm.create_model("van_b0", num_classes=7).state_dict()}, "published.pth")
    stand_in = {"pretrained": "published.pth", "model.weights=van_b0.in1k": "model.weights=published.pth"}
    for name, *words in commands("van"):
        if "/" not in words[0] or words[0].startswith("imagenet/"):  # detectors need COCO; tests/engine trains those
            line = [stand_in.get(word, word) for word in words] + (SMALLER if name == "train" else [])
            assert run_tool(importlib.import_module(f"vertebra.tools.{name}").main, line) == 0, line
    assert Path("van_b0.onnx").stat().st_size > 1e6
    assert Path("van_b0_features.onnx").is_file()
    assert {"README.md", "config.json", "model.safetensors"} == {path.name for path in Path("hub").iterdir()}
    assert json.loads(Path("inside/results.json").read_text())
    assert len(json.loads(Path("predictions/results.json").read_text())) == 2
