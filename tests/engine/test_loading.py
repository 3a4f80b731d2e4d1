"""What mmengine loads by itself is read safely, too."""

from pathlib import Path

import pytest
import torch
from mmengine.runner import load_checkpoint
from torch import nn
from vertebra import engine
from vertebra.backbones._errors import UserError


class Trap:
    """Makes a file, when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


def test_plain_weights_are_loaded(tmp_path: Path) -> None:
    assert engine.loading is not None
    source, model = nn.Linear(2, 3), nn.Linear(2, 3)
    torch.save({"state_dict": source.state_dict(), "meta": {}}, tmp_path / "plain.pth")
    load_checkpoint(model, str(tmp_path / "plain.pth"))
    assert torch.equal(model.weight, source.weight)


def test_a_file_that_would_run_something_is_refused(tmp_path: Path) -> None:
    weights = {"state_dict": nn.Linear(2, 3).state_dict(), "trap": Trap(tmp_path / "sprung")}
    torch.save(weights, tmp_path / "trap.pth")
    with pytest.raises(UserError, match=r"trap\.pth is refused"):
        load_checkpoint(nn.Linear(2, 3), str(tmp_path / "trap.pth"))
    assert not (tmp_path / "sprung").exists()
