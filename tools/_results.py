"""Rows of results/*.csv: where each number was measured, tables of them, and files that grow without damage."""

import contextlib
import csv
import datetime
import io
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import timm
import torch
import vertebra
from vertebra.backbones._errors import UserError


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The last columns of a row: what a measured number depends on beside what was measured."""

    device: str
    device_name: str
    threads: int
    torch: str
    timm: str
    vertebra: str
    commit: str
    date: str


def origin(device: str, threads: int) -> dict[str, Any]:
    """The values of `Origin` for what is measured here and now."""
    return {
        "device": device,
        "device_name": device_name(device),
        "threads": threads,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "vertebra": vertebra.__version__,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
    }


def describe(row: Any) -> str:
    """The same of one row, as text."""
    return (
        f"{row.device} ({row.device_name}), {row.threads} threads; torch {row.torch}, timm {row.timm}, "
        f"vertebra {row.vertebra} {row.commit} {row.date}"
    )


def device_name(device: str) -> str:
    """The model of the GPU or of this machine's processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError, StopIteration):
        line = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
        return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of this clone, with a + where files differ from it; empty where vertebra does not run from a clone.

    Tables that grow in results/ change nothing that is measured, and give no +.
    """
    git = ["git", "-C", str(Path(vertebra.__file__).parent)]
    if not (Path(vertebra.__file__).parent / ".git").exists():
        return ""
    try:
        head = subprocess.check_output([*git, "rev-parse", "--short=10", "HEAD"], text=True, stderr=subprocess.DEVNULL)
        status = [*git, "status", "--porcelain", "-uno", "--", ".", ":!results"]
        changed = subprocess.check_output(status, text=True, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.strip() + ("+" if changed.strip() else "")


def align(lines: Sequence[Sequence[str]], left: int) -> str:
    """Columns aligned by spaces: the first `left` of them to the left, the others, numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = "<" * left + ">" * (len(widths) - left)
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True))
        for line in lines
    )


def check_csv(path: Path, row: type, asked: str | None = None) -> None:
    """Refuse, before anything is measured, a file that cannot be appended to or has other columns than `row`.

    Where there was no file, there is none afterwards. `asked` is how it was asked for, for the sentence; None means
    `--csv` and the path.
    """
    asked, new = asked or f"--csv {path}", not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+", encoding="utf-8", newline="") as file:
            file.seek(0)
            header = next(csv.reader(file), None)
        if new:
            path.unlink()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{asked} cannot be appended to: {getattr(error, 'strerror', None) or error}") from error
    wanted = columns(row)
    if header is not None and header != wanted:
        raise UserError(f"{asked} has other columns than {', '.join(wanted[:4])} ...: choose another file with --csv")


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none if it is missing, and without those that a full disk cut off."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row and None not in row.values()]


def append(path: Path, rows: Sequence[Any]) -> None:
    """Add dataclass rows of one kind to a CSV file in one write, with a header if it is new."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(type(rows[0])), lineterminator="\n")
    if not path.exists() or not path.stat().st_size:
        writer.writeheader()
    elif not _ends_a_line(path):  # a full disk cut the last row off
        text.write("\n")
    writer.writerows(asdict(row) for row in rows)
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())
    print(f"{len(rows)} row{'s' * (len(rows) != 1)} appended to {path}")


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, io.SEEK_END)
        return file.read() == b"\n"


def columns(row: type) -> list[str]:
    """The names of the columns of a kind of rows, those of `Origin` last."""
    last = [field.name for field in fields(Origin)] if issubclass(row, Origin) else []
    return [field.name for field in fields(row) if field.name not in last] + last
