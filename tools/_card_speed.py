"""Images a second of each model on one CPU and on one GPU, from results/models.csv."""

from dataclasses import dataclass

from vertebra.tools._card_facts import results

KINDS = ("cpu", "cuda")


@dataclass(frozen=True)
class Speed:
    """A forward pass without gradients, eager; `said` is where and how it was measured."""

    rate: float
    said: str


def speeds() -> dict[tuple[str, str], Speed]:
    """By name and kind of device. Of each kind, only the machine and batch that most models were measured on.

    Rates of different machines, threads, precisions or batches are not to be compared, so that they never stand in one
    column.
    """
    rows = [row for row in results("models.csv") if row["mode"] == "forward" and row["execution"] == "eager"]
    found = {}
    for kind in KINDS:
        groups: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
        for row in rows:
            if row["device"].partition(":")[0] == kind:
                how = tuple(row[column] for column in ("device_name", "threads", "batch", "precision", "kernels"))
                groups.setdefault(how, {})[row["model"].partition(".")[0]] = row
        for name, row in max(groups.values(), key=len, default={}).items():
            where = row["device_name"] + (f", {row['threads']} threads" if kind == "cpu" else "")
            said = f"{'CPU' if kind == 'cpu' else 'GPU'}: {where}, batch {row['batch']}, {row['precision']}."
            found[name, kind] = Speed(float(row["value"]), said)
    return found
