"""Convolutions of a whole model in PyTorch's memory format `channels_last`, twice as fast on many CPUs."""

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Puts the weights of convolutions into channels_last before training; what they give out follows them.

    `TimmClassifier` has an argument of its own for this; detectors and segmenters of mm have none.
    """

    def before_train(self, runner: Runner) -> None:
        """See the class; values, names and the optimizer's view of them stay as they are."""
        runner.model.to(memory_format=torch.channels_last)
