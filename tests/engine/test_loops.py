"""What the training loops leave in the work dir, and what they deal where an order ends."""

import os
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.dataset import DefaultSampler
from torch.utils.data import DataLoader, TensorDataset
from vertebra.engine.loops import ResumableEpochLoop, ResumableIterLoop
from vertebra.engine.order import continued
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
