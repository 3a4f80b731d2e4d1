"""What goes into an exported file: the module to trace, the names of its outputs, and what a reader needs beside them.

Metadata, JSON values: model_name, task, labels, input_size, interpolation, crop_pct, crop_mode, mean, std, vertebra.
"""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from vertebra import __version__
from vertebra.backbones._errors import UserError
from vertebra.tools._classifier import Classifier, require_classes
from vertebra.tools._export.checks import first_line, running


class FeatureMaps(nn.Module):
    """What `features_only` returns, from a whole model with its weights: image -> a tuple of (B, C, H, W)."""

    def __init__(self, model: nn.Module, indices: list[int]) -> None:
        super().__init__()
        self.model, self.indices = model, indices

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps: Any = self.model.forward_intermediates  # nn.Module types every attribute as a tensor or module
        return tuple(maps(x, indices=self.indices, intermediates_only=True))


def with_names(classifier: Classifier, features: bool) -> tuple[nn.Module, list[str]]:
    """The module to trace, in float32 and eval mode, and the names of its outputs.

    The names are `logits`, or with `features` `stride4`, `stride8` ...

    Raises:
        UserError: there is no classifier, or there are no maps.
    """
    model = classifier.model.float().eval()
    if not features:
        try:
            require_classes(classifier)
        except UserError as error:
            raise UserError(f"{error}, and --features exports maps") from error
        return model, ["logits"]
    try:
        info: Any = timm.create_model(
            classifier.name, features_only=True, device="meta", **classifier.options
        ).feature_info
    except (RuntimeError, AttributeError, TypeError) as error:
        raise UserError(f"{classifier.name} offers no feature maps: {first_line(error)}") from error
    strides = info.reduction()
    names = [f"stride{s}" if strides.count(s) == 1 else f"map{i}_stride{s}" for i, s in enumerate(strides)]
    return FeatureMaps(model, list(info.out_indices)).eval(), names


def image_size(classifier: Classifier, static: tuple[int, int] | None) -> tuple[int, int, int]:
    """Channels, height and width of the image to trace with: the model's own size where none is fixed."""
    first = next((p for p in classifier.model.parameters() if p.ndim == 4), None)
    channels = getattr(classifier.model, "in_chans", None) or (3 if first is None else first.shape[1])
    height, width = static or classifier.data["input_size"][-2:]
    return channels, height, width


def settle_norms(classifier: Classifier, static: tuple[int, int] | None = None) -> None:
    """Give the BatchNorms of fresh weights the statistics of noise, as training would give them those of images.

    With their initial ones they do nothing, and in a deep network numbers grow until rounding decides on the answer:
    two runtimes could not be compared.

    Raises:
        UserError: the model does not take images of its size.
    """
    device, shape = next((p.device for p in classifier.model.parameters()), None), image_size(classifier, static)
    with running(classifier.name, shape, fixed=static is not None):
        update_bn([torch.randn(2, *shape)], classifier.model, device)


def metadata(classifier: Classifier, features: bool, input_size: tuple[int, ...]) -> dict[str, Any]:
    """What a reader needs beside the graph; `input_size` is (C, H, W)."""
    data = classifier.data
    return {
        "model_name": classifier.name,
        "task": "features" if features else "classification",
        "labels": [] if features else classifier.labels,
        "input_size": input_size,
        **{key: data[key] for key in ("interpolation", "crop_pct", "crop_mode", "mean", "std")},
        "vertebra": __version__,
    }


def to_properties(entries: Mapping[str, Any]) -> dict[str, str]:
    """Metadata as the formats store it: every value as JSON. `read_metadata` is the way back."""
    return {key: json.dumps(value) for key, value in entries.items()}


def read_metadata(properties: Mapping[str, str]) -> dict[str, Any]:
    """What `metadata` put beside the graph, from ONNX Runtime's `get_modelmeta().custom_metadata_map`, say."""
    known = {}
    for key, value in properties.items():
        with contextlib.suppress(ValueError):
            known[key] = json.loads(value)
    return known
