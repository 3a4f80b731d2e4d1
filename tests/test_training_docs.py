"""docs/training.md keeps its word: what it says was tried is run here, all other commands at least are understood."""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mmengine")

from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, LOOPS, MODELS, OPTIM_WRAPPERS
from vertebra.backbones._errors import UserError
from vertebra.engine.classifier import TimmClassifier
from vertebra.engine.config import change, read_config
from vertebra.engine.data import build_loader
from vertebra.engine.optim import without_amp
from vertebra.engine.runner import VertebraRunner
from vertebra.tools import benchmark, infer, make_dataset, plot, test, train
from vertebra.tools._common import parse_changes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
PARSERS = {
    "train": train,
    "test": test,
    "infer": infer,
    "benchmark": benchmark,
    "plot": plot,
    "make_dataset": make_dataset,
}


def commands(text: str) -> list[list[str]]:
    """The command lines of blocks, in words, without comments and with continued lines joined."""
    joined = text.replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in joined.splitlines() if shlex.split(line, comments=True)]


def words_of_tools() -> list[list[str]]:
    """What follows `vertebra` or `tools/train.py` in every command, whoever launches it."""
    found = []
    for words in commands("\n".join(BLOCKS)):
        inner = [part for word in words for part in (shlex.split(word) if " tools/" in word else [word])]
        inner = inner[: inner.index("||")] if "||" in inner else inner
        if "vertebra" in inner:
            found.append(inner[inner.index("vertebra") + 1 :])
        elif "tools/train.py" in inner:
            found.append(["train", *inner[inner.index("tools/train.py") + 1 :]])
    return found


def test_every_command_is_understood_by_its_tool() -> None:
    seen = words_of_tools()
    assert {words[0] for words in seen} == PARSERS.keys()
    for tool, *words in seen:
        args = PARSERS[tool].build_parser().parse_args(words)
        if tool == "train":
            read_config(args.config)


TABLE = re.findall(r"^\| (`.*) \| .* \|$", PAGE.partition("| option |")[2].partition("\n\n")[0], re.MULTILINE)
FLAGS = [span for cell in TABLE for span in re.findall(r"`(--[^`]+)`", cell)]
OPTIONS = sorted(set(re.findall(r"`(?:--cfg-options )?((?:\w+\.)+\w+=[^`\s]+)`", PAGE)))
CLIPPING = re.findall(r"`(type=\w+)`", PAGE)  # which the page gives without what it belongs to


def test_every_flag_in_the_table_of_options_is_one_of_train() -> None:
    assert len(FLAGS) >= 3
    for flag in FLAGS:
        train.build_parser().parse_args(["imagenet/van/van_b0", *flag.split()])


def is_read(config: Config, key: str) -> bool:
    """Whether a recipe has this entry, or what is built of the one above it takes such an argument."""
    *parents, last = key.split(".")
    place: Any = config
    for part in parents:
        place = place.get(part) or {}
    readers = {
        "model": TimmClassifier,
        "train_dataloader": build_loader,
        "train_cfg": LOOPS.get(config.train_cfg.type),
        "val_cfg": LOOPS.get(config.val_cfg.type),
        "default_hooks.checkpoint": HOOKS.get(config.default_hooks.checkpoint.type),
        "optim_wrapper": OPTIM_WRAPPERS.get(config.optim_wrapper.type),
        "optim_wrapper.clip_grad": torch.nn.utils.clip_grad_norm_,
    }
    reader = readers.get(".".join(parents))
    return last in place or (reader is not None and last in inspect.signature(reader).parameters)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_the_page_changes_something_that_is_read(option: str) -> None:
    config, changes = read_config("imagenet/van/van_b0"), parse_changes([option])
    (key,) = changes
    top, _, rest = key.partition(".")
    known = is_read(config, key)
    change(config, changes)
    config.model.depths = (1, 1, 1, 1)
    if rest.startswith("paramwise_cfg."):  # of which an entry that nothing reads is refused
        build_optim_wrapper(MODELS.build(config.model), config.optim_wrapper)
    elif top == "env_cfg":  # and of this one a value that makes no sense
        with pytest.raises(UserError, match=key):
            VertebraRunner.setup_env(None, {rest: "nonsense"})
    else:
        assert known, f"{key}: no recipe has it, and nothing takes such an argument"
    if top == "model":
        MODELS.build(config.model)


