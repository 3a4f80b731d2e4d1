"""The parts of a card with this project's own numbers: results/*.csv, with device and date. The unknown is left out."""

from vertebra.tools._card_facts import Family, decimals, newest, places, results
from vertebra.tools._doc_parts import table


def measured(family: Family) -> str:
    """All of them, as Markdown, under headings of the third order."""
    parts = {
        "what it learns on digits": digits(family),
        "images a second": throughput(family),
        "time beside other ways": comparisons(family),
        "memory": memory(family),
        "ONNX files": exports(family),
    }
    missing = ["accuracy on ImageNet, COCO and ADE20K", *(name for name, text in parts.items() if not text)]
    said = (
        f"Not measured: {', '.join(missing)}. No published weights were downloaded or evaluated by this project; "
        f"`vertebra test {family.example.name} pretrained --data DIR` does it on a folder of ImageNet."
    )
    return "\n\n".join([said, *filter(None, parts.values())])


def digits(family: Family) -> str:
    """What the family reached on handwritten digits, trained from nothing."""
    rows = [row for row in results("learning.csv") if row["demo"] == family.key]
    rows += family.measured("demos.csv", "model")
    rows = newest(rows, "demo", "metric", "seed")
    if not rows:
        return ""
    cells = []
    for demo, metric in dict.fromkeys((row["demo"], row["metric"]) for row in rows):
        own = sorted((r for r in rows if (r["demo"], r["metric"]) == (demo, metric)), key=lambda row: int(row["seed"]))
        first, reached = own[0], ", ".join(f"{float(row['value']):.3f}" for row in own)
        options = " ".join(f"`{option}`" for option in first["options"].split())
        cells.append([f"`{first['model']}`", demo, options, metric, reached])
    head = "### Trained from nothing on handwritten digits\n\nShares from 0 to 1, seed by seed, on held-out digits."
    return f"{head}\n\n{table(('model', 'demo', 'options', 'score', 'reached'), cells, left=4)}\n\n{places(rows)}"


def throughput(family: Family) -> str:
    """Images a second, from results/models.csv."""
    keys = ("model", "mode", "execution", "kernels", "device_name", "threads", "batch", "height", "width", "precision")
    rows = newest(family.measured("models.csv", "model"), *keys)
    if not rows:
        return ""
    cells = [
        [
            f"`{row['model']}`",
            ", ".join(filter(None, (row["mode"], row["execution"], row["kernels"]))),
            row["device"],
            f"{row['batch']} x {row['height']} x {row['width']}",
            f"{decimals(row['value'], 1)} ({decimals(row['lowest'], 1)}–{decimals(row['highest'], 1)})",
            decimals(row["peak_memory_mb"], 0),
        ]
        for row in rows
    ]
    header = ("model", "how", "device", "batch x height x width", "images a second", "peak MB")
    return f"### Throughput\n\n{table(header, cells, left=3)}\n\n{places(rows)}"


def comparisons(family: Family) -> str:
    """Time against other ways to the same result, from results/claims.csv."""
    rows = newest(family.measured("claims.csv", "ours"), "ours", "other", "what", "device_name", "threads")
    if not rows:
        return ""
    cells = [
        [
            f"`{row['ours']}`",
            row["other"] if " " in row["other"] else f"`{row['other']}`",
            f"{row['what']}, batch {row['batch']}",
            decimals(row["ours_ms"], 0),
            decimals(row["other_ms"], 0),
            f"{decimals(row['value'], 2)} ({decimals(row['lowest'], 2)}–{decimals(row['highest'], 2)})",
        ]
        for row in rows
    ]
    header = ("ours", "against", "what", "ours, ms", "other, ms", "times as fast (lowest–highest)")
    said = (
        "`reference operators` is the same network with the few plain lines that define each operator. In float32, in "
        "turns, median of the rounds."
    )
    return f"### Time, side by side\n\n{said}\n\n{table(header, cells, left=3)}\n\n{places(rows)}"


def memory(family: Family) -> str:
    """Peak memory and time of one large image, from results/memory.csv."""
    rows = newest(family.measured("memory.csv", "model"), "model", "height", "width", "quantity", "device_name")
    if not rows:
        return ""
    cases: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        key = tuple(row[column] for column in ("model", "height", "width"))
        cases.setdefault(key, {})[row["quantity"]] = row["value"]
    cells = [
        [
            f"`{model}`",
            f"{height} x {width}",
            *(decimals(values.get(name), 2) for name in ("peak", "before", "seconds")),
        ]
        for (model, height, width), values in cases.items()
    ]
    header = ("model", "one image", "peak GiB of the process", "before the image, GiB", "seconds an image")
    return f"### Memory of one large image\n\n{table(header, cells, left=1)}\n\n{places(rows)}"


def exports(family: Family) -> str:
    """ONNX files that were made and checked, from results/exports.csv."""
    rows = newest(family.measured("exports.csv", "name"), "name", "task")
    if not rows:
        return ""
    cells = [
        [
            f"`{row['name']}`",
            row["task"],
            "free" if row["free"] == "True" else "fixed",
            row["nodes"],
            decimals(row["megabytes"], 1),
            f"{float(row['difference']):.0e}",
            f"{row['height']} x {row['width']}",
            decimals(row["onnxruntime_ms"], 1),
            decimals(row["pytorch_ms"], 1),
        ]
        for row in rows
    ]
    header = (
        "model",
        "task",
        "sizes",
        "nodes",
        "MB",
        "largest difference",
        "one image",
        "ONNX Runtime, ms",
        "PyTorch, ms",
    )
    said = "The largest difference to PyTorch is in standard deviations of the output, over several sizes and batches."
    return f"### ONNX files\n\n{said}\n\n{table(header, cells, left=3)}\n\n{places(rows)}"


def kernels(family: Family) -> str:
    """Which operators the network has, where, and what their kernels are worth on a GPU."""
    triton = set(family.card["kernels"])
    cells = [
        [f"`{name}`", where, "Triton" if name in triton else "none: PyTorch's own", _effect(name, family)]
        for name, where in family.card["operators"].items()
    ]
    said = "[docs/kernels.md](../docs/kernels.md) says how the choice is made and how to ask for a kernel."
    return f"{table(('operator', 'where', 'kernel', 'measured on a GPU'), cells, left=4)}\n\n{said}"


def _effect(operator: str, family: Family) -> str:
    """What results/kernels.csv has of the family's own cases: the fastest other way's time over the kernel's."""
    if operator not in family.card["kernels"]:
        return ""
    cases: dict[tuple[str, ...], dict[str, float]] = {}
    devices = {}
    for row in results("kernels.csv"):
        own = row["operator"] == operator and row["case"].startswith(f"{family.key}_")
        if own and row["device"].startswith("cuda") and row["checked"] == "True":
            case = tuple(row[column] for column in ("case", "dtype", "mode", "device_name"))
            cases.setdefault(case, {})[row["way"]] = float(row["value"])
            devices[row["device_name"]] = row["date"]
    gains = []
    for ways in cases.values():
        others = [value for way, value in ways.items() if way != "triton"]
        if "triton" in ways and others:
            gains.append(min(others) / ways["triton"])
    if not gains:
        return "not measured"
    where = ", ".join(f"{name}, {date}" for name, date in devices.items())
    return f"{min(gains):.2f} to {max(gains):.2f} times as fast as the fastest other way, {len(gains)} cases ({where})"
