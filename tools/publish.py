"""Write a folder for the Hugging Face Hub: weights, timm's config.json and a card, loaded back before it is there."""

if __name__ == "__main__":
    import _installed  # noqa: F401  says how to install where vertebra cannot be imported

import argparse
import contextlib
import filecmp
import glob
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import save_for_hf
from vertebra.backbones._errors import UserError
from vertebra.tools._cards.hub import card, is_ours, published_licence
from vertebra.tools._classifier import Classifier, load_classifier, require_classes
from vertebra.tools._common import make_parser, pick_device, run_tool
from vertebra.tools._export.checks import TOLERANCE, difference
from vertebra.tools._places import check_folder

FILES = ("README.md", "config.json", "model.safetensors")
_LAST = "config.json"
"""Without it a folder holds no model, so that it comes last to where the others are."""
_TEMPORARY = ".publish_"
"""How the names of unfinished folders begin."""


@dataclass(frozen=True)
class Published:
    """What was written, and whether it stood there already."""

    folder: Path
    name: str
    megabytes: float
    licence: str | None
    was_there: bool

    def __str__(self) -> str:
        first = "import vertebra; " if is_ours(self.name) else ""
        there = "there already and the same" if self.was_there else "loaded back with the same weights and answers"
        return "\n".join(
            [
                f"{self.folder}: {', '.join(FILES)}; {self.megabytes:.1f} MB, {there}",
                f"licence: {self.licence or 'not stated'} (--licence ID says another)",
                f"load:    {first}timm.create_model('local-dir:{self.folder}', pretrained=True)",
                f"push:    hf upload USER/REPOSITORY {self.folder}",
            ]
        )


