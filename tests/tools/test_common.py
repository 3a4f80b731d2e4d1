"""What every command line shares: exit codes, sentences, missing packages."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from vertebra.backbones._errors import Interrupted, UserError
from vertebra.backbones._names import did_you_mean
from vertebra.kernels.depthwise_conv import depthwise_conv
from vertebra.tools import _cli
from vertebra.tools._common import need, parse_changes, pick_device, run_tool


def ending_with(error: BaseException) -> int:
    def main(argv: object) -> int:
        raise error

    return run_tool(main)


def test_a_users_mistake_is_one_sentence_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending_with(UserError("the thing is 3; 1 or 2 are accepted")) == 2
    assert capsys.readouterr().err == "error: the thing is 3; 1 or 2 are accepted\n"


def test_a_fault_of_ours_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending_with(ZeroDivisionError("x")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending_with(OSError(errno.ENOSPC, "No space left on device", "file")) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the disk is full (file)")
    assert "Traceback" not in said


def test_a_file_where_a_folder_should_be_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()

    def main(argv: object) -> None:
        (tmp_path / "file/out").mkdir(parents=True)

    assert run_tool(main) == 2
    assert capsys.readouterr().err.startswith(f"error: not a directory ({tmp_path}/file")


@pytest.mark.parametrize(("error", "code"), [(Interrupted(15, "kept"), 143), (KeyboardInterrupt(), 130)])
def test_signals_have_the_shells_exit_codes(error: BaseException, code: int) -> None:
    assert ending_with(error) == code


def test_a_terminated_tool_ends_with_143_and_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: object) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    assert run_tool(main) == 143
    assert "Terminated" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_missing_package_names_the_line_that_installs_it() -> None:
    with pytest.raises(UserError, match=r'pip install "vertebra\[train\]"'):
        need("no_such_package_anywhere", extra="train")


def test_without_mmengine_training_names_the_extra_and_export_still_loads(tmp_path: Path) -> None:
    """A Python in which mmengine cannot be imported, as after a plain `pip install vertebra`."""
    program = (
        "import sys; sys.modules['mmengine'] = None\n"
        "from vertebra.tools._common import run_tool\n"
        "from vertebra.tools import train, test, infer, export_onnx, convert_checkpoint, benchmark, list, doctor\n"
        "codes = [run_tool(train.main, ['demo/van_b0_digits']), run_tool(test.main, ['van_b0', 'x.pth'])]\n"
        "sys.exit(codes != [2, 2])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count('pip install "vertebra[train]"') == 2
    assert "Traceback" not in done.stderr


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="--device abacus"):
        pick_device("abacus")


def test_near_names_are_offered_and_far_ones_are_not() -> None:
    assert did_you_mean("van_b9", ["van_b0", "resnet50"]) == " Did you mean van_b0?"
    assert did_you_mean("qqq", ["van_b0"]) == ""


def test_options_are_literals_or_text() -> None:
    found = parse_changes(["a.b=3", "c=(1,2)", "d=adamw", "e=true", "f=None", "g=x=y"])
    assert found == {"a.b": 3, "c": (1, 2), "d": "adamw", "e": True, "f": None, "g": "x=y"}


def test_the_overview_tells_of_every_tool(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["vertebra"])
    assert _cli.main() == 0
    said = capsys.readouterr().out
    assert {"train", "test", "infer", "list", "export_onnx", "convert_checkpoint", "benchmark", "make_dataset"} <= set(
        said.split()
    )


def test_an_unknown_tool_is_offered_near_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["vertebra", "trian"])
    assert _cli.main() == 2
    assert "Did you mean train" in capsys.readouterr().err


@pytest.mark.parametrize("name", _cli.tool_names())
def test_help_of_every_tool_ends_with_an_example_and_knows_device(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib

    parser = importlib.import_module(f"vertebra.tools.{name}").build_parser()
    said = parser.format_help()
    assert "--device" in said
    assert f"vertebra {name}" in said.rstrip().splitlines()[-1]


@pytest.mark.parametrize("value", ["fast", "triton"])
def test_a_backend_that_cannot_be_is_one_sentence(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VERTEBRA_KERNELS", value)

    def main(argv: object) -> int:
        depthwise_conv(torch.zeros(1, 2, 4, 4), torch.zeros(2, 1, 3, 3))
        return 0

    assert run_tool(main) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "VERTEBRA_KERNELS" in error
