"""Runs of a model of one weight, which take no time.

A module beside conftest.py, so that tests of different folders can import it.
"""

from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel
from torch.utils.data import DataLoader
from vertebra.engine.runner import VertebraRunner


class Line(BaseModel):
    """Its loss is linear in its only weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, inputs: torch.Tensor, mode: str = "loss") -> dict[str, torch.Tensor]:
        """The loss of a batch (B,)."""
        return {"loss": (self.weight * inputs.float()).mean()}


def line_runner(folder: Path, wrapper: dict[str, Any] | None = None, **options: Any) -> VertebraRunner:
    """Two epochs of 24 samples in batches of four, with SGD at a rate of 0.001; `options` are mmengine's."""
    data = [{"inputs": torch.tensor(number)} for number in range(24)]
    defaults: dict[str, Any] = dict(
        train_dataloader=DataLoader(data, batch_size=4),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper={"optimizer": dict(type="SGD", lr=0.001), **(wrapper or {})},
        experiment_name=folder.name,
        default_hooks=dict(checkpoint=None, logger=None),
    )
    return VertebraRunner(Line(), str(folder), **{**defaults, **options})
