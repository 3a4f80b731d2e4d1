"""A detector whose config wants its backbone trained as a classifier first, by one command that may be ended."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tool_processes import Started, start_tool
from vertebra.backbones._checkpoint import read_checkpoint
from vertebra.tools import _pretraining, make_dataset, train

pytest.importorskip("mmdet")

from mmengine.visualization import Visualizer

CLASSIFIER = """
_base_ = "demo/van_b0_digits"
model = dict(depths=(1, 1, 1, 1))
train_dataloader = dict(batch_size=60, num_workers=0, dataset=dict(split="val"))
val_dataloader = dict(num_workers=0)
train_cfg = dict(max_epochs=1, val_interval=1)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=3, save_best=None))
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
"""
DETECTOR = """
_base_ = "demo/retinanet_digits"
pretraining = dict(config="{folder}/classifier.py", options=["randomness.seed=3"])
model = dict(backbone=dict(depths=(1, 1, 1, 1)))
train_dataloader = dict(batch_size=2, num_workers=0)
val_dataloader = dict(num_workers=0)
train_cfg = dict(max_epochs=1, val_interval=1)
optim_wrapper = dict(optimizer=dict(lr=0.0))
default_hooks = dict(checkpoint=dict(interval=1, save_best=None))
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes to train on, one for validation, and the two configs beside them."""
    path = tmp_path_factory.mktemp("pretraining")
    assert make_dataset.main(["digits", str(path / "digits"), "--scenes", "2"]) == 0
    (path / "classifier.py").write_text(CLASSIFIER)
    (path / "detector.py").write_text(DETECTOR.replace("{folder}", str(path)))
    return path


@pytest.fixture
def start(folder: Path, tmp_path: Path) -> Callable[..., Started]:
    """`start(...)` begins a training of the detector."""

    def begin(*words: object, **options: float) -> Started:
        line = ["detector.py", "--data", "digits", "--work-dir", str(tmp_path / "run"), *map(str, words)]
        return start_tool(folder, "train", line, tmp_path / "said.txt", **options)

    return begin


@pytest.mark.all
def test_the_detector_starts_from_what_the_classifier_learned_also_after_a_stop(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    first = tmp_path / "run/pretraining"
    stopped = start(slow_disk=0.2)
    stopped.wait_until(lambda: any(first.glob("iter_3.pth")))
    stopped.send_to_all(signal.SIGTERM)
    assert stopped.wait().code == 143, stopped.said
    done = start().wait()
    assert done.code == 0, done.said
    learned = read_checkpoint(first / "iter_6.pth")["state_dict"]
    found = read_checkpoint(tmp_path / "run/epoch_1.pth")["state_dict"]
    weights = {key: value for key, value in found.items() if key.startswith("backbone.body.stages")}
    assert weights
    known = {key.removeprefix("backbone."): value for key, value in learned.items()}
    trained = [key for key in weights if "running" not in key and "num_batches" not in key]
    assert [k for k in trained if not torch.equal(weights[k], known[k.removeprefix("backbone.body.")])] == []
    again = start("--resume", "--cfg-options", "train_cfg.max_epochs=2").wait()
    assert again.code == 0, again.said
    assert again.said.count("as a classifier") == 2  # of the first two commands


@pytest.mark.parametrize(
    "option",
    [
        "model.bbox_head.foo=1",
        "train_dataloader.num_batches=25",
        "optim_wrapper.optimizer.foo=1",
        "val_evaluator.foo=1",
    ],
)
def test_a_mistake_in_the_detector_is_said_before_the_classifier_is_trained(
    start: Callable[..., Started], tmp_path: Path, option: str
) -> None:
    refused = start("--cfg-options", option).wait()
    assert refused.code == 2, refused.said
    assert option.split(".")[-1].split("=")[0] in refused.said
    assert "as a classifier" not in refused.said
    assert not (tmp_path / "run").exists()


def test_what_is_built_to_be_checked_is_not_given_out_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmengine keeps logs by their name, and those of the check lie in a folder that is gone."""
    monkeypatch.chdir(folder)
    words = ["detector.py", "--data", "digits", "--work-dir", str(tmp_path)]
    config = train.prepare(train.build_parser().parse_args(words), "cpu")
    config.visualizer.name = "its_own"
    _pretraining.check(config)
    assert not Visualizer.check_instance_created("its_own")
    assert list(tmp_path.iterdir()) == []


def test_data_without_the_classifiers_is_one_sentence(
    start: Callable[..., Started], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "alone").symlink_to(folder / "digits/coco")
    refused = start("--data", str(tmp_path / "alone")).wait()
    assert refused.code == 2
    assert "pretraining=None leaves that out" in refused.said


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("pretraining=short", "pretraining is 'short'; it takes config"),
        ("pretraining.epochs=3", "it takes config"),
        ("pretraining.options=a=1", "a list of key=value"),
        ("pretraining.config=demo/van_b9_digits", "there is no config"),
    ],
)
def test_a_wrong_entry_is_one_sentence(start: Callable[..., Started], tmp_path: Path, option: str, said: str) -> None:
    refused = start("--cfg-options", option).wait()
    assert refused.code == 2
    assert refused.said.count("error: ") == 1
    assert said in refused.said
    assert not list(tmp_path.glob("run/*"))
