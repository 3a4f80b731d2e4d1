"""Write a folder for the Hugging Face Hub: weights, timm's config.json and a card, loaded back before it is there."""

if __name__ == "__main__":
    import _installed  # noqa: F401  says how to install where vertebra cannot be imported

import argparse
import contextlib
import filecmp
import json
import os
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
from vertebra.tools._classifier import Classifier, load_classifier
from vertebra.tools._common import make_parser, pick_device, run_tool
from vertebra.tools._export_check import TOLERANCE, difference
from vertebra.tools._hub_card import card, facts, is_ours

FILES = ("README.md", "config.json", "model.safetensors")


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
    parser.add_argument("--licence", metavar="ID", help="of these weights, as the Hub has it (default: the authors')")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    device = pick_device(args.device)
    _check_folder(args.out)
    metrics = read_metrics(args.metrics, args.name) if args.metrics else None
    classifier = load_classifier(args.name, args.checkpoint, device=device)
    print(publish(classifier, args.out, metrics, args.licence))
    return 0


def read_metrics(path: Path, name: str) -> dict[str, Any]:
    """The results in a file that `test --out` wrote.

    Raises:
        UserError: there is no such file, or it holds no accuracy, or another model's.
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
        out: a new or empty folder, or one that holds the very same.
        metrics: what `test --out` wrote.
        licence: the Hub's identifier; None takes the authors', where they stated one.

    Raises:
        UserError: `out` holds something else or cannot be written, or the model cannot be built from what is there.
    """
    out = Path(out)
    _check_folder(out)
    licence = (licence or facts(classifier.name).get("licence") or "").lower() or None
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
    if classifier.folders:  # trained on these, so no longer the published weights that a tag names
        said["label_names"] = classifier.folders
        said["pretrained_cfg"]["tag"] = ""
    try:
        save_for_hf(classifier.model, str(folder), said, safe_serialization=True, data_config=classifier.data)
    except SafetensorError as error:  # no OSError, though a full disk is what it tells of
        raise UserError(f"the weights of {classifier.name} cannot be written: {error}") from error
    rights = (folder / "config.json").stat().st_mode
    (folder / "model.safetensors").chmod(rights)  # safetensors gives them to the owner alone


def _check_folder(out: Path) -> None:
    """Refuse, before a model is loaded, a folder that holds other files than this tool writes."""
    try:
        nearest = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
        found = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    if not nearest.is_dir():
        raise UserError(f"{out} cannot be written: {nearest} is no folder")
    others = [name for name in found if name not in FILES]
    if others:
        raise UserError(f"{out} holds {others[0]}: a new or empty folder is accepted, and nothing was written")


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends without an error."""
    target = Path(os.path.realpath(out))  # a link stays a link
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".publish_", dir=target.parent))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    try:
        (folder := temporary / target.name).mkdir()  # with the usual rights: mkdtemp's are the owner's alone
        yield folder
        if not _is_same(folder, out):
            os.replace(folder, target)  # of folders, an empty one alone can be replaced
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_same(folder: Path, out: Path) -> bool:
    """Whether `out` holds what `folder` does; False if it holds nothing, UserError if it holds something else."""
    if not out.exists() or not any(out.iterdir()):
        return False
    same, *_ = filecmp.cmpfiles(folder, out, FILES, shallow=False)
    if set(same) != set(FILES):
        raise UserError(f"{out} holds another model or card: choose another folder, or move it away")
    return True


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
