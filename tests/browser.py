"""A headless Chromium that is told what to do over a pipe, in its own protocol: no driver, no port, no package."""

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 100.0
"""Seconds until an answer is given up."""

KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), "Space": (32, " ")}
"""Of each key its number on Windows, by which browsers tell keys, and what it types."""

_CONNECT = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for place, end in zip((3, 4), ends):
    os.dup2(end, place)
os.execvp(sys.argv[3], sys.argv[3:])
"""
"""Starts a program where a browser expects its ends of two pipes: in the places 3 and 4."""


class Refused(Exception):
    """The browser could not do what it was asked for."""


class Page:
    """A tab of its own in a new browser process."""

    def __init__(self, browser: str, profile: Path) -> None:
        to_it, self._out = os.pipe()
        self._in, from_it = os.pipe()
        self._buffer, self._number, self._session = b"", 0, None
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        command += [f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _CONNECT, str(to_it), str(from_it), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(to_it, from_it),
        )
        os.close(to_it)
        os.close(from_it)

    def __enter__(self) -> "Page":
        try:
            target = self.ask("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        os.close(self._out)  # a browser whose pipe is closed ends
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command of the DevTools protocol; its result."""
        self._number += 1
        said = {"id": self._number, "method": method, "params": params}
        if self._session:
            said["sessionId"] = self._session
        os.write(self._out, json.dumps(said).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise Refused(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"the browser has said nothing for {PATIENCE} s"
            read = os.read(self._in, 1 << 16)
            assert read, f"the browser ended with code {self._process.wait()}"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, address: str, width: int = 1200, dark: bool = False) -> None:
        """Load an address in a window of this width, light or dark as is preferred; nothing stays of another page."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        for where in ("about:blank", address):  # another end of the same address alone would load nothing
            self.ask("Page.navigate", url=where)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def wait(self, condition: str) -> None:
        """Wait until JavaScript says true."""
        end = time.monotonic() + PATIENCE
        while not self._answer(condition):
            assert time.monotonic() < end, f"not within {PATIENCE} s: {condition}"
            time.sleep(0.02)

    def _answer(self, condition: str) -> Any:
        try:
            return self.run(condition)
        except Refused:  # between two pages there is nothing to ask
            return None

    def run(self, script: str) -> Any:
        """The value of JavaScript."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, times: int = 1) -> None:
        """Press a key of `KEYS`."""
        number, text = KEYS[key]
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                typed = {"text": text} if text and kind == "keyDown" else {}
                self.ask(
                    "Input.dispatchKeyEvent",
                    type=kind,
                    key=text if key == "Space" else key,
                    code=key,
                    windowsVirtualKeyCode=number,
                    **typed,
                )

    def type(self, text: str) -> None:
        """Type characters where the focus is."""
        for character in text:
            self.ask("Input.dispatchKeyEvent", type="keyDown", text=character, key=character)
            self.ask("Input.dispatchKeyEvent", type="keyUp", key=character)

    def spoken(self) -> list[tuple[str, str]]:
        """What assistive technology is told: role and name of every part that it is told of, in order."""
        self.ask("Accessibility.enable")
        nodes = self.ask("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"] and "role" in node
        ]


@contextmanager
def opened(folder: Path) -> Iterator[Page | None]:
    """A browser, if this machine has one."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        yield None
        return
    with Page(found, folder / "profile") as page:
        yield page
