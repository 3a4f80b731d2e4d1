"""Every name of vertebra exported, one process each: what fails is told, and ends nothing else.

A process of its own gives its memory back; one that the system ends for lack of memory is told like any other failure.
A name that does not export with free sizes is tried at its own size.
"""

import argparse
import contextlib
import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
from vertebra.backbones._errors import UserError
from vertebra.backbones._names import did_you_mean
from vertebra.tools._classifier import PRETRAINED
from vertebra.tools._common import USER_MISTAKE
from vertebra.tools.list import entries, select


def choose_names(pattern: str | None, families: str | None) -> list[str]:
    """The names that a pattern (as of `vertebra list`) and families, separated by commas, leave, once each.

    Raises:
        UserError: a family or pattern that means nothing.
    """
    known = sorted({entry.family for entry in entries()})
    wanted = families.split(",") if families else known
    for family in wanted:
        if family not in known:
            raise UserError(f"--family {family}: known are {', '.join(known)}." + did_you_mean(family, known))
    names = list(dict.fromkeys(entry.name for entry in select(pattern) if entry.family in wanted))
    if not names:
        raise UserError(f"no model of {', '.join(wanted)} matches {pattern!r}")
    return names


def export_all(args: argparse.Namespace) -> int:
    """Run `export_onnx --all`; the exit code is 2 if a name failed.

    Raises:
        UserError: options that do not go with --all, and at the end the names that failed.
    """
    _check_options(args)
    names = choose_names(args.name, args.family)
    failed: dict[str, str] = {}
    with _folder(args.out) as folder, _table(args.csv) as table:
        for number, name in enumerate(names, 1):
            file = folder / f"{name}.onnx"
            began = time.perf_counter()
            print(f"{number}/{len(names)}  {name}", end="  ", flush=True)
            reason, free_reason = export_one(name, file, table, args)
            if reason:
                failed[name] = reason
                print(f"FAILED: {reason}", flush=True)
            else:
                print(f"{_summary(table)}, {time.perf_counter() - began:.0f} s in all", flush=True)
                if free_reason:
                    print(f"  of fixed size only: {free_reason}", flush=True)
            if args.out is None:
                for path in (file, file.with_name(f"{file.name}.data")):
                    path.unlink(missing_ok=True)
    if failed:
        raise UserError(f"{len(failed)} of {len(names)} names could not be exported: {', '.join(failed)}")
    where = f"in {args.out}" if args.out else "checked and removed, since there is no --out"
    print(f"{len(names)} files {where}" + (f"; rows in {args.csv}" if args.csv else ""))
    return 0


def _check_options(args: argparse.Namespace) -> None:
    if args.out is None and args.csv is None:
        raise UserError("--all needs --out DIR for the files, or --csv F for the table alone")
    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out {args.out} is no folder; with --all, a folder for the files is accepted")
    if args.checkpoint not in (None, PRETRAINED):
        raise UserError(f"--checkpoint {args.checkpoint} is of one model; with --all, `{PRETRAINED}` alone is accepted")
    if args.fp16 or args.int8:
        raise UserError(f"--{'fp16' if args.fp16 else 'int8'} takes one NAME; --all writes float32")


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Where the files go: `out`, or a folder that is gone with the block."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="export_onnx_") as folder:
        yield Path(folder)


@contextlib.contextmanager
def _table(path: Path | None) -> Iterator[Path]:
    """Where the rows go: the file asked for, or one that is gone with the block."""
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="export_onnx_") as folder:
        yield Path(folder, "exports.csv")


_TOOL = "import sys; from vertebra.tools._cli import main; sys.exit(main())"


def export_one(name: str, file: Path, table: Path, args: argparse.Namespace) -> tuple[str | None, str | None]:
    """Export one name in a process of its own, at its own fixed size where free sizes fail.

    Returns:
        Why it failed, or None; and why free sizes failed, or None.
    """
    command = [sys.executable, "-P", "-c", _TOOL, "export_onnx", name, "--out", str(file), "--csv", str(table)]
    command += ["--device", args.device]
    command += ["--features"] * args.features
    for option, value in (("--checkpoint", args.checkpoint), ("--opset", args.opset), ("--static", args.static)):
        command += [option, str(value)] if value is not None else []
    code, reason = _run(command)
    if code != USER_MISTAKE or args.static:
        return (reason if code else None), None
    cfg: Any = timm.get_pretrained_cfg(name)
    height, width = cfg.input_size[-2:]
    code, _ = _run([*command, "--static", f"{height}x{width}"])
    return (reason, None) if code else (None, reason)


def _run(command: Sequence[str]) -> tuple[int, str]:
    """Run a command in silence; its exit code, and the last that it said if it failed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode < 0:
        return done.returncode, f"its process ended with code {done.returncode}; -9 mostly means that memory ran out"
    said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    return done.returncode, said[-1].removeprefix("error: ")[:300]


def _summary(table: Path) -> str:
    """The newest row of a table, in words."""
    with table.open(newline="", encoding="utf-8") as file:
        *_, row = csv.DictReader(file)
    sizes = "free sizes" if row["free"] == "True" else f"{row['height']}x{row['width']} only"
    return (
        f"{row['nodes']} nodes, {row['megabytes']} MB, opset {row['opset']}, {sizes}, difference {row['difference']}, "
        f"ONNX Runtime {row['onnxruntime_ms']} ms, PyTorch {row['pytorch_ms']} ms"
    )
