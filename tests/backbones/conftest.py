"""What the contract tests run on: every name of ours, cut down to a few blocks.

A test with the argument `name` runs for every registered name, but for sizes of timm's networks that differ in nothing
else: for tests that build on the meta device, or read what the registry says. One with `network` runs for each kind of
network, one with `family` for the first name of each family, one with `few` or `slow_network` for one that has windows.
What is left out follows in `make test-all`: every name, or for `slow_network` each kind of network. One with `stem` and
`golden_name` runs for every file of tests/golden whose model is here. A new family needs no entry.
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
ARCHITECTURES = (  # architectures that differ from their family's first in more than sizes
    "biformer_stl",
    "biformer_stl_nchw",
    "transnext_micro_aaaa_256",
    "maxvit_tiny_tf_224_fused",
)
DETAILS = (  # those that differ in a detail: another head, another position bias, another order
    "davit_base_fl_fused",
    "maxvit_rmlp_pico_rw_256_fused",
    "maxvit_tiny_pm_256_fused",
)
_KEPT = 30_000_000  # parameters: a larger prototype is built again rather than kept


@functools.cache
def _few_blocks(name: str) -> tuple[int, ...]:
    """`depths` of few blocks, for as many stages as the model has."""
    return SMALL[-len(timm.create_model(name, device="meta").stages) :]


def _build(name: str, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return timm.create_model(name, **{"depths": _few_blocks(name.partition(".")[0])} | options)


_prototypes: dict[str, nn.Module] = {}


def _prototype(name: str, **options: Any) -> nn.Module:
    key = f"{name} {sorted(options.items())}"
    if key in _prototypes:
        return _prototypes[key]
    model = _build(name, **options)
    if sum(value.numel() for value in model.parameters() if not value.is_meta) <= _KEPT:
        if len(_prototypes) == 24:
            del _prototypes[next(iter(_prototypes))]
        _prototypes[key] = model
    return model


@pytest.fixture(scope="session")
def small() -> Callable[..., nn.Module]:
    """`small(name, **options)` is `timm.create_model` with few blocks, where the model takes `depths`; in eval mode.

    Equal arguments give equal weights: a copy of one prototype, since drawing weights is what takes most of the time.
    """

    def build(name: str, **options: Any) -> nn.Module:
        model = _build(name, **options) if "pretrained" in options else copy.deepcopy(_prototype(name, **options))
        return model.eval()  # a copy of torchvision's graph module has forgotten its mode

    return build


@pytest.fixture(scope="session")
def few_blocks() -> Callable[[str], tuple[int, ...]]:
    """`few_blocks(name)` is the `depths` that `small` builds with."""
    return _few_blocks


def _goldens() -> list[tuple[str, str]]:
    """(file of tests/golden, name of ours) for the goldens of the families that are here."""
    ours = set(model_names())
    found = []
    for stem in sorted(path.stem for path in (Path(__file__).parents[1] / "golden").glob("*.json")):
        name = stem.partition(".")[0].removesuffix("_dense")
        found += [(stem, full) for full in (name, f"{name}_fused") if full in ours]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = model_names()
    first = {timm.model_entrypoint(name).__module__: name for name in reversed(names)}.values()
    usual = {*first, *ARCHITECTURES}
    networks = usual | {*DETAILS}
    own = {name for name in names if not name.endswith("_fused")}
    few = {"litv2_small"}  # for tests that take many seconds a name
    for argument, now in (("family", set(first)), ("network", usual), ("name", own | networks), ("few", few)):
        if argument in metafunc.fixturenames:
            chosen = [pytest.param(name, marks=[] if name in now else pytest.mark.all) for name in names]
            metafunc.parametrize(argument, chosen)
    if "slow_network" in metafunc.fixturenames:
        chosen = [pytest.param(name, marks=[] if name in few else pytest.mark.all) for name in names]
        metafunc.parametrize("slow_network", [one for one in chosen if one.values[0] in networks])
    if "stem" in metafunc.fixturenames:
        metafunc.parametrize(("stem", "golden_name"), _goldens())
