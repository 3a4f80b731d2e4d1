"""Images a second of each model on one CPU and on one GPU, from results/models.csv."""

from dataclasses import dataclass

from vertebra.tools._cards.facts import full_name, machine, results, span
from vertebra.tools.list import Row

KINDS = ("cpu", "cuda")


@dataclass(frozen=True)
class Speed:
    """A forward pass without gradients, eager; `said` is where and how it was measured."""

    rate: float
    said: str


Speeds = dict[tuple[str, int, str], Speed]
"""By name as it was measured, with its tag or without, pixels a side and kind of device."""


def speed_of(row: Row, kind: str, found: Speeds) -> Speed | None:
    """A model's, or that of its name without the tag, which leads to the same network but for its classes."""
    return found.get((full_name(row), row.size, kind)) or found.get((row.name, row.size, kind))


def speeds() -> Speeds:
    """Those of square images. Of each kind of device, only the machine and batch that most models were measured on.

    Rates of different machines, threads, precisions or batches are not to be compared, so that they never stand in one
    column.
    """
    rows = [
        row
        for row in results("models.csv")
        if row["mode"] == "forward" and row["execution"] == "eager" and row["height"] == row["width"]
    ]
    found = {}
    for kind in KINDS:
        groups: dict[tuple[str, ...], dict[tuple[str, int], dict[str, str]]] = {}
        for row in rows:
            if row["device"].partition(":")[0] == kind:
                how = tuple(row[column] for column in ("device_name", "threads", "batch", "precision", "kernels"))
                groups.setdefault(how, {})[row["model"], int(row["height"])] = row
        own = max(groups.values(), key=len, default={})
        when = span({row["date"] for row in own.values()})
        for (name, size), row in own.items():
            how = f"{machine(row)}, batch {row['batch']}, {row['precision']}, {when}"
            said = f"{'CPU' if kind == 'cpu' else 'GPU'}: {how}."
            found[name, size, kind] = Speed(float(row["value"]), said)
    return found
