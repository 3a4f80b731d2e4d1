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
pretraining = None
model = dict({backbone})
train_dataloader = dict(batch_size=2, num_workers=2)
train_cfg = dict(max_epochs=2, val_interval=2)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=4, save_best=None), logger=dict(interval=1))
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
"""

SEGMENTER = """
_base_ = "ade20k/semantic-fpn_80k"
model = dict(
    {backbone},
    data_preprocessor=dict(size=(64, 64)),
    neck=dict(in_channels=[32, 64, 160, 256], out_channels=16),
    decode_head=dict(in_channels=[16] * 4, channels=16, norm_cfg=dict(type="BN")),
)
crops = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomCrop", crop_size=(64, 64), cat_max_ratio=0.9),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(batch_size=2, num_workers=2, dataset=dict(pipeline=crops))
train_cfg = dict(max_iters=12, val_interval=6)
default_hooks = dict(checkpoint=dict(interval=4), logger=dict(interval=1))
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.1, update_buffers=True)]
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scenes of digits to train on, three for validation."""
    folder = tmp_path_factory.mktemp("scenes") / "digits"
    assert make_dataset.main(["digits", str(folder), "--scenes", "12"]) == 0
    return folder


@pytest.fixture(
    params=[
        pytest.param(DETECTOR, id="epochs of a detector"),
        pytest.param(SEGMENTER, id="steps of a segmenter"),
    ]
)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Twelve steps, with a checkpoint every four: in the middle of the detector's epochs of six."""
    file = tmp_path / "dense.py"
    file.write_text(request.param.replace("{backbone}", BACKBONE))
    return file


def state(file: Path) -> dict[str, torch.Tensor]:
    """Weights, averaged weights and optimizer of a checkpoint."""
    checkpoint = read_checkpoint(file)
    found = {f"ema.{key}": value for key, value in checkpoint["state_dict"].items()}
    found |= {f"plain.{key}": value for key, value in checkpoint["ema_state_dict"].items()}
    for number, slots in checkpoint["optimizer"]["state"].items():
        found |= {f"optimizer.{number}.{key}": torch.as_tensor(value) for key, value in slots.items()}
    return found


@pytest.mark.all
def test_what_was_killed_and_stopped_ends_as_the_undisturbed_run(
    start: Callable, run: Callable, config: Path, scenes: Path, tmp_path: Path
) -> None:
    words = ["train", config, "--data", scenes]
    alone = run(*words, "--work-dir", "alone")
    assert alone.code == 0, alone.said
    killed = start(*words, "--work-dir", "killed", slow_disk=0.2)
    killed.wait_until(lambda: any(tmp_path.glob("killed/iter_4.pth")))
    killed.kill()
    stopped = start(*words, "--work-dir", "killed", "--resume", slow_disk=0.2)
    stopped.wait_until(lambda: any(tmp_path.glob("killed/iter_8.pth")))
    stopped.send_to_all(signal.SIGTERM)
    assert stopped.wait().code == 143, stopped.said
    # weights that a run began with may be gone when it goes on
    finished = run(*words, "--work-dir", "killed", "--resume", "--cfg-options", "model.backbone.pretrained=gone.pth")
    assert finished.code == 0, finished.said
    expected, found = (state(tmp_path / folder / "iter_12.pth") for folder in ("alone", "killed"))
    assert found.keys() == expected.keys()
    assert [key for key, value in expected.items() if not torch.equal(found[key], value)] == []
