"""The console script: `vertebra SUB ...` runs the same `main` as `python tools/SUB.py ...`."""

import importlib
import sys
from pathlib import Path

from vertebra import __version__
from vertebra.backbones._names import did_you_mean
from vertebra.tools._common import USER_MISTAKE, run_tool


def tool_names() -> list[str]:
    """Every tool of this installation: the modules beside this one whose names do not start with an underscore."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def _usage() -> str:
    lines = ["usage: vertebra TOOL [options]        (vertebra TOOL --help says more)", "", "tools:"]
    for name in tool_names():
        with (Path(__file__).parent / f"{name}.py").open(encoding="utf-8") as file:
            lines.append(f"  {name:<20} {file.readline().strip().strip(chr(34))}")
    return "\n".join(lines)


def main() -> int:
    """Entry point of the `vertebra` command."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if name in ("-V", "--version", "version"):
        print(__version__)
        return 0
    if name not in tool_names():
        print(
            f"error: {name!r} is no tool of vertebra.{did_you_mean(name, tool_names())}\n\n{_usage()}", file=sys.stderr
        )
        return USER_MISTAKE
    return run_tool(importlib.import_module(f"vertebra.tools.{name}").main, sys.argv[2:])
