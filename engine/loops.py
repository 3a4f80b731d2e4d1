"""The training loops: mmengine's, continued in the middle of an epoch and ended by a signal with a checkpoint."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn

from ..backbones._errors import Interrupted, UserError
from ..backbones._files import write_whole
from .order import order_of
from .ranks import several
from .stop import StopRequest

_EVALUATED = "evaluated_epoch"
_INTERRUPTED = "interrupted"  # the file that a signal left behind


class _EndableLoop(ABC):
    """What both loops share: ending by a signal between two steps, evaluations, and the files that are left."""

    if TYPE_CHECKING:
        runner: Any
        dataloader: Any
        _iter: int
        _epoch: int

    stop: StopRequest

    @abstractmethod
    def _name_here(self) -> str:
        """The checkpoint hook's name of a file of this moment, if there may be one."""

    @abstractmethod
    def _place(self) -> int:
        """Where evaluations are counted: epochs or steps that are done."""

    def _known(self) -> bool:
        """Whether this very moment was evaluated before."""
        return self.runner.message_hub.get_info(_EVALUATED, 0) == self._place()

    @property
    def _group(self) -> int:
        """Batches that make one step of the optimizer."""
        return self.runner.optim_wrapper._accumulative_counts

    def _evaluate_now(self) -> None:
        # before it is true, since the checkpoint hook saves again at the end of an evaluation that was the best
        self.runner.message_hub.update_info(_EVALUATED, self._place())
        try:
            with self._waiting_for_all(self.runner.val_loop.evaluator):
                self.runner.val_loop.run()
        except _EvaluationStopped:
            ema = next((hook for hook in self.runner.hooks if isinstance(hook, EMAHook)), None)
            if ema is not None:
                ema._swap_ema_parameters()  # evaluation had put the averaged weights in the model
            self.runner.message_hub.update_info(_EVALUATED, 0)
            self._end()
        self._end_if_asked()

    @contextmanager
    def _waiting_for_all(self, evaluator: Any) -> Iterator[None]:
        """Inside, the evaluator adds up nothing before all processes have seen their share, or leave with it."""
        add_up = evaluator.evaluate

        def add_up_together(size: int) -> Any:
            if not self.stop.all_have_evaluated(self._iter, self._group):
                raise _EvaluationStopped
            with self.stop.patience():
                return add_up(size)

        evaluator.evaluate = add_up_together
        try:
            yield
        finally:
            evaluator.evaluate = add_up

    def _start_order(self, epoch: int, taken: int) -> None:
        orders = (self.dataloader.batch_sampler, self.dataloader.sampler, self.dataloader.dataset)
        for order in orders:
            if hasattr(order, "skip"):
                order.set_epoch(epoch, taken)
            elif hasattr(order, "set_epoch"):
                order.set_epoch(epoch)

    def _end_if_asked(self) -> None:
        """Save and leave if a signal came to any process, once no gradient is being accumulated."""
        if several() and self._iter >= self.runner.max_iters:
            return  # the run ends by itself, and the store may have ended with the first process
        if self.stop.due(self._iter, self._group):
            self._end()

    def _end(self) -> NoReturn:
        """Save, which is the first process's to do, and leave."""
        stop, signum = self.stop, self.stop.signum or 0
        if not is_main_process():
            with stop.patience(saving=True):
                stop.wait_for_the_first()
            raise Interrupted(signum, "")
        try:
            kept = self.save_here()
        finally:
            stop.release()
        said = f"Stopped by a signal at step {self._iter}; {kept} is saved, and --resume carries on from it."
        raise Interrupted(signum, said)

    def save_here(self) -> str:
        """Save the state between two steps, unless this moment is saved already; the path of the file.

        A file of that name that another run left in the folder is of another state.
        """
        folder, name = Path(self.runner.work_dir), self._name_here()
        if (folder / name).resolve() not in self.runner.written:
            name = f"iter_{self._iter}.pth"
            self.runner.message_hub.update_info(_INTERRUPTED, name)
            meta = dict(epoch=self._epoch, iter=self._iter)
            args = getattr(self.runner, "checkpoint_args", {})
            self.runner.save_checkpoint(str(folder), name, meta=meta, by_epoch=False, **args)
        if is_main_process():
            write_whole(folder / "last_checkpoint", str(folder / name).encode())
        return str(folder / name)

    def _remove_superseded(self) -> None:
        """Remove what an earlier signal left in the middle of an epoch, once a later moment is saved."""
        folder, name = Path(self.runner.work_dir), self.runner.message_hub.get_info(_INTERRUPTED, None)
        if not name or not is_main_process():
            return
        left, saved = folder / name, Path(str(self.runner.message_hub.get_info("last_ckpt", "")))
        # a resumed run knows of the file that was saved before the signal came
        if left.is_file() and saved.is_file() and saved.stat().st_mtime_ns > left.stat().st_mtime_ns:
            left.unlink(missing_ok=True)

    def _trim_history(self, kept: int) -> None:
        """Keep what the log looks back on; mmengine copies each whole history at every step."""
        for buffer in self.runner.message_hub.log_scalars.values():
            buffer._log_history, buffer._count_history = buffer._log_history[-kept:], buffer._count_history[-kept:]

    def stop_evaluation_if_asked(self) -> None:
        """Leave an evaluation that a signal came into; what it follows is a moment that can be saved."""
        if self.stop.asked(self._iter, self._group):
            self.stop.leave_evaluation()
            raise _EvaluationStopped


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop, _EndableLoop):
    """EpochBasedTrainLoop whose epochs can be continued: the sampler leaves out the batches that were taken before.

    A checkpoint of an epoch is written before that epoch is evaluated, so a run that continues from the end of an epoch
    evaluates it first: nothing is lost if it was killed in between, and a finished run that is resumed says how good
    it is.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        max_epochs: int,
        val_begin: int = 1,
        val_interval: int = 1,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        if not isinstance(max_epochs, int) or max_epochs < 1:
            raise UserError(f"train_cfg.max_epochs is {max_epochs!r}; a whole number from 1 up is accepted")
        super().__init__(runner, dataloader, max_epochs, val_begin, val_interval, dynamic_intervals)

    def run(self) -> nn.Module:
        """Train from where the run stands to the last epoch."""
        self.runner.call_hook("before_train")
        with StopRequest() as self.stop:
            known = self._known() and self._epoch < self._max_epochs
            if self._epoch and not self._batches_taken() and not known:
                self._evaluate()
            while self._epoch < self._max_epochs and not self.stop_training:
                self.run_epoch()
                self._end_if_asked()
                self._evaluate()
        self.runner.call_hook("after_train")
        return self.runner.model

    def run_epoch(self) -> None:
        """Train one epoch, or what is left of it."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        taken = self._batches_taken()
        self._start_order(self._epoch, taken)
        for idx, batch in enumerate(self.dataloader, start=taken):
            self.run_iter(idx, batch)
            if idx + 1 < len(self.dataloader):
                self._end_if_asked()
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
        self._remove_superseded()
        self._trim_history(max(len(self.dataloader), 1000))

    def _batches_taken(self) -> int:
        return self._iter - self._epoch * len(self.dataloader)

    def _place(self) -> int:
        return self._epoch

    def _name_here(self) -> str:
        return f"iter_{self._iter}.pth" if self._batches_taken() else f"epoch_{self._epoch}.pth"

    def _evaluate(self) -> None:
        self._decide_current_val_interval()
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        if self.runner.val_loop is not None and self._epoch >= self.val_begin and due:
            self._evaluate_now()


