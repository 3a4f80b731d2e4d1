"""What a run tells while it goes."""

import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from mmengine.hooks import IterTimerHook, LoggerHook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, get_priority
from ranks import run_ranks, unreadable_images
from rich.console import Console
from vertebra.backbones._errors import UserError
from vertebra.engine.hooks import ProgressHook, UnreadableImagesHook


class Loader:
    """Batches of 8, of an order that ends after its last whole one or never does."""

    def __init__(self, images: int, endless: bool) -> None:
        self.dataset, self.batch_size = range(images), 8
        self.batch_sampler, self.sampler = SimpleNamespace(skip=0, endless=endless), None

    def __len__(self) -> int:
        return len(self.dataset) // 8


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until it is moved."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(time, "time", lambda: clock.now)
    return clock


class Run(NamedTuple):
    """What a run said, and what it put into the log at each step."""

    said: list[str]
    columns: dict[str, list[float]]


def run(
    clock: SimpleNamespace,
    loop: type,
    steps: int,
    evaluated: int = 0,
    endless: bool = False,
    ranks: int = 1,
    terminal: bool = False,
    logged: dict[str, float] | None = None,
    length: int = 0,
) -> Run:
    """A run of 8 images and half a second a step, 20 images in all, logged every 4, evaluated for an hour after one."""
    hook, timer = ProgressHook(), IterTimerHook()
    output = io.StringIO()
    hook.console = Console(file=output, width=200, force_terminal=terminal)
    columns: dict[str, list[float]] = {}
    hub = SimpleNamespace(
        log_scalars={
            name: SimpleNamespace(current=lambda value=value: value) for name, value in (logged or {}).items()
        },
        update_scalar=lambda name, value: columns.setdefault(name, []).append(value),
        update_info=lambda *_: None,
        get_scalar=lambda _: SimpleNamespace(current=lambda: 0.5),
    )
    runner: Any = SimpleNamespace(
        hooks=[hook, timer, LoggerHook(interval=4)],
        model=torch.nn.Linear(1, 1),
        message_hub=hub,
        optim_wrapper=SimpleNamespace(
            get_lr=lambda: {"lr": [0.1]}, optimizer=SimpleNamespace(param_groups=[{"lr": 0.1}])
        ),
        logger=SimpleNamespace(info=lambda _: None),
        train_loop=object.__new__(loop),
        train_dataloader=Loader(8 * length or 20, endless),
        iter=0,
        epoch=0,
        max_iters=steps,
        max_epochs=1,
        world_size=ranks,
    )
    for part in (hook, timer):
        part.before_train(runner)
        part.before_train_epoch(runner)
    for step in range(steps):
        clock.now += 0.5
        for part in (timer, hook):
            part.after_train_iter(runner, step, {"inputs": [None] * 8}, {"loss": torch.tensor(float(step))})
        runner.iter += 1
        if runner.iter == evaluated:
            clock.now += 3600
            hook.after_val(runner)
    hook.after_train_epoch(runner)
    hook.close()
    assert columns["train/time"] == [0.5] * steps, "the log's time of a step holds something else"
    return Run([line for line in output.getvalue().splitlines() if not line.startswith("plan")], columns)


def test_a_run_of_steps_says_where_it_is_as_often_as_it_is_logged(clock: SimpleNamespace) -> None:
    said = run(clock, IterBasedTrainLoop, steps=10).said
    assert [line.split("  ")[0] for line in said] == ["step 4/10", "step 8/10", "step 10/10"]
    assert [line.split("  ")[-1] for line in said] == ["ETA 0:00:03", "ETA 0:00:01", "done"]
    assert [line.split("  ")[-2] for line in said] == ["16 img/s"] * 3


def test_the_loss_of_a_line_is_the_mean_over_what_it_tells_of(clock: SimpleNamespace) -> None:
    said = run(clock, IterBasedTrainLoop, steps=10).said
    assert [line.split("  ")[1] for line in said] == ["loss 1.5000", "loss 5.5000", "loss 8.5000"]
    (said,) = run(clock, EpochBasedTrainLoop, steps=10).said
    assert "  loss 4.5000  " in said


@pytest.mark.parametrize("steps", [8, 10])
def test_no_line_tells_of_no_step(clock: SimpleNamespace, steps: int) -> None:
    said = "\n".join(run(clock, IterBasedTrainLoop, steps=steps, terminal=True).said)
    assert f"step {steps}/{steps}" in said
    assert "  0 img/s" not in said


def test_a_run_of_epochs_says_a_line_an_epoch(clock: SimpleNamespace) -> None:
    (said,) = run(clock, EpochBasedTrainLoop, steps=10).said
    assert said.startswith("epoch 1/1")


def test_a_long_epoch_says_a_line_a_minute_with_its_step(clock: SimpleNamespace) -> None:
    said = run(clock, EpochBasedTrainLoop, steps=300, length=300).said
    places = ["epoch 1/1 step 121/300", "epoch 1/1 step 242/300", "epoch 1/1"]
    assert [line.split("  ")[0] for line in said] == places


