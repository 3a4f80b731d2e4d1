"""timm's interface to the maps: wrappers, intermediates, pruning; for the names that conftest.py says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

Build = Callable[..., Any]


def test_feature_info_names_modules_strides_and_channels(small: Build, name: str) -> None:
    model = small(name, device="meta")
    strides = [level["reduction"] for level in model.feature_info]
    first = 16 if name.startswith("shvit") else 2 if name.startswith("maxvit") else 4
    assert strides == [first * 2**i for i in range(len(strides))]
    assert strides[-1] == (64 if name.startswith("shvit") else 32)
    assert all(level["num_chs"] > 0 and model.get_submodule(level["module"]) for level in model.feature_info)


EVERY_RUN = ((0, 2), (-1,), 2)


@pytest.mark.parametrize(
    "indices",
    [*EVERY_RUN, *(pytest.param(one, marks=pytest.mark.all) for one in ((0, 1, 2), (2,), (-3, -1), (1,), (2, 0)))],
    ids=str,
)
@torch.no_grad()
def test_features_come_as_asked_for(small: Build, name: str, indices: int | tuple[int, ...]) -> None:
    model = small(name, features_only=True, out_indices=indices, device="meta")
    maps = model(torch.empty(2, 3, 64, 128, device="meta"))
    every = [level["reduction"] for level in small(name, device="meta").feature_info]
    strides = every[-indices:] if isinstance(indices, int) else [every[i] for i in indices]
    assert [tuple(level.shape[2:]) for level in maps] == [(64 // s, 128 // s) for s in strides]
    assert model.feature_info.reduction() == strides
    assert model.feature_info.channels() == [level.shape[1] for level in maps]


@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook", "fx"])
@torch.no_grad()
def test_every_feature_wrapper_of_timm_gives_the_same_maps(small: Build, family: str, feature_cls: str) -> None:
    x = torch.randn(2, 3, 64, 64)
    maps, expected = (
        small(family, features_only=True, feature_cls=wrapper, out_indices=(0, 2))(x)
        for wrapper in (feature_cls, "getter")
    )
    maps = list(maps.values()) if isinstance(maps, dict) else maps
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)


def test_a_feature_extractor_carries_no_part_that_its_maps_do_not_need(small: Build, network: str) -> None:
    model = small(network, features_only=True, out_indices=(0, 1), num_classes=10)
    torch.stack([level.mean() for level in model(torch.randn(2, 3, 64, 64))]).sum().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []


@torch.no_grad()
def test_intermediates_end_with_exactly_the_features(small: Build, network: str) -> None:
    model, x = small(network), torch.randn(2, 3, 64, 64)
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x))
    assert [level.shape[1] for level in maps] == [level["num_chs"] for level in model.feature_info]
    assert len(maps) == len(model.feature_info)


@torch.no_grad()
def test_intermediates_are_selected_by_number_and_by_negative_number(small: Build, family: str) -> None:
    model, x = small(family), torch.randn(2, 3, 64, 64)
    _, every = model.forward_intermediates(x)
    last = len(every) - 1
    for indices, wanted in (
        (None, list(range(last + 1))),
        (1, [last]),
        (2, [last - 1, last]),
        ([0, -1], [0, last]),
        ([2, 0], [2, 0]),
    ):
        _, maps = model.forward_intermediates(x, indices=indices)
        assert all(torch.equal(a, every[i]) for a, i in zip(maps, wanted, strict=True))


@torch.no_grad()
def test_intermediates_normed_end_with_the_features(small: Build, network: str) -> None:
    model, x = small(network), torch.randn(2, 3, 64, 64)
    final, maps = model.forward_intermediates(x, norm=True)
    assert torch.equal(maps[-1], final)


@torch.no_grad()
def test_intermediates_can_stop_early_and_come_alone(small: Build, family: str) -> None:
    model, x = small(family), torch.randn(2, 3, 64, 64)
    _, every = model.forward_intermediates(x)
    for stage in model.stages[len(model.stages) - len(every) + 2 :]:  # a stem may be the first map
        stage.register_forward_pre_hook(lambda *_: pytest.fail("a stage behind the last map has run"))
    last, maps = model.forward_intermediates(x, indices=[0, 1], stop_early=True)
    alone = model.forward_intermediates(x, indices=[0, 1], intermediates_only=True)
    assert torch.equal(last, every[1])
    for given in (maps, alone):
        assert all(torch.equal(a, b) for a, b in zip(given, every[:2], strict=True))


def test_intermediates_leave_in_no_other_layout_and_say_so(small: Build, name: str) -> None:
    with pytest.raises(ValueError, match=r"NHWC.*NCHW"):
        small(name, device="meta").forward_intermediates(torch.empty(1, 3, 64, 64, device="meta"), output_fmt="NHWC")


@pytest.mark.parametrize("indices", [(0, 1), [1], 1, [-2]])
@torch.no_grad()
def test_pruning_keeps_the_maps_and_drops_the_rest(small: Build, network: str, indices: Any) -> None:
    model, x = small(network), torch.randn(2, 3, 64, 64)
    _, maps = model.forward_intermediates(x, indices=indices)
    taken = model.prune_intermediate_layers(indices, prune_norm=True)
    levels, stages = len(model.feature_info), len(small(network).stages)
    assert taken == ([levels - 1] if indices == 1 else [i % levels for i in indices])
    assert len(model.stages) == max(taken) + 1 - (levels - stages)  # a stem may be the first map
    assert model.num_features == model.head_hidden_size == model.feature_info[max(taken)]["num_chs"]
    kept = model.forward_intermediates(x, indices=taken, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(kept, maps, strict=True))
    assert torch.equal(model(x), kept[-1])


@torch.no_grad()
def test_a_pruned_model_takes_a_new_classifier(small: Build, network: str) -> None:
    model = small(network)
    model.prune_intermediate_layers([1])
    model.reset_classifier(5, "avg")
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)