def build_parser() -> argparse.ArgumentParser:
    """The command line of `publish`."""
    parser = make_parser(
        "publish",
        "Write a folder for the Hugging Face Hub: model.safetensors, timm's config.json and a card as README.md.\n"
        "Nothing is sent anywhere; what the folder holds is loaded back and compared first.",
        "vertebra publish van_b0 work_dirs/demo/epoch_18.pth hub/van_b0_digits --metrics work_dirs/demo/metrics.json",
    )
    parser.add_argument("name", metavar="NAME", help="the model (`vertebra list`)")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a file of weights, or `pretrained`")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="a new or empty folder")
    parser.add_argument("--metrics", type=Path, metavar="F", help="results for the card: what `test --out F` wrote")
    parser.add_argument(
        "--licence", metavar="ID", help="of the weights, for the Hub (default: as stated of published ones)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    device = pick_device(args.device)
    if args.licence and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", args.licence):
        raise UserError(f"--licence is {args.licence!r}; an identifier of the Hub is accepted: apache-2.0, mit, other")
    _check_folder(args.out)
    metrics = read_metrics(args.metrics, args.name, args.checkpoint) if args.metrics else None
    classifier = load_classifier(args.name, args.checkpoint, device=device)
    print(publish(classifier, args.out, metrics, args.licence))
    return 0


def read_metrics(path: Path, name: str, checkpoint: str | Path) -> dict[str, Any]:
    """The results in a file that `test --out` wrote.

    Raises:
        UserError: there is no such file, or it holds no accuracy, or that of another model or checkpoint.
    """
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--metrics {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"--metrics {path} is no JSON: a file that `vertebra test --out` wrote is accepted") from error
    if not isinstance(metrics, dict) or not isinstance(metrics.get("top1"), float):
        raise UserError(f"--metrics {path} holds no top1: what `vertebra test --out` wrote of a classifier is accepted")
    if metrics.get("model", name).split(".")[0] != name.split(".")[0]:
        raise UserError(f"--metrics {path} is of {metrics['model']}, not of {name}")
    measured = str(metrics.get("checkpoint") or checkpoint)
    if Path(measured).name != Path(checkpoint).name:  # folders may be moved
        raise UserError(f"--metrics {path} is of the checkpoint {measured}, not of {checkpoint}")
    return metrics


def publish(
    classifier: Classifier,
    out: str | Path,
    metrics: Mapping[str, Any] | None = None,
    licence: str | None = None,
) -> Published:
    """Write the folder; `timm.create_model("local-dir:OUT", pretrained=True)` gives the same model again.

    Args:
        classifier: the model, with its labels and image preparation.
        out: a new or empty folder, or one that holds the very same, or the beginning of it from a run that was killed.
        metrics: what `test --out` wrote.
        licence: the Hub's identifier; None takes that of published weights, where one is stated.

    Raises:
        UserError: `out` holds something else or cannot be written, the model has no classes, or it cannot be built from
            what is there.
    """
    out = Path(out)
    require_classes(classifier)
    _check_folder(out)
    licence = (licence or published_licence(classifier) or "").lower() or None
    with _new_folder(out) as folder:
        _write(folder, classifier, licence)
        (folder / "README.md").write_text(card(classifier, licence, metrics), encoding="utf-8")
        _check_written(folder, classifier)
        megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        was_there = _is_same(folder, out)
    return Published(out, classifier.name, megabytes, licence, was_there)


def _write(folder: Path, classifier: Classifier, licence: str | None) -> None:
    """The weights and config.json, as timm's own code for the hub writes them."""
    said: dict[str, Any] = {"pretrained_cfg": {"license": licence}}
    if classifier.folders:
        said["label_names"] = classifier.folders
    if not classifier.published:  # and so not the weights that a tag names
        said["pretrained_cfg"]["tag"] = ""
    try:
        save_for_hf(classifier.model, str(folder), said, safe_serialization=True, data_config=classifier.data)
    except (SafetensorError, ValueError) as error:  # no OSError, though a full disk is what the first tells of
        raise UserError(f"the weights of {classifier.name} cannot be written: {error}") from error
    rights = (folder / "config.json").stat().st_mode
    (folder / "model.safetensors").chmod(rights)  # safetensors gives them to the owner alone


def _check_folder(out: Path) -> None:
    """Refuse, before a model is loaded, a folder that holds other files than this tool writes."""
    check_folder(out, str(out))
    try:
        found = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    except OSError as error:
        raise UserError(f"{out} cannot be read: {error.strerror or error}") from error
    others = [name for name in found if name not in FILES and not name.startswith(_TEMPORARY)]
    if others:
        raise UserError(f"{out} holds {others[0]}: a new or empty folder is accepted, and nothing was written")


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `out` when the block ends without an error.

    An `out` that is there gets the files one by one: it may be a mount point, or the folder that a shell is in. What
    runs into `out` that were killed left behind is removed: one run at a time writes there.
    """
    target = Path(os.path.realpath(out))  # a link stays a link
    was_there = target.is_dir()
    place = target if was_there else target.parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        for left in _left_behind(target):
            shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=place))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    try:
        (folder := temporary / target.name).mkdir()  # with the usual rights: mkdtemp's are the owner's alone
        yield folder
        if not _is_same(folder, out):
            if was_there:
                for name in sorted(FILES, key=_LAST.__eq__):
                    os.replace(folder / name, target / name)
            else:
                os.replace(folder, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _left_behind(target: Path) -> list[Path]:
    """The unfinished folders of `target`: inside of it, or beside it and for it alone; others' may be at work."""
    beside = target.parent.glob(f"{_TEMPORARY}*/{glob.escape(target.name)}")
    return [*target.glob(f"{_TEMPORARY}*"), *(folder.parent for folder in beside)]


def _is_same(folder: Path, out: Path) -> bool:
    """Whether `out` holds what `folder` does; False if it holds nothing or a part, UserError if something else."""
    found = [name for name in FILES if (out / name).exists()]
    same, *_ = filecmp.cmpfiles(folder, out, found, shallow=False)
    others = [name for name in found if name not in same]
    if others:
        what = "another model or card" if _LAST in found else f"{others[0]} of an unfinished run or of one's own"
        raise UserError(f"{out} holds {what}: choose another folder, or move it away")
    return len(found) == len(FILES)


def _check_written(folder: Path, classifier: Classifier) -> None:
    """Build the model from the folder, as its users will; UserError where it is not the same."""
    model, device = classifier.model.eval(), next(classifier.model.parameters()).device
    try:
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).to(device).eval()
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{classifier.name} cannot be built from what would be published: {error}") from error
    ours, theirs = model.state_dict(), again.state_dict()
    same = ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())
    images = torch.randn(1, *classifier.data["input_size"], generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():  # options that no weight tells of, a window's side say, show here
        far = difference(again(images), model(images)) if same else float("inf")
    if not far <= TOLERANCE:
        raise UserError(f"{classifier.name} built from what would be published is another model: nothing was written")


if __name__ == "__main__":
    sys.exit(run_tool(main))
