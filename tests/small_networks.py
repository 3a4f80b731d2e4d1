"""Small networks and their files, for tests of what is done with a model and not of the model.

A module beside conftest.py, so that several tests can import it.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn
from vertebra.backbones import model_names


class Scale(nn.Module):
    """The smallest network that counts as a classifier: (B, 3, H, W) -> (B, 3)."""

    num_classes, pretrained_cfg = 3, {"input_size": (3, 32, 32)}

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.factor * x.mean((2, 3))


def one_per_family() -> list[str]:
    """The first name of each family of ours."""
    return [next(names) for _, names in itertools.groupby(model_names(), lambda name: name[:4])]


def write_weights(path: Path, poison: float = 0.0, **options: Any) -> Path:
    """A checkpoint of timm's test_resnet with four named classes; `poison` is added to its last weights."""
    model = timm.create_model("test_resnet", num_classes=4, **options)
    weights = model.state_dict()
    weights["fc.bias"] = weights["fc.bias"] + poison
    labels = ["cat", "dog", "fox", "owl"]
    meta = {"model_name": "test_resnet", "num_classes": 4, "options": options, "labels": labels}
    save_file(weights, path, metadata={"vertebra": json.dumps(meta)})
    return path
