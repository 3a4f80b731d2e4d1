"""The demo: make data, train VAN-B0 on it, test, draw, export and check."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    import _installed  # noqa: F401  says how to install where vertebra cannot be imported

from PIL import Image
from vertebra.backbones._errors import UserError
from vertebra.tools import export_onnx, infer, make_dataset, test, train
from vertebra.tools._common import add_cfg_options, make_parser, run_tool

CONFIG = "demo/van_b0_digits"
SHEET_COLUMNS, SHEET_ROWS = 6, 4
_MARKER = ".vertebra-demo"


def build_parser() -> argparse.ArgumentParser:
    """The command line of `demo`."""
    parser = make_parser("demo", __doc__, "vertebra demo")
    parser.add_argument("--out", default="work_dirs/demo", metavar="DIR", help="where everything is left")
    parser.add_argument("--data", default="data/digits", metavar="DIR", help="where the data is made")
    add_cfg_options(parser, "train_cfg.max_epochs=2")
    return parser


def draw_sheet(pictures: Sequence[Path], out: Path) -> None:
    """Put drawn predictions side by side on one sheet."""
    tiles = [Image.open(path) for path in pictures]
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    rows = -(-len(tiles) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (SHEET_COLUMNS * (width + 8) + 8, rows * (height + 8) + 8), "#e6e6e6")
    for place, tile in enumerate(tiles):
        row, column = divmod(place, SHEET_COLUMNS)
        sheet.paste(tile, (8 + column * (width + 8), 8 + row * (height + 8)))
    sheet.save(out)


def some_images(folder: Path, count: int) -> list[Path]:
    """`count` images, taken from each class folder in turn."""
    classes = [sorted(path.iterdir()) for path in sorted(folder.iterdir())]
    return [images[turn] for turn in range(count) for images in classes if turn < len(images)][:count]


def refuse_foreign(out: Path) -> None:
    """UserError if `out` is anything but an earlier demo's folder."""
    if out.exists() and not (out / _MARKER).exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an earlier demo's folder: take another --out, or remove it")


def start_afresh(out: Path) -> None:
    """Empty the folder of an earlier demo."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / _MARKER).touch()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = build_parser().parse_args(argv)
    out, data = Path(args.out), Path(args.data)
    device = ["--device", args.device] if args.device else []
    refuse_foreign(out)
    print(f"1/5  data: real handwritten digits, in {data}")
    make_dataset.make_digits(data)

    print(f"\n2/5  training {CONFIG}")
    start_afresh(out)
    began = time.perf_counter()
    options = ["--cfg-options", *args.cfg_options] if args.cfg_options else []
    train.main([CONFIG, "--data", str(data), "--work-dir", str(out), *options, *device])
    trained = time.perf_counter() - began
    checkpoint = (out / "last_checkpoint").read_text()

    print(f"\n3/5  testing {checkpoint}")
    test.main([CONFIG, checkpoint, "--data", str(data), "--out", str(out / "metrics.json"), *options, *device])

    print("\n4/5  drawing predictions")
    images = some_images(data / "imagenet" / "val", SHEET_COLUMNS * SHEET_ROWS)
    folder = out / "predictions"
    infer.main([CONFIG, checkpoint, *map(str, images), "--out", str(folder), *device])
    names = infer.picture_names(infer.find_images(list(map(str, images))))
    draw_sheet([folder / names[path] for path in images], out / "predictions.png")

    print("\n5/5  exporting")
    export_onnx.main(["van_b0", "--checkpoint", checkpoint, "--out", str(out / "model.onnx")])

    metrics = json.loads((out / "metrics.json").read_text())
    print(f"\n  top-1        {metrics['top1']:.2%} of {metrics['images']} held-out digits")
    print(f"  training     {trained:.0f} s")
    for name, what in (
        ("metrics.json", "the numbers"),
        ("curve.png", "loss, rate and accuracy"),
        ("predictions.png", "predictions drawn"),
        ("model.onnx", "the exported model"),
    ):
        print(f"  {what:<24} {out / name}")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
