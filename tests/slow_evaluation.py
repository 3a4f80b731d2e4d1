"""A hook that makes evaluations long enough for something to happen in them; configs of tests import it by name."""

import time

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class SlowEvaluationHook(Hook):
    """Half a second for each batch, and a word at the first."""

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None) -> None:
        """See the class."""
        if batch_idx == 0:
            print("evaluating", flush=True)
        time.sleep(0.5)
