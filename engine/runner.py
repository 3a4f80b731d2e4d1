"""mmengine's Runner with the loaders, checkpoints and resuming of this project.

`runner_type = "VertebraRunner"` in a config selects it, in mmdet's and mmseg's own scripts too.
"""

import copy
import warnings
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from mmengine.device import get_device
from mmengine.dist import is_distributed, is_main_process
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapperDict
from mmengine.registry import RUNNERS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from ..backbones._checkpoint import load_weights, read_checkpoint
from ..backbones._errors import UserError
from .atomic import remove_leftovers
from .data import build_loader, ending_workers, start_worker
from .dense import is_dense, load_dense
from .dense_data import checked_evaluator, checked_loader
from .optim import asks_for_amp, without_amp
from .order import continued, order_of
from .pyramid import TimmPyramid
from .quiet import calm
from .ranks import fresh_store, meet_without_gpu, naming_lost_peers
from .record import check_same_run, describe_run, images_a_step
from .resume import checkpoint_files, newest_whole
from .schedule import counting_steps, fit, lengths, mark, replay, scaled

_OWN_DATA = "TimmDataset"
_OF_WORKERS = ("persistent_workers", "prefetch_factor")  # which a loader without any refuses
_RESUMABLE = {"EpochBasedTrainLoop": "ResumableEpochLoop", "IterBasedTrainLoop": "ResumableIterLoop"}
_ALWAYS = (
    "StepSeedHook",
    "StopEvaluationHook",
    "UnreadableImagesHook",
    "PlainHistoryHook",
    "ProgressHook",
    "SharedStatisticsHook",
)


def _set_matmul_precision(precision: str) -> None:
    if precision not in ("highest", "high", "medium"):
        raise UserError(f"env_cfg.float32_matmul_precision is {precision!r}; highest, high and medium are accepted")
    torch.set_float32_matmul_precision(precision)


