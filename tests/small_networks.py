"""Networks of one weight, for tests of what is done with a model and not of the model.

A module beside conftest.py, so that several tests can import it.
"""

import torch
from torch import nn


class Scale(nn.Module):
    """The smallest network that counts as a classifier: (B, 3, H, W) -> (B, 3)."""

    num_classes, pretrained_cfg = 3, {"input_size": (3, 32, 32)}

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.factor * x.mean((2, 3))
