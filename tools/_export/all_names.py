"""Every name of vertebra exported, one process each: what fails is told, and ends nothing else.

A process of its own gives its memory back; one that the system ends for lack of memory is told like any other failure.
A name that does not export with free sizes is tried at its own size, and one without classes gives its maps. What the
table has from the same options, code, packages and machine is not done again, so that the same command goes on where
another one ended.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import timm
import torch
from vertebra.backbones._errors import UserError
from vertebra.backbones._names import did_you_mean
from vertebra.tools._classifier import PRETRAINED
from vertebra.tools._common import USER_MISTAKE
from vertebra.tools._export.files import (
    HIDDEN,
    bytes_of,
    check_target,
    is_whole,
    no_empty_folders,
    publish,
    tell_leftovers,
)
from vertebra.tools._export.table import ASKED, Row, asked_options, checked_table
from vertebra.tools._results import append, origin, read
from vertebra.tools.list import entries, select

TABLE = "exports.csv"
"""The table of a run without --csv, in its folder."""

_SIZE_MATTERS = re.compile(r"--static|differs|ONNX Runtime cannot run")
"""Sentences of failures that a fixed size may do without."""


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
    names, table = choose_names(args.name, args.family), args.csv or args.out / TABLE
    with _folder(args.out), checked_table(table, None if args.csv else f"--out {args.out}: {TABLE}"):
        if args.checkpoint is None:
            print("no --checkpoint given, the files get fresh, random weights", file=sys.stderr)
        failed = _export_names(names, table, args)
    if failed:
        raise UserError(f"{len(failed)} of {len(names)} names could not be exported: {', '.join(failed)}")
    where = f"in {args.out}" if args.out else "checked and removed, since there is no --out"
    print(f"{len(names)} files {where}; rows in {table}")
    return 0


def _export_names(names: Sequence[str], table: Path, args: argparse.Namespace) -> list[str]:
    """Export what is not done yet, and say line by line what came of it; the names that failed."""
    failed, done = [], finished(table, args)
    for number, name in enumerate(names, 1):
        file = args.out / f"{name}{'_features' * gives_maps(name, args)}.onnx" if args.out else None
        began = time.perf_counter()
        print(f"{number}/{len(names)}  {name}", end="  ", flush=True)
        if name in done and (file is None or _is_of(done[name], file)):
            print(f"skipped: {table} has it, of the same options, code, packages and machine", flush=True)
            continue
        row, reason = export_one(name, file, table, args)
        if row is None:
            failed.append(name)
            print(f"FAILED: {reason}", flush=True)
            continue
        what = "" if args.features or row["task"] != "features" else "maps, since it has no classes: "
        print(f"{what}{_summary(row)}, {time.perf_counter() - began:.0f} s in all", flush=True)
        if row["reason"] not in ("", ASKED):
            print(f"  of fixed size only: {row['reason']}", flush=True)
    return failed


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[None]:
    """A block that writes files into `out`, which is not left behind empty where it was made for that."""
    if out is None:
        yield
        return
    with no_empty_folders(out):
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error
        tell_leftovers(out)
        yield


def _check_options(args: argparse.Namespace) -> None:
    if args.out is None and args.csv is None:
        raise UserError("--all needs --out DIR for the files, or --csv F for the table alone")
    if args.out is not None and os.path.isfile(args.out):
        raise UserError(f"--out {args.out} is no folder; with --all, a folder for the files is accepted")
    if args.checkpoint not in (None, PRETRAINED):
        raise UserError(f"--checkpoint {args.checkpoint} is of one model; with --all, `{PRETRAINED}` alone is accepted")
    if args.fp16 or args.int8:
        raise UserError(f"--{'fp16' if args.fp16 else 'int8'} takes one NAME; --all writes float32")


def finished(table: Path, args: argparse.Namespace) -> dict[str, Mapping[str, str]]:
    """Rows of a table, by name, that tell what exporting again would tell.

    Code that differs from its commit has no name, and so never counts. Where there are files, a name's newest row alone
    tells what its file holds; it may come from another folder, of which `_is_of` knows.
    """
    wanted = {**origin("cpu", torch.get_num_threads()), "onnxruntime": onnxruntime.__version__}
    wanted |= {"weights": args.checkpoint or "random", "options": asked_options(args)}
    del wanted["date"]
    found: dict[str, Mapping[str, str]] = {}
    if wanted["commit"].endswith("+"):
        return found
    for row in read(table):
        if row["task"] != ("features" if gives_maps(row["name"], args) else "classification"):
            continue
        if all(row[key] == str(value) for key, value in wanted.items()):
            found[row["name"]] = row
        elif args.out:
            found.pop(row["name"], None)
    return found


def gives_maps(name: str, args: argparse.Namespace) -> bool:
    """Whether a name's maps are exported: they were asked for, or there is no classifier."""
    cfg: Any = timm.get_pretrained_cfg(name)
    return args.features or (cfg is not None and cfg.num_classes == 0)


