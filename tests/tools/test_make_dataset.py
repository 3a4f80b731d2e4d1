"""What is in the three digit sets, that train and val never mix, and that no folder of somebody else is harmed."""

import hashlib
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_digits
from vertebra.backbones._errors import UserError
from vertebra.tools import _digits as digits
from vertebra.tools import make_dataset
from vertebra.tools._common import run_tool
from vertebra.tools.make_dataset import MARKER, main, make_digits

SCENES = 8
SPLITS = (("train", "training", SCENES), ("val", "validation", SCENES // 4))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of seed 0; tests read it and leave it as it is."""
    out = tmp_path_factory.mktemp("digits") / "new" / "set"
    make_digits(out, scenes=SCENES)
    return out


@pytest.fixture
def few_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty source digits in place of 1797, for tests that make whole sets to compare them."""
    use_few_sources(monkeypatch.setattr)


def use_few_sources(setattr: Callable[[Any, str, Any], None] = setattr) -> None:
    whole = digits.load_sources()
    few = {name: digits.Sources(s.index[:10], s.label[:10], s.grey[:10]) for name, s in whole.items()}
    setattr(digits, "load_sources", lambda: few)
    setattr(digits, "SOURCES", 20)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int64)


def coco_json(out: Path, split: str) -> dict[str, Any]:
    return json.loads((out / f"coco/annotations/instances_{split}2017.json").read_text())


def decode(rle: dict[str, list[int]]) -> np.ndarray:
    """Read run lengths the plain way, independent of pycocotools: (H, W) bool."""
    runs = [np.full(length, i % 2 == 1) for i, length in enumerate(rle["counts"])]
    return np.concatenate(runs).reshape(rle["size"], order="F")


def scenes_of(out: Path, split: str, long: str) -> list[tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]]:
    """Image, semantic labels and COCO annotations of every scene, matched by their order."""
    coco = coco_json(out, split)
    found = []
    for number, image in enumerate(coco["images"], start=1):
        labels = pixels(out / f"ade20k/annotations/{long}/ADE_{split}_{number:08d}.png")
        annotations = [entry for entry in coco["annotations"] if entry["image_id"] == image["id"]]
        found.append((pixels(out / f"coco/{split}2017" / image["file_name"]), labels, annotations))
    return found


def all_scenes(out: Path) -> list[tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]]:
    return [scene for split, long, _ in SPLITS for scene in scenes_of(out, split, long)]


def card_sources(out: Path, split: str) -> list[int]:
    return [int(path.stem.removeprefix("digit_")) for path in out.glob(f"imagenet/{split}/*/*.png")]


# ---- bytes


def test_same_seed_gives_same_bytes_in_any_folder(tmp_path: Path, few_sources: None) -> None:
    make_digits(tmp_path / "here", seed=3, scenes=SCENES)
    make_digits(tmp_path / "some" / "where", seed=3, scenes=SCENES)
    assert digests(tmp_path / "here") == digests(tmp_path / "some" / "where")


def test_another_seed_changes_every_picture(tmp_path: Path, few_sources: None) -> None:
    make_digits(tmp_path / "one", seed=1, scenes=SCENES)
    make_digits(tmp_path / "two", seed=2, scenes=SCENES)
    one, two = digests(tmp_path / "one"), digests(tmp_path / "two")
    assert one.keys() == two.keys()
    assert [path for path in one if one[path] == two[path]] == []


def test_more_scenes_leave_the_first_ones_as_they_were(tmp_path: Path, few_sources: None) -> None:
    make_digits(tmp_path / "four", scenes=4)
    make_digits(tmp_path / "eight", scenes=8)
    four, eight = digests(tmp_path / "four"), digests(tmp_path / "eight")
    pictures = [path for path in four if path.startswith("ade20k")]
    assert len(pictures) == 2 * (4 + 1)
    assert all(four[path] == eight[path] for path in pictures)


def test_annotations_hold_no_date_and_no_path_of_the_machine(made: Path) -> None:
    for split, _, _ in SPLITS:
        coco = coco_json(made, split)
        assert coco["info"].keys() == {"description", "url", "version"}
        assert all("/" not in image["file_name"] for image in coco["images"])
        assert coco["images"][0].keys() == {"id", "file_name", "width", "height", "license"}


# ---- train and val


def test_val_is_360_source_digits_in_equal_shares_and_train_the_other_1437(made: Path) -> None:
    train, val = card_sources(made, "train"), card_sources(made, "val")
    assert len(val) == 360
    assert sorted(train + val) == list(range(1797))
    assert set(np.bincount(load_digits().target[val])) <= {35, 36, 37}


def test_scenes_draw_only_from_the_source_digits_of_their_split(made: Path) -> None:
    for split, _, _ in SPLITS:
        assert {entry["source"] for entry in coco_json(made, split)["annotations"]} <= set(card_sources(made, split))


def test_no_two_source_digits_are_the_same_picture() -> None:
    """Or a digit of val could occur in train under another number."""
    assert len(np.unique(load_digits().data, axis=0)) == 1797


def _thumbnails() -> np.ndarray:
    """The ink of every source digit, cut out tightly and brought to 24x24: (1797, 24 * 24), normalised."""
    rows = []
    for image in load_digits().images:
        padded = Image.fromarray(np.pad(image, 1).astype(np.float32))
        rows.append(_thumbnail(np.asarray(padded.resize((80, 80), Image.Resampling.BICUBIC)) > 0.38 * 16))
    return np.stack(rows)


def _thumbnail(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    small = np.asarray(Image.fromarray(cut).resize((24, 24), Image.Resampling.BILINEAR)).ravel()
    return (small - small.mean()) / np.linalg.norm(small - small.mean())


def test_digits_in_scenes_are_the_sources_that_annotations_name(made: Path) -> None:
    """Found again among all 1797 by their shape alone, where nothing covers them and they are not tiny."""
    sources, target = _thumbnails(), load_digits().target
    checked = 0
    for _, _, annotations in all_scenes(made):
        for entry in annotations:
            assert target[entry["source"]] == entry["category_id"] - 1
            alone = all(other is entry or not _boxes_touch(entry["bbox"], other["bbox"]) for other in annotations)
            if alone and max(entry["bbox"][2:]) >= 28:
                checked += 1
                assert np.argmax(sources @ _thumbnail(decode(entry["segmentation"]))) == entry["source"]
    assert checked >= 8


def _boxes_touch(a: list[int], b: list[int]) -> bool:
    return all(a[i] < b[i] + b[i + 2] and b[i] < a[i] + a[i + 2] for i in (0, 1))


def test_cards_lie_in_the_folder_of_their_class(made: Path) -> None:
    target = load_digits().target
    for path in made.glob("imagenet/*/*/*.png"):
        assert path.parent.name == str(target[int(path.stem.removeprefix("digit_"))])


# ---- pictures


def test_scenes_hold_two_to_five_digits_of_20_to_60_pixels(made: Path) -> None:
    scenes = all_scenes(made)
    assert {len(annotations) for _, _, annotations in scenes} <= {2, 3, 4, 5}
    sizes = [max(entry["bbox"][2:]) for _, _, annotations in scenes for entry in annotations]
    assert min(sizes) < 30 < 45 < max(sizes) <= 61
    assert all(image.shape == (128, 128, 3) for image, _, _ in scenes)


def test_ink_of_scenes_is_brighter_than_the_canvas_in_every_channel(made: Path) -> None:
    for image, labels, annotations in all_scenes(made):
        canvas = image[labels == 1].mean(axis=0)
        for entry in annotations:
            assert (image[decode(entry["segmentation"])].mean(axis=0) > canvas + 40).all()


def test_ink_of_cards_is_brighter_than_the_canvas_in_every_channel(made: Path) -> None:
    for path in made.glob("imagenet/*/*/*.png"):
        card = pixels(path)
        assert card.shape == (64, 64, 3)
        ink = card.sum(axis=2) >= np.quantile(card.sum(axis=2), 0.95)
        assert (card[ink].mean(axis=0) > np.quantile(card, 0.3, axis=(0, 1)) + 40).all(), path


def test_a_covered_digit_loses_only_the_covered_pixels_and_stays_visible(made: Path) -> None:
    for _, _, annotations in all_scenes(made):
        masks = [decode(entry["segmentation"]) for entry in annotations]
        assert np.sum(masks, axis=0).max() == 1
        assert all(mask.sum() >= 20 for mask in masks)


# ---- COCO


@pytest.mark.parametrize(("split", "long", "number"), SPLITS)
def test_coco_file_is_complete_and_its_numbers_agree(made: Path, split: str, long: str, number: int) -> None:
    coco = coco_json(made, split)
    assert coco.keys() == {"info", "licenses", "images", "annotations", "categories"}
    assert [(entry["id"], entry["name"]) for entry in coco["categories"]] == [(d + 1, str(d)) for d in range(10)]
    assert {image["file_name"] for image in coco["images"]} == {p.name for p in (made / f"coco/{split}2017").iterdir()}
    assert len(coco["images"]) == number
    ids = [entry["id"] for entry in coco["annotations"]]
    assert sorted(ids) == list(range(1, len(ids) + 1))
    for image in coco["images"]:
        with Image.open(made / f"coco/{split}2017" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
    for entry in coco["annotations"]:
        mask = decode(entry["segmentation"])
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        tight = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
        assert (entry["bbox"], entry["area"], entry["iscrowd"]) == (tight, mask.sum(), 0)


def test_train_and_val_share_no_image_id(made: Path) -> None:
    train, val = ({image["id"] for image in coco_json(made, split)["images"]} for split in ("train", "val"))
    assert not train & val


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_pycocotools_scores_the_annotations_against_themselves_with_1(made: Path, kind: str) -> None:
    coco_api = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    codec = pytest.importorskip("pycocotools.mask")
    truth = coco_api.COCO(str(made / "coco/annotations/instances_train2017.json"))
    results = []
    for entry in truth.dataset["annotations"]:
        mask = truth.annToMask(entry)
        assert mask.sum() == entry["area"]
        result = {key: entry[key] for key in ("image_id", "category_id")} | {"score": 1.0}
        results.append(result | ({"bbox": entry["bbox"]} if kind == "bbox" else {"segmentation": codec.encode(mask)}))
    scores = evaluation.COCOeval(truth, truth.loadRes(results), kind)
    scores.evaluate()
    scores.accumulate()
    scores.summarize()
    assert scores.stats[0] == pytest.approx(1.0)


def test_masks_go_through_frpyobjects_as_many_readers_send_them(made: Path) -> None:
    codec = pytest.importorskip("pycocotools.mask")
    for entry in coco_json(made, "val")["annotations"]:
        rle = entry["segmentation"]
        assert (codec.decode(codec.frPyObjects(rle, *rle["size"])) == decode(rle)).all()


# ---- ADE20K


@pytest.mark.parametrize(("split", "long", "number"), SPLITS)
def test_semantic_set_is_the_same_scenes_under_matching_names(made: Path, split: str, long: str, number: int) -> None:
    images = sorted((made / f"ade20k/images/{long}").glob("*.jpg"))
    masks = sorted((made / f"ade20k/annotations/{long}").glob("*.png"))
    assert [path.stem for path in images] == [path.stem for path in masks]
    assert [path.read_bytes() for path in images] == [
        path.read_bytes() for path in sorted((made / f"coco/{split}2017").iterdir())
    ]
    assert len(masks) == number


def test_semantic_masks_are_8_bit_and_agree_with_the_instance_masks(made: Path) -> None:
    with Image.open(next(made.glob("ade20k/annotations/training/*.png"))) as mask:
        assert mask.mode == "L"
    for _, labels, annotations in all_scenes(made):
        digits = np.zeros_like(labels)
        for entry in annotations:
            digits[decode(entry["segmentation"])] = entry["category_id"] + 1
        assert (np.where(labels >= 2, labels, 0) == digits).all()
        assert labels.max() <= 11


def test_unlabelled_pixels_are_the_rim_of_the_ink(made: Path) -> None:
    for _, labels, _ in all_scenes(made):
        ink = Image.fromarray(((labels >= 2) * 255).astype(np.uint8))
        near = np.asarray(ink.filter(ImageFilter.MaxFilter(9))) > 0
        assert 0 < (labels == 0).sum() < (labels >= 2).sum()
        assert near[labels == 0].mean() > 0.98  # a thin stroke may be rim all through


# ---- folders that are not ours, and sets that are not complete


def test_a_complete_set_is_left_alone(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    make_digits(made, scenes=SCENES)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    assert "complete already" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["notes.txt", "imagenet/train/3/photo.png", MARKER])
def test_a_folder_of_somebody_else_is_refused_and_left_as_it_was(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=r"not made by make_dataset: choose a new or empty folder"):
        make_digits(tmp_path, scenes=1)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_another_number_of_scenes_replaces_the_set(tmp_path: Path, few_sources: None) -> None:
    make_digits(tmp_path / "fresh", scenes=4)
    make_digits(tmp_path / "used", scenes=SCENES)
    make_digits(tmp_path / "used", scenes=4)
    assert digests(tmp_path / "used") == digests(tmp_path / "fresh")


def test_a_set_drawn_by_an_older_version_is_replaced(
    tmp_path: Path, few_sources: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_digits(tmp_path, scenes=1)
    monkeypatch.setattr(make_dataset, "FORMAT", make_dataset.FORMAT + 1)
    make_digits(tmp_path, scenes=1)
    assert "complete already" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["coco/train2017/holiday.jpg", "notes.txt"])
def test_a_file_put_into_our_set_stops_the_rebuild_before_anything_is_lost(
    tmp_path: Path, few_sources: None, name: str
) -> None:
    make_digits(tmp_path, scenes=1)
    (tmp_path / name).write_text("mine")
    before = digests(tmp_path)
    with pytest.raises(UserError, match=f"holds {name}, which make_dataset did not make"):
        make_digits(tmp_path, scenes=2)
    assert digests(tmp_path) == before


def test_a_rebuild_does_not_follow_links_out_of_the_set(tmp_path: Path, few_sources: None) -> None:
    make_digits(tmp_path / "set", scenes=1)
    (tmp_path / "set/coco").rename(tmp_path / "elsewhere")
    (tmp_path / "set/coco").symlink_to(tmp_path / "elsewhere")
    before = digests(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="holds coco, which make_dataset did not make"):
        make_digits(tmp_path / "set", scenes=2)
    assert digests(tmp_path / "elsewhere") == before


def test_a_set_that_lost_a_picture_is_made_again(tmp_path: Path, few_sources: None) -> None:
    make_digits(tmp_path, scenes=1)
    before = digests(tmp_path)
    next(tmp_path.glob("coco/train2017/*.jpg")).unlink()
    make_digits(tmp_path, scenes=1)
    assert digests(tmp_path) == before


def test_a_killed_making_is_not_taken_for_complete(tmp_path: Path, few_sources: None) -> None:
    slow = f"""
import runpy, time
test = runpy.run_path({__file__!r})
test["use_few_sources"]()
draw = test["digits"].draw_scene
test["digits"].draw_scene = lambda *arguments: (time.sleep(0.5), draw(*arguments))[1]
test["make_digits"]({str(tmp_path / "killed")!r}, scenes={SCENES})
"""
    maker = subprocess.Popen([sys.executable, "-c", slow])
    while not list(tmp_path.glob("killed/ade20k/images/training/*.jpg")) and maker.poll() is None:
        time.sleep(0.01)
    maker.send_signal(signal.SIGKILL)
    assert maker.wait() == -signal.SIGKILL
    assert json.loads((tmp_path / "killed" / MARKER).read_text())["complete"] is False
    make_digits(tmp_path / "killed", scenes=SCENES)
    make_digits(tmp_path / "whole", scenes=SCENES)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


@pytest.mark.parametrize("written", [None, "", '{"kind": "dig'])
def test_a_making_killed_while_it_wrote_its_first_marker_can_be_repeated(
    tmp_path: Path, few_sources: None, written: str | None
) -> None:
    if written is not None:
        (tmp_path / f"{MARKER}.tmp").write_text(written)
    make_digits(tmp_path, scenes=1)
    assert json.loads((tmp_path / MARKER).read_text())["complete"] is True


# ---- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--scenes", "0"], "--scenes is 0, but must be a whole number, 1 or more"),
        (["--scenes", "-3"], "--scenes is -3, but must be"),
        (["--seed", "-1"], "--seed is -1, but must be a whole number, 0 or more"),
    ],
)
def test_numbers_out_of_range_are_named_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert run_tool(main, ["digits", str(tmp_path / "set"), *options]) == 2
    complaint = capsys.readouterr().err
    assert words in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("scenes", [2.5, "8", None, True])
def test_a_program_may_pass_only_whole_numbers(tmp_path: Path, scenes: Any) -> None:
    with pytest.raises(UserError, match=r"--scenes is .* but must be a whole number"):
        make_digits(tmp_path, scenes=scenes)


@pytest.mark.parametrize("argv", [["letters", "x"], ["digits", "x", "--scenes", "many"], ["digits"]])
def test_unknown_kinds_and_words_for_numbers_end_with_code_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("tail", ["", "/set"])
def test_a_file_in_the_place_of_the_folder_is_named_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tail: str
) -> None:
    (tmp_path / "file").write_text("mine")
    assert run_tool(main, ["digits", f"{tmp_path / 'file'}{tail}"]) == 2
    complaint = capsys.readouterr().err
    assert str(tmp_path / "file") in complaint
    assert complaint.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fills_up_ends_in_one_sentence_and_the_next_call_completes(
    tmp_path: Path, few_sources: None, capsys: pytest.CaptureFixture[str]
) -> None:
    make_digits(tmp_path / "whole", scenes=SCENES)
    capsys.readouterr()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        code = run_tool(main, ["digits", str(tmp_path / "full"), "--scenes", str(SCENES)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    complaint = capsys.readouterr().err
    assert (code, complaint.count("\n")) == (2, 1)
    assert f"{tmp_path / 'full'} cannot be made" in complaint
    make_digits(tmp_path / "full", scenes=SCENES)
    assert digests(tmp_path / "full") == digests(tmp_path / "whole")


def test_the_end_says_what_was_made(tmp_path: Path, few_sources: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["digits", str(tmp_path), "--scenes", "8"]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}: imagenet, coco and ade20k of seed 0" in said
    assert "train 10 single digits, 8 scenes with" in said
    assert "val   10 single digits, 2 scenes with" in said
