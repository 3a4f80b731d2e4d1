"""What every command line shares: its parser, its device, its exit codes and how it says that something is wrong."""

import argparse
import ast
import errno
import importlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vertebra import __version__
from vertebra.backbones._errors import Interrupted, UserError
from vertebra.kernels.dispatch import BackendError, UnknownBackendError, check_variable

if TYPE_CHECKING:
    import torch

USER_MISTAKE = 2  # argparse leaves with the same code
_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than this process may write",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
}


def make_parser(name: str, description: str, example: str) -> argparse.ArgumentParser:
    """A parser for the tool `name` with `--device` and an example at the end of its help."""
    parser = argparse.ArgumentParser(
        prog=f"vertebra {name}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps ... (default: cuda where there is one)")
    return parser


def add_cfg_options(parser: argparse.ArgumentParser, example: str) -> None:
    """The option that changes a config, with an `example` of a key and its value."""
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="K=V", help=f"change the config: {example} ...")


def parse_changes(options: Sequence[str]) -> dict[str, Any]:
    """`k=v` words as a dictionary; values are Python literals, and text where they are none."""
    changes: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key:
            raise UserError(f"--cfg-options takes key=value, not {option!r}")
        try:
            changes[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            changes[key] = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    return changes


def usable_cores() -> int:
    """Cores that this process may use, which a container or a batch system may keep below the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device(name: str | None) -> "torch.device":
    """The device asked for, or the GPU where there is one; UserError if this machine does not have it.

    Who asks for a device is about to run a model, so a VERTEBRA_KERNELS that does not exist is refused here too.
    """
    import torch

    check_variable()
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"--device {name} cannot be used here: {reason}") from error
    return device


def need(module: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra of vertebra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        line = f'pip install "vertebra[{extra}]"'
        raise UserError(f"this needs the package {module!r}, which is not installed ({error}): {line}") from error
    except ImportError as error:
        raise UserError(f"this needs {module!r}, which is installed but cannot be imported: {error}") from error


def parse_size(text: str) -> tuple[int, int]:
    """`224x320` -> (224, 320), height first; UserError for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip())
    if not match:
        raise UserError(f"{text!r} is not a size; height and width are written as 224x320")
    return int(match[1]), int(match[2])


def versions() -> str:
    """The versions that a measured number depends on, in one line."""
    import timm
    import torch

    return f"vertebra {__version__}, torch {torch.__version__}, timm {timm.__version__}"


def _sentence(error: BaseException) -> str | None:
    """What to print for an error that is the user's to mend; None for one that is ours."""
    if isinstance(error, (BackendError, UnknownBackendError)):
        return str(error)
    if isinstance(error, UserError):
        text = str(error)
        # what a loader's worker raises comes with the worker's traceback in front of it
        return text.rpartition("UserError: ")[2].strip() if text.startswith("Caught UserError in DataLoader") else text
    if isinstance(error, OSError) and (error.errno in _DISK_ERRORS or error.filename):
        where = f" ({error.filename})" if error.filename else ""
        what = _DISK_ERRORS.get(error.errno) or (error.strerror or type(error).__name__).lower()
        return f"{what}{where}"
    return None


def _terminated(signum: int, frame: object) -> None:
    raise Interrupted(signum, "Terminated before there was anything to save.")


def run_tool(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a tool's `main` and turn mistakes and signals into one sentence on stderr and an exit code.

    Exit codes: 0 done, 2 a mistake that the sentence names, 130/143 ended by SIGINT/SIGTERM, 1 a fault of ours (with
    its traceback). `VERTEBRA_TRACEBACK=1` prints the traceback in every case.
    """
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        return main(argv) or 0
    except Interrupted as stop:
        if str(stop):  # of several processes, the first one speaks
            print(stop, file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again when it exits
        return 128 + signal.SIGPIPE
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None or os.environ.get("VERTEBRA_TRACEBACK") == "1":
            traceback.print_exc()
        if sentence is not None:
            print(f"error: {sentence}", file=sys.stderr)
        return 1 if sentence is None else USER_MISTAKE
    finally:
        signal.signal(signal.SIGTERM, previous)
