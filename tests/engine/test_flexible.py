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


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_taken(
    run: Callable, flexible: Path, tmp_path: Path
) -> None:
    short = ["--work-dir", "kept", "--cfg-options", "model.depths=(1,1,1,1)", "param_scheduler.1.end=-1"]
    assert run("train", flexible, *short, "train_cfg.max_epochs=2").code == 0
    first, newest = tmp_path / "kept" / "epoch_1.pth", tmp_path / "kept" / "epoch_2.pth"
    newest.write_bytes(newest.read_bytes()[:-1000])
    done = run("train", flexible, "--resume", *short, "train_cfg.max_epochs=2")
    assert done.code == 0, done.said
    assert "epoch_2.pth" in done.said
    assert "trying the one before it" in done.said
    assert "epoch 1/2" not in done.said
    for path in (first, newest):
        path.write_bytes(b"no checkpoint")
    done = run("train", flexible, "--resume", *short, "train_cfg.max_epochs=3")
    assert done.code == 2, done.said
    assert done.said.splitlines()[-1].endswith("kept can be read")
    assert "none of the 2 checkpoints" in done.said.splitlines()[-1]
    assert "Traceback" not in done.said
