"""What a run tells while it goes: a live line or one line an epoch, and images that could not be read."""

import math
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, is_main_process
from mmengine.hooks import Hook, IterTimerHook, LoggerHook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ..backbones._errors import UserError
from .classifier import DIVERGED
from .metrics import flat_metrics
from .order import order_of
from .plan import describe_plan


def peak_memory_mb(device: torch.device) -> int:
    """Peak memory of this process in MiB: the GPU's where the model is on one, else the resident set's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


_SILENT_SECONDS = 60.0  # at most, where the output is a file


@HOOKS.register_module()
class ProgressHook(Hook):
    """A live line with loss, throughput and time left on a terminal.

    Where the output is a file: one line an epoch, and one a minute on the way; of a run that counts steps, one at the
    interval of the logger. Loss and throughput are means over what the line tells of, in this process: what was trained
    before a resume is not in.
    Each line of the log gets the columns that mmengine leaves out: `memory`, and in a run that counts steps `epoch`,
    with `by_step`, which says that its evaluations are numbered by steps.
    """

    priority = "NORMAL"  # before the logger's, or the first line would lack these columns

    def __init__(self) -> None:
        self.console = Console()
        self.bar: Progress | None = None
        self.steps, self.images, self.train_seconds, self.losses = 0, 0, 0.0, 0.0
        self.since: tuple[int, int, float, float] = (0, 0, 0.0, 0.0)  # where rates and loss of the next line begin
        self.told = -1  # the step of the last line
        self.told_at = 0.0
        self.metrics: dict[str, Any] = {}  # of the last evaluation

    def before_train(self, runner: Runner) -> None:
        """Say what is about to be done, and open the live line."""
        if not is_main_process():
            return
        plan = describe_plan(runner)
        self.console.print(plan, highlight=False, soft_wrap=True)
        runner.logger.info(plan)
        if self.console.is_terminal:
            text = TextColumn("{task.description}")
            self.bar = Progress(text, BarColumn(), TextColumn("{task.percentage:>3.0f} %"), console=self.console)
            self.bar.start()
            self.task = self.bar.add_task("", total=runner.max_iters, completed=runner.iter)

    def before_train_epoch(self, runner: Runner) -> None:
        """Remember where the epoch began."""
        self.since = (self.steps, self.images, self.train_seconds, self.losses)
        self.last = self.told_at = time.perf_counter()

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Update the live line and the log's memory column."""
        now = time.perf_counter()
        self.train_seconds += now - self.last
        self.last = now
        self.steps += 1
        self.images += len(data_batch["inputs"]) * runner.world_size
        loss = float(outputs["loss"].detach())
        if not math.isfinite(loss):
            raise UserError(DIVERGED.format(what=f"the loss is {loss}"))
        self.losses += loss
        device = next(runner.model.parameters()).device
        runner.message_hub.update_scalar("train/memory", peak_memory_mb(device))
        if not _counts_epochs(runner):
            runner.message_hub.update_scalar("train/epoch", _pass_begun(runner, len(data_batch["inputs"])))
            runner.message_hub.update_scalar("train/by_step", 1)
        if self.bar is not None:
            self.bar.update(self.task, completed=runner.iter + 1, description=self._line(runner, runner.iter + 1))
        if not _counts_epochs(runner) and (runner.iter + 1) % _log_interval(runner) == 0:
            if self.bar is None:
                self._tell(runner, runner.iter + 1)
            self.since = (self.steps, self.images, self.train_seconds, self.losses)
        elif _counts_epochs(runner) and self.bar is None and now - self.told_at > _SILENT_SECONDS:
            self._tell(runner, runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        """The epoch's line, or the last one of a run that counts steps."""
        if self.told != runner.iter and self.steps > self.since[0]:
            self._tell(runner, runner.iter)

    def after_val(self, runner: Runner) -> None:
        """Leave the time of an evaluation out of the next step's."""
        self.last = time.perf_counter()
        for hook in runner.hooks:
            if isinstance(hook, IterTimerHook):
                hook.t = time.time()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """The evaluation's line."""
        self.metrics = dict(metrics or {})
        if is_main_process() and metrics:
            shown = "  ".join(f"{key} {value}" for key, value in self.shown().items())
            self.console.print(f"  evaluated  {shown}", highlight=False, soft_wrap=True)

    def shown(self) -> dict[str, str]:
        """The last evaluation's scores, in percent."""
        scores = flat_metrics(self.metrics)
        return {key: f"{value:.2%}" for key, value in scores.items() if isinstance(value, float)}

    def after_train(self, runner: Runner) -> None:
        """Close the live line."""
        self.close()

    def close(self) -> None:
        """Give the terminal back."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _tell(self, runner: Runner, done: int) -> None:
        self.told, self.told_at = done, time.perf_counter()
        if is_main_process():
            self.console.print(self._line(runner, done), highlight=False, soft_wrap=True)

    def _line(self, runner: Runner, done: int) -> str:
        now = (self.steps, self.images, self.train_seconds, self.losses)
        steps, images, seconds, losses = (value - before for value, before in zip(now, self.since, strict=True))
        left = (runner.max_iters - done) * seconds / max(steps, 1)
        minutes, rest = divmod(round(left), 60)
        rate = runner.optim_wrapper.get_lr()
        parts = [
            _place(runner, done),
            f"loss {losses / max(steps, 1):.4f}",
            f"lr {next(iter(rate.values()))[0]:.2e}",
            *_logged(runner, "grad_norm", "grad {:.3g}"),
            *_logged(runner, "memory", "{:.0f} MiB"),
            f"{images / max(seconds, 1e-9):.0f} img/s",
            f"ETA {minutes // 60}:{minutes % 60:02d}:{rest:02d}" if done < runner.max_iters else "done",
        ]
        return "  ".join(parts)


def _place(runner: Runner, done: int) -> str:
    """Where in the run a line is told; on the way through an epoch with the step of it."""
    if not _counts_epochs(runner):
        return f"step {done}/{runner.max_iters}"
    length = len(runner.train_dataloader)
    step = done - runner.epoch * length
    return f"epoch {runner.epoch + 1}/{runner.max_epochs}" + (f" step {step}/{length}" if step < length else "")


def _logged(runner: Runner, name: str, form: str) -> list[str]:
    """The newest value of a column of the log, if it has one."""
    buffer = runner.message_hub.log_scalars.get(f"train/{name}")
    return [form.format(buffer.current())] if buffer is not None else []


def _counts_epochs(runner: Runner) -> bool:
    return isinstance(runner.train_loop, EpochBasedTrainLoop)


def _pass_begun(runner: Runner, images: int) -> int:
    """Which pass over the data this step is in, from 1; an order without end has none, so its images are counted."""
    loader = runner.train_dataloader
    if getattr(order_of(loader), "endless", False):
        return runner.iter * images * runner.world_size // len(loader.dataset) + 1
    return runner.iter // len(loader) + 1


def _log_interval(runner: Runner) -> int:
    return next((hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), 50)


@HOOKS.register_module()
class PlainHistoryHook(Hook):
    """Keeps in a checkpoint what any safe reader loads, timm's too: no history of the log, no numpy scalars."""

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """See the class."""
        checkpoint["message_hub"]["log_scalars"] = {}
        for key in ("meta", "message_hub", "param_schedulers"):
            if key in checkpoint:
                checkpoint[key] = _without_numpy(checkpoint[key])


def _without_numpy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_numpy(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_numpy(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value


_GATHER_STEPS = 500


@HOOKS.register_module()
class UnreadableImagesHook(Hook):
    """Counts images that could not be read, names each once, and ends the run when they are too many.

    Of detectors and segmenters it reads what `dense_data` has written into the samples: skipped ones, ignored labels.
    Each process counts its own as it goes; at the end of an epoch or an evaluation those of all are put together.

    Args:
        limit: so many different images are skipped, and so many have labels that are ignored; one more is an error.
    """

    priority = "ABOVE_NORMAL"

    def __init__(self, limit: int = 20) -> None:
        self.limit = limit
        self.seen: dict[str, set[int | str]] = {"train": set(), "val": set(), "test": set()}
        self.ignored: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look through a training batch; where steps are counted and no epochs, put together now and then."""
        self._count(runner, "train", data_batch, runner.train_dataloader)
        if (runner.iter + 1) % _GATHER_STEPS == 0 and not _counts_epochs(runner):
            self._gather(runner, "train", runner.train_dataloader)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look through a validation batch."""
        self._count(runner, "val", data_batch, runner.val_dataloader)

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look through a test batch."""
        self._count(runner, "test", data_batch, runner.test_dataloader)

    def after_train_epoch(self, runner: Runner) -> None:
        """Put together what all processes have found."""
        self._gather(runner, "train", runner.train_dataloader)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Put together what all processes have found."""
        self._gather(runner, "val", runner.val_dataloader)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Put together what all processes have found."""
        self._gather(runner, "test", runner.test_dataloader)

    def _count(self, runner: Runner, split: str, batch: Any, loader: Any) -> None:
        for sample in _data_samples(batch):
            for kind in ("skipped", "ignored"):
                self._add(runner, split, kind, sample.get(kind) or (), loader)
        if "unreadable" in batch:
            found = batch["unreadable"][batch["unreadable"] >= 0].tolist()
            self._add(runner, split, "skipped", found, loader)

    def _gather(self, runner: Runner, split: str, loader: Any) -> None:
        for kind, seen in (("skipped", self.seen), ("ignored", self.ignored)):
            for found in all_gather_object(list(seen[split])):
                self._add(runner, split, kind, found, loader)

    def _add(self, runner: Runner, split: str, kind: str, found: Iterable[int | str], loader: Any) -> None:
        """Tell of what is new among indices of images and reasons why something was left out."""
        seen: set[Any] = (self.seen if kind == "skipped" else self.ignored)[split]
        for key in sorted(set(found) - seen):
            name = f"image {loader.dataset.filename(key)} cannot be read and is" if isinstance(key, int) else f"{key}:"
            seen.add(key)
            sentence = f"{split} {name} {kind}"
            if len(seen) > self.limit:
                raise UserError(
                    f"{sentence}; it is number {len(seen)}, and {self.limit} are {kind} at most (custom_hooks: "
                    "UnreadableImagesHook.limit)"
                )
            runner.logger.warning(f"{sentence} ({len(seen)} so far)")


def _data_samples(batch: Any) -> list[Any]:
    """The data samples of a batch of mmdet's or mmseg's, several where there are several views of an image."""
    samples = (batch.get("data_samples") or ()) if isinstance(batch, Mapping) else ()
    views = [view for sample in samples for view in (sample if isinstance(sample, list | tuple) else [sample])]
    return [view for view in views if hasattr(view, "get")]
