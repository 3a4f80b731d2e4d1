"""mmengine's FlexibleRunner trains on this project's data; of its strategies, the one that needs no GPU is tried."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.all

FLEXIBLE = """
_base_ = "{tiny}"
runner_type = "VertebraFlexibleRunner"
strategy = dict(type="SingleDeviceStrategy")
"""


@pytest.fixture
def flexible(tiny: Path, tmp_path: Path) -> Path:
    """The tiny config for the other runner."""
    path = tmp_path / "flexible.py"
    path.write_text(FLEXIBLE.replace("{tiny}", str(tiny)))
    return path


def test_the_flexible_runner_trains_resumes_and_its_checkpoint_is_tested(run: Callable, flexible: Path) -> None:
    short = ["train_cfg.max_epochs=2", "param_scheduler.1.end=-1"]  # which leaves the cosine no room
    done = run("train", flexible, "--work-dir", "sharded", "--cfg-options", *short)
    assert done.code == 0, done.said
    assert "epoch 2/2" in done.said
    done = run("train", flexible, "--work-dir", "sharded", "--resume")
    assert done.code == 0, done.said
    assert "epoch 1/4" not in done.said
    assert "epoch 4/4" in done.said
    assert "averaged weights (EMAHook) are left out" in done.said
    done = run("test", flexible, "sharded/epoch_4.pth", "--cfg-options", "runner_type=VertebraRunner", "strategy=None")
    assert done.code == 0, done.said


def test_a_checkpoint_that_holds_more_than_tensors_is_refused(run: Callable, flexible: Path, tmp_path: Path) -> None:
    (tmp_path / "hostile.pth").write_bytes(b"not a checkpoint")
    done = run("train", flexible, "--work-dir", "new", "--cfg-options", f"load_from={tmp_path / 'hostile.pth'}")
    assert done.code == 2
    assert "hostile.pth" in done.said.splitlines()[-1]
