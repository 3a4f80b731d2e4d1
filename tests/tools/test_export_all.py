"""export_onnx --all: a table of what was exported, and what was not is told at the end."""

import csv
import dataclasses
import re
import subprocess
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from vertebra.backbones import model_names
from vertebra.tools import _export_all, export_onnx
from vertebra.tools._classifier import Classifier
from vertebra.tools._common import run_tool
from vertebra.tools._export_all import choose_names
from vertebra.tools._export_table import Row, measure, take_turns
from vertebra.tools._onnx_export import export
from vertebra.tools._results import append, origin


class Mean(nn.Module):
    """(B, 3, H, W) -> (B, 3)."""

    num_classes, pretrained_cfg = 3, {"input_size": (3, 32, 48)}

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x.mean((2, 3))


def row(name: str, free: bool) -> Row:
    """A row with nothing measured in it."""
    measured = dict(nodes=7, megabytes=1.5, opset=20, difference=2e-6, onnxruntime_ms=3.0, pytorch_ms=4.0, rounds=5)
    rest = dict(height=224, width=224, seconds=1.0, onnxruntime="1")
    return Row(name=name, task="classification", free=free, **measured, **rest, **origin("cpu", 1))


Process = Callable[..., subprocess.CompletedProcess]


def stand_in(fate: dict[str, str], asked: list[list[str]]) -> Process:
    """What takes the place of the process of a name: it writes a file and a row, or fails as `fate` says."""

    def run(command: Sequence[str], **_: object) -> subprocess.CompletedProcess:
        command = list(command[command.index("export_onnx") :])
        asked.append(command)
        what, static = fate.get(command[1], "free"), "--static" in command
        if what == "killed":
            return subprocess.CompletedProcess(command, -9, "", "")
        if what == "broken" or (what == "fixed" and not static):
            return subprocess.CompletedProcess(command, 2, "", "some warning\nerror: it has no free size\n")
        Path(command[command.index("--out") + 1]).write_bytes(b"file")
        append(Path(command[command.index("--csv") + 1]), [row(command[1], not static)])
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


@pytest.fixture
def asked() -> list[list[str]]:
    """The commands that were run."""
    return []


@pytest.fixture
def fates(monkeypatch: pytest.MonkeyPatch, asked: list[list[str]]) -> dict[str, str]:
    """What becomes of names: `fixed`, `broken` or `killed`; others are exported."""
    fate: dict[str, str] = {}
    monkeypatch.setattr(_export_all, "subprocess", types.SimpleNamespace(run=stand_in(fate, asked)))
    return fate


