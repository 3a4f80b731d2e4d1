"""What the training loops leave in the work dir, and what they deal where an order ends."""

import os
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset, DefaultSampler
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from vertebra.engine.loops import ResumableEpochLoop, ResumableIterLoop
from vertebra.engine.order import continued, order_of
from vertebra.engine.runner import VertebraRunner


@pytest.mark.parametrize(
    ("saved", "age", "kept"),
    [("", 0, True), ("epoch_3.pth", -5, True), ("epoch_6.pth", 5, False), ("lost.pth", None, True)],
    ids=["none since", "one before it", "one after it", "one that is gone"],
)
def test_what_a_signal_left_goes_once_a_later_file_is_there(
    saved: str, age: int | None, kept: bool, tmp_path: Path
) -> None:
    left = tmp_path / "iter_40.pth"
    left.touch()
    if saved and age is not None:
        (tmp_path / saved).touch()
        at = left.stat().st_mtime + age
        os.utime(tmp_path / saved, (at, at))
    known: dict[str, Any] = {"interrupted": left.name, "last_ckpt": str(tmp_path / saved) if saved else ""}
    loop: Any = object.__new__(ResumableEpochLoop)
    hub = SimpleNamespace(get_info=known.get)
    loop._runner = SimpleNamespace(work_dir=str(tmp_path), message_hub=hub)
    loop._remove_superseded()
    assert left.exists() is kept


def test_steps_go_on_over_the_end_of_an_order_and_from_any_place() -> None:
    def steps(begin: int, count: int) -> list[list[int]]:
        numbers = TensorDataset(torch.arange(5))
        plain = DataLoader(numbers, batch_size=2, sampler=DefaultSampler(numbers, shuffle=True, seed=0))
        loop: Any = object.__new__(ResumableIterLoop)
        loop.dataloader, loop._iter, loop._epoch = continued(plain, seed=0), begin, 0
        batches = loop._batches()
        return [next(batches)[0].tolist() for _ in range(count)]

    whole = steps(0, 9)
    assert steps(4, 5) == whole[4:]
    assert all(sorted(chain(*whole[i : i + 3])) == list(range(5)) for i in (0, 3, 6))
    assert whole[:3] != whole[3:6]


@pytest.mark.parametrize("ours", [False, True], ids=["left by another run", "saved by this run"])
def test_a_moment_is_saved_unless_this_run_has_saved_it(ours: bool, tmp_path: Path) -> None:
    file = tmp_path / "iter_8.pth"
    file.write_text("what was there")
    saved: list[str] = []
    loop: Any = object.__new__(ResumableIterLoop)
    loop._iter, loop._epoch = 8, 0
    loop._runner = SimpleNamespace(
        work_dir=str(tmp_path),
        written={file.resolve()} if ours else set(),
        message_hub=SimpleNamespace(update_info=lambda *_: None),
        save_checkpoint=lambda folder, name, **_: saved.append(name),
    )
    assert loop.save_here() == str(file)
    assert saved == ([] if ours else ["iter_8.pth"])


@pytest.mark.parametrize(("saved", "warned"), [(4, True), (2, False), (None, False)])
def test_a_run_of_steps_that_goes_on_with_another_batch_size_says_so(saved: int | None, warned: bool) -> None:
    said: list[str] = []
    loop: Any = object.__new__(ResumableIterLoop)
    loop.dataloader, loop._iter = DataLoader(TensorDataset(torch.arange(8)), batch_size=2), 30
    known = {"step_images": saved} if saved else {}
    runner: Any = SimpleNamespace(train_loop=loop, _saved=known, logger=SimpleNamespace(warning=said.append))
    VertebraRunner._place_in_epoch(runner, "iter_30.pth")
    assert loop._iter == 30
    assert bool(said) is warned
    assert not warned or "a run of 4 images a step, and this one takes 2: it goes on at step 30" in said[0]


class Noise(BaseDataset):
    """Four samples of one number each, drawn anew whenever one is asked for; like mmseg's, it knows no test mode."""

    def load_data_list(self) -> list[dict[str, Any]]:
        return [{"number": i} for i in range(4)]


def draw(data: dict[str, Any]) -> dict[str, Any]:
    """The only step of the pipeline."""
    return {"inputs": torch.tensor(np.random.rand())}


class Keeping(BaseModel):
    """Keeps the numbers that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.zeros(())), []

    def train_step(self, data: dict[str, Any], optim_wrapper: Any) -> dict[str, torch.Tensor]:
        self.seen.append(tuple(round(float(number), 9) for number in data["inputs"]))
        return {"loss": torch.zeros(())}

    def forward(self, *data: Any, **options: Any) -> None:
        """Not called."""


def loader(**options: Any) -> dict[str, Any]:
    """A loader's config, two samples at a time."""
    data = dict(type=Noise, pipeline=[draw])
    return dict(dataset=data, batch_size=2, num_workers=0, sampler=dict(type="DefaultSampler", **options))


def runner(folder: Path, **options: Any) -> VertebraRunner:
    """Two passes over the samples."""
    return VertebraRunner(
        Keeping(),
        str(folder),
        train_dataloader=loader(shuffle=True),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1), accumulative_counts=2),
        randomness=dict(seed=0),
        experiment_name=folder.name,
        default_hooks=dict(checkpoint=None, logger=None),
        **options,
    )


@pytest.mark.parametrize(
    "loop",
    [
        dict(by_epoch=True, max_epochs=2),
        dict(type="EpochBasedTrainLoop", max_epochs=2),
        dict(by_epoch=False, max_iters=4),
        dict(type="IterBasedTrainLoop", max_iters=4),
    ],
    ids=str,
)
def test_loops_of_mmengines_own_draw_anew_in_every_epoch_and_can_be_continued(
    loop: dict[str, Any], tmp_path: Path
) -> None:
    made = runner(tmp_path, train_cfg=loop)
    made.train()
    assert isinstance(made.train_loop, ResumableEpochLoop | ResumableIterLoop)
    numbers = [number for batch in made.model.seen for number in batch]
    assert len(numbers) == len(set(numbers)) == 8


def test_an_evaluation_reads_every_sample_in_the_order_of_the_data_set(tmp_path: Path) -> None:
    made = runner(tmp_path, train_cfg=dict(max_epochs=1))
    read = made.build_dataloader(loader(shuffle=False))
    assert order_of(read) is None
    assert len(read) == 2
    assert not read.dataset.pipeline.training
    assert made.train_dataloader.dataset.pipeline.training
