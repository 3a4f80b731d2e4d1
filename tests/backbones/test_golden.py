"""Our models answer what the authors' code answers: logits and maps, through timm's own way of loading weights."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

Load = Callable[..., nn.Module]


@pytest.fixture(scope="module")
def load(golden: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Load:
    """`load(stem, name, **options)`: the model with the drawn weights, from a file nested as the authors do."""

    @functools.cache
    def saved(stem: str) -> Path:
        path = tmp_path_factory.mktemp(stem) / "weights.pth"
        torch.save({"state_dict": golden(stem).weights()}, path)
        return path

    @functools.cache
    def build(stem: str, name: str, **options: Any) -> nn.Module:
        overlay = {"file": str(saved(stem))}
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options).eval()

    return build


def test_the_model_has_the_authors_number_of_parameters(
    golden: Callable[[str], Any], load: Load, stem: str, golden_name: str
) -> None:
    model, norms = load(stem, golden_name), golden(stem).output_norms()
    counted = [value for key, value in model.named_parameters() if not norms or not key.startswith(("head.", "norm."))]
    counted += [value for norm in norms for value in norm.parameters()]
    assert sum(value.numel() for value in counted) == golden(stem).parameters


@torch.no_grad()
def test_logits_are_the_authors(golden: Callable[[str], Any], load: Load, stem: str, golden_name: str) -> None:
    runs = [run for run in golden(stem).runs if run["logits"] is not None]
    assert runs or golden(stem).dense
    for run in runs:
        golden(stem).assert_logits(run, load(stem, golden_name, **run["options"])(golden(stem).image(run)))


@torch.no_grad()
def test_maps_are_the_authors(golden: Callable[[str], Any], load: Load, stem: str, golden_name: str) -> None:
    norms = golden(stem).output_norms()
    for run in golden(stem).runs:
        model = load(stem, golden_name, features_only=True, **run["options"])
        maps = model(golden(stem).image(run))
        if norms:
            maps = [norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, x in zip(norms, maps, strict=True)]
        golden(stem).assert_maps(run, maps)
