"""Random draws that depend on where a run is, not on how it came there.

A run that is killed and resumed must draw what the undisturbed run would have drawn. So no random state is saved:
augmentation draws from (seed, epoch, sample), and what is drawn inside a step (drop path, mixup, erasing) from
(seed, step, rank).
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


def _words(*numbers: int) -> list[int]:
    return [int(word) for word in np.random.SeedSequence(numbers).generate_state(3)]


@contextmanager
def drawn_from(*numbers: int) -> Iterator[None]:
    """Inside, Python's, numpy's and torch's CPU generators start from `numbers`; after it they go on as before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for_python, for_numpy, for_torch = _words(*numbers)
    random.seed(for_python)
    np.random.seed(for_numpy)
    torch.default_generator.manual_seed(for_torch)  # not torch.manual_seed, which would reach for the GPU in a worker
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Reseeds every generator, the GPU's too, before each training step from (seed, step, rank)."""

    priority = "VERY_HIGH"

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """See the module's docstring."""
        for_python, for_numpy, for_torch = _words(runner.seed or 0, runner.iter, get_rank())
        random.seed(for_python)
        np.random.seed(for_numpy)
        torch.manual_seed(for_torch)
