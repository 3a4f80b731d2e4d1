"""Detectors and segmenters that are killed or stopped end as the run that was left alone: the same bits."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from vertebra.backbones._checkpoint import read_checkpoint
from vertebra.tools import make_dataset

pytest.importorskip("mmdet")

BACKBONE = "backbone=dict(model_name='van_b0', pretrained=False, depths=(1, 1, 1, 1), drop_path_rate=0.2)"
DETECTOR = """
_base_ = "demo/retinanet_digits"
model = dict({backbone})
train_dataloader = dict(batch_size=2, num_workers=2)
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=4, save_best=None), logger=dict(interval=1))
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scenes of digits to train on, three for validation."""
    folder = tmp_path_factory.mktemp("scenes") / "digits"
    assert make_dataset.main(["digits", str(folder), "--scenes", "12"]) == 0
    return folder


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    """Two epochs of six steps, with a checkpoint in the middle of each."""
    file = tmp_path / "detector.py"
    file.write_text(DETECTOR.replace("{backbone}", BACKBONE))
    return file


def state(file: Path) -> dict[str, torch.Tensor]:
    """Weights, averaged weights and optimizer of a checkpoint."""
    checkpoint = read_checkpoint(file)
    found = {f"ema.{key}": value for key, value in checkpoint["state_dict"].items()}
    found |= {f"plain.{key}": value for key, value in checkpoint["ema_state_dict"].items()}
    for number, slots in checkpoint["optimizer"]["state"].items():
        found |= {f"optimizer.{number}.{key}": torch.as_tensor(value) for key, value in slots.items()}
    return found


def test_a_detector_that_was_killed_and_stopped_ends_as_the_undisturbed_run(
    start: Callable, run: Callable, detector: Path, scenes: Path, tmp_path: Path
) -> None:
    words = ["train", detector, "--data", scenes]
    alone = run(*words, "--work-dir", "alone")
    assert alone.code == 0, alone.said
    killed = start(*words, "--work-dir", "killed", slow_disk=0.2)
    killed.wait_until(lambda: any(tmp_path.glob("killed/iter_4.pth")))
    killed.kill()
    stopped = start(*words, "--work-dir", "killed", "--resume", slow_disk=0.2)
    stopped.wait_until(lambda: any(tmp_path.glob("killed/iter_8.pth")))
    stopped.send_to_all(signal.SIGTERM)
    assert stopped.wait().code == 143, stopped.said
    finished = run(*words, "--work-dir", "killed", "--resume")
    assert finished.code == 0, finished.said
    expected, found = (state(tmp_path / folder / "iter_12.pth") for folder in ("alone", "killed"))
    assert found.keys() == expected.keys()
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []
