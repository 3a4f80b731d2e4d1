"""Schedules that fit a run: of any length, with gradients that accumulate, for any total batch.

A schedule in epochs with `convert_to_iter_based=True` counts steps of the optimizer, so batches whose gradients
accumulate see the rates that one large batch would see. Schedules in iterations count batches, as mmengine's do.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.hooks import EMAHook, ParamSchedulerHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

_PLACE = ("last_step", "_global_step", "_last_value")  # of a schedule; the rest of its state are its lengths
_GROUP = "batches_a_step"  # our mark on a schedule, saved with it


def fit(given: Sequence[Any], epochs: int, iterations: int, epoch_length: int, group: int) -> list[Any]:
    """Configs of schedules that lie within the run; those that would begin after its end are left out.

    A negative `begin` or `end` counts from the end of the run: a cosine with `end=-10` leaves the last ten epochs to
    its last rate.

    Args:
        given: configs, or schedules that are built already and stay as they are.
        epochs, iterations: of the run.
        epoch_length: batches of an epoch.
        group: batches that make one step of the optimizer.
    """
    fitted = []
    for schedule in given:
        if not isinstance(schedule, dict):
            fitted.append(schedule)
            continue
        length = epochs if schedule.get("by_epoch", True) else iterations
        begin, end = (_within(schedule.get(key, usual), length) for key, usual in (("begin", 0), ("end", length)))
        if begin < end:
            fitted.append({**schedule, "begin": begin, "end": end, "epoch_length": max(epoch_length // group, 1)})
    return fitted


def _within(place: int, length: int) -> int:
    return max(length + place, 0) if place < 0 else min(place, length)


def scaled(given: Sequence[Any], ratio: float) -> list[Any]:
    """The same configs where the rate was multiplied by `ratio`: a lowest rate that is given as a number follows."""
    return [
        {**schedule, "eta_min": schedule["eta_min"] * ratio}
        if isinstance(schedule, dict) and schedule.get("eta_min") and str(schedule["type"]).endswith("LR")
        else schedule
        for schedule in given
    ]


def mark(schedules: Sequence[Any], configs: Sequence[Any], group: int) -> None:
    """Have schedules that count steps of the optimizer go on once in `group` batches."""
    for schedule, config in zip(schedules, configs, strict=True):
        converted = isinstance(config, dict) and config.get("convert_to_iter_based", False)
        setattr(schedule, _GROUP, group if converted else 1)


def lengths(state: dict[str, Any]) -> dict[str, Any]:
    """What a schedule's saved state says of its lengths, and not of where it stands."""
    return {key: value for key, value in state.items() if key not in _PLACE}


def replay(schedules: Sequence[Any], iterations: int, epoch_length: int) -> None:
    """Bring fresh schedules to where they stand after so many batches."""
    for done in range(1, iterations + 1):
        for schedule in schedules:
            if _goes_on(schedule, done) if not schedule.by_epoch else done % epoch_length == 0:
                schedule.step()


def _goes_on(schedule: Any, done: int) -> bool:
    return done % getattr(schedule, _GROUP, 1) == 0


@HOOKS.register_module()
class StepScheduleHook(ParamSchedulerHook):
    """ParamSchedulerHook for schedules of which some count steps of the optimizer."""

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """See the module's docstring."""
        for schedule in _all(runner.param_schedulers):
            if not schedule.by_epoch and _goes_on(schedule, runner.iter + 1):
                schedule.step()


def _all(schedules: Any) -> Iterator[Any]:
    several = schedules.values() if isinstance(schedules, dict) else [schedules or ()]
    return (schedule for each in several for schedule in each)


@HOOKS.register_module()
class StepEMAHook(EMAHook):
    """EMAHook that averages once a step of the optimizer, however many batches make one."""

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """See the class."""
        if (runner.iter + 1) % getattr(runner.optim_wrapper, "_accumulative_counts", 1) == 0:
            super().after_train_iter(runner, batch_idx, data_batch, outputs)


_OURS = {"ParamSchedulerHook": "StepScheduleHook", "EMAHook": "StepEMAHook"}


def counting_steps(hook: Any) -> Any:
    """The config of a hook of mmengine's as that of ours which counts steps of the optimizer; others as they are."""
    kind = hook.get("type") if isinstance(hook, dict) else None
    name = kind.removeprefix("mmengine.") if isinstance(kind, str) else getattr(kind, "__name__", None)
    return {**hook, "type": f"mmengine.{_OURS[name]}"} if name in _OURS else hook
