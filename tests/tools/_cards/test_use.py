"""The commands of a card are commands, which test_commands.py runs, and its Python runs."""

import argparse
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from cards import FAMILIES, KEYS, blocks, commands


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
            timm.get_pretrained_cfg(words[0].removesuffix(".onnx"))
        tools.append(name)
    assert {*tools} == {"train", "test", "infer", "export_onnx", "visualize", "publish"}
    assert tools.count("train") == 3, "fine-tuning, detection, segmentation"
    assert tools.count("infer") == 4, "those three and the exported file"


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
