"""Evaluate a trained or published model and write its metrics."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import _installed  # noqa: F401  says how to install where vertebra cannot be imported

from vertebra.backbones._checkpoint import described, read_checkpoint
from vertebra.backbones._errors import UserError
from vertebra.backbones._files import write_whole
from vertebra.backbones._names import check_model_name
from vertebra.tools._accuracy import Row, rows_of, shares
from vertebra.tools._classifier import PRETRAINED, load_classifier
from vertebra.tools._common import add_cfg_options, make_parser, need, parse_changes, run_tool, versions
from vertebra.tools._places import check_file
from vertebra.tools._results import append, check_csv
from vertebra.tools.train import choose_device


def build_parser() -> argparse.ArgumentParser:
    """The command line of `test`."""
    parser = make_parser("test", __doc__, "vertebra test van_b0 work_dirs/demo/epoch_18.pth --data data/digits")
    add = parser.add_argument
    add("target", metavar="CONFIG|NAME", help="a config, or a timm name (evaluated on an ImageNet-style folder)")
    add("checkpoint", metavar="CHECKPOINT|pretrained", help="a file, or the published weights")
    add("--data", metavar="DIR", help="the data folder: with val/, or itself holding the class folders")
    add("--out", metavar="FILE.json", help="where the metrics are written")
    add("--csv", type=Path, metavar="F", help="append a row for each score, to results/accuracy.csv say")
    add("--tta", action="store_true", help="see each image in several views, scaled and flipped, and predict from all")
    add("--batch-size", type=int, metavar="N", help="images at a time (default: the config's, 64 for a name)")
    add_cfg_options(parser, "model.test_cfg.mode=slide")
    return parser


def config_for_name(name: str, checkpoint: str, data: str | None, batch_size: int) -> Any:
    """A config that evaluates a timm model on a folder, prepared as its checkpoint or its own cfg says."""
    from vertebra.engine.config import read_config

    if data is None:
        raise UserError(f"test {name} needs --data DIR: a folder with val/ and one folder of images per class")
    known = load_classifier(name, checkpoint)
    config = read_config("imagenet/evaluation")
    config.model = dict(type="TimmClassifier", model_name=name, num_classes=known.model.num_classes, **known.options)
    config.labels = known.folders
    config.test_dataloader.dataset.transform = known.changes
    config.test_dataloader.batch_size = batch_size
    return config


def prepare(args: argparse.Namespace) -> Any:
    """The config of the evaluation: no training in it, and the checkpoint as what it loads."""
    from vertebra.engine import config as configs
    from vertebra.engine.dense_config import check_classes, check_data, is_dense, use_classes
    from vertebra.engine.record import follow_backbone
    from vertebra.engine.tta import use_views

    try:
        configs.find_config(args.target)
        config = configs.read_config(args.target)
    except UserError as no_config:
        if "/" in args.target or args.target.endswith(".py"):
            raise
        try:
            check_model_name(args.target)
        except UserError as no_model:
            raise UserError(f"{args.target!r} is neither a config nor a model: {no_model}") from no_config
        config = config_for_name(args.target, args.checkpoint, args.data, args.batch_size or 64)
    dense = is_dense(config)
    known = {} if args.checkpoint == PRETRAINED else described(read_checkpoint(args.checkpoint))
    if dense:
        follow_backbone(config, known, args.checkpoint)
    if args.data:
        configs.use_data(config, args.data)
    elif not dense and not Path(_root(config, "test")).exists() and Path(_root(config, "val")).exists():
        config.test_dataloader = config.val_dataloader  # a config of one's own often changes the latter alone
    configs.change(config, parse_changes(args.cfg_options))
    configs.check_model(config)
    if dense:
        check_data(config, "test")
        use_classes(config, parts=("test",))
        check_classes(config, known.get("labels"), args.checkpoint)
    if args.batch_size:
        config.test_dataloader.batch_size = args.batch_size
    if args.checkpoint == PRETRAINED and dense:
        raise UserError(f"{args.target} is a {config.model.type}: it takes a checkpoint file, no published weights")
    config.model.pop("weights", None)  # of fine-tuning: what is tested takes their place
    if args.checkpoint == PRETRAINED:
        config.model.pretrained = True
    else:
        config.load_from = args.checkpoint
        config.labels = config.get("labels") or known.get("labels")
    args.views = use_views(config, known.get("flips")) if args.tta else 1
    if args.tta:
        source = ", as its tta_pipeline says" if config.get("tta_pipeline") else ""
        print(f"each image is seen in {args.views} views{source}")
    for key in ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "val_dataloader", "val_cfg"):
        config.pop(key, None)
    config.pop("val_evaluator", None)
    config.custom_hooks = [hook for hook in config.get("custom_hooks", []) if hook["type"] == "UnreadableImagesHook"]
    config.visualizer = dict(type="Visualizer")
    config.resume = False
    return config


def _root(config: Any, part: str) -> str:
    return str((config.get(f"{part}_dataloader") or {}).get("dataset", {}).get("root", ""))


def confusion_summary(confusion: Any, names: Sequence[str]) -> list[str]:
    """The worst class and the pairs of classes that are mixed up most often, in words."""
    off = confusion.clone().fill_diagonal_(0)
    right, total = confusion.diag(), confusion.sum(1)
    worst = int((right / total.clamp(min=1)).masked_fill(total == 0, 2).argmin())
    lines = [f"worst class  {names[worst]}: {int(right[worst])} of {int(total[worst])} right"]
    pairs = off.flatten().topk(min(3, off.numel()))
    for count, place in zip(pairs.values.tolist(), pairs.indices.tolist(), strict=True):
        if count:
            true, said = divmod(place, len(names))
            lines.append(f"mixed up     {names[true]} taken for {names[said]}: {int(count)} times")
    return lines


def evaluate(args: argparse.Namespace, folder: str) -> tuple[dict[str, Any], str, list[str]]:
    """Run the evaluation, with its log in `folder`.

    Returns:
        The metrics, timm's name of what was evaluated, and the lines that tell of confusions.
    """
    from vertebra.engine.config import build_runner, explaining
    from vertebra.engine.dense_config import is_dense
    from vertebra.engine.metrics import flat_metrics

    config = prepare(args)
    config.work_dir = folder
    began = time.perf_counter()
    runner = build_runner(config)
    with explaining(lambda: False):
        found = runner.test()
    seconds = time.perf_counter() - began
    model = config.model.get("module", config.model)  # inside of what merges views
    if is_dense({"model": model}):
        found = {**flat_metrics(found), **_images(runner)}
        name = model.backbone.get("model_name", model.backbone.type)
        return _report(found, seconds, f"{model.type} on {name}", args), name, []
    if not found["images"]:
        raise UserError(f"none of the {found['unreadable']} images of the test data can be read")
    names = runner.test_dataloader.dataset.metainfo["classes"]
    confusion = runner.test_loop.evaluator.metrics[0].confusion
    lines = confusion_summary(confusion, names) if confusion is not None and len(names) == len(confusion) else []
    return _report(found, seconds, model.model_name, args), model.model_name, lines


def _images(runner: Any) -> dict[str, int]:
    """How many images were counted, and how many could not be: missing ones, and those that could not be read."""
    from vertebra.engine.hooks import UnreadableImagesHook

    samples = runner.test_dataloader.dataset
    skipped = sum(len(hook.seen["test"]) for hook in runner.hooks if isinstance(hook, UnreadableImagesHook))
    return {"images": len(samples) - skipped, "unreadable": getattr(samples, "missing", 0) + skipped}


def _report(found: dict[str, Any], seconds: float, model: str, args: argparse.Namespace) -> dict[str, Any]:
    """What the metrics file holds."""
    return {
        **found,
        **({"tta": True, "views": args.views} if args.tta else {}),
        "seconds": round(seconds, 3),
        "model": model,
        "config": args.target,
        "checkpoint": args.checkpoint,
        "versions": versions(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = build_parser().parse_args(argv)
    if args.out:
        check_file(Path(args.out), f"--out {args.out}", "metrics.json")
    need("mmengine", extra="train")
    need("cv2", extra="train")
    device = choose_device(args.device)
    import vertebra.engine  # noqa: F401  registers what the configs name

    if args.csv:
        check_csv(args.csv, Row)
    with tempfile.TemporaryDirectory() as folder:
        metrics, name, lines = evaluate(args, folder)
    scores = shares(metrics)
    for key, value in metrics.items():
        print(f"  {key:<10}  {f'{value:.2%}' if key in scores else value}")
    print("\n".join(f"  {line}" for line in lines))
    if args.csv:
        options = " ".join([*["--tta"] * args.tta, *args.cfg_options])
        append(args.csv, rows_of(metrics, name, args.target, args.checkpoint, args.data, options, device))
    if args.out:
        out = Path(args.out)
        write_whole(out, (json.dumps(metrics, indent=2) + "\n").encode())
        print(f"  written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
