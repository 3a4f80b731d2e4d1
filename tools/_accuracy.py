"""Rows of results/accuracy.csv: what `vertebra test` found, with where it was found."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vertebra.tools._classifier import PRETRAINED
from vertebra.tools._results import Origin, origin


@dataclass(frozen=True)
class Row(Origin):
    """One score of an evaluation; `value` is a share from 0 to 1.

    Files and folders are kept by their names alone: where they lay is of one machine.
    """

    model: str
    """timm's name: the classifier, or the backbone of a detector or segmenter."""
    config: str
    """What was evaluated: a config, or the model's name."""
    weights: str
    data: str
    options: str
    metric: str
    value: float
    unit: str
    images: int


def rows_of(
    metrics: Mapping[str, Any], model: str, target: str, weights: str, data: str | None, options: str, device: str
) -> list[Row]:
    """The rows of an evaluation.

    Args:
        metrics: what `vertebra test` prints; shares among them become rows.
        model: timm's name.
        target: the config, or the model's name, as it was given.
        weights: the checkpoint, or `pretrained`.
        data: the folder, None for the config's own.
        options: those of the command line that change what is found.
        device: cpu, cuda or mps.
    """
    place = origin(device, torch.get_num_threads())
    return [
        Row(
            model=model,
            config=Path(target).stem if target.endswith(".py") else target,
            weights=weights if weights == PRETRAINED else Path(weights).name,
            data=Path(data).name if data else "",
            options=options,
            metric=metric,
            value=value,
            unit="share",
            images=metrics["images"],
            **place,
        )
        for metric, value in shares(metrics).items()
    ]


def shares(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The scores among metrics."""
    return {key: value for key, value in metrics.items() if isinstance(value, float) and key != "seconds"}
