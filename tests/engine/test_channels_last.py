"""The hook that puts a model into channels_last."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")
from vertebra.engine.channels_last import ChannelsLastHook


def test_convolutions_give_channels_last_and_the_same_numbers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 4, 1)).double()
    x = torch.randn(2, 3, 9, 7, dtype=torch.float64)
    expected = model(x)
    weights = list(model.parameters())
    ChannelsLastHook().before_train(SimpleNamespace(model=model))
    found = model(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected)
    assert [a is b for a, b in zip(weights, model.parameters(), strict=True)] == [True] * 4  # as the optimizer has them
