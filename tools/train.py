"""Train a model from a config, or go on with a run that was ended."""

import argparse
import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

if __name__ == "__main__":
    import _installed  # noqa: F401  says how to install where vertebra cannot be imported

from vertebra.backbones._errors import UserError
from vertebra.kernels.dispatch import BackendError
from vertebra.tools import _pretraining
from vertebra.tools._common import add_cfg_options, make_parser, need, parse_changes, run_tool

_AUTO = "auto"
_LOGS = re.compile(r"\d{8}_\d{6}")  # mmengine's folders of one run's logs


def build_parser() -> argparse.ArgumentParser:
    """The command line of `train`."""
    parser = make_parser("train", __doc__, "vertebra train demo/van_b0_digits --data data/digits --seed 1")
    add = parser.add_argument
    add("config", help="a config file, or a name under configs/ such as demo/van_b0_digits")
    add("--backbone", metavar="NAME", help="another timm model in the place of the config's")
    add("--data", metavar="DIR", help="the data folder, in the place of the config's")
    add("--work-dir", metavar="DIR", help="where the run is kept (default: work_dirs/<config>)")
    add("--resume", nargs="?", const=_AUTO, metavar="CKPT", help="go on from CKPT, or from the run's newest checkpoint")
    add("--seed", type=seed_number, metavar="N", help="seed of everything that is drawn (default: the config's)")
    add("--amp", choices=("bf16", "fp16"), help="mixed precision")
    add("--compile", action="store_true", help="run the model through torch.compile")
    add("--nan-guard", action="store_true", help="end at the first NaN or Inf and name its module; slows the run")
    add_cfg_options(parser, "train_cfg.max_epochs=5")
    add("--launcher", choices=("none", "pytorch", "slurm"), default="none", help="who started the processes")
    add("--loggers", metavar="A,B", help="tensorboard, wandb, mlflow: these alone beside JSON lines")
    return parser


def seed_number(text: str) -> int:
    """A seed of the command line: a whole number from 0 up."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"the seed is {text!r}; a whole number from 0 up is accepted")
    return int(text)


def choose_device(name: str | None) -> str:
    """Settle the device before mmengine looks for one, which it does when it is imported; "cpu", "cuda" or "mps"."""
    from vertebra.tools._common import pick_device

    device = pick_device(name)
    if name == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    if device.type == "cuda" and device.index is not None:
        import torch

        torch.cuda.set_device(device)  # mmengine puts the model on "cuda", which is the current one
    return device.type


def prepare(args: argparse.Namespace, device: str) -> Any:
    """The config that the command line asks for, checked as far as can be without building anything."""
    from vertebra.engine import config as configs
    from vertebra.engine.dense_config import check_data, is_dense, use_backbone, use_classes
    from vertebra.engine.dense_fit import other_colours
    from vertebra.engine.ranks import is_first

    config = configs.read_config(args.config)
    missing = [key for key in ("train_dataloader", "train_cfg", "optim_wrapper") if not config.get(key)]
    if missing:
        raise UserError(f"{args.config} cannot be trained: it has no {', '.join(missing)}")
    dense = is_dense(config)
    if args.backbone and dense:
        use_backbone(config, args.backbone)
    elif args.backbone:
        config.model.model_name = args.backbone
    if args.data:
        configs.use_data(config, args.data)
    if args.seed is not None:
        config.randomness = dict(config.get("randomness") or {}, seed=args.seed)
    configs.change(config, parse_changes(args.cfg_options))
    if dense:
        check_data(config, "train")
    names = use_classes(config) if dense else None
    if names and is_first():
        shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        print(f"{len(names)} classes as the data names them: {shown}", file=sys.stderr)
    _set_ways(config, args, device, dense)
    _set_launcher(config, args.launcher)
    configs.check_model(config)
    if dense and is_first():
        for sentence in other_colours(config.model):
            print(sentence, file=sys.stderr)
    name = Path(args.config).stem + (f"_{args.backbone}" if args.backbone else "")
    config.work_dir = args.work_dir or config.get("work_dir") or f"work_dirs/{name}"
    return config


def _set_ways(config: Any, args: argparse.Namespace, device: str, dense: bool) -> None:
    """Precision, compiler, guard and loggers of the command line."""
    if args.amp:
        from vertebra.engine.optim import use_amp

        use_amp(config.optim_wrapper, args.amp, device)
    if args.compile and dense:
        raise UserError(f"--compile is for classifiers; {args.config} is a {config.model.type}")
    if args.compile:
        config.model.compiled = True
    if args.nan_guard:
        config.custom_hooks = [*config.get("custom_hooks", []), dict(type="NanGuardHook")]
    if args.loggers is not None:
        config.visualizer.vis_backends = log_backends(args.loggers)


def _set_launcher(config: Any, launcher: str) -> None:
    """Who started the processes, if that is so."""
    if launcher == "pytorch" and "RANK" not in os.environ:
        raise UserError("--launcher pytorch is for processes that torchrun has started: torchrun tools/train.py ...")
    for variable, right in (("WORLD_SIZE", "pytorch"), ("SLURM_STEP_NUM_TASKS", "slurm")):
        count = os.environ.get(variable) or "1"
        if launcher == "none" and count != "1":
            raise UserError(f"{count} processes were started together: --launcher {right} has them train one model")
    config.launcher = launcher


def log_backends(names: str) -> list[dict[str, Any]]:
    """mmengine's backends for the loggers named, JSON lines first."""
    known = {"tensorboard": "TensorboardVisBackend", "wandb": "WandbVisBackend", "mlflow": "MLflowVisBackend"}
    backends = [dict(type="LocalVisBackend")]
    for name in filter(None, names.split(",")):
        if name not in known:
            raise UserError(f"--loggers {name} is not known; take {', '.join(known)}")
        need(name, extra="train" if name == "tensorboard" else "loggers")
        backends.append(dict(type=known[name]))
    return backends


