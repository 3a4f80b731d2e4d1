"""The parts of a card with this project's own numbers: results/*.csv, with device and date. The unknown is left out."""

from vertebra.tools._cards.facts import Family, decimals, machine, newest, places, results
from vertebra.tools._classifier import PRETRAINED
from vertebra.tools._docs.parts import table

_PEERS = {
    "HiLo": "`HiLo` is the attention layer alone.",
    "SpatialReduction": "`SpatialReduction` is one as in PVT: keys and values come from a coarser map.",
    "Windows": "`Windows` is one as in Swin: attention within windows, with a position bias.",
}
"""What claims.csv calls by names of classes."""

_PASSED_OVER = (
    "In brackets, how many random images were passed over before, because rounding decides there what the model "
    "chooses, in PyTorch too. "
)


def measured(family: Family) -> str:
    """All of them, as Markdown, under headings of the third order."""
    parts = {
        "accuracy on ImageNet, COCO and ADE20K": accuracy(family),
        "what it learns on digits": digits(family),
        "images a second": throughput(family),
        "time beside other ways": comparisons(family),
        "memory": memory(family),
        "ONNX files": exports(family),
    }
    missing = [name for name, text in parts.items() if not text]
    said = f"Not measured: {', '.join(missing)}." if missing else ""
    if not any(row["weights"] in {PRETRAINED, *family.files} for row in family.measured("accuracy.csv", "model")):
        said += (
            " No published weights of this family were evaluated by this project. "
            f"`vertebra test {family.example.name} {family.weights_word} --data DIR --csv results/accuracy.csv` "
            "evaluates them on a folder of ImageNet, and `vertebra make_cards` puts the score here."
        )
    return "\n\n".join(filter(None, [said, *parts.values()]))


def accuracy(family: Family) -> str:
    """Scores of weights on data, from results/accuracy.csv."""
    keys = ("model", "config", "weights", "data", "options", "metric", "images")
    rows = newest(family.measured("accuracy.csv", "model"), *keys)
    if not rows:
        return ""
    cells = [
        [
            f"`{row['model']}`",
            f"`{row['config']}`",
            row["weights"],
            " ".join(filter(None, (row["data"], row["options"]))),
            row["metric"],
            row["images"],
            decimals(100 * float(row["value"]), 2),
        ]
        for row in rows
    ]
    header = ("model", "evaluated", "weights", "data", "score", "images", "%")
    return f"### Accuracy\n\n{table(header, cells, left=5)}\n\n{places(rows)}"


def digits(family: Family) -> str:
    """What the family reached on handwritten digits, trained from nothing."""
    rows = [row for row in results("learning.csv") if row["demo"] == family.key]
    rows += family.measured("demos.csv", "model")
    keys = ("model", "demo", "options", "metric", "device", "device_name", "threads")
    rows = newest(rows, *keys, "seed")
    if not rows:
        return ""
    cells = []
    cases: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        cases.setdefault(tuple(row[key] for key in keys), []).append(row)
    for own in cases.values():
        own.sort(key=lambda row: int(row["seed"]))
        first, reached = own[0], ", ".join(f"{float(row['value']):.3f}" for row in own)
        options = " ".join(f"`{option}`" for option in first["options"].split())
        cells.append([f"`{first['model']}`", first["demo"], options, machine(first), first["metric"], reached])
    head = (
        "### Trained from nothing on handwritten digits\n\nShares from 0 to 1, seed by seed, on held-out digits. The "
        "demos of classifiers are cut to few blocks, as their options say, and are not the models of these names."
    )
    header = ("model", "demo", "options", "machine", "score", "reached")
    return f"{head}\n\n{table(header, cells, left=5)}\n\n{places(rows)}"


def throughput(family: Family) -> str:
    """Images a second, from results/models.csv."""
    keys = ("model", "mode", "execution", "kernels", "device_name", "threads", "batch", "height", "width", "precision")
    rows = newest(family.measured("models.csv", "model"), *keys)
    if not rows:
        return ""
    cells = [
        [
            f"`{row['model']}`",
            ", ".join(filter(None, (row["mode"], row["execution"], row["kernels"], row["precision"]))),
            machine(row),
            f"{row['batch']} x {row['height']} x {row['width']}",
            f"{decimals(row['value'], 1)} ({decimals(row['lowest'], 1)}–{decimals(row['highest'], 1)})",
            decimals(row["peak_memory_mb"], 0),
        ]
        for row in rows
    ]
    header = ("model", "how", "machine", "batch x height x width", "images a second", "peak MB")
    return f"### Throughput\n\n{table(header, cells, left=3)}\n\n{places(rows)}"


