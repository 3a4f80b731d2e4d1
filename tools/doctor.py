"""Say what is installed, what can run here and why the rest cannot, and what to do."""

if __name__ == "__main__":
    import _installed  # noqa: F401  says how to install where vertebra cannot be imported

import argparse
import importlib
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
import vertebra
from packaging.requirements import Requirement
from packaging.version import InvalidVersion
from vertebra.backbones._errors import UserError
from vertebra.kernels import _triton, dispatch
from vertebra.tools._common import make_parser, pick_device, run_tool, usable_cores

ROOT = Path(vertebra.__file__).parent
BASE = "base"
_PURPOSE = {
    "train": "training and evaluation",
    "data": "data in tar files or from Hugging Face",
    "loggers": "logging to W&B or MLflow",
    "mm": "mmdetection and mmsegmentation",
    "export": "export",
    "dev": "work on vertebra itself",
}
_STAND_INS = {  # other distributions of the same import package, with version numbers of their own
    "onedl-mmengine": ("mmengine",),
    "onedl-mmcv": ("mmcv", "mmcv-lite"),
    "onedl-mmdetection": ("mmdet",),
    "onedl-mmsegmentation": ("mmsegmentation",),
    "opencv-python": ("opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "onnxruntime": ("onnxruntime-gpu",),
}
UNKNOWN = "version unknown (its metadata is damaged)"


@dataclass
class Report:
    """What was found: lines by section, and sentences that say what to do."""

    sections: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)

    def add(self, section: str, name: str, found: str) -> None:
        """One line of a section."""
        self.sections.setdefault(section, []).append((name, found))

    def text(self) -> str:
        """All of it as aligned text."""
        width = max(len(name) for lines in self.sections.values() for name, _ in lines)
        blocks = [
            "\n".join([section, *(f"  {name:<{width}}  {found}".rstrip() for name, found in lines)])
            for section, lines in self.sections.items()
        ]
        advice = [f"  - {sentence}" for sentence in self.advice] or [
            "  nothing: all parts of vertebra can be used here"
        ]
        return "\n\n".join([*blocks, "\n".join(["what to do", *advice])])


def requirements() -> dict[str, list[Requirement]]:
    """What vertebra asks for, by extra, as its own metadata has it; a package of several extras stands in the first."""
    try:
        about = metadata.metadata(vertebra.__name__)
    except metadata.PackageNotFoundError:
        return {}
    extras = [extra for extra in about.get_all("Provides-Extra") or [] if extra != "all"]
    wanted: dict[str, list[Requirement]] = {name: [] for name in (BASE, *extras)}
    seen = {vertebra.__name__}  # an extra that includes another names this package
    for requirement in map(Requirement, about.get_all("Requires-Dist") or []):
        marker = requirement.marker
        home = BASE if marker is None else next((e for e in extras if marker.evaluate({"extra": e})), None)
        if home is not None and requirement.name not in seen:
            seen.add(requirement.name)
            wanted[home].append(requirement)
    return wanted


def installed(name: str) -> tuple[str, str] | None:
    """Distribution and version that provide a requirement; None where it is not installed. Nothing is imported."""
    for distribution in (name, *_STAND_INS.get(name, ())):
        try:
            return distribution, metadata.version(distribution) or UNKNOWN
        except metadata.PackageNotFoundError:
            continue
    return None


def check_packages(report: Report) -> None:
    """Versions of what vertebra asks for, and the pip line of each extra that is not complete."""
    wanted = requirements()
    if not wanted:
        report.advice.append("vertebra is on the path without being installed: run `pip install -e .` in the clone")
    if not (ROOT / "tests").is_dir():
        wanted.pop("dev", None)  # of use in a clone only
    for extra, required in wanted.items():
        section = "packages" if extra == BASE else f"packages for {_PURPOSE.get(extra, extra)}: vertebra[{extra}]"
        missing = [requirement.name for requirement in required if not _check_package(report, section, requirement)]
        if missing and extra == BASE:
            report.advice.append(f"vertebra is incomplete: pip install {' '.join(missing)}")
        elif missing:
            names = ", ".join(missing)
            report.advice.append(f'for {_PURPOSE.get(extra, extra)}: pip install "vertebra[{extra}]" (brings {names})')
    triton = installed("triton")
    report.add("packages", "triton", triton[1] if triton else "not installed (comes with torch on Linux)")


