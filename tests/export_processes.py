"""Stand-ins for the processes of `export_onnx --all`: each writes a small file and a row, or fails as it is told to.

A module beside conftest.py, so that several tests can import it.
"""

import subprocess
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from vertebra.tools import _results
from vertebra.tools._export import all_names
from vertebra.tools._export.files import bytes_of
from vertebra.tools._export.table import Row
from vertebra.tools._results import append, origin

Process = Callable[..., subprocess.CompletedProcess]
SAYS = {
    "fixed": "no {} size; --static HxW may do",
    "broken": "no classifier",
    "hopeless": "ONNX Runtime differs at a {} size",
}


def row(name: str, free: bool, task: str = "classification", **others: Any) -> Row:
    """A row of here and now, with nothing measured in it."""
    measured: dict[str, Any] = dict(
        nodes=7, megabytes=1.5, opset=20, difference=2e-6, passed_over=0, onnxruntime_ms=3.0, pytorch_ms=4.0, rounds=5
    )
    rest: dict[str, Any] = dict(
        height=224, width=224, seconds=1.0, onnxruntime=onnxruntime.__version__, weights="random", options=""
    )
    rest |= dict(task=task, free=free, reason="" if free else "--static")
    return Row(**{**dict(name=name), **measured, **rest, **origin("cpu", torch.get_num_threads()), **others})


def write_onnx(path: Path, text: str, outside: bool) -> None:
    """A model of one weight, in the file or beside it; the file grows with the text."""
    weight = onnx.numpy_helper.from_array(np.ones(300, np.float32), "w")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["w"], ["y"])], "g", [], [], [weight])
    model = onnx.helper.make_model(graph, doc_string=text)
    onnx.save_model(model, path, save_as_external_data=outside, location=f"{path.name}.data", size_threshold=0)


def stand_in(fate: dict[str, str], asked: list[list[str]]) -> Process:
    """What takes the place of the process of a name.

    Args:
        fate: of names: `killed`, `large` (weights beside the file), or one of `SAYS`, `fixed` at free sizes alone;
            others are exported.
        asked: gets the commands.
    """

    def run(command: Sequence[str], **_: object) -> subprocess.CompletedProcess:
        command = list(command[command.index("export_onnx") :])
        asked.append(command)
        what, static = fate.get(command[1], "free"), "--static" in command
        if what == "killed":
            return subprocess.CompletedProcess(command, -9, "", "")
        if what in SAYS and (what != "fixed" or not static):
            said = SAYS[what].format("fixed" if static else "free")
            return subprocess.CompletedProcess(command, 2, "", f"some warning\nerror: {said}\n")
        file = Path(command[command.index("--out") + 1])
        options = [word for option in ("--opset", "--static") if option in command for word in (option, "some")]
        write_onnx(file, " ".join(options), what == "large")
        task = "features" if "--features" in command else "classification"
        weights = "pretrained" if "pretrained" in command else "random"
        found = row(command[1], not static, task, megabytes=bytes_of(file) / 1e6, weights=weights)
        append(Path(command[command.index("--csv") + 1]), [found])
        return subprocess.CompletedProcess(command, 0, "", "what the file gets")

    return run


def replace_processes(monkeypatch: pytest.MonkeyPatch, fate: dict[str, str], asked: list[list[str]]) -> None:
    """Let `export_onnx --all` run stand-ins, as of a commit that nothing differs from."""
    monkeypatch.setattr(all_names, "subprocess", types.SimpleNamespace(run=stand_in(fate, asked)))
    monkeypatch.setattr(_results, "commit", lambda: "0123456789")
