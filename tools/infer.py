"""Predict images or folders of images: labelled pictures and results.json."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    import _installed  # noqa: F401  says how to install where vertebra cannot be imported

import torch
from PIL import Image, ImageDraw
from timm.data import get_img_extensions
from vertebra.backbones._errors import UserError
from vertebra.backbones._files import write_whole
from vertebra.tools._classifier import (
    PRETRAINED,
    Classifier,
    load_classifier,
    require_classes,
    require_numbers,
    require_pictures,
)
from vertebra.tools._common import make_parser, need, pick_device, run_tool
from vertebra.tools._onnx_infer import is_onnx_target, load_onnx
from vertebra.tools._pictures import enlarged, find_font, read_picture, refuse_overwriting, write_picture
from vertebra.tools._places import check_folder

if TYPE_CHECKING:
    from vertebra.tools._dense import Dense

_CHECKPOINT_SUFFIXES = (".pth", ".pt", ".safetensors", ".tar", ".bin", ".ckpt")
_TOP, _BATCH = 5, 16
RESULTS = "results.json"


def build_parser() -> argparse.ArgumentParser:
    """The command line of `infer`."""
    example = "vertebra infer van_b0 work_dirs/demo/epoch_18.pth data/digits/imagenet/val/7 --out predictions"
    parser = make_parser("infer", __doc__, example)
    add = parser.add_argument
    add("target", metavar="CONFIG|NAME|FILE.onnx", help="a config, a timm name, or what export_onnx wrote")
    add(
        "inputs",
        nargs="+",
        metavar="[CHECKPOINT|pretrained] IMAGE|DIR",
        help="a checkpoint first (none with FILE.onnx), then what to predict",
    )
    add("--out", required=True, metavar="DIR", help="where pictures and results.json go")
    add("--score-thr", type=float, default=0.3, metavar="S", help="least score of a box (default: 0.3)")
    return parser


def split_inputs(inputs: Sequence[str]) -> tuple[str, list[str]]:
    """The checkpoint, `pretrained` if none is given, and the images."""
    first = inputs[0]
    if first == PRETRAINED or first.lower().endswith(_CHECKPOINT_SUFFIXES):
        if len(inputs) == 1:
            raise UserError(f"infer was given the checkpoint {first} but no image")
        return first, list(inputs[1:])
    return PRETRAINED, list(inputs)


def find_images(inputs: Sequence[str], out: Path | None = None) -> dict[Path, Path]:
    """Every image named, folders searched through, once each, and its picture's place below OUT without the suffix.

    What lies in `out`, a folder inside of one that is searched through, is left out where an earlier run wrote its
    results there, and counted on stderr.

    Raises:
        UserError: there is nothing of this name, or a folder without images.
    """
    found: dict[Path, Path] = {}
    for name in inputs:
        path = Path(name)
        if not path.exists():
            raise UserError(f"{name} does not exist: infer takes images and folders of images")
        if path.is_dir():
            extensions = get_img_extensions(as_set=True)
            files = sorted(file for file in path.rglob("*") if file.suffix.lower() in extensions)
            drawn = _drawn_before(files, path, out)
            if len(drawn) == len(files):
                beside = f" beside {len(drawn)} that an earlier run wrote to {out}" if drawn else ""
                raise UserError(f"folder {name} holds no image{beside} ({', '.join(sorted(extensions))})")
            if drawn:
                print(f"left out: {len(drawn)} of the images in {name}, since they lie in --out {out}", file=sys.stderr)
            files = [file for file in files if file not in drawn]
            for file in files:
                found.setdefault(file, file.relative_to(path).with_suffix(""))
        else:
            found.setdefault(path, Path(path.stem))
    return found


def _drawn_before(files: Sequence[Path], searched: Path, out: Path | None) -> set[Path]:
    """Those of a folder's files that lie in `out`, inside of it, if an earlier run came to its end there."""
    if out is None or searched.resolve() not in out.resolve().parents or not (out / RESULTS).exists():
        return set()
    return {file for file in files if out.resolve() in file.resolve().parents}


def read_images(paths: Sequence[Path]) -> Iterator[tuple[Path, Image.Image]]:
    """The images that can be read; the others are named on stderr."""
    for path in paths:
        try:
            yield path, read_picture(path)
        except UserError as error:
            print(f"skipped: {error}", file=sys.stderr)


@torch.inference_mode()
def classify(classifier: Classifier, images: Sequence[Image.Image]) -> list[list[dict[str, Any]]]:
    """The five best classes of each image, best first.

    Raises:
        UserError: the model's answers are no numbers.
    """
    transform = classifier.transform()
    device = next((p.device for p in classifier.model.parameters()), torch.device("cpu"))  # of an ONNX file: none
    batch = torch.stack([transform(image) for image in images]).to(device)
    logits = classifier.model(batch).float()
    require_numbers(classifier.name, logits)
    scores, indices = logits.softmax(1).topk(min(_TOP, classifier.model.num_classes))
    return [
        [
            {"label": classifier.label(index), "index": index, "score": round(score, 6)}
            for score, index in zip(row_scores, row_indices, strict=True)
        ]
        for row_scores, row_indices in zip(scores.tolist(), indices.tolist(), strict=True)
    ]


