"""Schedules lie within the run, count steps of the optimizer, and follow the rate where a rule has multiplied it."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from line_runs import Line
from mmengine.hooks import EMAHook
from mmengine.optim import CosineAnnealingLR, LinearLR
from torch import nn
from torch.utils.data import DataLoader
from vertebra.engine.runner import VertebraRunner
from vertebra.engine.schedule import StepScheduleHook, counting_steps, fit, mark, replay, scaled

WARM_UP = dict(type="LinearLR", start_factor=1e-3, end=5, convert_to_iter_based=True)
COSINE = dict(type="CosineAnnealingLR", begin=5, convert_to_iter_based=True)


def places(schedules: Sequence[Any], epochs: int, iterations: int = 1000) -> list[tuple[int, int]]:
    """Where schedules begin and end in a run."""
    return [(each["begin"], each["end"]) for each in fit(schedules, epochs, iterations, 10, 1)]


@pytest.mark.parametrize(
    ("epochs", "expected"), [(300, [(0, 5), (5, 300)]), (6, [(0, 5), (5, 6)]), (5, [(0, 5)]), (2, [(0, 2)])], ids=str
)
def test_schedules_end_with_the_run_and_what_would_begin_after_it_is_left_out(
    epochs: int, expected: list[tuple[int, int]]
) -> None:
    assert places([WARM_UP, COSINE], epochs) == expected


@pytest.mark.parametrize(("epochs", "expected"), [(310, [(0, 5), (5, 300)]), (30, [(0, 5), (5, 20)]), (12, [(0, 5)])])
def test_a_negative_end_counts_from_the_end_of_the_run(epochs: int, expected: list[tuple[int, int]]) -> None:
    assert places([WARM_UP, {**COSINE, "end": -10}], epochs) == expected


def test_a_negative_begin_does_too() -> None:
    assert places([dict(type="ConstantLR", begin=-10)], 300) == [(290, 300)]


def test_schedules_in_iterations_end_with_the_last_one() -> None:
    assert places([dict(type="PolyLR", by_epoch=False, begin=100, end=5000)], 3, 800) == [(100, 800)]


def test_a_schedule_that_is_built_stays_as_it_is() -> None:
    built = object()
    assert fit([built], 3, 30, 10, 1) == [built]


def test_a_lowest_rate_that_is_a_number_follows_the_rate() -> None:
    given = [
        {**COSINE, "eta_min": 1e-6},
        {**COSINE, "eta_min_ratio": 0.1},
        dict(type="CosineAnnealingMomentum", eta_min=1),
    ]
    assert scaled(given, 4.0) == [{**given[0], "eta_min": 4e-6}, *given[1:]]


# --- batches whose gradients accumulate ---


def trained(folder: Path, batch: int, group: int) -> VertebraRunner:
    """Four epochs over eight numbers, with a warm-up, a cosine and averaged weights."""
    data = [{"inputs": torch.tensor(number)} for number in range(8)]
    runner = VertebraRunner(
        Line(),
        str(folder),
        train_dataloader=DataLoader(data, batch_size=batch),
        train_cfg=dict(by_epoch=True, max_epochs=4),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1), accumulative_counts=group),
        param_scheduler=[{**WARM_UP, "end": 1}, {**COSINE, "begin": 1, "eta_min": 1e-3}],
        custom_hooks=[dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.3)],
        experiment_name=folder.name,
        default_hooks=dict(checkpoint=None, logger=None),
    )
    runner.train()
    return runner


def averaged(runner: VertebraRunner) -> float:
    """The averaged weight."""
    return next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.module.weight.item()


@pytest.mark.parametrize("group", [2, 4])
def test_batches_that_accumulate_see_the_rates_and_averages_of_one_large_batch(group: int, tmp_path: Path) -> None:
    large = trained(tmp_path / "large", 4, 1)
    small = trained(tmp_path / "small", 4 // group, group)
    assert large.model.weight.item() != 1
    assert small.model.weight.item() == pytest.approx(large.model.weight.item(), rel=1e-6)
    assert averaged(small) == pytest.approx(averaged(large), rel=1e-6)
    assert averaged(large) != pytest.approx(large.model.weight.item(), rel=1e-3)
    assert small.optim_wrapper.get_lr() == large.optim_wrapper.get_lr()


def test_schedules_are_replayed_to_where_training_would_have_brought_them() -> None:
    def schedules() -> tuple[torch.optim.Optimizer, list[Any]]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(()))], lr=0.1)
        made = [
            LinearLR(optimizer, start_factor=0.1, end=40, by_epoch=False),
            CosineAnnealingLR(optimizer, begin=2, end=9, eta_min=1e-3),
        ]
        mark(made, [WARM_UP, COSINE | {"convert_to_iter_based": False}], 2)
        return optimizer, made

    trained, hooked = schedules()
    runner = SimpleNamespace(param_schedulers=hooked, iter=0)
    hook = StepScheduleHook()
    for runner.iter in range(25):
        hook.after_train_iter(runner, 0)
        if (runner.iter + 1) % 5 == 0:
            hook.after_train_epoch(runner)
    replayed, fresh = schedules()
    replay(fresh, 25, 5)
    assert replayed.param_groups[0]["lr"] == trained.param_groups[0]["lr"] != 0.1
    assert [each.state_dict() for each in fresh] == [each.state_dict() for each in hooked]


@pytest.mark.parametrize("name", ["EMAHook", "mmengine.EMAHook", EMAHook], ids=str)
def test_averages_of_any_config_count_steps_of_the_optimizer(name: Any) -> None:
    assert counting_steps(dict(type=name, momentum=0.1)) == dict(type="mmengine.StepEMAHook", momentum=0.1)


def test_other_hooks_stay_as_they_are() -> None:
    for hook in (dict(type="CheckpointHook", interval=1), object(), None):
        assert counting_steps(hook) is hook
