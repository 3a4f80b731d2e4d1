"""`vertebra doctor`: it reports what is missing or broken, says what to do, and never fails over it."""

import importlib
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from vertebra.tools import doctor

MISSING = "missing"
Pretend = Callable[..., None]


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """Pretend that distributions are missing, or there in other versions; None stands for damaged metadata."""
    real = metadata.version

    def pretend(**chosen: str | None) -> None:
        known = {name.replace("_", "-"): version for name, version in chosen.items()}

        def version(name: str) -> str | None:
            if known.get(name) == MISSING:
                raise metadata.PackageNotFoundError(name)
            return known[name] if name in known else real(name)

        monkeypatch.setattr(metadata, "version", version)

    return pretend


def lines(report: doctor.Report, section: str) -> dict[str, str]:
    return dict(next((rows for name, rows in report.sections.items() if name.startswith(section)), []))


def test_every_requirement_of_the_metadata_is_looked_at() -> None:
    wanted = {requirement.name for required in doctor.requirements().values() for requirement in required}
    assert {"torch", "timm", "onedl-mmengine", "onedl-mmdetection", "onnxruntime", "wandb"} <= wanted


def test_installed_package_is_shown_with_its_version() -> None:
    assert lines(doctor.examine(), "packages")["torch"] == metadata.version("torch")


def test_missing_package_leads_to_the_extra_that_brings_it(versions: Pretend) -> None:
    versions(onnxruntime=MISSING, onnxruntime_gpu=MISSING)
    report = doctor.examine()
    assert lines(report, "packages for export")["onnxruntime"] == "not installed"
    assert 'for export: pip install "vertebra[export]" (brings onnxruntime)' in report.advice


def test_other_distribution_of_the_same_package_counts(versions: Pretend) -> None:
    versions(opencv_python=MISSING, opencv_python_headless="4.10.0")
    assert doctor.installed("opencv-python") == ("opencv-python-headless", "4.10.0")


def test_version_below_the_bound_is_to_be_upgraded(versions: Pretend) -> None:
    versions(timm="0.9.16")
    assert any(line.startswith("timm 0.9.16 is too old: pip install -U") for line in doctor.examine().advice)


def test_damaged_metadata_does_not_end_the_report(versions: Pretend) -> None:
    versions(rich=None)
    assert "version unknown" in lines(doctor.examine(), "packages for training")["rich"]


def test_check_that_fails_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(report: doctor.Report) -> None:
        raise RuntimeError("driver exploded")

    monkeypatch.setattr(doctor, "check_mmcv", broken)
    report = doctor.examine()
    assert lines(report, "could not be examined") == {"mmcv": "RuntimeError: driver exploded"}
    assert lines(report, "kernels")


def test_opencv_without_its_system_library_is_explained(monkeypatch: pytest.MonkeyPatch, versions: Pretend) -> None:
    versions(opencv_python="5.0.0")

    def import_module(name: str) -> None:
        raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(importlib, "import_module", import_module)
    report = doctor.Report()
    doctor.check_opencv(report)
    assert "libGL.so.1" in report.advice[0]


@pytest.mark.parametrize(("file", "found"), [("_ext.cpython-311-x86_64-linux-gnu.so", True), ("ops.py", False)])
def test_compiled_operators_of_mmcv_are_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, versions: Pretend, file: str, found: bool
) -> None:
    package = tmp_path / "mmcv"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('broken')\n")
    (package / file).touch()
    monkeypatch.delitem(sys.modules, "mmcv", raising=False)  # another test of this process may have imported it
    monkeypatch.syspath_prepend(tmp_path)
    versions(onedl_mmcv="2.3.6")
    report = doctor.Report()
    doctor.check_mmcv(report)
    said = lines(report, "compiled")
    assert (said["mmcv._ext"] == file) is found
    assert found or "vertebra.engine serves" in said["mmcv._ext"]
    assert not report.advice


def test_machine_without_a_compiler_is_told_what_works_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    report = doctor.Report()
    doctor.check_compilers(report)
    assert lines(report, "compilers")["c++"].startswith("none: torch.compile")
    assert "and nothing else: install a C and a C++ compiler" in report.advice[0]


def test_torch_without_cuda_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = doctor.Report()
    doctor.check_devices(report, None)
    assert lines(report, "devices")["cuda"] == "this torch is built without it"


def test_kernels_that_cannot_run_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERTEBRA_KERNELS", "eager")
    report = doctor.Report()
    doctor.check_kernels(report)
    found = lines(report, "kernels")
    assert "CUDA GPU" in found["Triton on cpu"]
    assert found["VERTEBRA_KERNELS"] == "eager"


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ("fast", "every model refuses to run: VERTEBRA_KERNELS is 'fast'; it takes auto, reference, eager, triton"),
        ("triton", "models with kernels refuse to run here, since VERTEBRA_KERNELS=triton"),
    ],
)
def test_a_setting_with_which_nothing_runs_is_to_be_changed(
    value: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERTEBRA_KERNELS", value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    report = doctor.Report()
    doctor.check_kernels(report)
    (said,) = report.advice
    assert said.startswith(advice)


def test_report_ends_with_what_to_do_and_the_exit_code_is_0(
    capsys: pytest.CaptureFixture[str], versions: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(onnx=MISSING, matplotlib=MISSING)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor.main(["--device", "cuda:99"]) == 0
    text = capsys.readouterr().out
    assert "--device cuda:99 cannot be used here" in text
    todo = text.partition("what to do\n")[2].splitlines()
    assert len(todo) >= 3
    assert all(line.startswith("  - ") for line in todo)


def test_help_ends_with_an_example() -> None:
    assert doctor.build_parser().format_help().rstrip().endswith("example:\n  vertebra doctor --device cuda:1")
