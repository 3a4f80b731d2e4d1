"""The necks give heads as many levels as they ask for, with weights of the authors' detectors in the right places."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("mmengine")
from mmengine.registry import MODELS
from vertebra.backbones._errors import UserError
from vertebra.engine.necks import PyramidNeck, SimplePyramid

CHANNELS = [12, 20, 28]


def maps(*sizes: tuple[int, int], channels: list[int] = CHANNELS) -> tuple[Tensor, ...]:
    return tuple(torch.randn(2, width, *size) for width, size in zip(channels, sizes, strict=True))


STAGES = ((7, 10), (4, 5), (2, 3))


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_levels_come_finest_first_with_the_extra_ones_before_the_backbones(extra: int) -> None:
    neck = PyramidNeck(CHANNELS, 8, num_outs=5, extra_levels=extra)
    finer = [(7 * 2**i, 10 * 2**i) for i in range(extra, 0, -1)]
    coarser = [(1, 2), (1, 1)]
    outs = neck(maps(*STAGES))
    assert [x.shape for x in outs] == [(2, 8, *size) for size in (*finer, *STAGES, *coarser)[:5]]


@pytest.mark.parametrize("source", [False, "on_input", "on_lateral", "on_output"])
def test_without_finer_levels_the_neck_is_mmdets_pyramid(source: bool | str) -> None:
    pytest.importorskip("mmdet")
    from mmdet.models.necks import FPN

    options = dict(num_outs=5, add_extra_convs=source, relu_before_extra_convs=True)
    norm = dict(type="GN", num_groups=2)
    theirs, ours = (kind(CHANNELS, 8, norm_cfg=norm, **options) for kind in (FPN, PyramidNeck))
    ours.load_state_dict(theirs.state_dict())
    inputs = maps(*STAGES)
    for expected, found in zip(theirs(inputs), ours(inputs), strict=True):
        torch.testing.assert_close(found, expected)


def _plain(weights: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The authors' neck with two finer levels and no coarser ones, written out from their keys."""

    def conv(name: str, x: Tensor, padding: int = 0) -> Tensor:
        return F.conv2d(x, weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"], padding=padding)

    def grow(number: int, x: Tensor) -> Tensor:
        name = f"extra_trans_convs.{number}.conv"
        return F.conv_transpose2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2)

    def enlarge(x: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(x, like.shape[2:], mode="nearest")

    of_16, of_32, of_64 = (conv(f"lateral_convs.{i}", x) for i, x in enumerate(inputs))
    of_32 = of_32 + enlarge(of_64, of_32)
    of_16 = of_16 + enlarge(of_32, of_16)
    of_8 = grow(0, of_16)
    of_4 = grow(1, of_8)
    finer = [conv("extra_fpn_convs.0", of_4, 1), conv("extra_fpn_convs.1", of_8, 1)]
    return finer + [conv(f"fpn_convs.{i}", x, 1) for i, x in enumerate((of_16, of_32, of_64))]


def test_weights_under_the_authors_keys_do_what_their_neck_does_with_them() -> None:
    shapes = {f"lateral_convs.{i}": (8, width, 1, 1) for i, width in enumerate(CHANNELS)}
    shapes |= {f"fpn_convs.{i}": (8, 8, 3, 3) for i in range(3)}
    shapes |= {f"extra_fpn_convs.{i}": (8, 8, 3, 3) for i in range(2)}
    shapes |= {f"extra_trans_convs.{i}": (8, 8, 2, 2) for i in range(2)}
    weights = {f"{name}.conv.weight": torch.randn(shape) for name, shape in shapes.items()}
    weights |= {f"{name}.conv.bias": torch.randn(8) for name in shapes}
    neck = PyramidNeck(CHANNELS, 8, num_outs=5, extra_levels=2)
    neck.load_state_dict(weights)
    inputs = maps(*STAGES)
    torch.testing.assert_close(list(neck(inputs)), _plain(weights, inputs))


def test_coarser_levels_are_every_second_pixel_of_the_one_before() -> None:
    outs = PyramidNeck(CHANNELS, 8, num_outs=5)(maps((20, 28), (10, 14), (5, 7)))
    assert torch.equal(outs[3], outs[2][:, :, ::2, ::2])
    assert torch.equal(outs[4], outs[3][:, :, ::2, ::2])


@pytest.mark.parametrize(("source", "width"), [("on_input", 28), ("on_lateral", 8), ("on_output", 8)])
def test_coarser_levels_can_be_convolutions(source: str, width: int) -> None:
    neck = PyramidNeck(CHANNELS, 8, num_outs=5, add_extra_convs=source)
    assert [conv.conv.in_channels for conv in neck.fpn_convs[3:]] == [width, 8]
    inputs = maps((20, 28), (10, 14), (5, 7))
    outs = neck(inputs)
    start = {"on_input": inputs[2], "on_lateral": neck.lateral_convs[2](inputs[2]), "on_output": outs[2]}[source]
    assert torch.equal(outs[3], neck.fpn_convs[3](start))
    assert torch.equal(outs[4], neck.fpn_convs[4](outs[3]))


@pytest.mark.parametrize("source", [False, "on_input", "on_lateral", "on_output"])
def test_every_parameter_learns(source: bool | str) -> None:
    neck = PyramidNeck(CHANNELS, 8, num_outs=6, extra_levels=2, add_extra_convs=source)
    sum(x.square().sum() for x in neck(maps(*STAGES))).backward()
    assert all(value.grad is not None for value in neck.parameters())


def test_the_neck_is_initialised_as_mms_feature_pyramid() -> None:
    neck = MODELS.build(
        {"type": "PyramidNeck", "in_channels": CHANNELS, "out_channels": 64, "num_outs": 4, "extra_levels": 1}
    )
    neck.init_weights()
    for conv in (module for module in neck.modules() if isinstance(module, nn.Conv2d)):
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(conv.weight)
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.9 * bound < conv.weight.abs().max() <= bound
        assert not conv.bias.any()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_outs": 3, "extra_levels": 1}, r"num_outs is 3, extra_levels 1.*num_outs=4 or more"),
        ({"num_outs": 5, "extra_levels": -1}, r"extra_levels -1.*no negative number"),
        ({"num_outs": 5, "add_extra_convs": True}, r"add_extra_convs is True.*'on_input', 'on_lateral', 'on_output'"),
        ({"num_outs": 5, "in_channels": []}, r"in_channels \[\].*one map or more"),
    ],
)
def test_bad_arguments_are_said_in_one_sentence(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        PyramidNeck(**{"in_channels": CHANNELS, "out_channels": 8, **arguments})


@pytest.mark.parametrize("channels", [[12, 20], [12, 24, 28]])
def test_maps_that_do_not_fit_say_which_channels_the_neck_should_have(channels: list[int]) -> None:
    neck = PyramidNeck(CHANNELS, 8, num_outs=3)
    with pytest.raises(UserError) as caught:
        neck(maps(*STAGES[: len(channels)], channels=channels))
    assert f"built for maps of {CHANNELS} channels" in str(caught.value)
    assert f"neck.in_channels={channels}" in str(caught.value)


def test_one_map_of_a_vit_becomes_a_pyramid() -> None:
    neck = SimplePyramid(in_channels=[16], out_channels=8, num_outs=5)
    outs = neck((torch.randn(2, 16, 5, 7),))
    assert [x.shape for x in outs] == [(2, 8, 20, 28), (2, 8, 10, 14), (2, 8, 5, 7), (2, 8, 3, 4), (2, 8, 2, 2)]
    sum(x.square().sum() for x in outs).backward()
    assert all(value.grad is not None for value in neck.parameters())


@pytest.mark.parametrize("start", [1, 2, 3])
def test_finer_levels_of_the_simple_pyramid_can_be_left_out(start: int) -> None:
    whole, cut = SimplePyramid(16, 8, num_outs=5), SimplePyramid(16, 8, num_outs=5 - start, start_level=start)
    for part, other in ((cut.scales, whole.scales), (cut.convs, whole.convs)):
        part.load_state_dict(other[start:].state_dict())
    x = torch.randn(2, 16, 5, 7)
    torch.testing.assert_close(cut((x,)), whole((x,))[start:])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"in_channels": [16, 32]}, r"in_channels is \[16, 32\].*one map"),
        ({"in_channels": 18}, r"in_channels is 18.*multiple of 4"),
        ({"in_channels": 16, "num_outs": 3}, r"num_outs is 3.*4 levels or more"),
        ({"in_channels": 16, "num_outs": 2, "start_level": 1}, r"num_outs is 2 and start_level 1; .*4 levels or more"),
        ({"in_channels": 16, "num_outs": 4, "start_level": 4}, r"start_level 4; .*\(0 to 3\)"),
    ],
)
def test_bad_arguments_of_the_simple_pyramid_are_said_in_one_sentence(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        SimplePyramid(**arguments)
