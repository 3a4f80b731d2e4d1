"""What the contract tests run on: every name of ours, cut down to a few blocks.

A test with the argument `name` runs for every registered name; one with `family` for the first name of each family, and
for the others in `make test-all` only; one with `stem` and `golden_name` for every file of tests/golden whose model is
here. A new family needs no entry.
"""

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn
from vertebra.backbones import model_names

SMALL = (1, 1, 2, 1)  # blocks a stage: two in one stage, so that order and drop path have something to say


@functools.cache
def _takes_depths(name: str) -> bool:
    try:
        timm.create_model(name, depths=SMALL, device="meta")
    except TypeError:
        return False
    return True


def _build(name: str, **options: Any) -> nn.Module:
    few = {"depths": SMALL} if _takes_depths(name.partition(".")[0]) else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(name, **few | options)


_prototype = functools.lru_cache(maxsize=64)(_build)


@pytest.fixture(scope="session")
def small() -> Callable[..., nn.Module]:
    """`small(name, **options)` is `timm.create_model` with few blocks, where the model takes `depths`; in eval mode.

    Equal arguments give equal weights: a copy of one prototype, since drawing weights is what takes most of the time.
    """

    def build(name: str, **options: Any) -> nn.Module:
        model = _build(name, **options) if "pretrained" in options else copy.deepcopy(_prototype(name, **options))
        return model.eval()  # a copy of torchvision's graph module has forgotten its mode

    return build


def _goldens() -> list[tuple[str, str]]:
    """(file of tests/golden, name of ours) for the classification goldens of the families that are here."""
    stems = sorted(path.stem for path in (Path(__file__).parents[1] / "golden").glob("*.json"))
    ours = set(model_names())
    names = ((stem, name) for stem in stems for name in (stem, stem.partition(".")[0] + "_fused"))
    return [(stem, name) for stem, name in names if name in ours]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = model_names()
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", names)
    if "family" in metafunc.fixturenames:
        first = {timm.model_entrypoint(name).__module__: name for name in reversed(names)}.values()
        later = pytest.mark.all
        metafunc.parametrize("family", [pytest.param(name, marks=[] if name in first else later) for name in names])
    if "stem" in metafunc.fixturenames:
        metafunc.parametrize(("stem", "golden_name"), _goldens())