def comparisons(family: Family) -> str:
    """Time against other ways to the same result, from results/claims.csv."""
    keys = ("ours", "other", "what", "batch", "device_name", "threads")
    rows = newest(family.measured("claims.csv", "ours"), *keys)
    if not rows:
        return ""
    cells = [
        [
            f"`{row['ours']}`",
            row["other"] if " " in row["other"] else f"`{row['other']}`",
            f"{row['what']}, batch {row['batch']}",
            machine(row),
            decimals(row["ours_ms"], 0),
            decimals(row["other_ms"], 0),
            f"{decimals(row['value'], 2)} ({decimals(row['lowest'], 2)}–{decimals(row['highest'], 2)})",
        ]
        for row in rows
    ]
    header = ("ours", "against", "what", "machine", "ours, ms", "other, ms", "times as fast (lowest–highest)")
    said = (
        "In float32, in turns, medians of the rounds. `times as fast` is the median of the rounds' own ratios, so that "
        "it need not be the ratio of the two medians beside it. `reference operators` is the same network with the few "
        "plain lines that define each operator."
    )
    named = {row[column] for row in rows for column in ("ours", "other")}
    said = " ".join([said, *(text for name, text in _PEERS.items() if name in named)])
    return f"### Time, side by side\n\n{said}\n\n{table(header, cells, left=4)}\n\n{places(rows)}"


def memory(family: Family) -> str:
    """Peak memory and time of one large image, from results/memory.csv."""
    keys = ("model", "height", "width", "precision", "device_name", "threads")
    rows = newest(family.measured("memory.csv", "model"), *keys, "quantity")
    if not rows:
        return ""
    cases: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        key = row["model"], row["height"], row["width"], row["precision"], machine(row)
        cases.setdefault(key, {})[row["quantity"]] = row["value"]
    cells = [
        [
            f"`{model}`",
            f"{height} x {width}",
            precision,
            where,
            *(decimals(values.get(name), 2) for name in ("peak", "before", "seconds")),
        ]
        for (model, height, width, precision, where), values in cases.items()
    ]
    gib = ("peak GiB of the process", "before the image, GiB")
    header = ("model", "one image", "precision", "machine", *gib, "seconds an image")
    return f"### Memory of one large image\n\n{table(header, cells, left=4)}\n\n{places(rows)}"


def exports(family: Family) -> str:
    """ONNX files that were made and checked, from results/exports.csv."""
    keys = ("name", "task", "weights", "options", "device_name", "threads")
    rows = newest(family.measured("exports.csv", "name"), *keys)
    if not rows:
        return ""
    cells = [
        [
            f"`{row['name']}`",
            " ".join(filter(None, (row["task"], row["options"]))),
            row["weights"],
            machine(row),
            "free" if row["free"] == "True" else f"fixed: {row['reason']}",
            row["opset"],
            row["nodes"],
            decimals(row["megabytes"], 1),
            f"{float(row['difference']):.0e}" + (f" ({row['passed_over']})" if int(row["passed_over"] or 0) else ""),
            f"{row['height']} x {row['width']}",
            decimals(row["onnxruntime_ms"], 1),
            decimals(row["pytorch_ms"], 1),
        ]
        for row in rows
    ]
    header = (
        "model",
        "task",
        "weights",
        "machine",
        "sizes",
        "opset",
        "nodes",
        "MB",
        "largest difference",
        "one image",
        "ONNX Runtime, ms",
        "PyTorch, ms",
    )
    said = (
        "The largest difference to PyTorch is in standard deviations of the output, or in hundredths of its largest "
        "value where these are larger, over several sizes and batches where they are free; up to 1e-4 is accepted. "
        f"{_PASSED_OVER if any(int(row['passed_over'] or 0) for row in rows) else ''}"
        "Times are of one image, in float32, ONNX Runtime and PyTorch in turn, in the process that exported and keeps "
        "its memory. Among images a second, PyTorch has a process of its own, which on a CPU gives memory back after "
        "each image and asks for it again: small networks with large maps take longer there."
    )
    return f"### ONNX files\n\n{said}\n\n{table(header, cells, left=5)}\n\n{places(rows)}"


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
    cases_said = f"{len(gains)} case{'s' * (len(gains) != 1)}"
    return f"{min(gains):.2f} to {max(gains):.2f} times as fast as the fastest other way, {cases_said} ({where})"
