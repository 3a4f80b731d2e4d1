"""What a checkpoint says of the run that wrote it, and whether another run may go on from it."""

from typing import Any

from ..backbones._errors import UserError


def describe_run(runner: Any) -> dict[str, Any]:
    """The entry `meta["vertebra"]` of a checkpoint: what rebuilds the model, names its classes and prepares images."""
    model = runner._bare_model()
    if not hasattr(model, "describe"):
        return {}
    data = runner.train_dataloader.dataset.metainfo if runner._train_loop is not None else {}
    evaluated = (runner._val_dataloader or runner._test_dataloader or {}) if runner.cfg else {}
    transform = dict(evaluated.get("dataset", {}).get("transform") or {}) if isinstance(evaluated, dict) else {}
    return {
        **model.describe(),
        "labels": list(data.get("classes", ())),
        "images": data.get("images", 0),
        "transform": transform,
    }


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
    ):
        if then.get(key) != now[key]:
            raise UserError(
                f"{filename} is of another run: its {what} is {_short(then.get(key))}, this run's {_short(now[key])}; "
                "take another --work-dir"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
