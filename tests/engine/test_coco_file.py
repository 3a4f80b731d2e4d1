"""COCO's annotation file: each fault is refused, left out and counted, or mended, as the module says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vertebra.backbones._errors import UserError
from vertebra.engine.coco_file import check, mend, read_coco


def content(**changes: Any) -> dict[str, Any]:
    """Two images of 40 x 30 pixels and two objects; `changes` go to the first object, None takes a key away."""
    objects = [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [5, 6, 10, 8], "area": 60, "iscrowd": 0},
        {"id": 2, "image_id": 8, "category_id": 4, "bbox": [0, 0, 40, 30], "area": 900, "iscrowd": 0},
    ]
    for entry in objects:
        x, y, w, h = entry["bbox"]
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
    objects[0] |= {key: value for key, value in changes.items() if value is not None}
    for key in [key for key, value in changes.items() if value is None]:
        del objects[0][key]
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in (7, 8)],
        "annotations": objects,
        "categories": [{"id": 3, "name": "nut"}, {"id": 4, "name": "bolt"}],
    }


def test_a_sound_file_is_left_as_it_is() -> None:
    sound = content()
    check(sound, "sound.json")
    assert mend(sound, masks=True, training=True) == {}
    assert sound == content()


def test_names_are_texts_since_data_sets_look_for_texts() -> None:
    numbers = content()
    numbers["categories"] = [{"id": 3, "name": 0}, {"id": 4, "name": 1}]
    mend(numbers, masks=False, training=True)
    assert [entry["name"] for entry in numbers["categories"]] == ["0", "1"]


def edited(part: str, number: int, **changes: Any) -> dict[str, Any]:
    """The file with other values in one entry."""
    made = content()
    made[part][number].update(changes)
    return made


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ([], "holds a list, not a dictionary"),
        ({"images": [], "annotations": []}, "has no list of 'categories'"),
        ({"images": [], "annotations": [], "categories": []}, "has no categories"),
        ({"images": [{}], "categories": [{"id": 1, "name": "nut"}]}, "number 0 of its images has no 'id'"),
        (content(category_id=None), "number 0 of its annotations has no 'category_id'"),
        (content(category_id=9), "1 annotations are of category 9, and its categories are 3, 4"),
        (edited("images", 1, id=7), "has two images of the id 7"),
        (content(id=2), "has two annotations of the id 2"),
        (edited("categories", 1, id=3), "has two categories of the id 3"),
        (content(id=[1]), r"number 0 of its annotations has the id \[1\]; a number is taken"),
        (content(image_id={}), "number 0 of its annotations has the image_id {}; a number is taken"),
        (edited("categories", 1, id=[4]), r"number 1 of its categories has the id \[4\]; a number is taken"),
        (edited("images", 0, width=None), "7.jpg is None x 30 pixels"),
        (edited("images", 0, height=0), "7.jpg is 40 x 0 pixels"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_refused(wrong: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=f"wrong.json.*{sentence}"):
        check(wrong, "wrong.json")


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text(json.dumps(content())[:-5])
    with pytest.raises(UserError, match=r"half\.json is no COCO annotation file"):
        read_coco(tmp_path / "half.json")


WITHOUT_BOX = "annotations without a box of four numbers, left out"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (dict(bbox=None), WITHOUT_BOX),
        (dict(bbox=[]), WITHOUT_BOX),
        (dict(bbox=[1, 2, 3]), WITHOUT_BOX),
        (dict(bbox=[1, 2, "3", 4]), WITHOUT_BOX),
        (dict(bbox=[1, 2, float("nan"), 4]), WITHOUT_BOX),
        (dict(bbox=[5, 5, -2, 4]), WITHOUT_BOX),
        (dict(image_id=99), "annotations of images that are not listed, left out"),
        (dict(bbox=[50, 5, 10, 10]), "annotations outside their image, left out"),
        (dict(bbox=[-20, 5, 10, 10]), "annotations outside their image, left out"),
        (dict(bbox=[5, 5, 0, 3]), "annotations less than a pixel wide or high, left out"),
    ],
)
def test_what_nothing_can_be_learned_from_is_left_out_and_counted(changes: dict[str, Any], told: str) -> None:
    made = content(**changes)
    assert mend(made, masks=False, training=True) == {told: 1}
    assert [entry["id"] for entry in made["annotations"]] == [2]


@pytest.mark.parametrize("box", [[50, 5, 10, 10], [5, 5, 0, 3], [30, 20, 30, 30]])
def test_an_evaluation_keeps_odd_boxes_as_coco_does(box: list[float]) -> None:
    made = content(bbox=box)
    assert mend(made, masks=False, training=False) == {}
    assert made["annotations"][0]["bbox"] == box


def test_a_box_over_the_edge_ends_there() -> None:
    made = content(bbox=[30, -5, 30, 20])
    assert mend(made, masks=False, training=True) == {"boxes over the edge of their image, clipped": 1}
    assert made["annotations"][0]["bbox"] == [30, 0, 10, 15]


def test_an_edge_that_was_rounded_is_no_fault() -> None:
    assert mend(content(bbox=[30, 20, 10.4, 10]), masks=False, training=True) == {}


@pytest.mark.parametrize("area", [None, 0])
def test_missing_areas_and_crowds_get_their_usual_values(area: int | None) -> None:
    made = content(area=area, iscrowd=None) if area is None else content(area=area)
    mend(made, masks=False, training=False)
    assert (made["annotations"][0]["area"], made["annotations"][0]["iscrowd"]) == (80, 0)


@pytest.mark.parametrize(("given", "taken"), [("x", 0), ([], 0), ("1", 1), (True, 1)])
def test_crowds_are_those_that_say_so(given: Any, taken: int) -> None:
    made = content(iscrowd=given)
    mend(made, masks=False, training=False)
    assert made["annotations"][0]["iscrowd"] == taken


def test_ids_start_from_1() -> None:
    made = content(id=0)
    mend(made, masks=False, training=False)
    assert [entry["id"] for entry in made["annotations"]] == [1, 2]


DAMAGED = [
    "",
    "X6T3Tl",  # "X6T3Tl0" cut off: in a number
    "X6T3",  # between two numbers
    "X6T3Tl00",  # a run too many
    "X63T3Tl0",  # a character too many
    "X6T3Tl1",  # another character
    "eU1K",  # 1205 and -5
    "ZZZZZZZ0",  # a number without an end
    "PPPPPPPPPPPPPPPPPPP0`U1",
    "X6\03Tl0",
    "X6 3Tl0",
    "X6é3Tl0",
    "~~~",
    "no code at all",
]


@pytest.mark.parametrize(
    "mask",
    [
        None,
        [],
        [[1, 2]],
        [[1, 2, 3, 4, 5]],
        [["a"] * 6],
        [[5, 6, 15, 6, 15, float("nan")]],
        [[5, 6, 15, 6, 15, 1e12]],
        [[-float("inf"), 6, 15, 6, 15, 14]],
        {"size": [3, 3], "counts": [9]},
        {"counts": [9]},
        {"size": None, "counts": [9]},
        {"size": [30, 40], "counts": None},
        {"size": [30, 40], "counts": [None]},
        {"size": [30, 40], "counts": [9]},
        {"size": [30, 40], "counts": [-5, 1205]},
        *({"size": [30, 40], "counts": code} for code in DAMAGED),
    ],
    ids=str,
)
@pytest.mark.parametrize("training", [True, False])
def test_an_object_without_a_mask_is_ignored_where_masks_are_wanted(mask: Any, training: bool) -> None:
    made = content(segmentation=mask)
    assert mend(made, masks=True, training=training) == {"annotations without a mask, ignored": 1}
    assert [entry["iscrowd"] for entry in made["annotations"]] == [1, 0]
    assert made["annotations"][0]["segmentation"] == [[5, 6, 15, 6, 15, 14, 5, 14]]


def test_the_mask_of_what_is_ignored_lies_in_the_image() -> None:
    made = content(segmentation=None, bbox=[-5, 20, 1e12, 15])
    mend(made, masks=True, training=False)
    assert made["annotations"][0]["segmentation"] == [[0, 20, 40, 20, 40, 30, 0, 30]]


@pytest.mark.parametrize("counts", [[200, 100, 900], "X6T3Tl0", "0`U1"])
def test_run_lengths_are_left_as_they_are(counts: list[int] | str) -> None:
    mask = {"size": [30, 40], "counts": counts}
    made = content(segmentation=mask)
    assert mend(made, masks=True, training=True) == {}
    assert made["annotations"][0]["segmentation"] == mask


def test_what_pycocotools_writes_is_taken_and_no_part_of_it() -> None:
    coder, draw = pytest.importorskip("pycocotools.mask"), np.random.default_rng(0)
    for share in (0.01, 0.5, 0.99):
        pixels = draw.random((30, 40)) < share
        pixels[-1, -1] = True  # no run of zero pixels at the end
        code = coder.encode(np.asfortranarray(pixels, np.uint8))["counts"].decode()
        parts = [code[:end] for end in range(len(code) + 1)]
        told = [mend(content(segmentation={"size": [30, 40], "counts": part}), True, True) for part in parts]
        assert [part for part, found in zip(parts, told, strict=True) if not found] == [code]


def test_masks_do_not_matter_where_only_boxes_are_wanted() -> None:
    made = content(segmentation=None)
    assert mend(made, masks=False, training=True) == {}
    assert made["annotations"][0]["iscrowd"] == 0


def test_broken_parts_of_a_mask_are_left_out() -> None:
    made = content(segmentation=[[1, 2], 7, None, [5, 6, 15, 6, 15, 14]])
    assert mend(made, masks=True, training=True) == {}
    assert made["annotations"][0]["segmentation"] == [[5, 6, 15, 6, 15, 14]]