def test_the_last_line_is_said_once(clock: SimpleNamespace) -> None:
    assert len(run(clock, IterBasedTrainLoop, steps=8).said) == 2


def test_an_evaluation_is_no_part_of_a_steps_time(clock: SimpleNamespace) -> None:
    said = run(clock, IterBasedTrainLoop, steps=8, evaluated=5).said
    assert said[1].split("  ")[-2:] == ["16 img/s", "done"]


def test_a_run_of_steps_logs_which_pass_over_the_data_it_is_in(clock: SimpleNamespace) -> None:
    assert run(clock, IterBasedTrainLoop, steps=5).columns["train/epoch"] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(("ranks", "passes"), [(1, [1, 1, 1, 2, 2, 3]), (2, [1, 1, 2, 3, 4, 5])])
def test_an_order_without_end_passes_over_the_data_as_often_as_its_images_make(
    clock: SimpleNamespace, ranks: int, passes: list[int]
) -> None:
    assert run(clock, IterBasedTrainLoop, steps=6, endless=True, ranks=ranks).columns["train/epoch"] == passes


def test_a_run_of_epochs_leaves_their_column_to_mmengine(clock: SimpleNamespace) -> None:
    assert "train/epoch" not in run(clock, EpochBasedTrainLoop, steps=4).columns


def test_memory_is_known_before_the_first_line_of_the_log_is_written(clock: SimpleNamespace) -> None:
    columns = run(clock, EpochBasedTrainLoop, steps=1).columns
    assert columns["train/memory"][0] > 0
    assert get_priority(ProgressHook.priority) < get_priority(LoggerHook.priority)


def test_a_line_tells_the_gradients_norm_and_the_memory_that_were_logged(clock: SimpleNamespace) -> None:
    logged = {"train/grad_norm": 1.23456, "train/memory": 512.0}
    (said,) = run(clock, EpochBasedTrainLoop, steps=10, logged=logged).said
    assert said.split("  ")[3:5] == ["grad 1.23", "512 MiB"]
    assert len(said) < 120


# --- images that cannot be read ---


def unreadable(limit: int) -> tuple[UnreadableImagesHook, Any, list[str]]:
    """A hook, a runner whose images are called after their number, and what is said."""
    said: list[str] = []
    loader = SimpleNamespace(dataset=SimpleNamespace(filename=lambda index: f"{index}.png"))
    runner: Any = SimpleNamespace(
        iter=0, train_dataloader=loader, val_dataloader=loader, logger=SimpleNamespace(warning=said.append)
    )
    return UnreadableImagesHook(limit), runner, said


def test_a_run_of_steps_puts_together_what_its_processes_found_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    hook, runner, said = unreadable(limit=2)
    monkeypatch.setattr("vertebra.engine.hooks.all_gather_object", lambda found: [found, [7]])
    runner.train_loop = None  # as a loop that counts no epochs
    for runner.iter in (498, 499):
        hook.after_train_iter(runner, 0, {"unreadable": torch.tensor([-1])})
        assert any("image 7.png cannot be read" in line for line in said) == (runner.iter == 499)


def test_each_unreadable_image_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hook, runner, said = unreadable(limit=2)
    for indices in ([-1, 4, 4], [4, -1, 1]):
        hook.after_train_iter(runner, 0, {"unreadable": torch.tensor(indices)})
    monkeypatch.setattr("vertebra.engine.hooks.all_gather_object", lambda found: [found])
    hook.after_train_epoch(runner)
    assert said == [f"train image {i}.png cannot be read and is skipped ({n} so far)" for i, n in ((4, 1), (1, 2))]


def test_an_evaluation_and_the_training_have_a_limit_each() -> None:
    hook, runner, _ = unreadable(limit=1)
    hook.after_train_iter(runner, 0, {"unreadable": torch.tensor([4])})
    hook.after_val_iter(runner, 0, {"unreadable": torch.tensor([5])})
    with pytest.raises(UserError, match=r"train image 6.png cannot be read and is skipped; it is number 2, and 1 are"):
        hook.after_train_iter(runner, 0, {"unreadable": torch.tensor([6])})


def test_what_ranks_could_not_read_is_put_together_on_each(tmp_path: Path) -> None:
    """Images 1 and 2 on one rank, 2 and 3 on the other: three, which three allow and two do not."""
    shares = [[1, 2], [2, 3]]
    said = run_ranks(unreadable_images, 2, tmp_path, shares, 3)
    assert [sorted(lines) for lines in said] == [[f"{i}.png" for i in (1, 2, 3)]] * 2
    refused = run_ranks(unreadable_images, 2, tmp_path / "again", shares, 2)
    assert all(str(answer).startswith("UserError: train image ") for answer in refused)
