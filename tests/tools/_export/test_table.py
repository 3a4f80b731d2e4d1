"""A row of results/exports.csv: what it tells of a file, and that both runtimes are timed alike."""

import dataclasses
import types
from pathlib import Path

import pytest
import torch
from torch import nn
from vertebra.backbones import model_names
from vertebra.tools import export_onnx
from vertebra.tools._cards.facts import ROOT
from vertebra.tools._classifier import Classifier
from vertebra.tools._export.classifier import export
from vertebra.tools._export.files import bytes_of
from vertebra.tools._export.table import asked_options, measure, take_turns
from vertebra.tools._results import read
from vertebra.tools.list import entries, make_rows

RESULTS = ROOT / "results"
PLACE = ("device_name", "threads", "torch", "timm", "onnxruntime", "commit")
"""What the rows of one table have in common."""


class Mean(nn.Module):
    """(B, 3, H, W) -> (B, 3)."""

    num_classes, pretrained_cfg = 3, {"input_size": (3, 32, 48)}

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x.mean((2, 3))


def test_row_tells_of_the_file_and_times_both_runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vertebra.tools._export.table.TURN", 0.02)
    monkeypatch.setattr("vertebra.tools._export.table.PAUSE", 0.0)
    classifier = Classifier("test_resnet", Mean())
    report = export(classifier, tmp_path / "m.onnx", static=(32, 48))
    found = measure(classifier, report, features=False, static=(32, 48))
    assert (found.name, found.nodes, found.opset, found.free) == ("test_resnet", report.nodes, report.opset, False)
    assert (found.height, found.width) == (32, 48)
    assert round(found.megabytes * 1e6) == bytes_of(tmp_path / "m.onnx")
    assert found.difference == pytest.approx(report.difference, rel=0.01)
    assert found.onnxruntime_ms > 0
    assert found.pytorch_ms > 0
    assert found.passed_over == 0
    assert None not in dataclasses.astuple(found)


@pytest.mark.parametrize(("turn", "runs"), [(0.0, 1), (0.05, 2)])
def test_runtimes_take_turns_apart(turn: float, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that a run turns by 0.03 s."""
    calls: list[str] = []
    pauses: list[float] = []

    def call(who: str) -> None:
        calls.append(who)

    clock = types.SimpleNamespace(perf_counter=lambda: 0.03 * len(calls))
    monkeypatch.setattr("vertebra.tools._export.table.time", clock)
    session = types.SimpleNamespace(run=lambda *_: call("onnxruntime"))
    monkeypatch.setattr("vertebra.tools._export.table.open_session", lambda _: session)
    monkeypatch.setattr("vertebra.tools._export.table.TURN", turn)
    monkeypatch.setattr("vertebra.tools._export.table.pause", pauses.append)
    ours, theirs, rounds = take_turns(tmp_path, lambda _: call("pytorch"), (1, 3, 8, 8))  # type: ignore[arg-type]
    warm, turns = calls[:2], calls[2:]
    assert warm == ["onnxruntime", "pytorch"]
    assert turns == (["onnxruntime"] * runs + ["pytorch"] * runs) * 5
    assert rounds == 5 * runs
    assert pauses == [0.2] * 10
    assert (ours, theirs) == pytest.approx((30, 30))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], ""),
        (["--opset", "18"], "--opset 18"),
        (["--static", "64x96", "--opset", "18"], "--opset 18 --static 64x96"),
    ],
)
def test_options_are_told_in_one_order(argv: list[str], expected: str) -> None:
    assert asked_options(export_onnx.build_parser().parse_args(["van_b0", "--out", "m.onnx", *argv])) == expected


def test_the_published_table_has_every_name_at_free_sizes_close_to_pytorch_and_as_large_as_its_weights() -> None:
    found = {(row["name"], row["task"]): row for row in read(RESULTS / "exports.csv")}
    assert {name for name, _ in found} == {*model_names()}
    weights: dict[str, int] = {}
    for model in make_rows(entries()):
        weights[model.name] = max(weights.get(model.name, 0), 4 * model.params)  # tags differ in their classes
    for (name, _), row in found.items():
        assert row["free"] == "True", f"{name}: {row['reason']}"
        assert 0 < float(row["difference"]) <= 1e-4, name
        assert float(row["onnxruntime_ms"]) > 0 < float(row["pytorch_ms"]), name
        assert float(row["megabytes"]) <= 1.05e-6 * weights[name] + 0.5, name  # the graph itself
    assert len({tuple(row[column] for column in PLACE) for row in found.values()}) == 1
    assert not any("+" in row["commit"] for row in found.values()), "of a clean tree"


def test_the_published_times_of_pytorch_are_those_of_the_published_throughput_by_and_large() -> None:
    """Within a factor of two: a fresh process gives memory back after each image, and the machine is shared."""
    rates = {row["model"]: row for row in read(RESULTS / "models.csv") if row["device"] == "cpu"}
    for row in read(RESULTS / "exports.csv"):
        rate = rates[row["name"]]
        assert all(rate[key] == row[key] for key in ("height", "width", "device_name", "threads", "torch", "timm"))
        assert 0.5 < float(row["pytorch_ms"]) * float(rate["value"]) / 1000 < 2, row["name"]
