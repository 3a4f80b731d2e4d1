"""A config that wants its backbone trained as a classifier first: `pretraining = dict(config=..., options=[...])`.

`train` runs that config in `<work dir>/pretraining`, with the run's own backbone, data, seed and device, and starts the
detector or segmenter from what it leaves. A run that was ended in it goes on with it by the same `--resume`; one that
has ended is not run again.
"""

import copy
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from vertebra.backbones._errors import UserError

_TAKEN = {"config", "options"}


def wanted(config: Any) -> dict[str, Any] | None:
    """The config's `pretraining`, where there is still need of it: no checkpoint yet, no other weights named.

    Raises:
        UserError: it is not of the form that is taken, or several processes were started.
    """
    from vertebra.engine.resume import checkpoint_files

    given = config.get("pretraining")
    if not given:
        return None
    well_formed = isinstance(given, Mapping) and "config" in given and not given.keys() - _TAKEN
    if not well_formed or not isinstance(given.get("options", []), list | tuple):
        raise UserError(f"pretraining is {given!r}; it takes config, a classifier's, and options, a list of key=value")
    if config.model.backbone.get("pretrained") or config.get("load_from"):
        return None
    if checkpoint_files(Path(config.work_dir)):
        return None
    if config.launcher != "none":
        raise UserError(
            f"this config trains {given['config']} first, which is for one process: train that alone, and name its "
            "file by --cfg-options model.backbone.pretrained=FILE"
        )
    return dict(given)


def arguments(given: dict[str, Any], config: Any, seed: int | None, device: str | None) -> list[str]:
    """The command line of `train` for the classifier."""
    from vertebra.engine.dense_config import data_root
    from vertebra.engine.resume import checkpoint_files

    words = [given["config"], "--work-dir", str(folder(config))]
    words += ["--resume"] if checkpoint_files(folder(config)) else []
    words += ["--backbone", config.model.backbone.model_name]
    data = Path(data_root(config) or "").absolute().parent
    if not (data / "imagenet").is_dir():
        raise UserError(
            f"this config trains {given['config']} first, on {data / 'imagenet'}, which does not exist: "
            "--cfg-options pretraining=None leaves that out"
        )
    words += ["--data", str(data)]
    words += ["--seed", str(seed)] if seed is not None else []
    words += ["--device", device] if device else []
    options = list(given.get("options") or ())
    return [*words, *(["--cfg-options", *options] if options else [])]


def check(config: Any) -> None:
    """Build once what the config describes, as its run will: a mistake in it is said before minutes of training.

    Raises:
        UserError: an entry that what it is meant for does not take.
    """
    from vertebra.engine.config import build_runner, explaining

    tried = copy.deepcopy(config)
    tried.experiment_name = uuid4().hex  # mmengine gives out again what it has built under a name
    tried.visualizer = dict(type="Visualizer")  # and a config may name that of its own
    with tempfile.TemporaryDirectory() as logs:
        tried.work_dir = logs
        runner = build_runner(tried)
        try:
            with explaining(lambda: True):
                _ = runner.train_loop  # is built when it is looked at
                runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
                if runner.param_schedulers is not None:
                    runner.build_param_scheduler(runner.param_schedulers)
                if config.get("val_cfg"):
                    _ = runner.val_loop
        finally:
            runner.visualizer.close()


def folder(config: Any) -> Path:
    """Where the classifier is trained."""
    return Path(config.work_dir) / "pretraining"


def pretrain(config: Any, words: Sequence[str], train: Callable[[Sequence[str]], int]) -> None:
    """Train the classifier, and make its last weights what the config's backbone starts from.

    Args:
        config: of the detector or segmenter; its `model.backbone.pretrained` is set.
        words: as `arguments` gives them.
        train: the tool's entry point.
    """
    from vertebra.engine.resume import checkpoint_files

    print(f"first the backbone as a classifier: {words[0]}, in {folder(config)}", file=sys.stderr)
    train(words)
    config.model.backbone.pretrained = str(checkpoint_files(folder(config))[0])
