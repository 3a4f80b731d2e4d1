"""`train --compile`: a run through torch.compile is the plain one to rounding, saves plain names, and goes on."""

import shutil
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from tool_processes import Started
from torch import nn
from vertebra.backbones._checkpoint import read_checkpoint
from vertebra.tools import train

CALM = ["model.drop_path_rate=0", "model.drop_rate=0", "model.mixup=None", "model.erasing=None"]  # compilers draw anew
CALM += ["train_dataloader.num_workers=0", "train_cfg.val_interval=4"]
CALM += ["optim_wrapper.optimizer.type=SGD"]  # AdamW makes whole steps of the rounding that biases before a norm get


def end_state(work_dir: Path) -> dict[str, torch.Tensor]:
    """Averaged and plain weights at the end."""
    checkpoint = read_checkpoint(work_dir / "epoch_4.pth")
    return checkpoint["state_dict"] | {f"plain {key}": value for key, value in checkpoint["ema_state_dict"].items()}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.all
def test_a_compiled_run_is_the_plain_one_and_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled by AOTAutograd alone, which traces forward and backward as Inductor's C++ would be written from."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))

    def run(folder: str, *words: str) -> dict[str, torch.Tensor]:
        argv = [str(tiny), "--device", "cpu", "--work-dir", str(tmp_path / folder), *words]
        assert train.main([*argv, "--cfg-options", *CALM]) == 0
        return end_state(tmp_path / folder)

    plain, compiled = run("plain"), run("compiled", "--compile")
    assert_close(compiled, plain)
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "compiled" / "epoch_2.pth", tmp_path / "again")
    assert_close(run("again", "--compile", "--resume"), compiled)


@pytest.mark.all
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor writes C++, and there is no g++")
def test_inductor_trains(start: Callable[..., Started], tiny: Path, tmp_path: Path) -> None:
    for folder, words in (("plain", []), ("compiled", ["--compile"])):
        run = start("train", tiny, "--device", "cpu", "--work-dir", folder, *words, "--cfg-options", *CALM).wait(1200)
        assert run.code == 0, run.said
    assert_close(end_state(tmp_path / "compiled"), end_state(tmp_path / "plain"))