def _check_package(report: Report, section: str, requirement: Requirement) -> bool:
    """Report one package; False where it is missing."""
    found = installed(requirement.name)
    if found is None:
        report.add(section, requirement.name, "not installed")
        return False
    distribution, version = found
    report.add(section, distribution, version)
    if distribution == requirement.name and not _admits(requirement, version):
        wanted = f"{requirement.name}{requirement.specifier}"
        report.advice.append(f'{requirement.name} {version} is too old: pip install -U "{wanted}"')
    return True


def _admits(requirement: Requirement, version: str) -> bool:
    try:
        return requirement.specifier.contains(version, prereleases=True)
    except InvalidVersion:
        return True


def check_opencv(report: Report) -> None:
    """OpenCV is imported by mmengine's runner, and often installed without the system libraries that it loads."""
    if installed("opencv-python") is None:
        return
    try:
        importlib.import_module("cv2")
    except Exception as error:
        report.advice.append(
            f"OpenCV is installed but cannot be imported ({_first_sentence(error)}): install the library "
            "that it lacks (on Debian: apt-get install libgl1 libglib2.0-0)"
        )


_SERVED = (
    "nms, soft-nms, nms_match, RoIAlign, RoIPool, focal losses, box overlaps, deformable convolution and attention"
)


def check_mmcv(report: Report) -> None:
    """Who serves mmcv's operators: compiled ones, or ours; found by file, since importing a broken mmcv fails."""
    if installed("onedl-mmcv") is None:
        return
    spec = importlib.util.find_spec("mmcv")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    compiled = [file for folder in folders for file in (*folder.glob("_ext*.so"), *folder.glob("_ext*.pyd"))]
    if compiled:
        report.add("compiled operators", "mmcv._ext", compiled[0].name)
        return
    if spec is None:
        return
    report.add("compiled operators", "mmcv._ext", "not in this mmcv: vertebra.engine serves in its place, on PyTorch")
    report.add("compiled operators", "served", _SERVED)
    report.add("compiled operators", "others", "one sentence when they are called")


def check_devices(report: Report, asked: str | None) -> None:
    """CPU threads, GPUs, MPS, and the device of `--device`."""
    report.add("devices", "cpu", f"{torch.get_num_threads()} threads of PyTorch on {usable_cores()} usable cores")
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found = f"{about.name}, sm_{about.major}{about.minor}, {about.total_memory / 2**30:.0f} GiB"
        report.add("devices", f"cuda:{index}", found)
    if not torch.cuda.is_available():
        report.add("devices", "cuda", _no_cuda(report))
    mps = torch.backends.mps.is_available()
    report.add("devices", "mps", "available" if mps else "none on this machine")
    if asked is not None:
        try:
            report.add("devices", "asked for", f"{pick_device(asked)} can be used")
        except UserError as error:
            report.add("devices", "asked for", _first_sentence(error))


def _no_cuda(report: Report) -> str:
    """Why there is no GPU; advice where the machine has one."""
    driver = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    if torch.version.cuda is None and torch.version.hip is None:
        if driver:
            report.advice.append(
                "this machine has an NVIDIA driver, and torch is built without CUDA: install another torch"
            )
        return "this torch is built without it"
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    try:
        torch.cuda.init()
    except Exception as error:
        reason = _first_sentence(error)
    else:
        reason = "no device"
    if driver:
        report.advice.append(f"torch ({built}) does not see this machine's GPU: {reason}")
    return f"none: torch is built for {built} and says: {reason}"


def _first_sentence(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].partition(". ")[0].rstrip(".")


