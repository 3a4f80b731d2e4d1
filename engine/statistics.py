"""BatchNorm's running statistics of several processes, each of which sees its own images."""

from collections.abc import Iterator

from mmengine.dist import all_reduce_params
from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .ranks import several


@HOOKS.register_module()
class SharedStatisticsHook(Hook):
    """Before an evaluation, and before an epoch's checkpoint, each running statistic becomes the mean over processes.

    So all evaluate the same network, which is the one that is saved. The statistics that normalise in training stay
    those of a process's own batch; `model.sync_bn=True` is for who wants others.
    """

    priority = "ABOVE_NORMAL"  # before averaged weights take the model's place, and before checkpoints

    def after_train_epoch(self, runner: Runner) -> None:
        """See the class."""
        self._share(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        """See the class."""
        if runner._train_loop is not None:
            self._share(runner)

    def _share(self, runner: Runner) -> None:
        if several():
            all_reduce_params(list(_statistics(runner)), op="mean")


def _statistics(runner: Runner) -> Iterator[Tensor]:
    networks = [runner.model, *(hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook))]
    for norm in (part for network in networks for part in network.modules() if isinstance(part, _BatchNorm)):
        yield from (value for value in (norm.running_mean, norm.running_var) if value is not None)
