"""mmengine's FlexibleRunner on this project's data: for models that one GPU cannot hold, by FSDP or DeepSpeed.

`runner_type = "VertebraFlexibleRunner"` with `strategy = dict(type="FSDPStrategy", ...)` in a config selects it. A
strategy shards weights and optimizer, so all processes take part when one of its checkpoints is written. Therefore
loops and checkpoints are mmengine's own here: a run resumes at the end of an epoch, and a signal ends it without
saving. Tried with SingleDeviceStrategy only: the others need GPUs.
"""

import copy
from pathlib import Path
from typing import Any

from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import FlexibleRunner
from torch import nn
from torch.utils.data import DataLoader

from ..backbones._checkpoint import read_checkpoint
from .data import build_loader, ending_workers
from .quiet import calm
from .ranks import fresh_store, naming_lost_peers
from .resume import checkpoint_files, newest_whole
from .schedule import fit

_LOOPS = {"ResumableEpochLoop": "EpochBasedTrainLoop", "ResumableIterLoop": "IterBasedTrainLoop"}
_ALWAYS = ("StepSeedHook", "UnreadableImagesHook", "PlainHistoryHook", "ProgressHook", "SharedStatisticsHook")


@RUNNERS.register_module()
class VertebraFlexibleRunner(FlexibleRunner):
    """See the module's docstring."""

    def register_hooks(self, default_hooks: Any = None, custom_hooks: Any = None) -> None:
        """mmengine's, and those that seed, count and show; none that averages weights, which may be in shards."""
        kept = [hook for hook in custom_hooks or () if not _averages(hook)]
        if len(kept) < len(custom_hooks or ()):
            self.logger.warning("averaged weights (EMAHook) are left out: FlexibleRunner cannot resume them")
        super().register_hooks(default_hooks, kept)
        present = {type(hook).__name__ for hook in self.hooks}
        for name in _ALWAYS:
            if name not in present:
                self.register_hook({"type": name})

    def build_strategy(self, *args: Any, **kwargs: Any) -> Any:
        """mmengine's, with a log that leaves the terminal to `ProgressHook`."""
        if kwargs.get("launcher") == "pytorch":
            env_cfg = dict(kwargs.get("env_cfg") or {})
            kwargs["env_cfg"] = {**env_cfg, "dist_cfg": {**(env_cfg.get("dist_cfg") or {}), **fresh_store()}}
        strategy = super().build_strategy(*args, **kwargs)
        calm(strategy.logger, kwargs.get("log_level") or "INFO")
        return strategy

    def build_dataloader(  # type: ignore[override]  # mmengine's is static, and called on the object
        self, dataloader: Any, seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Our loader for `TimmDataset`, mmengine's for all others."""
        if isinstance(dataloader, DataLoader) or dataloader["dataset"].get("type") != "TimmDataset":
            return FlexibleRunner.build_dataloader(dataloader, seed, diff_rank_seed)
        cfg = copy.deepcopy(dict(dataloader))
        wrapper = self.optim_wrapper
        group = wrapper.get("accumulative_counts", 1) if isinstance(wrapper, dict) else 1
        return build_loader(**cfg, group=group if cfg["dataset"].get("training") else 1, seed=self.seed or 0)

    def build_train_loop(self, loop: Any) -> Any:
        """mmengine's own loops, whatever loop a config of `VertebraRunner` names; schedules then fit the run."""
        if isinstance(loop, dict) and loop.get("type") in _LOOPS:
            loop = {**loop, "type": _LOOPS[loop["type"]]}
        built = super().build_train_loop(loop)
        if isinstance(self.param_schedulers, dict | list):
            given = self.param_schedulers if isinstance(self.param_schedulers, list) else [self.param_schedulers]
            # a strategy steps its schedules with every batch
            self.param_schedulers = fit(given, built.max_epochs, built.max_iters, len(built.dataloader), 1)
        return built

    def train(self) -> nn.Module:
        """mmengine's, and leave no worker of a loader behind."""
        with ending_workers(self), naming_lost_peers():
            return super().train()

    def load_or_resume(self) -> None:
        """mmengine's, for files that hold nothing but tensors and plain values; it would run what others hold.

        Raises:
            UserError: a file that was named is damaged or hostile, or each that could be resumed from is.
        """
        for path in (self._load_from, self._resume):
            if isinstance(path, str) and Path(path).is_file():
                read_checkpoint(path)
        if self._resume is True and self._load_from is None and not self._has_loaded:
            self._choose_whole()
        super().load_or_resume()

    def _choose_whole(self) -> None:
        """Resume from the newest whole file, as `VertebraRunner` does; sharded ones are folders, and mmengine's."""
        files = checkpoint_files(Path(self.work_dir))
        if not files or not all(path.is_file() for path in files):
            return
        self._resume = newest_whole(Path(self.work_dir), self.logger)

    def _bare_model(self) -> Any:
        return self.model.module if is_model_wrapper(self.model) else self.model


def _averages(hook: Any) -> bool:
    kind = hook.get("type") if isinstance(hook, dict) else type(hook)
    return issubclass(HOOKS.get(kind) if isinstance(kind, str) else kind, EMAHook)
