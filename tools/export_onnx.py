"""Export a classifier or a feature pyramid to ONNX and compare it with PyTorch.

The file has a free batch, and free height and width unless `--static` fixes them. It counts as exported when ONNX's
checker takes it, it holds standard operators only and none that is random, and ONNX Runtime answers as PyTorch does in
float32, at sizes and batch sizes other than the traced one. Until then it stands under a temporary name.

Input    `image` (batch, channels, height, width) float32, normalised with the file's `mean` and `std`
Output   `logits` (batch, classes), or with `--features` maps (batch, C, height/4, width/4) `stride4`, `stride8` ...
Metadata JSON values: model_name, task, labels, input_size, interpolation, crop_pct, crop_mode, mean, std, vertebra

The graph's constants are the model's own and little more. A TransNeXt with `--static` has some per cent more: parts of
what its MLPs make of positions are stored instead of being computed.

A detector's or segmenter's config gives the whole of it, or with `--features` its backbone and neck: _export/dense.py.
`--format` writes PyTorch's own programs instead: programs.py.
"""

if __name__ == "__main__":
    import _installed  # noqa: F401  says how to install where vertebra cannot be imported

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from vertebra.backbones._errors import UserError
from vertebra.kernels.dispatch import VARIABLE
from vertebra.tools._classifier import PRETRAINED, Classifier, imagenet_labels, load_classifier
from vertebra.tools._common import (
    add_cfg_options,
    make_parser,
    need,
    parse_changes,
    parse_size,
    pick_device,
    run_tool,
)
from vertebra.tools._export import programs
from vertebra.tools._export.classifier import OnnxReport, export
from vertebra.tools._export.files import check_target, tell_leftovers
from vertebra.tools._export.model import settle_norms
from vertebra.tools._export.onnx_graph import LOWEST_OPSET, check_opset, check_packages
from vertebra.tools._results import append

if TYPE_CHECKING:
    from vertebra.tools._dense import Dense


def build_parser() -> argparse.ArgumentParser:
    """The command line of `export_onnx`."""
    parser = make_parser(
        "export_onnx",
        "Export a model to ONNX with free batch, height and width, and compare ONNX Runtime with PyTorch.",
        "vertebra export_onnx van_b0 --checkpoint work_dirs/demo/epoch_18.pth --out van_b0.onnx",
    )
    device = next(action for action in parser._actions if action.dest == "device")
    device.default, device.help = "cpu", "where PyTorch runs (default: cpu); an aoti package is compiled for it"
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME|CONFIG", help="a model (`vertebra list`), or a config")
    add("--checkpoint", metavar="F", help="weights, or `pretrained` (default: fresh, random weights)")
    add("--out", type=Path, metavar="F", help="the file to write; with --all, the folder, exports.csv included")
    add("--features", action="store_true", help="export the feature maps instead of the classifier")
    add("--static", metavar="HxW", help="fix height and width, where a model cannot do without")
    add(
        "--opset",
        type=int,
        metavar="N",
        help=f"version of ONNX's operators, from {LOWEST_OPSET} on (default: PyTorch's)",
    )
    add(
        "--format",
        choices=("onnx", *programs.FORMATS),
        default="onnx",
        help="onnx (default), torchscript (which PyTorch calls deprecated), exported (torch.export's graph), or aoti "
        "(compiled by AOTInductor for this kind of machine; needs a C++ compiler)",
    )
    numbers = parser.add_mutually_exclusive_group()
    numbers.add_argument("--fp16", action="store_true", help="weights and arithmetic in half precision")
    numbers.add_argument("--int8", action="store_true", help="8-bit weights and activations; takes --calibrate")
    add("--calibrate", type=Path, metavar="DIR", help="images that the scales of --int8 are taken from")
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="images to compare --fp16 or --int8 with float32 on, top-1 where folders name the classes "
        "(default: every fourth of --calibrate)",
    )
    add(
        "--csv",
        type=Path,
        metavar="F",
        help="time a float32 file beside PyTorch and append a row, to results/exports.csv say (--all: OUT/exports.csv)",
    )
    add("--all", action="store_true", help="export every name of vertebra, or those that NAME means to `vertebra list`")
    add("--family", metavar="A,B", help="with --all: names of these families")
    add_cfg_options(parser, "model.test_cfg.mode=whole")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    static = parse_size(args.static) if args.static else None
    device = pick_device(args.device)
    if os.environ.get(VARIABLE) == "triton":
        os.environ[VARIABLE] = "eager"  # a graph has plain PyTorch in it, and is compared with that
    _check_options(args)
    if args.format == "onnx":
        check_packages()
        check_opset(args.opset)
    else:
        programs.check_options(args.out, args.format, device, args.opset)
    if args.all:
        from vertebra.tools._export.all_names import export_all

        return export_all(args)
    if args.format == "onnx":
        check_target(args.out)
    tell_leftovers(args.out.parent)
    with _table(args.csv):
        torch.manual_seed(0)  # a file of random weights, and so its row of a table, is the same every time
        model = _load(args, device)
        if args.checkpoint is None:
            print(f"{args.name}: no --checkpoint given, the file gets fresh, random weights", file=sys.stderr)
            if isinstance(model, Classifier):
                settle_norms(model, static)
        _write(model, args, static)
    return 0


def _table(path: Path | None) -> contextlib.AbstractContextManager[None]:
    if path is None:
        return contextlib.nullcontext()
    from vertebra.tools._export.table import checked_table

    return checked_table(path)


