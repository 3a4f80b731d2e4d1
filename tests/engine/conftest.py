"""Small images, a config with everything on, and tools as processes that can be killed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_images import write_images
from tool_processes import Started, free_port, start_tool

CONFIG = """
_base_ = [
    "{configs}/_base_/models/classifier.py",
    "{configs}/_base_/datasets/digits.py",
    "{configs}/_base_/schedules/adamw_300e.py",
    "{configs}/_base_/runtime/default.py",
]
model = dict(
    num_classes=4, depths=(1, 1, 1, 1), drop_path_rate=0.2, drop_rate=0.1, label_smoothing=0.1,
    mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0), erasing=dict(probability=0.5),
)
augment = dict(input_size=(3, 32, 32), auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.4, interpolation="random")
train_dataloader = dict(
    dataset=dict(root="{data}", transform=augment), batch_size=8, num_workers=2
)
val_dataloader = dict(
    dataset=dict(root="{data}", transform=dict(input_size=(3, 32, 32))), batch_size=12, num_workers=0
)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=4, val_interval=2)
optim_wrapper = dict(
    accumulative_counts=2, clip_grad=dict(max_norm=1.0), paramwise_cfg=dict(layer_decay=0.8), optimizer=dict(lr=1e-3)
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-2, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", begin=1, eta_min_ratio=1e-2, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=1))
custom_hooks = [
    dict(type="UnreadableImagesHook", limit=2),
    dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.1, update_buffers=True),
]
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """`start("train", "demo/van_b0_digits", "--resume", largest_file=...)` runs a tool in `tmp_path`."""
    running: list[Started] = []

    def start_one(tool: str, *argv: object, **limits: Any) -> Started:
        output = tmp_path / f"output_{len(running)}.txt"
        running.append(start_tool(tmp_path, tool, [str(word) for word in argv], output, **limits))
        return running[-1]

    yield start_one
    for tool in running:
        if tool.process.is_alive():
            tool.kill()


@pytest.fixture
def run(start: Callable[..., Started]) -> Callable[..., Started]:
    """Like `start`, and waits for the end."""
    return lambda *args, **kwargs: start(*args, **kwargs).wait()


@pytest.fixture
def start_together(start: Callable[..., Started]) -> Callable[..., list[Started]]:
    """`start_together(2, "train", ...)` runs a tool in two processes that meet, as torchrun would start them."""

    def start_all(
        count: int, tool: str, *argv: object, variables: dict[str, str] | None = None, **limits: Any
    ) -> list[Started]:
        shared = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE=str(count))
        ranks = [{**(variables or {}), **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        words = (*argv, "--device", "cpu", "--launcher", "pytorch")
        return [start(tool, *words, variables=own, **limits) for own in ranks]

    return start_all


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of twelve training and three validation images."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def tiny(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config that trains a tiny VAN for four epochs of six steps, with everything on that a real run may have on."""
    configs = Path(__file__).parents[2] / "configs"
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG.replace("{configs}", str(configs)).replace("{data}", str(images)))
    return path
