"""The guard against NaN and Inf: what it names, and when it keeps still."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn
from torch.utils.data import DataLoader
from vertebra.backbones._errors import UserError
from vertebra.engine.runner import VertebraRunner


class Faulty(nn.Module):
    """x (B, 4) -> (B, 4) in a dictionary, spoilt in the way that is asked for: its output or its gradient."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault, self.calls, self.inner = fault, 0, nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        """See the class; the fault begins with the third call."""
        self.calls += 1
        fault = self.fault if self.calls > 2 else ""
        if fault == "weight":
            self.inner.weight.data[0, 0] = torch.inf
        if fault == "around":
            x = x - torch.inf
        x = self.inner(x)
        if fault == "log":
            x = (x - x.abs() - 1).log()
        if fault == "exp":
            x = (x + 1000).exp()
        if fault == "gradient":
            x = x + (x * 0).sqrt()  # 0, and its derivative is 0 times infinity
        return {"maps": [x]}


class Net(BaseModel):
    """Three modules in a row, the middle one at fault."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 4), Faulty(fault))
        self.head = nn.Linear(4, 1)

    def forward(self, inputs: torch.Tensor, mode: str = "loss") -> Any:
        """The loss of a batch (B, 4)."""
        answer = self.head(self.trunk(inputs)["maps"][0]).mean()
        return {"loss": answer} if mode == "loss" else [answer]


def train(folder: Path, fault: str, compiled: bool = False, **wrapper: Any) -> VertebraRunner:
    """Four steps of two samples under the guard."""
    model = Net(fault)
    if compiled:
        model.head.compile(backend="eager")
    runner = VertebraRunner(
        model,
        str(folder),
        train_dataloader=DataLoader([{"inputs": torch.ones(4)}] * 8, batch_size=2),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper={"optimizer": dict(type="SGD", lr=1e-3), **wrapper},
        experiment_name=folder.name,
        default_hooks=dict(checkpoint=None, logger=None),
        custom_hooks=[dict(type="NanGuardHook")],
    )
    runner.train()
    return runner


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (
            "log",
            r"step 3: the output of trunk.1 \(Faulty\) holds NaN, the first of all modules to do so; "
            "its inputs are finite, its parameters are finite",
        ),
        ("around", r"trunk.1.inner \(Linear\) holds .*its inputs hold Inf, from the batch or from the code around"),
        ("exp", r"step 3: the output of trunk.1 \(Faulty\) holds Inf, .*its inputs are finite"),
        (
            "weight",
            r"step 3: the output of trunk.1.inner \(Linear\) holds (NaN|Inf), .*its inputs are finite, its parameters "
            "hold Inf",
        ),
        ("gradient", r"step 3: the gradient of trunk.1.inner.\w+ holds NaN, the first on the way back from the loss"),
    ],
)
def test_the_first_module_or_gradient_that_is_not_finite_is_named(tmp_path: Path, fault: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train(tmp_path, fault)


def test_a_sound_run_ends_without_any_check_left_in_the_model(tmp_path: Path) -> None:
    runner = train(tmp_path, "")
    assert runner.iter == 4
    assert not any(module._forward_hooks for module in runner.model.modules())
    assert not any(parameter._backward_hooks for parameter in runner.model.parameters())


def test_gradients_are_left_to_the_scaler_of_fp16(tmp_path: Path) -> None:
    amp = dict(type="AnyDeviceAmpOptimWrapper", dtype="float16", device="cpu")
    assert train(tmp_path, "gradient", **amp).iter == 4


def test_a_compiled_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave out --compile"):
        train(tmp_path, "log", compiled=True)