def settle_work_dir(config: Any, resume: str | None) -> None:
    """Make the work dir, and refuse to mix two runs in it.

    Raises:
        UserError: it cannot be written, or holds checkpoints and `--resume` was not given.
    """
    from vertebra.engine.resume import checkpoint_files

    folder = Path(config.work_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable.{uuid4().hex}"  # processes of several machines may have the same number
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"work dir {folder} cannot be written: {error.strerror}") from error
    files = checkpoint_files(folder)
    if files and resume is None:
        raise UserError(f"work dir {folder} holds checkpoints ({files[0].name} ...): add --resume, or take another")
    if files and resume != _AUTO and Path(resume).resolve().parent != folder.resolve():
        raise UserError(f"work dir {folder} holds checkpoints of its own: going on from {resume} takes another")
    if resume is not None:
        config.resume = True
        config.load_from = None if resume == _AUTO else resume


@contextlib.contextmanager
def leaving_no_litter(folder: Path, config_name: str) -> Iterator[list[Any]]:
    """Remove what a run that was refused before its first step has put into its folder: logs, and its config.

    Yields a list for the run's `ProgressHook`, which knows of steps.
    """
    from vertebra.engine.ranks import is_first

    before, hooks = set(folder.iterdir()), []
    try:
        yield hooks
    except (UserError, BackendError, OSError):
        if not any(hook.steps for hook in hooks) and is_first():
            for path in set(folder.iterdir()) - before:
                if _LOGS.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)
                elif path.name == config_name:
                    path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()  # if nothing is in it
        raise


def train(config: Any, hooks: list[Any]) -> dict[str, Any]:
    """Run a prepared config to its end; what the summary says of it. `hooks` gets the run's `ProgressHook`."""
    from vertebra.engine.config import build_runner, explaining
    from vertebra.engine.hooks import ProgressHook
    from vertebra.engine.ranks import is_first
    from vertebra.tools.plot import draw, read_run

    began = time.perf_counter()
    runner = build_runner(config)
    progress = next(hook for hook in runner.hooks if isinstance(hook, ProgressHook))
    hooks.append(progress)
    try:
        with explaining(lambda: not progress.steps):
            runner.train()
    finally:
        runner.visualizer.close()
        for hook in runner.hooks:
            getattr(hook, "close", lambda: None)()
    model = runner._bare_model()
    folder = Path(runner.work_dir)
    files = {"checkpoint": folder / "last_checkpoint", "curves": folder / "curve.png"}
    if is_first():
        with contextlib.suppress(UserError):  # a run may be too short to have logged a step
            draw([read_run(folder)], files["curves"])
    return {
        "model": getattr(model, "model_name", type(model).__name__),
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M",
        "trained": f"{runner.epoch} epochs, {runner.iter} steps",
        **progress.shown(),
        "time": f"{time.perf_counter() - began:.0f} s",
        **{key: str(path) if key == "curves" else path.read_text() for key, path in files.items() if path.exists()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = build_parser().parse_args(argv)
    need("mmengine", extra="train")
    need("cv2", extra="train")
    device = choose_device(args.device)
    from vertebra.engine.ranks import is_first  # and all that the configs name is registered

    config = prepare(args, device)
    settle_work_dir(config, args.resume)
    first = _pretraining.wanted(config)
    if first:
        words = _pretraining.arguments(first, config, args.seed, args.device)
        with leaving_no_litter(Path(config.work_dir), Path(config.filename).name):
            _pretraining.check(config)
        _pretraining.pretrain(config, words, main)
    with leaving_no_litter(Path(config.work_dir), Path(config.filename).name) as hooks:
        summary = train(config, hooks)
    if is_first():
        width = max(map(len, summary))
        print("\n".join(["", *(f"  {key:<{width}}  {value}" for key, value in summary.items())]))
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
