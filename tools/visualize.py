"""Look inside a model: attention, routes, windows, Grad-CAM and receptive fields, drawn over a picture."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import _installed  # noqa: F401  says how to install where vertebra cannot be imported

from PIL import Image
from vertebra.backbones._errors import NotAvailable, UserError
from vertebra.backbones._files import write_whole
from vertebra.tools._classifier import PRETRAINED, Classifier, load_classifier, require_pictures
from vertebra.tools._common import make_parser, pick_device, run_tool
from vertebra.tools._export.checks import running
from vertebra.tools._pictures import fitted, read_picture, refuse_overwriting, write_picture
from vertebra.tools._places import check_folder
from vertebra.tools._visualize.inside import KINDS, choose, few, look_inside
from vertebra.tools._visualize.looks import Look, Subject, attention, check_head, field, reasons, routed, windows
from vertebra.tools._visualize.view import prepare

FRESH = "fresh"
_LEAST_WIDTH = 384  # of a picture, so that its caption can be read


def build_parser() -> argparse.ArgumentParser:
    """The command line of `visualize`."""
    example = "vertebra visualize davit_tiny_fused photo.jpg --out inside --kind attention cam --layer stages.2"
    kinds = "\n".join(f"  {kind:<10} {what}" for kind, what in KINDS.items())
    parser = make_parser("visualize", f"{__doc__}\n\nkinds:\n{kinds}", example)
    add = parser.add_argument
    add(
        "name", metavar="NAME", help="a timm name, ours or not; attention, routes and windows are those of our families"
    )
    add("image", metavar="IMAGE", help="the picture to look at")
    add("--out", required=True, type=Path, metavar="DIR", help="where pictures and results.json go")
    add(
        "--checkpoint",
        default=PRETRAINED,
        metavar="F",
        help=f"weights; `{PRETRAINED}` for the published ones (the default), `{FRESH}` for random ones",
    )
    add("--kind", nargs="+", choices=KINDS, metavar="KIND", help=f"{', '.join(KINDS)} (default: all the model has)")
    add(
        "--layer",
        nargs="+",
        metavar="L",
        help="modules to look into, as stages.2 or stages.2.blocks.0 (default: of each stage the last attention of its "
        "sort, and the last feature map)",
    )
    add("--at", metavar="X,Y", help="whose attention, in pixels of the picture (default: the centre)")
    add("--whole", action="store_true", help="show the model all of the picture, not only its centre")
    add("--head", type=int, metavar="N", help="one head, counted from 0 (default: the mean of all)")
    add("--class", dest="target", metavar="LABEL|N", help="the class of Grad-CAM (default: the predicted one)")
    add("--samples", type=int, default=8, metavar="N", help="images of noise for a receptive field (default: 8)")
    return parser


def make_subject(classifier: Classifier, image: Image.Image, at: str | None, whole: bool = False) -> Subject:
    """The model, what it sees of the image, and the place `at`, "X,Y" in pixels of the image; None is its centre.

    `whole`: it sees all of the image, as large as it is before the centre is taken of it.

    Raises:
        UserError: the model takes no pictures, or `at` is no place, or one that the model does not see.
    """
    require_pictures(classifier)
    prepared, view = prepare(image, classifier.transform(), whole)
    place = view.into(image.width / 2, image.height / 2)
    if at is not None:
        try:
            x, y = (float(side) for side in at.split(","))
        except ValueError:
            raise UserError(f"--at is {at!r}; it takes X,Y in pixels of the picture, {_centre(image)} say") from None
        place = view.into(x, y)
        if not all(0 <= side < end for side, end in zip(place, view.seen, strict=True)):
            x0, y0, x1, y1 = (round(edge) for edge in view.box(0, 0, *view.seen))
            more = "" if whole else "; with --whole it sees all of the picture"
            raise UserError(
                f"--at is {at}, which the model does not see; it takes x from {x0} to {x1}, y {y0} to {y1}{more}"
            )
    picture = fitted(image, _LEAST_WIDTH)
    device = next(classifier.model.parameters()).device
    x, y = view.back(*place)
    images = prepared[None].to(device)
    return Subject(classifier, picture, view.resized(picture.size), images, place, (round(x, 1), round(y, 1)))


def _centre(image: Image.Image) -> str:
    return f"{image.width // 2},{image.height // 2}"


def class_index(classifier: Classifier, asked: str | None) -> int | None:
    """The number of a class by its label, or else by its number; None for None.

    Raises:
        UserError: there is no such class, or more than one.
    """
    if asked is None:
        return None
    named = [number for number, label in enumerate(classifier.labels) if label == asked]
    if len(named) > 1:
        numbers = " and ".join(map(str, named))
        raise UserError(f"--class is {asked!r}, the label of {numbers}; {classifier.name} takes one of these numbers")
    if named:
        return named[0]
    count = getattr(classifier.model, "num_classes", 0)
    if not count:
        raise UserError(f"--class is {asked!r}, but {classifier.name} has no classifier")
    if asked.isdecimal() and int(asked) < count:
        return int(asked)
    labels = f", or labels as {classifier.labels[0]!r}" if classifier.labels else ""
    raise UserError(f"--class is {asked!r}; {classifier.name} takes numbers from 0 to {count - 1}{labels}")


def draw(
    subject: Subject, chosen: Mapping[str, list[Any]], target: int | None, head: int | None, samples: int
) -> Iterator[tuple[str, str, Look]]:
    """Kind, layer and picture of everything chosen, in turn."""
    for kind, layers in chosen.items():
        looks: Iterator[Look]
        if kind == "attention":
            looks = (attention(subject, call, head) for call in layers)
        elif kind == "cam":
            looks = iter(reasons(subject, layers, target))
        elif kind == "erf":
            looks = (field(subject, feature, samples) for feature in layers)
        else:
            looks = ({"routes": routed, "windows": windows}[kind](subject, call) for call in layers)
        for layer, look in zip(layers, looks, strict=True):
            yield kind, layer.layer, look


def _check_options(args: argparse.Namespace, chosen: Mapping[str, list[Any]]) -> None:
    """Refuse options that change nothing in what is drawn."""
    for option, given, kinds in (
        ("--head", args.head, ("attention",)),
        ("--class", args.target, ("cam",)),
        ("--at", args.at, ("attention", "routes", "windows")),
    ):
        if given is not None and not {*kinds} & {*chosen}:
            raise UserError(f"{option} {given} is for --kind {' or '.join(kinds)}; drawn would be {', '.join(chosen)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = build_parser().parse_args(argv)
    if args.samples < 1:
        raise UserError(f"--samples is {args.samples}; it takes 1 or more")
    check_folder(args.out, f"--out {args.out}")
    image = read_picture(args.image)
    checkpoint = None if args.checkpoint == FRESH else args.checkpoint
    if checkpoint is None:
        print(f"{args.name}: weights are fresh and random, as --checkpoint asks", file=sys.stderr)
    try:
        classifier = load_classifier(args.name, checkpoint, device=pick_device(args.device))
    except NotAvailable as error:
        raise UserError(f"{error}; --checkpoint takes a file too, or `{FRESH}`") from error
    classifier.model.requires_grad_(False)
    target = class_index(classifier, args.target)
    subject = make_subject(classifier, image, args.at, args.whole)
    with running(args.name, subject.images.shape, fixed=True):
        inside = look_inside(classifier.model, subject.images, args.name)
    chosen = choose(inside, args.name, args.kind, args.layer)
    names = [f"{kind}_{x.layer}.png" for kind, layers in chosen.items() for x in layers]
    refuse_overwriting([args.image], names, args.out)
    _check_options(args, chosen)
    check_head(chosen.get("attention", ()), args.head)
    results = []
    # all of them before the first is written: what cannot be drawn leaves nothing behind
    for kind, layer, (picture, facts) in list(draw(subject, chosen, target, args.head, args.samples)):
        file = f"{kind}_{layer}.png"
        write_picture(picture, args.out / file)
        known = {
            "image": args.image,
            "size": [image.height, image.width],
            "model": args.name,
            "checkpoint": args.checkpoint,
            "whole": args.whole,
        }
        results.append({**known, "kind": kind, "layer": layer, "picture": file, **facts})
    write_whole(args.out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    print(f"{len(results)} picture{'s' * (len(results) != 1)} and results.json are in {args.out}")
    if inside.channels and "attention" in chosen:
        print(f"left out, since they weigh channels and not places: {few(inside.channels)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main))
