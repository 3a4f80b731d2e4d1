"""Metrics of a classifier on several ranks: each image counts once, and no rank waits for another."""

from pathlib import Path

from ranks import run_ranks, top_k


def test_a_rank_without_an_image_takes_part_with_zeros(tmp_path: Path) -> None:
    """Two validation images on three ranks."""
    found = run_ranks(top_k, 3, tmp_path, [[([1], 1)], [([2], 3)], []])
    assert found == [({"top1": 0.5, "top5": 1.0, "images": 2, "unreadable": 0}, 2)] * 3


def test_ranks_of_unequal_shares_add_up_to_each_image_once(tmp_path: Path) -> None:
    found = run_ranks(top_k, 2, tmp_path, [[([0, 1], 0), ([2, -1], 2)], [([3], 3)]])
    assert found == [({"top1": 0.75, "top5": 1.0, "images": 4, "unreadable": 1}, 4)] * 2


def test_data_without_any_image_is_one_sentence_on_every_rank(tmp_path: Path) -> None:
    found = run_ranks(top_k, 2, tmp_path, [[], []])
    assert found == ["UserError: there is nothing to evaluate: the data holds no image"] * 2