@RUNNERS.register_module()
class VertebraRunner(Runner):
    """See the module's docstring. Further entries of a config that it reads:

    `load_from`: weights to start from, adapted by the family's filter; `resume`: go on from `load_from`, or from the
    newest whole checkpoint of the work dir; `env_cfg.float32_matmul_precision`: "high" lets GPUs multiply float32
    matrices as TF32.
    """

    _saved: ClassVar[dict[str, Any]] = {}  # of the checkpoint that the run was resumed from: see `record`
    _trains = False  # while the loader of a training loop is built
    _rate_ratio = 1.0  # by which `scale_lr` has multiplied the rate

    @cached_property
    def written(self) -> set[Path]:
        """The checkpoints that hold states of this very run: those it has saved, and the one it was resumed from."""
        return set()

    def register_hooks(self, default_hooks: Any = None, custom_hooks: Any = None) -> None:
        """mmengine's, and the hooks that resuming and watching rely on, whatever a config's list of hooks says."""
        usual = {"param_scheduler": {"type": "ParamSchedulerHook"}, **(default_hooks or {})}
        super().register_hooks(
            {name: counting_steps(hook) for name, hook in usual.items()},
            [counting_steps(hook) for hook in custom_hooks or ()],
        )
        present = {type(hook).__name__ for hook in self.hooks}
        for name in _ALWAYS:
            if name not in present:
                self.register_hook({"type": name})

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """mmengine's; several processes without GPUs meet over gloo, and those that torchrun restarts meet anew."""
        if precision := env_cfg.get("float32_matmul_precision"):
            _set_matmul_precision(precision)
        settings = dict(env_cfg.get("dist_cfg") or {})
        if self.distributed and not is_distributed() and get_device() == "cpu":
            meet_without_gpu(self.launcher, settings.get("timeout"))
        elif self.distributed and not is_distributed() and self.launcher == "pytorch":
            env_cfg = {**env_cfg, "dist_cfg": {**settings, **fresh_store()}}
        with warnings.catch_warnings():  # of variables for threads that it sets, as torchrun has said already
            warnings.filterwarnings("ignore", message="Setting .*_NUM_THREADS|Multi-processing start method")
            super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """mmengine's, which counts on a GPU in each process where it has no other word."""
        if self.distributed and get_device() == "cpu" and not is_model_wrapper(model):
            unused = self.cfg.get("find_unused_parameters", False)
            model_wrapper_cfg = {
                "broadcast_buffers": False,
                "find_unused_parameters": unused,
                **(model_wrapper_cfg or {}),
            }
            model_wrapper_cfg["device_ids"] = None
        with warnings.catch_warnings():  # the newer name is not known to the oldest PyTorch that we run on
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
            return super().wrap_model(model_wrapper_cfg, model)

    def dump_config(self) -> None:
        """Nothing yet: mmengine writes the config when it builds; a refused run must not replace a good run's."""

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """mmengine's logger; the terminal gets our warnings and all errors, since `ProgressHook` writes there."""
        logger = super().build_logger(log_level, log_file, **kwargs)
        calm(logger, log_level)
        return logger

    def build_dataloader(  # type: ignore[override]  # mmengine's is static, and called on the object
        self, dataloader: DataLoader | dict[str, Any], seed: int | None = None, diff_rank_seed: bool = False
    ) -> DataLoader:
        """Our loader for `TimmDataset`; for all others mmengine's, whose order in training can be continued."""
        if isinstance(dataloader, DataLoader):
            return dataloader
        if dataloader["dataset"].get("type") != _OWN_DATA:
            if not dataloader.get("num_workers"):
                dataloader = {key: value for key, value in dataloader.items() if key not in _OF_WORKERS}
            checked = checked_loader(dataloader, self._trains)
            loader = Runner.build_dataloader(checked, self.seed if seed is None else seed, diff_rank_seed)
            loader.worker_init_fn = start_worker
            if not self._trains:
                return loader
            return continued(loader, self.seed or 0, self._accumulation())
        cfg = copy.deepcopy(dict(dataloader))
        training = cfg["dataset"].get("training", False)
        group = self._accumulation() if training else 1
        class_map = None if training else self._class_map(cfg["dataset"])
        loader = build_loader(**cfg, group=group, seed=self.seed or 0, class_map=class_map)
        self._check_classes(loader)
        return loader

    def build_train_loop(self, loop: Any) -> Any:
        """mmengine's, where loops that cannot be continued in their middle give way to ours; the rest is the same."""
        if isinstance(loop, dict):
            kind = loop.get("type", "EpochBasedTrainLoop" if loop.get("by_epoch", True) else "IterBasedTrainLoop")
            loop = {key: value for key, value in loop.items() if key != "by_epoch"}
            loop["type"] = _RESUMABLE.get(kind.removeprefix("mmengine."), kind) if isinstance(kind, str) else kind
        self._trains = True
        try:
            return super().build_train_loop(loop)
        finally:
            self._trains = False

    def build_evaluator(self, evaluator: Any) -> Evaluator:
        """mmengine's, with COCO's metric in a form that leaves out images which cannot be read."""
        return super().build_evaluator(checked_evaluator(evaluator))

    def _check_saving(self) -> None:
        """Refuse what could not be resumed exactly: a checkpoint between the batches of one optimizer step."""
        hook, group = self._checkpoint_hook, self._accumulation()
        if hook is not None and not hook.by_epoch and hook.interval % group:
            raise UserError(
                f"checkpoints every {hook.interval} batches would cut optimizer steps of {group} batches in two: "
                "default_hooks.checkpoint.interval has to be a multiple"
            )

    @property
    def _checkpoint_hook(self) -> CheckpointHook | None:
        return next((hook for hook in self.hooks if isinstance(hook, CheckpointHook)), None)

    def _accumulation(self) -> int:
        wrapper = self.optim_wrapper
        return wrapper.get("accumulative_counts", 1) if isinstance(wrapper, dict) else 1

    def _class_map(self, dataset: dict[str, Any]) -> dict[str, int] | None:
        """The classes that the model was, or is being, trained on: an evaluated folder may lack some."""
        if dataset.get("class_map") is not None or dataset.get("name"):
            return dataset.pop("class_map", None)
        labels = self.cfg.get("labels")
        if labels:
            return {name: index for index, name in enumerate(labels)}
        if isinstance(self._train_loop, dict) or self._train_loop is None:
            return None
        return self.train_dataloader.dataset.class_to_idx or None

    def _check_classes(self, loader: DataLoader) -> None:
        found, expected = len(loader.dataset.class_to_idx), self._bare_model().backbone.num_classes
        if found and found != expected:
            raise UserError(
                f"the data has {found} classes and the model {expected}: set model.num_classes={found} "
                f"(--cfg-options model.num_classes={found}) or use the data the model was made for"
            )

    def _bare_model(self) -> Any:
        model = self.model.module if is_model_wrapper(self.model) else self.model
        return model.module if isinstance(model, BaseTTAModel) else model

    @property
    def checkpoint_args(self) -> dict[str, Any]:
        """How the checkpoint hook writes its files, for who writes one beside it."""
        hook = self._checkpoint_hook
        return {"backend_args": hook.backend_args} if hook else {}

    def save_checkpoint(
        self, out_dir: str, filename: str, *args: Any, meta: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """mmengine's file, with what rebuilds the model and says where in the epoch it stands."""
        stop = getattr(self._train_loop, "stop", None)
        with stop.patience(saving=True) if stop else nullcontext():
            described = dict(meta or {}, vertebra=describe_run(self))
            super().save_checkpoint(out_dir, filename, *args, meta=described, **kwargs)
        self.written.add(Path(out_dir, filename).resolve())

    def train(self) -> nn.Module:
        """Train, and leave no worker of a loader behind, however it ends.

        Raises:
            UserError: among others, where another process of the run is gone.
        """
        self._check_saving()
        # gradients may accumulate over the first steps of a schedule
        warnings.filterwarnings("ignore", message="Detected call of `scheduler.step")
        # of depthwise convolutions, whose gradients lie otherwise in memory than DDP's copies of them
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        with ending_workers(self), naming_lost_peers():
            return super().train()

    def test(self) -> dict[str, float]:
        """Evaluate, and leave no worker of a loader behind."""
        with ending_workers(self), naming_lost_peers():
            return super().test()

    def build_model(self, model: nn.Module | dict[str, Any]) -> nn.Module:
        """mmengine's; weights to start from are not fetched where a checkpoint takes the place of a classifier's."""
        if isinstance(model, dict) and model.get("type") == "TimmClassifier" and self._checkpoint_follows:
            model = {key: value for key, value in model.items() if key not in ("weights", "pretrained")}
        return super().build_model(model)

    @property
    def _checkpoint_follows(self) -> bool:
        return bool(self._load_from or (self._resume and checkpoint_files(Path(self.work_dir))))

    def _init_model_weights(self) -> None:
        """mmengine's; a backbone fetches its own weights only after a checkpoint was loaded that had none for it."""
        with self._pyramid.waiting() if self._checkpoint_follows and self._pyramid else nullcontext():
            super()._init_model_weights()

    @property
    def _pyramid(self) -> TimmPyramid | None:
        backbone = getattr(self._bare_model(), "backbone", None)
        return backbone if isinstance(backbone, TimmPyramid) else None

    def load_or_resume(self) -> None:
        """Resume from the newest whole checkpoint, or from the one that was named, or load weights."""
        if self._has_loaded:
            return
        if self._train_loop is not None and is_main_process():
            remove_leftovers(Path(self.work_dir))
        if self._resume and self._load_from is None:
            self._resume_newest()
        elif self._resume:
            self.resume(self._load_from)
        elif self._load_from is not None:
            self.load_checkpoint(self._load_from)
        if self._train_loop is not None and self._pyramid:
            self._pyramid.init_weights()  # if they are still awaited
        self._has_loaded = True
        if self._train_loop is not None:
            super().dump_config()

    def _resume_newest(self) -> None:
        path = newest_whole(Path(self.work_dir), self.logger)
        if path:
            self.resume(path)
            return
        self.logger.warning(f"there is no checkpoint in {self.work_dir}: starting from the beginning")
        self._resume = False

    def load_checkpoint(self, filename: str, map_location: Any = "cpu", strict: bool = True, **_: Any) -> dict:
        """Read a file safely and load it: a training state to go on from, or weights in any layout the family knows.

        Raises:
            UserError: the file is missing, corrupt or hostile, or belongs to another model.
        """
        checkpoint = read_checkpoint(filename)
        model = self._bare_model()
        if self._resume:
            check_same_run(self, checkpoint, filename)
            checkpoint["meta"].pop("config", None)  # mmengine would run it, to look for the number of GPUs
            self._saved = checkpoint["meta"].get("vertebra", {})
            self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
            try:
                model.load_state_dict(checkpoint["state_dict"])
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"checkpoint {filename} does not fit this run's model: {reason}") from error
            return checkpoint
        if is_dense(model):
            for sentence in load_dense(model, checkpoint, filename, self._train_loop is not None):
                self.logger.warning(sentence)
            self.call_hook("after_load_checkpoint", checkpoint={"state_dict": model.state_dict()})
            return checkpoint
        fresh = load_weights(model.backbone, checkpoint, filename)
        if fresh and self._train_loop is None:
            raise UserError(
                f"checkpoint {filename} has no classifier that fits ({', '.join(fresh)}): it cannot be tested"
            )
        if fresh:
            self.logger.warning(f"{filename}: {', '.join(fresh)} start anew")
        self.call_hook("after_load_checkpoint", checkpoint={"state_dict": model.state_dict()})
        return checkpoint

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Go on from a checkpoint, in the middle of an epoch too, with the schedule of the present config."""
        fresh = [copy.deepcopy(schedule.state_dict()) for schedule in self.param_schedulers or ()]
        start = [(group["lr"], group.get("initial_lr")) for group in self._lr_groups()]
        try:
            super().resume(filename, map_location="cpu")
        except (ValueError, KeyError, RuntimeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{filename} was written with another optimizer, parameter groups or precision than this run's: "
                f"{type(error).__name__}: {error}"
            ) from error
        self.written.add(Path(filename).resolve())
        self._take_over_seed()
        self._forget_other_folders()
        step = self.iter
        self._place_in_epoch(filename)
        saved = [schedule.state_dict() for schedule in self.param_schedulers or ()]
        if self.iter != step or [lengths(state) for state in saved] != [lengths(state) for state in fresh]:
            self._replay_schedule(fresh, start)

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """mmengine's; without a GPU the mixed precision that a config asks for is left out, and that is said."""
        device = get_device()
        if device in ("cpu", "mps") and asks_for_amp(optim_wrapper):
            self.logger.warning(
                f"mixed precision of the config is left out: it needs a CUDA GPU, and this runs on {device}"
            )
            optim_wrapper = without_amp(optim_wrapper)
        return super().build_optim_wrapper(optim_wrapper)

    def scale_lr(self, optim_wrapper: Any, auto_scale_lr: dict[str, Any] | None = None) -> None:
        """mmengine's, by the images of an optimizer step: batches whose gradients accumulate count, as processes do."""
        if not auto_scale_lr or not auto_scale_lr.get("enable"):
            return
        if not auto_scale_lr.get("base_batch_size"):
            raise UserError("auto_scale_lr needs base_batch_size, the images a step that the learning rate is for")
        loader = self._train_dataloader
        images = self.world_size * (loader.batch_size if isinstance(loader, DataLoader) else loader["batch_size"])
        several = isinstance(optim_wrapper, OptimWrapperDict)
        for wrapper in optim_wrapper.values() if several else [optim_wrapper]:
            base = auto_scale_lr["base_batch_size"] / wrapper._accumulative_counts
            super().scale_lr(wrapper, {**auto_scale_lr, "base_batch_size": base})
            self._rate_ratio = images / base
            if wrapper.base_param_settings:  # what is shown as the rate where groups have several
                wrapper.base_param_settings["lr"] *= self._rate_ratio

    def _build_param_scheduler(self, scheduler: Any, optim_wrapper: Any) -> list[Any]:
        """mmengine's, for schedules that fit this run: see `schedule`."""
        given = list(scheduler) if isinstance(scheduler, list | tuple) else [scheduler]
        group = getattr(optim_wrapper, "_accumulative_counts", 1)
        fitting = fit(given, self.max_epochs, self.max_iters, len(self.train_dataloader), group)
        fitting = scaled(fitting, self._rate_ratio)
        built = super()._build_param_scheduler(fitting, optim_wrapper)
        mark(built, fitting, group)
        return built

    def _lr_groups(self) -> list[dict[str, Any]]:
        base = self.optim_wrapper.base_param_settings
        return [*self.optim_wrapper.optimizer.param_groups, *([base] if base is not None else [])]

    def _take_over_seed(self) -> None:
        """mmengine restores the saved seed; what was built before has to follow, while no worker has started."""
        loader = self.train_dataloader
        samplers: tuple[Any, ...] = (
            loader.batch_sampler,
            getattr(loader.batch_sampler, "sampler", None),
            loader.sampler,
        )
        if self._randomness_cfg.get("diff_rank_seed"):
            samplers = ()  # ranks share the seed of their order, and no other
        seeded: list[Any] = [part for part in (*samplers, loader.dataset) if hasattr(part, "seed")]
        if any(part.seed != self.seed for part in seeded):
            self.logger.warning(f"the run goes on with the seed it began with, {self.seed}")
        for part in seeded:
            part.seed = self.seed

    def _forget_other_folders(self) -> None:
        """A best checkpoint in another work dir is not this run's to replace."""
        for key, value in list(self.message_hub.runtime_info.items()):
            if key.startswith("best_ckpt") and Path(str(value)).parent != Path(self.work_dir):
                self.message_hub.pop_info(key)

    def _place_in_epoch(self, filename: str) -> None:
        loop, then = self.train_loop, self._saved
        images, before = images_a_step(loop.dataloader), then.get("step_images")
        if not isinstance(loop, EpochBasedTrainLoop):
            if before not in (None, images):
                self.logger.warning(
                    f"{filename} was saved by a run of {before} images a step, and this one takes {images}: it goes on "
                    f"at step {loop._iter} of its own order, so some images come again and others later"
                )
            return
        steps = then.get("steps_per_epoch") or len(loop.dataloader)
        taken = loop._iter - loop._epoch * steps
        same = (steps, before) == (len(loop.dataloader), images)
        # a file of the last step holds a whole epoch that has not been ended yet: the loop ends it without a step
        if same and order_of(loop.dataloader) is not None and 0 <= taken <= steps:
            return
        if taken:
            self.logger.warning(
                f"{filename} was saved in the middle of an epoch that cannot be continued (a stream, or another batch "
                f"size): epoch {loop._epoch + 1} starts again"
            )
        loop._iter = loop._epoch * len(loop.dataloader)

    def _replay_schedule(self, fresh: list[dict[str, Any]], start: list[tuple[float, float | None]]) -> None:
        """Bring schedules to the present step, where the saved ones are of other lengths or of another step."""
        self.logger.warning(f"the learning rate goes on at step {self.iter} of this run's schedule")
        for group, (rate, initial) in zip(self._lr_groups(), start, strict=True):
            group["lr"] = rate
            if initial is not None:
                group["initial_lr"] = initial
        for schedule, state in zip(self.param_schedulers, fresh, strict=True):
            schedule.load_state_dict(state)
        replay(self.param_schedulers, self.iter, len(self.train_dataloader))
