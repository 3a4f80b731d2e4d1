"""What a checkpoint says of the run that wrote it, and whether another run may go on from it."""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.hooks import EMAHook
from torch.utils.data import DataLoader

from ..backbones._errors import UserError
from .dense import describe_dense, is_dense
from .dense_config import use_backbone
from .tta import trained_with_flips


def describe_run(runner: Any) -> dict[str, Any]:
    """The entry `meta["vertebra"]` of a checkpoint: what rebuilds the model, names its classes and prepares images."""
    model = runner._bare_model()
    loader = runner.train_dataloader if runner._train_loop is not None else None
    data = runner.train_dataloader.dataset.metainfo if runner._train_loop is not None else {}
    evaluated = (runner._val_dataloader or runner._test_dataloader or {}) if runner.cfg else {}
    transform = dict(evaluated.get("dataset", {}).get("transform") or {}) if isinstance(evaluated, dict) else {}
    return plain(
        {
            **(describe_dense(model, list(data.get("classes", ()))) if is_dense(model) else model.describe()),
            "labels": list(data.get("classes", ())),
            "images": data.get("images", len(loader.dataset) if loader is not None else 0),
            "transform": transform,
            "flips": trained_with_flips(runner.cfg or {}),
            "ema": any(isinstance(hook, EMAHook) for hook in runner.hooks),
            "steps_per_epoch": len(loader) if loader is not None else 0,
            "step_images": images_a_step(loader) if loader is not None else 0,
        }
    )


def follow_backbone(config: Config, known: Mapping[str, Any], source: str) -> None:
    """Give a detector's or segmenter's config the backbone that a checkpoint was trained with (`train --backbone`).

    Args:
        config: its backbone is replaced where the checkpoint names another; this is said.
        known: as `described` tells it.
        source: the checkpoint's file, for messages.

    Raises:
        UserError: the config's neck and heads do not take that backbone.
    """
    backbone, name = config.model.backbone, known.get("model_name")
    if "kind" not in known or backbone.get("type") != "TimmPyramid" or name == backbone.get("model_name"):
        return
    print(f"{source} was trained with {name}, which takes the place of the config's {backbone.get('model_name')}")
    use_backbone(config, str(name))


def images_a_step(loader: DataLoader) -> int:
    """Images that all processes together take at a step."""
    batches: Any = getattr(loader.batch_sampler, "batches", loader)  # of an order that can be continued
    return (batches.batch_size or 1) * get_world_size()


def plain(value: Any) -> Any:
    """Only dictionaries, lists, tuples, numbers and text: what any reader of a checkpoint may load."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(entry) for entry in value)
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def check_same_run(runner: Any, checkpoint: dict[str, Any], filename: str) -> None:
    """Refuse to go on from the checkpoint of another model, number of classes or data set.

    Lengths, paths and hooks may differ.

    Raises:
        UserError: names what differs.
    """
    if "optimizer" not in checkpoint or "meta" not in checkpoint:
        raise UserError(f"checkpoint {filename} holds weights but no training state: start from it with load_from=...")
    then, now = checkpoint["meta"].get("vertebra"), describe_run(runner)
    if not then or not now:
        return
    for key, what in (
        ("model_name", "model"),
        ("num_classes", "number of classes"),
        ("labels", "classes of the data set"),
        ("images", "number of training images"),
        ("ema", "use of averaged weights (EMAHook)"),
    ):
        if then.get(key) != now[key]:
            raise UserError(
                f"{filename} is of another run: its {what} is {_short(then.get(key))}, this run's {_short(now[key])}; "
                "take another --work-dir"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