def test_every_name_gets_a_file_and_a_row(
    fates: dict[str, str], asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = tmp_path / "t.csv", tmp_path / "files"
    assert run_tool(export_onnx.main, ["--all", "--out", str(out), "--csv", str(table)]) == 0
    with table.open() as file:
        assert [line["name"] for line in csv.DictReader(file)] == choose_names(None, None)
    assert sorted(path.stem for path in out.iterdir()) == sorted(model_names())
    assert len(asked) == 72
    assert "72 files in" in capsys.readouterr().out


def test_families_and_patterns_choose_names(fates: dict[str, str], asked: list[list[str]], tmp_path: Path) -> None:
    argv = ["*_small*", "--all", "--family", "van,cswin,litv2", "--out", str(tmp_path), "--features", "--opset", "18"]
    assert run_tool(export_onnx.main, argv) == 0
    assert [command[1] for command in asked] == ["cswin_small", "litv2_small"]
    assert all("--features" in command and command[-2:] == ["--opset", "18"] for command in asked)


def test_name_without_free_sizes_gets_its_own_size_and_the_reason_is_told(
    fates: dict[str, str], asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fates["cswin_base_384"] = "fixed"
    assert run_tool(export_onnx.main, ["cswin_base_384", "--all", "--out", str(tmp_path)]) == 0
    assert ["--static" in command for command in asked] == [False, True]
    assert asked[1][-2:] == ["--static", "384x384"]
    assert "of fixed size only: it has no free size" in capsys.readouterr().out


def test_name_that_fails_or_is_killed_ends_nothing_else_and_is_told(
    fates: dict[str, str], asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fates |= {"van_b1": "broken", "van_b3": "killed"}
    assert run_tool(export_onnx.main, ["--all", "--family", "van", "--out", str(tmp_path)]) == 2
    printed, warned = capsys.readouterr()
    assert "van_b1  FAILED: it has no free size" in printed
    assert "van_b3  FAILED: its process ended with code -9; -9 mostly means that memory ran out" in printed
    assert warned == "error: 2 of 7 names could not be exported: van_b1, van_b3\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"van_b{i}.onnx" for i in (0, 2, 4, 5, 6)]


def test_without_out_the_table_alone_remains(
    fates: dict[str, str], asked: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_tool(export_onnx.main, ["van_b*", "--all", "--csv", str(tmp_path / "t.csv")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    assert not any(Path(command[command.index("--out") + 1]).exists() for command in asked)
    assert "checked and removed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--all"], "--all needs --out DIR for the files, or --csv F"),
        (["--all", "--out", "text.txt"], "--out text.txt is no folder"),
        (["--all", "--out", "d", "--family", "vans"], "--family vans: known are biformer, .* Did you mean van"),
        (["--all", "--out", "d", "vam_b0"], "no model of vertebra matches 'vam_b0'"),
        (["--all", "--out", "d", "--family", "van", "cswin_tiny"], "no model of van matches 'cswin_tiny'"),
        (["--all", "--out", "d", "--fp16"], "--fp16 takes one NAME"),
        (["--all", "--out", "d", "--checkpoint", "w.pth"], "--checkpoint w.pth is of one model"),
        (["--all", "--out", "d", "--csv", "text.txt"], "--csv text.txt has other columns than name, task"),
        (["van_b0", "--out", "m.onnx", "--family", "van"], "--family van chooses names for --all"),
        (["van_b0"], "export_onnx needs a NAME and --out F"),
    ],
)
def test_bad_input_is_one_sentence_and_runs_nothing(
    argv: list[str],
    sentence: str,
    fates: dict[str, str],
    asked: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("precious\n")
    assert run_tool(export_onnx.main, argv) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert re.search(sentence, message)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    assert not asked


# ---- the row


def test_row_tells_of_the_file_and_times_both_runtimes(tmp_path: Path) -> None:
    classifier = Classifier("test_resnet", Mean())
    report = export(classifier, tmp_path / "m.onnx", static=(32, 48))
    found = measure(classifier, report, features=False, static=(32, 48))
    assert (found.name, found.nodes, found.opset, found.free) == ("test_resnet", report.nodes, report.opset, False)
    assert (found.height, found.width) == (32, 48)
    assert found.difference == pytest.approx(report.difference, rel=0.01)
    assert found.onnxruntime_ms > 0
    assert found.pytorch_ms > 0
    assert None not in dataclasses.astuple(found)


def test_runtimes_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    session = types.SimpleNamespace(run=lambda *_: calls.append("onnxruntime"))
    monkeypatch.setattr("vertebra.tools._export_table.open_session", lambda _: session)
    monkeypatch.setattr("vertebra.tools._export_table.SECONDS", 0.0)
    _, _, rounds = take_turns(tmp_path, lambda _: calls.append("pytorch"), (1, 3, 8, 8))  # type: ignore[arg-type]
    assert rounds == 3
    assert calls == ["onnxruntime", "pytorch"] * 4


@pytest.mark.all
def test_real_processes_write_real_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "t.csv"
    assert run_tool(export_onnx.main, ["shvit_s1_*", "--all", "--out", str(tmp_path), "--csv", str(table)]) == 0
    assert (tmp_path / "shvit_s1_fused.onnx").stat().st_size > 20e6
    with table.open() as file:
        (line,) = csv.DictReader(file)
    assert (line["name"], line["free"], line["opset"]) == ("shvit_s1_fused", "True", "20")
    assert float(line["difference"]) <= 1e-4
    assert "1/1  shvit_s1_fused  " in capfd.readouterr().out
