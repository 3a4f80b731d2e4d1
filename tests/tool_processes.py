"""Tools as processes of their own, started in a moment: a fork server has done the imports that cost seconds.

They can be killed, limited and waited for like any process. A module beside conftest.py, because the fork server has to
import what it runs by name.
"""

import contextlib
import importlib
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path


def run_child(
    tool: str,
    argv: list[str],
    folder: str,
    largest_file: int | None,
    output: str,
    slow_disk: float,
    variables: dict[str, str],
) -> None:
    """In the new process: run a tool in `folder` with both streams in the file `output`."""
    os.environ.update(variables)
    from vertebra.tools._common import run_tool

    os.setpgrp()
    os.chdir(folder)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    if slow_disk:
        fsync = os.fsync
        os.fsync = lambda descriptor: (time.sleep(slow_disk), fsync(descriptor))[1]
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    code = run_tool(importlib.import_module(f"vertebra.tools.{tool}").main, argv)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


class Started:
    """A tool that runs."""

    def __init__(self, process: multiprocessing.Process, output: Path) -> None:
        self.process, self.output = process, output

    @property
    def said(self) -> str:
        """What it has printed so far, on both streams."""
        return self.output.read_text() if self.output.exists() else ""

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal, None while it runs."""
        return self.process.exitcode

    def wait(self, seconds: float = 100) -> "Started":
        """Wait for its end."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.kill()
            raise AssertionError(f"did not end within {seconds} s; it said:\n{self.said}")
        return self

    def wait_until(self, happened: Callable[[], bool], seconds: float = 60) -> None:
        """Wait, at a fine grain, for something that it does."""
        end = time.monotonic() + seconds
        while not happened() and self.process.is_alive():
            time.sleep(0.0005)
            assert time.monotonic() < end, f"it did not happen within {seconds} s; it said:\n{self.said}"

    def send(self, signum: int) -> None:
        """A signal to it alone."""
        os.kill(self.process.pid, signum)

    def send_to_all(self, signum: int) -> None:
        """A signal to it and its loader's workers, as Ctrl-C and a job's end send it."""
        os.killpg(self.process.pid, signum)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.send(signal.SIGKILL)
        self.process.join()


def start_tool(
    folder: Path,
    tool: str,
    argv: list[str],
    output: Path,
    largest_file: int | None = None,
    slow_disk: float = 0.0,
    variables: dict[str, str] | None = None,
) -> Started:
    """Start a tool; `largest_file`, in bytes, stands in for a full disk, `slow_disk` are seconds that a file takes.

    `variables` of its environment are set once it runs, so those that are read at an import come too late.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vertebra.engine", "vertebra.tools.train", "vertebra.tools.test"])
    words = (tool, argv, str(folder), largest_file, str(output), slow_disk, variables or {})
    process = context.Process(target=run_child, args=words)
    process.start()
    return Started(process, output)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]