def test_the_other_kind_of_clipping_is_understood() -> None:
    assert CLIPPING == ["type=agc"]
    config = read_config("imagenet/van/van_b0")
    change(config, parse_changes([f"optim_wrapper.clip_grad.{CLIPPING[0]}"]))
    config.model.depths = (1, 1, 1, 1)
    build_optim_wrapper(MODELS.build(config.model), config.optim_wrapper)


def test_every_option_in_the_table_is_among_those_that_are_tried() -> None:
    shown = [span.strip("`") for cell in TABLE for span in cell.split(", ") if "`--" not in span]
    assert len(shown) >= 12
    assert set(shown) <= set(OPTIONS)


def test_nothing_of_the_page_is_left_to_write() -> None:
    assert "TODO" not in PAGE


def verdicts() -> list[str]:
    """Of every block of commands the last word before it: "tried", "not tried", or nothing within its paragraph."""
    found = []
    for part in PAGE.split("```sh\n")[:-1]:
        paragraph = part.rpartition("```")[2].rstrip().rpartition("\n\n")[2]
        words = re.findall(r"\b(not tried|tried)\b", paragraph, re.IGNORECASE)
        found.append(words[-1].lower() if words else "")
    return found


def test_the_text_before_every_block_of_commands_says_whether_it_was_tried() -> None:
    assert len(verdicts()) == len(BLOCKS)
    silent = [block for block, verdict in zip(BLOCKS, verdicts(), strict=True) if not verdict]
    assert not silent


def test_configs_that_the_page_shows_are_read_and_build_their_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for DeepSpeed's optimizer, which is not installed."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    strategies = []
    monkeypatch.setitem(OPTIM_WRAPPERS._module_dict, "DeepSpeedOptimWrapper", StandIn)
    for number, block in enumerate(blocks):
        path = tmp_path / f"config{number}.py"
        path.write_text(block)
        config = read_config(str(path))
        strategies.append(config.strategy.type)
        wrapper = dict(config.optim_wrapper)
        if wrapper["type"] == "AmpOptimWrapper":  # which wants a GPU
            wrapper = without_amp(wrapper)
        config.model.depths = (1, 1, 1, 1)
        built = build_optim_wrapper(MODELS.build(config.model), wrapper)
        assert {group["weight_decay"] for group in built.optimizer.param_groups} == {0.0, 0.05}
    assert strategies == ["FSDPStrategy", "DeepSpeedStrategy"]


class StandIn:
    """Takes what DeepSpeedOptimWrapper takes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def test_tests_that_the_page_names_are_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", PAGE)
    assert len(named) >= 6
    assert [name for name in named if not (ROOT / name).is_file()] == []


def runnable() -> str:
    """The commands that the page calls tried, in its order."""
    blocks = [block for block, verdict in zip(BLOCKS, verdicts(), strict=True) if verdict == "tried"]
    assert len(blocks) >= 10
    assert not [block for block in blocks if "imagenet/van" in block]
    return "\n".join(blocks)


@pytest.mark.all
@pytest.mark.timeout(1500)
def test_what_the_page_says_was_tried_runs_as_it_stands(tmp_path: Path) -> None:
    """In an empty folder, with the data that the first command makes."""
    programs = tmp_path / "bin"
    programs.mkdir()
    python = shlex.quote(sys.executable)
    entry = shlex.quote("import sys; from vertebra.tools._cli import main; sys.exit(main())")
    for name, line in (("vertebra", f"-c {entry}"), ("torchrun", "-m torch.distributed.run")):
        (programs / name).write_text(f'#!/bin/sh\nexec {python} {line} "$@"\n')
        (programs / name).chmod(0o755)
    variables = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euxc", runnable()], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=1400
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert done.stdout.count("start anew") == 1, "one head is of another size, and the other fits"
    assert "bottleneck" in done.stdout
    assert "starts from work_dirs/first/epoch_1.pth" in done.stdout
    assert json.loads((tmp_path / "metrics.json").read_text())["images"] == 108
    assert list((tmp_path / "predictions").glob("*.png"))
    assert (tmp_path / "curves.png").stat().st_size