def _write(model: "Classifier | Dense", args: argparse.Namespace, static: tuple[int, int] | None) -> None:
    """Write the file, its row too where one is asked for, and say what was written."""
    if not isinstance(model, Classifier):
        from vertebra.tools._export.dense import export_dense

        print(export_dense(model, args.out, args.features, static, args.opset))
    elif args.format != "onnx":
        print(programs.export(model, args.out, args.format, args.features, static))
    else:
        report = _export(model, args, static)
        print(report)
        if args.csv:
            from vertebra.tools._export.table import asked_options, measure

            weights = {None: "random", PRETRAINED: PRETRAINED}.get(args.checkpoint, "file")
            append(args.csv, [measure(model, report, args.features, static, weights, asked_options(args))])


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that are missing or go nowhere, before anything is built."""
    if not args.all and (args.name is None or args.out is None):
        raise UserError("export_onnx needs a NAME and --out F, or --all and --out DIR")
    others = [option for option in ("all", "fp16", "int8", "csv") if getattr(args, option)]
    if args.format != "onnx" and others:
        raise UserError(f"--{others[0]} is for ONNX files, and --format {args.format} writes another kind")
    if args.all and args.cfg_options:
        raise UserError(f"--cfg-options {' '.join(args.cfg_options)} changes a config, and --all has names of models")
    if args.family and not args.all:
        raise UserError(f"--family {args.family} chooses names for --all; without it, NAME is accepted")
    if args.int8 and not args.calibrate:
        raise UserError("--int8 needs --calibrate DIR: a folder of images that the scales are taken from")
    if args.calibrate and not args.int8:
        raise UserError(f"--calibrate {args.calibrate} is for --int8, which was not given")
    if args.data and not (args.fp16 or args.int8):
        raise UserError(f"--data {args.data} is for --fp16 and --int8, of which none was given")
    if args.csv and (args.fp16 or args.int8):
        raise UserError(f"--csv {args.csv} has rows of float32 files; --{'fp16' if args.fp16 else 'int8'} gets none")


def _export(classifier: Classifier, args: argparse.Namespace, static: tuple[int, int] | None) -> OnnxReport:
    if not (args.fp16 or args.int8):
        return export(classifier, args.out, args.features, static, args.opset)
    from vertebra.tools._export.reduced import export_reduced

    report, _ = export_reduced(classifier, args.out, args.calibrate, args.data, args.features, static, args.opset)
    return report


def _check_dense(args: argparse.Namespace) -> None:
    """Refuse what is for classifiers, before a detector or segmenter is built."""
    asked = [option for option in ("fp16", "int8", "csv") if getattr(args, option)]
    asked += [f"format {args.format}"] if args.format != "onnx" else []
    if asked:
        raise UserError(f"--{asked[0]} is for classifiers and their maps; {args.name} is a detector's or segmenter's")


_OF_TRAINING = ("weights", "pretrained", "compiled", "sync_bn", "grad_checkpointing")


def _load(args: argparse.Namespace, device: torch.device) -> "Classifier | Dense":
    """The classifier of a name, or the model of a config; mm* packages are needed for a config alone."""
    name, checkpoint = args.name, args.checkpoint
    if "/" not in name and not name.endswith(".py"):
        if args.cfg_options:
            raise UserError(f"--cfg-options changes a config, and {name} is a model; a config is accepted")
        return load_classifier(name, checkpoint, device=device)
    need("mmengine", extra="train")
    need("cv2", extra="train")
    import vertebra.engine  # noqa: F401  registers what configs name
    from mmengine.registry import MODELS
    from vertebra.engine.config import change, check_model, explaining, read_config
    from vertebra.engine.dense_config import is_dense

    config = read_config(name)
    change(config, _changes(args.cfg_options))
    check_model(config)
    if is_dense(config):
        need("mmcv", extra="mm")
        _check_dense(args)
        from vertebra.tools._dense import load_dense_target

        with explaining(lambda: True):
            return load_dense_target(config, checkpoint, device)
    if "model_name" not in config.model:
        raise UserError(f"config {name} is of a {config.model.get('type')}; models with a backbone can be exported")
    if checkpoint is not None:
        if args.cfg_options:
            raise UserError(
                f"--cfg-options {' '.join(args.cfg_options)} would change nothing: with --checkpoint, a classifier is "
                "built as that says"
            )
        return load_classifier(config.model.model_name, checkpoint, device=device)
    for option in _OF_TRAINING:  # what a training starts from would be fetched, and is not what was asked for
        config.model.pop(option, None)
    with explaining(lambda: True):
        built = MODELS.build(config.model)
    labels = list(config.get("labels") or ())
    loader = config.get("val_dataloader") or config.get("test_dataloader") or {}
    transform = loader.get("dataset", {}).get("transform")
    changes = dict(transform) if isinstance(transform, Mapping) else {}  # a list has steps, and no model's values
    backbone = built.backbone.to(device).eval()
    named = labels or imagenet_labels(backbone)
    return Classifier(built.model_name, backbone, named, labels, built.options, changes)


_OF_FILES = re.compile(r"model\.|(val|test)_dataloader\.|labels$")
"""Keys of a config that an exported file depends on."""


def _changes(options: Sequence[str]) -> dict[str, Any]:
    """What `--cfg-options` asks for; UserError for what changes nothing in a file."""
    changes = parse_changes(options)
    for key in changes:
        if not _OF_FILES.match(key) or key.rpartition(".")[2] in _OF_TRAINING:
            raise UserError(
                f"--cfg-options {key} is of a training and changes nothing in a file; weights come from --checkpoint F"
            )
    return changes


if __name__ == "__main__":
    sys.exit(run_tool(main))