def _is_of(row: Mapping[str, str], file: Path) -> bool:
    """Whether a file is there, with the weights that lie beside it, and is as large as the row says."""
    return file.is_file() and bytes_of(file) == round(float(row["megabytes"]) * 1e6) and is_whole(file)


_TOOL = "import sys; from vertebra.tools._cli import main; sys.exit(main())"


def export_one(
    name: str, file: Path | None, table: Path, args: argparse.Namespace
) -> tuple[Mapping[str, str] | None, str]:
    """Export one name in a process of its own, at its own fixed size where free sizes fail.

    Args:
        name: the model's.
        file: what to write; None to check it alone.
        table: gets a row.
        args: the command line's.

    Returns:
        The row, or None and why it failed. A process that is ended leaves nothing, neither file nor row.
    """
    command = [sys.executable, "-P", "-c", _TOOL, "export_onnx", name, "--device", args.device]
    command += ["--features"] * gives_maps(name, args)
    for option, value in (("--checkpoint", args.checkpoint), ("--opset", args.opset), ("--static", args.static)):
        command += [option, str(value)] if value is not None else []
    with tempfile.TemporaryDirectory(prefix=HIDDEN, dir=args.out, ignore_cleanup_errors=True) as folder:
        made, rows = Path(folder, "file", file.name if file else f"{name}.onnx"), Path(folder, TABLE)
        made.parent.mkdir()
        command += ["--out", str(made), "--csv", str(rows)]
        try:
            if file:
                check_target(file)
        except UserError as error:
            return None, str(error)
        code, reason = _run(command)
        if code == USER_MISTAKE and not args.static and _SIZE_MATTERS.search(reason):
            cfg: Any = timm.get_pretrained_cfg(name)
            size = "x".join(map(str, cfg.input_size[-2:]))
            code, again = _run([*command, "--static", size])
            reason += f"; at {size}: {again}" if code else ""
        if code:
            return None, reason
        (row,) = read(rows)
        row |= {"reason": reason or row["reason"], "options": asked_options(args)}
        if file:
            publish(made, file)
    with contextlib.redirect_stdout(None):  # that a row was appended needs no line of its own
        append(table, [Row(**row)])  # type: ignore[arg-type]
    return row, ""


def _run(command: Sequence[str]) -> tuple[int, str]:
    """Run a command in silence; its exit code, and the last that it said, if it failed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.returncode:
        return 0, ""
    if done.returncode < 0:
        return done.returncode, f"its process ended with code {done.returncode}; -9 mostly means that memory ran out"
    said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    return done.returncode, said[-1].removeprefix("error: ")[:500]


def _summary(row: Mapping[str, str]) -> str:
    """A row of the table, in words."""
    sizes = "free sizes" if row["free"] == "True" else f"{row['height']}x{row['width']} only"
    return (
        f"{row['nodes']} nodes, {float(row['megabytes']):.1f} MB, opset {row['opset']}, {sizes}, "
        f"difference {row['difference']}, ONNX Runtime {row['onnxruntime_ms']} ms, PyTorch {row['pytorch_ms']} ms"
    )
