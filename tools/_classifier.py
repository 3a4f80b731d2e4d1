"""A classifier from a name and a checkpoint, with the labels and the image preparation that belong to it.

Needs torch and timm only, so that evaluation by name, prediction and export work without any mm* package.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform, resolve_input_data_config
from torch import nn
from vertebra.backbones._checkpoint import create, described, find_weights, load_weights, read_checkpoint
from vertebra.backbones._errors import UserError
from vertebra.backbones._names import check_model_name

PRETRAINED = "pretrained"


@dataclass
class Classifier:
    """A built model in eval mode, and what was known of it beside the weights."""

    name: str
    model: nn.Module
    labels: list[str] = field(default_factory=list)
    """Names of the classes, for people."""
    folders: list[str] = field(default_factory=list)
    """Class folders it was trained on, in the order of its outputs; empty where the file does not say."""
    options: dict[str, Any] = field(default_factory=dict)
    """What `timm.create_model` was given beside the name and the number of classes."""
    changes: dict[str, Any] = field(default_factory=dict)
    """What its evaluation changed in the model's own image preparation (`input_size`, `crop_pct` ...)."""
    published: bool = False
    """Whether the weights are those that the name and its tag stand for, and not a file's or fresh ones."""

    @property
    def data(self) -> dict[str, Any]:
        """timm's data config: input_size, interpolation, mean, std, crop_pct, crop_mode."""
        # not resolve_model_data_config: that tells the channels of the weights' source, not those of the model itself
        return {**resolve_input_data_config(self.model), **self.changes}

    def transform(self) -> Callable[[Any], torch.Tensor]:
        """A PIL image -> a normalised tensor (3, H, W), as the model is evaluated."""
        return create_transform(**self.data, is_training=False)

    def label(self, index: int) -> str:
        """The class's name, or its number where no names are known."""
        return self.labels[index] if index < len(self.labels) else str(index)


def require_classes(classifier: Classifier) -> None:
    """UserError for a model that gives features and no classes."""
    if not getattr(classifier.model, "num_classes", 0):
        raise UserError(f"{classifier.name} has no classes (num_classes is 0); a model with a classifier is accepted")


def require_pictures(classifier: Classifier) -> None:
    """UserError for a model that does not take pictures in RGB."""
    channels = classifier.data["input_size"][0]
    if channels != 3:
        raise UserError(
            f"{classifier.name} takes {channels} channels; a model that takes pictures, with 3, is accepted"
        )


def require_numbers(name: str, answers: torch.Tensor) -> None:
    """UserError for a model whose answers are no numbers, as damaged weights give."""
    if not answers.isfinite().all():
        raise UserError(f"{name} answers with NaN or infinity; weights that give finite numbers are accepted")


def classes_in(weights: dict[str, torch.Tensor], model: nn.Module) -> int | None:
    """The number of classes in a bare file: rows of what ends like the model's classifier."""
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    heads = cfg.get("classifier") or "head.fc"
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    names = (prefix + head for head in (*heads, "head", "head.fc", "fc", "classifier") for prefix in ("", "backbone."))
    return next((len(weights[f"{name}.weight"]) for name in names if f"{name}.weight" in weights), None)


def load_classifier(
    name: str, checkpoint: str | Path | None = None, raw: bool = False, device: torch.device | str = "cpu"
) -> Classifier:
    """Build a classifier and load its weights.

    Args:
        name: a timm name, ours or not.
        checkpoint: a file (class count, labels and options come from its meta, in a bare file from the head's shape),
            "pretrained" for the published weights of the name, None for fresh weights.
        raw: plain weights although the file holds an EMA copy.
        device: where the model is put.

    Raises:
        UserError: unknown name; missing, corrupt, hostile or foreign checkpoint; published weights that cannot be had.
    """
    check_model_name(name)
    if checkpoint is None or str(checkpoint) == PRETRAINED:
        published = checkpoint is not None
        model = create(name, pretrained=published)
        return Classifier(name, model.to(device).eval(), imagenet_labels(model), published=published)
    read = read_checkpoint(checkpoint)
    known = described(read)
    if known.get("model_name", name).split(".")[0] != name.split(".")[0]:
        raise UserError(f"checkpoint {checkpoint} is of {known['model_name']}, not of {name}")
    classes = known.get("num_classes") or classes_in(find_weights(read, raw), create(name, device="meta"))
    options = dict(known.get("options", {}))
    model = create(name, num_classes=classes, **options)
    fresh = load_weights(model, read, str(checkpoint), raw)
    if fresh:
        raise UserError(
            f"checkpoint {checkpoint} has no classifier ({', '.join(fresh)}): it can start a training, not classify"
        )
    changes = {key: _tuple(value) for key, value in (known.get("transform") or {}).items()}
    folders = [str(label) for label in known.get("labels") or ()]
    return Classifier(name, model.to(device).eval(), folders or imagenet_labels(model), folders, options, changes)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def imagenet_labels(model: nn.Module) -> list[str]:
    """ImageNet's class names for a model of 1,000 classes, none for others."""
    if model.num_classes != 1000:
        return []
    from timm.data import ImageNetInfo

    return [label.split(",")[0] for label in ImageNetInfo("imagenet-1k").label_descriptions()]
