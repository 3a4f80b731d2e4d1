"""Turn the authors' training files into safetensors with this project's keys, running nothing that is in them.

What comes out loads by name (`vertebra test NAME OUT`), and holds only what was trained: a file without a classifier,
as detectors' backbones come, stays without one.
"""

if __name__ == "__main__":
    import _installed  # noqa: F401  says how to install where vertebra cannot be imported

import argparse
import errno
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save
from torch import nn
from vertebra.backbones._checkpoint import described, find_weights, load_weights, read_checkpoint, weights_place
from vertebra.backbones._errors import UserError
from vertebra.backbones._files import write_whole
from vertebra.backbones._names import check_model_name
from vertebra.tools._classifier import classes_in
from vertebra.tools._common import make_parser, pick_device, run_tool
from vertebra.tools._inert_pickle import read_inert
from vertebra.tools._places import check_file

_EMA_PLACES = ("state_dict_ema", "model_ema")
_KEPT = ("options", "labels", "transform", "mean", "std")  # of what this project's own training wrote


@dataclass(frozen=True)
class Converted:
    """What was written, and where in the source it was; `classes` is None where there is no classifier."""

    file: Path
    name: str
    parameters: int
    classes: int | None
    place: str
    megabytes: float
    sha256: str
    left_out: list[str]
    was_there: bool

    def __str__(self) -> str:
        head = f"a classifier of {self.classes:,} classes" if self.classes else "no classifier: the file has none"
        place = self.place or "the top level"
        ema = " (EMA)" if self.place in _EMA_PLACES else ""
        left_out = ", ".join(self.left_out[:6]) + (" ..." if len(self.left_out) > 6 else "")
        lines = [
            f"{self.name}: {self.parameters:,} parameters, {head}; weights from {place}{ema}",
            *([f"not loaded, and not run: {left_out}"] if self.left_out else []),
            f"{self.file}: {self.megabytes:.1f} MB" + (", there already and the same" if self.was_there else ""),
            f"sha256 {self.sha256}",
        ]
        return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The command line of `convert_checkpoint`."""
    parser = make_parser(
        "convert_checkpoint",
        "Turn a training file of a model's authors into safetensors, running nothing that is in it.",
        "vertebra convert_checkpoint van_b0 van_tiny_754.pth.tar van_b0.safetensors",
    )
    parser.add_argument("name", metavar="NAME", help="the model (`vertebra list`)")
    parser.add_argument("source", type=Path, metavar="AUTHORS_FILE", help="a file of PyTorch, of any layout they used")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors", help="the file to write; none is written over")
    parser.add_argument("--raw", action="store_true", help="take the plain weights although there is an EMA copy")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = build_parser().parse_args(argv)
    pick_device(args.device)
    print(convert(args.name, args.source, args.out, args.raw))
    return 0


def convert(name: str, source: str | Path, out: str | Path, raw: bool = False) -> Converted:
    """Write the weights of `source` to `out`, under the keys of the model `name`.

    Args:
        name: a timm name, ours or not.
        source: safetensors, or any file of PyTorch; objects in it that are no weights are neither loaded nor run.
        out: a new file ending in .safetensors; its metadata says model, number of classes and options as JSON.
        raw: plain weights although the file holds an EMA copy.

    Raises:
        UserError: unknown name, unreadable source, weights of another model, or `out` is there with other content.
    """
    source, out = Path(source), Path(out)
    check_model_name(name)
    if out.suffix != ".safetensors":
        raise UserError(f"{out} must end in .safetensors, by which every reader knows the format")
    check_file(out, str(out), "weights.safetensors")
    checkpoint, left_out = (read_checkpoint(source), []) if source.suffix == ".safetensors" else read_inert(source)
    known = _known(name, checkpoint, source)
    model, fresh = _fill(name, checkpoint, known, str(source), raw)
    tensors = {key: value.contiguous() for key, value in model.state_dict().items() if key not in fresh}
    classes = None if fresh else model.num_classes
    known = {"model_name": name, **({"num_classes": classes} if classes else {}), "options": {}, **known}
    content = save(tensors, metadata={"vertebra": json.dumps(known)})
    was_there = _write(out, content)
    return Converted(
        out,
        name,
        sum(parameter.numel() for key, parameter in model.named_parameters() if key not in fresh),
        classes,
        weights_place(checkpoint, raw),
        len(content) / 1e6,
        hashlib.sha256(content).hexdigest(),
        left_out,
        was_there,
    )


def _known(name: str, checkpoint: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """What a file of this project says of its model beside the weights; UserError if that is another model."""
    known = described(checkpoint)
    if not known:
        return {}
    theirs = str(known.get("model_name", name))
    if theirs.split(".")[0] != name.split(".")[0]:
        raise UserError(f"checkpoint {source} is of {theirs}, not of {name}")
    return {key: known[key] for key in _KEPT if key in known}


def _fill(
    name: str, checkpoint: Mapping[str, Any], known: Mapping[str, Any], source: str, raw: bool
) -> tuple[nn.Module, set[str]]:
    """The model with the file's weights, and the keys that the file has no weights for."""
    weights = find_weights(checkpoint, raw)
    options = known.get("options") or {}
    classes = classes_in(weights, timm.create_model(name, device="meta"))
    model = timm.create_model(name, num_classes=classes, **options)
    return model.eval(), set(load_weights(model, checkpoint, source, raw))


def _write(out: Path, content: bytes) -> bool:
    """Write a file that is whole or not there; True if it stood there already with the same content."""
    try:
        if out.exists():
            if out.is_file() and out.read_bytes() == content:
                return True
            raise UserError(f"{out} exists, and not with this content: choose another name, or move it away")
        write_whole(out, content)
    except OSError as error:
        if error.errno == errno.EFBIG or error.errno == errno.ENOSPC:
            raise  # about the disk, not about OUT: run_tool says it
        raise UserError(f"{out} cannot be written: {error.strerror or error}") from error
    return False


if __name__ == "__main__":
    sys.exit(run_tool(main))