def draw(image: Image.Image, classes: Sequence[dict[str, Any]], least_width: int = 256) -> Image.Image:
    """The image, enlarged if it is tiny, above a strip with its best classes and their scores as bars.

    The sheet is `least_width` wide or more, also where the image is too tall to be enlarged so far.
    """
    picture, _ = enlarged(image, least_width)
    width = max(picture.width, least_width)
    size = max(12, width // 22)
    font, row = find_font(size), round(size * 1.5)
    shown = classes[:3]
    sheet = Image.new("RGB", (width, picture.height + row * len(shown) + 8), "white")
    sheet.paste(picture)
    pen = ImageDraw.Draw(sheet)
    for place, entry in enumerate(shown):
        top = picture.height + 4 + place * row
        pen.rectangle((0, top, round(width * entry["score"]), top + row - 3), fill="#cfe3f5")
        pen.text((6, top), f"{entry['label']}", fill="black", font=font)
        pen.text((width - 6, top), f"{entry['score']:.1%}", fill="black", font=font, anchor="ra")
    return sheet


def picture_names(places: Mapping[Path, Path]) -> dict[Path, str]:
    """A name below OUT for each drawn picture: the image's own place, numbered where two are alike.

    That of a segmenter's second file, `classes_name`, is no other picture's either.
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path, place in places.items():
        number, name = 1, f"{place}.png"
        while {name, classes_name(name)} & taken:
            number += 1
            name = f"{place}_{number}.png"
        taken |= {name, classes_name(name)}
        names[path] = name
    return names


def classes_name(name: str) -> str:
    """Where the numbers of a segmenter's classes go beside a picture of this name."""
    return str(Path(name).with_suffix(".classes.png"))


def load_target(target: str, checkpoint: str, device: torch.device) -> "Classifier | Dense":
    """The model of a name, or of a config, which needs mmengine to be read."""
    if Path(target).is_file() and Path(target).suffix != ".py":
        raise UserError(
            f"{target} is a file that infer does not run: a config (.py), a model's name or FILE.onnx is accepted; "
            "docs/export.md says how PyTorch loads the other formats of `export_onnx`"
        )
    if "/" not in target and not target.endswith(".py"):
        return load_classifier(target, checkpoint, device=device)
    need("mmengine", extra="train")
    from vertebra.engine.config import read_config
    from vertebra.engine.dense_config import is_dense

    config = read_config(target)
    if not is_dense(config):
        return load_classifier(config.model.model_name, checkpoint, device=device)
    need("mmcv", extra="mm")
    from vertebra.tools._dense import load_dense_target

    return load_dense_target(config, checkpoint, device)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    args = build_parser().parse_args(argv)
    if not 0 <= args.score_thr <= 1:
        raise UserError(f"--score-thr is {args.score_thr}; a share from 0 to 1 is accepted")
    onnx = is_onnx_target(args.target)
    checkpoint, inputs = split_inputs(args.inputs)
    if onnx and inputs != args.inputs:
        raise UserError(f"{args.target} holds its weights; after it come images and folders, and no {checkpoint}")
    out = Path(args.out)
    check_folder(out, f"--out {out}")
    names = picture_names(find_images(inputs, out))
    paths = list(names)
    refuse_overwriting(paths, [file for name in names.values() for file in (name, classes_name(name))], out)
    if onnx:
        model = load_onnx(args.target, args.device)
    else:
        model = load_target(args.target, checkpoint, pick_device(args.device))
    images = read_images(paths)
    if isinstance(model, Classifier):
        require_pictures(model)
        if not onnx:
            require_classes(model)
        results = list(write_classes(model, images, names, out))
    else:
        results = list(write_dense(model, images, names, out, args.score_thr))
    if not results:
        raise UserError(f"no file of the {len(paths)} given can be read as an image")
    write_whole(out / RESULTS, (json.dumps(results, indent=1) + "\n").encode())
    skipped = f", {len(paths) - len(results)} skipped" if len(results) < len(paths) else ""
    images_said = f"{len(results)} image{'s' * (len(results) != 1)} predicted{skipped}"
    print(f"{images_said}: pictures and {RESULTS} are in {out}")
    empty = sum(result.get("boxes") == [] for result in results)
    if empty:
        print(f"without a box of score {args.score_thr} or more: {empty} of {len(results)}; --score-thr lowers that")
    return 0


Images = Iterator[tuple[Path, Image.Image]]


def write_classes(classifier: Classifier, images: Images, names: Mapping[Path, str], out: Path) -> Iterator[dict]:
    """Draw each image's best classes; what results.json says of each."""
    while batch := list(islice(images, _BATCH)):
        for (path, image), classes in zip(batch, classify(classifier, [image for _, image in batch]), strict=True):
            write_picture(draw(image, classes), out / names[path])
            yield {"image": str(path), "size": [image.height, image.width], "classes": classes}


def write_dense(model: "Dense", images: Images, names: Mapping[Path, str], out: Path, least: float) -> Iterator[dict]:
    """Draw what was found in each image, a segmenter's classes into a second file too; what results.json says of it."""
    from vertebra.tools._dense import boxes_of, draw_boxes, draw_segments, shares_of

    for path, image in images:
        result: dict[str, Any] = {"image": str(path), "size": [image.height, image.width]}
        if model.segments:
            classes = model.classes(image)
            file = classes_name(names[path])
            write_picture(draw_segments(model, image, classes), out / names[path])
            write_picture(Image.fromarray(classes.to(torch.uint8).numpy()), out / file)
            result |= {"segmentation": file, "labels": shares_of(model, classes)}
        else:
            result["boxes"] = boxes_of(model, model.boxes(image), least)
            write_picture(draw_boxes(model, image, result["boxes"]), out / names[path])
        yield result


if __name__ == "__main__":
    sys.exit(run_tool(main))