@LOOPS.register_module()
class ResumableIterLoop(IterBasedTrainLoop, _EndableLoop):
    """IterBasedTrainLoop, continued and ended as `ResumableEpochLoop` is: steps take the place of epochs."""

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        if not isinstance(max_iters, int) or max_iters < 1:
            raise UserError(f"train_cfg.max_iters is {max_iters!r}; a whole number from 1 up is accepted")
        super().__init__(runner, dataloader, max_iters, val_begin, val_interval, dynamic_intervals)

    def run(self) -> nn.Module:
        """Train from where the run stands to the last step."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        with StopRequest() as self.stop:
            known = self._known() and self._iter < self._max_iters
            if self._iter and not known:
                self._evaluate()
            batches = self._batches()
            while self._iter < self._max_iters and not self.stop_training:
                self.runner.model.train()
                self.run_iter(next(batches))
                self._end_if_asked()
                self._evaluate()
                if self._iter % 1000 == 0:
                    self._remove_superseded()
                    self._trim_history(1000)
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def _batches(self) -> Iterator[Any]:
        """Every batch that is left: of an order without end, or of one pass after the other."""
        endless = getattr(order_of(self.dataloader), "endless", False)
        number, taken = (0, self._iter) if endless else divmod(self._iter, len(self.dataloader))
        while True:
            self._start_order(number, taken)
            yield from self.dataloader
            number, taken = number + 1, 0

    def _place(self) -> int:
        return self._iter

    def _name_here(self) -> str:
        return f"iter_{self._iter}.pth"

    def _evaluate(self) -> None:
        self._decide_current_val_interval()
        due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        if self.runner.val_loop is not None and self._iter >= self.val_begin and due:
            self._evaluate_now()


class _EvaluationStopped(Exception):
    pass


@HOOKS.register_module()
class StopEvaluationHook(Hook):
    """Looks for a signal between the steps of an evaluation inside a training run."""

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None) -> None:
        """See the class."""
        if isinstance(runner.train_loop, _EndableLoop):
            runner.train_loop.stop_evaluation_if_asked()
