"""The layers that families share are the plain ones: only faster, and only where nobody would notice."""

import copy

import pytest
import timm.layers
import torch
from torch import Tensor, nn
from vertebra.backbones import _layers
from vertebra.backbones._layers import Block, Mlp, TokenConv, bias_of, is_plain, quicken


def pair() -> tuple[Mlp, timm.layers.Mlp]:
    """An MLP of ours and timm's with the same weights."""
    ours = Mlp(12, 40).eval()
    theirs = copy.deepcopy(ours)
    theirs.__class__ = timm.layers.Mlp
    return ours, theirs


@pytest.mark.parametrize("shape", [(3, 5, 7, 12), (2, 12), (0, 4, 12), (9000, 12)], ids=str)
@torch.no_grad()
def test_an_mlp_in_pieces_gives_what_timms_gives(shape: tuple[int, ...]) -> None:
    ours, theirs = pair()
    x = torch.randn(shape)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_an_mlp_trains_as_timms() -> None:
    ours, theirs = pair()
    x = torch.randn(4, 12)
    for mlp in (ours.train(), theirs.train()):
        mlp(x).square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


class Doubled(nn.Module):
    """What an adapter puts in the place of a layer: it has its weight and bias, and does something else."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x)


@pytest.mark.parametrize("part", ["fc1", "fc2"])
@torch.no_grad()
def test_what_stands_in_place_of_a_layer_of_an_mlp_is_called(part: str) -> None:
    for mlp in pair():
        x, changed = torch.randn(5, 12), copy.deepcopy(mlp)
        setattr(mlp, part, Doubled(getattr(mlp, part)))
        layer = getattr(changed, part)
        layer.weight.mul_(2)
        layer.bias.mul_(2)
        torch.testing.assert_close(mlp(x), changed(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("act", [nn.ReLU(), nn.GELU("tanh")], ids=str)
@torch.no_grad()
def test_another_activation_in_an_mlp_is_used(act: nn.Module) -> None:
    ours, theirs = pair()
    ours.act = theirs.act = act
    x = torch.randn(5, 12)
    torch.testing.assert_close(ours(x), theirs(x))


@torch.no_grad()
def test_dropout_in_an_mlp_acts_in_training() -> None:
    mlp = Mlp(12, 40)
    mlp.drop1.p = mlp.drop2.p = 0.5
    x = torch.randn(50, 12)
    assert not torch.equal(mlp.train()(x), mlp(x))
    assert torch.equal(mlp.eval()(x), mlp(x))


def test_a_layer_is_plain_until_something_watches_it() -> None:
    layer = nn.Linear(3, 4)
    assert is_plain(layer, TokenConv(4, 3), nn.GELU())
    handle = layer.register_forward_hook(lambda *_: None)
    assert not is_plain(layer)
    handle.remove()
    assert is_plain(layer)
    assert not is_plain(Doubled(nn.Linear(3, 4)))
    assert not is_plain(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)))


def test_quickening_a_block_keeps_its_keys_and_leaves_other_layers() -> None:
    class Other(nn.Linear):
        pass

    block = nn.Sequential(nn.Linear(4, 4), Other(4, 4), timm.layers.Mlp(4, 8), nn.LayerNorm(4))
    keys = list(block.state_dict())
    quicken(block)
    assert [type(part) for part in block] == [nn.Linear, Other, Mlp, nn.LayerNorm]
    assert list(block.state_dict()) == keys


@torch.no_grad()
def test_a_block_adds_attention_and_mlp_each_behind_its_norm() -> None:
    attn, mlp = nn.Linear(6, 6), nn.Linear(6, 6)
    block = Block(6, attn, mlp, 0.0, 1e-5)
    x = torch.randn(2, 3, 4, 6)
    middle = x + attn(nn.functional.layer_norm(x, [6]))
    torch.testing.assert_close(block(x), middle + mlp(nn.functional.layer_norm(middle, [6])))


@torch.no_grad()
def test_a_convolution_on_tokens_is_the_convolution_on_maps_and_adds() -> None:
    conv, x = TokenConv(6, 3), torch.randn(2, 5, 4, 6)
    expected = nn.functional.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=1, groups=6)
    torch.testing.assert_close(conv(x), expected.permute(0, 2, 3, 1))
    torch.testing.assert_close(conv(x, x), expected.permute(0, 2, 3, 1) + x)


@torch.no_grad()
def test_an_mlp_of_a_large_map_holds_no_hidden_map(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(_layers, "linear", lambda x, weight, *_, **__: seen.append(len(x)) or x @ weight.T)
    Mlp(12, 40).eval()(torch.randn(1, 100, 100, 12))
    assert max(seen) <= 2048


@torch.no_grad()
def test_what_stands_in_place_of_a_layer_is_asked_what_it_makes_of_zeros() -> None:
    layer, x = nn.Linear(3, 4), torch.randn(2, 5, 3)
    assert bias_of(layer, x) is layer.bias
    assert torch.equal(bias_of(Doubled(layer), x), 2 * layer.bias)
    assert bias_of(nn.Linear(3, 4, bias=False), x) is None