def _compiler(variable: str, names: Sequence[str]) -> str | None:
    """The compiler that Triton or Inductor would take: the environment's, else the first found."""
    asked = os.environ.get(variable)
    return next(filter(None, map(shutil.which, [asked] if asked else names)), None)


def check_compilers(report: Report) -> None:
    """What Triton's launcher (C), Inductor and AOTInductor (C++) and both (Python's headers) need to build with."""
    c, cxx = _compiler("CC", ("gcc", "clang")), _compiler("CXX", ("g++", "clang++"))
    header = Path(sysconfig.get_path("include"), "Python.h")
    report.add("compilers", "cc", c or "none: Triton cannot build its launcher")
    report.add("compilers", "c++", cxx or "none: torch.compile (Inductor) and AOTInductor cannot build for the CPU")
    report.add("compilers", "Python.h", str(header) if header.is_file() else f"not at {header.parent}")
    if c is None or cxx is None:
        report.advice.append(
            "for torch.compile, AOTInductor and Triton, and nothing else: install a C and a C++ compiler "
            "(on Debian: apt-get install g++)"
        )
    if not header.is_file():
        report.advice.append(
            "for torch.compile and Triton: install Python's headers (on Debian: apt-get install python3-dev)"
        )


def check_kernels(report: Report) -> None:
    """Which implementations of the operators can run, and which of them do where nobody asks for one."""
    report.add("kernels", "plain PyTorch", "live: every operator, on every device")
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    reasons = {device: _triton.why_not([torch.zeros(1, device=device)]) for device in devices}
    for device, reason in reasons.items():
        how = "in Triton's interpreter" if _triton.INTERPRETED else f"with {dispatch.VARIABLE}=triton"
        report.add("kernels", f"Triton on {device}", f"no: {reason}" if reason else f"live {how}")
    measured = dispatch.read_measured(dispatch.MEASURED)
    by_itself = f"{len(measured)} classes of shapes" if measured else "never: results/kernels.csv has no measurement"
    report.add("kernels", "Triton by itself", by_itself)
    if not measured and len(devices) > 1:
        report.advice.append("to measure the kernels on this GPU: vertebra benchmark kernels --csv results/kernels.csv")
    asked = os.environ.get(dispatch.VARIABLE)
    if asked:
        report.add("kernels", dispatch.VARIABLE, asked)
    try:
        dispatch.check_variable()
    except dispatch.UnknownBackendError as error:
        report.advice.append(f"every model refuses to run: {error}")
    if asked == "triton" and reasons["cpu"] and len(devices) == 1:
        report.advice.append(
            f"models with kernels refuse to run here, since {dispatch.VARIABLE}=triton asks for them: unset it, or set "
            "TRITON_INTERPRET=1 to run them slowly on the CPU"
        )


def examine(device: str | None = None) -> Report:
    """Look at everything; `device` is tried if one is named."""
    report = Report()
    report.add("vertebra", "version", vertebra.__version__)
    report.add("vertebra", "folder", str(ROOT))
    report.add("vertebra", "python", f"{platform.python_version()} ({sys.executable})")
    report.add("vertebra", "system", platform.platform())
    checks = {
        "packages": check_packages,
        "opencv": check_opencv,
        "mmcv": check_mmcv,
        "devices": partial(check_devices, asked=device),
        "compilers": check_compilers,
        "kernels": check_kernels,
    }
    for name, check in checks.items():
        try:
            check(report)
        except Exception as error:  # one broken package or driver must not hide the rest
            report.add("could not be examined", name, f"{type(error).__name__}: {_first_sentence(error)}")
    return report


def build_parser() -> argparse.ArgumentParser:
    """The command line of `doctor`."""
    return make_parser(
        "doctor",
        "Say what is installed, which devices, compilers and kernels can be used and why others cannot, and what to\n"
        "do. The exit code is 0 whatever is missing. --device tries that device.",
        "vertebra doctor --device cuda:1",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run `doctor`."""
    args = build_parser().parse_args(argv)
    print(examine(args.device).text())
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
