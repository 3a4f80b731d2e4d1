"""Webdataset shards: what an epoch holds on any number of ranks and workers, and what a damaged shard does to it."""

import io
import itertools
import json
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from vertebra.backbones._errors import UserError
from vertebra.engine.data import build_loader
from vertebra.engine.shards import ShardStream

pytest.importorskip("webdataset", reason="the extra `data` is not installed")

SIZES = (5, 1, 9, 4, 2)  # samples of the shards, 21 in all; the class of each is its number
Indices = list[list[int]]  # of each batch


def write_shards(folder: Path, sizes: tuple[int, ...] = SIZES, bad: tuple[int, ...] = ()) -> Path:
    """Shards whose samples are numbered through; those of `bad` hold no image."""
    folder.mkdir(exist_ok=True)
    numbers = itertools.count()
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"part-{shard}.tar", "w") as tar:
            for number in itertools.islice(numbers, size):
                png = io.BytesIO()
                Image.fromarray(np.full((8, 8, 3), number, dtype=np.uint8)).save(png, "png")
                picture = b"no image" if number in bad else png.getvalue()
                for suffix, data in (("png", picture), ("cls", str(number).encode())):
                    member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shards of unequal sizes."""
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def deal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Indices]]:
    """`deal(root, ranks, workers, epoch, ...)`: what each worker of each rank reads, as batches of class numbers."""

    def one(root: Path, rank: int, ranks: int, worker: int, workers: int, epoch: int, changes: dict) -> Indices:
        monkeypatch.setattr("vertebra.engine.shards.get_dist_info", lambda: (rank, ranks))
        info = SimpleNamespace(id=worker, num_workers=workers)
        monkeypatch.setattr("vertebra.engine.shards.get_worker_info", lambda: info)
        stream = ShardStream("wds/", str(root), **{**ARGUMENTS, **changes})
        stream.set_epoch(epoch)
        targets = [target for _, target, _ in stream]
        return [targets[at : at + stream.batch] for at in range(0, len(targets), stream.batch)]

    def all_of_them(root: Path, ranks: int = 1, workers: int = 1, epoch: int = 0, **changes: object) -> list[Indices]:
        return [
            [batch for worker in range(workers) for batch in one(root, rank, ranks, worker, workers, epoch, changes)]
            for rank in range(ranks)
        ]

    return all_of_them


ARGUMENTS = dict(
    split="part-{0..4}.tar",
    batch=2,
    training=True,
    seed=3,
    transform=dict(input_size=(3, 8, 8), hflip=0.0, color_jitter=0.0),
)


def flat(dealt: list[Indices]) -> list[int]:
    return [index for rank in dealt for batch in rank for index in batch]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 3), (2, 2), (3, 1), (2, 4)])
def test_an_epoch_gives_all_ranks_the_same_number_of_batches_and_no_image_twice(
    shards: Path, deal: Callable[..., list[Indices]], ranks: int, workers: int
) -> None:
    dealt = deal(shards, ranks, workers)
    steps = 21 // (2 * ranks)
    assert [[len(batch) for batch in rank] for rank in dealt] == [[2] * steps] * ranks
    assert len(set(flat(dealt))) == 2 * steps * ranks


@pytest.mark.parametrize("workers", [1, 2])
def test_each_epoch_has_another_order_and_other_images_that_stay_out(
    shards: Path, deal: Callable[..., list[Indices]], workers: int
) -> None:
    epochs = [flat(deal(shards, 2, workers, epoch=epoch, batch=4)) for epoch in range(6)]
    assert len(set(map(tuple, epochs))) == 6
    assert epochs[1] == flat(deal(shards, 2, workers, epoch=1, batch=4))
    assert set().union(*epochs) == set(range(21))


def test_images_of_several_shards_are_mixed(shards: Path, deal: Callable[..., list[Indices]]) -> None:
    order = flat(deal(shards))
    assert sum(b != a + 1 for a, b in itertools.pairwise(order)) > 15


@pytest.mark.parametrize(("ranks", "workers"), [(1, 1), (1, 2), (2, 3), (3, 1), (8, 4)])
def test_an_evaluation_reads_each_image_once(
    shards: Path, deal: Callable[..., list[Indices]], ranks: int, workers: int
) -> None:
    assert flat(deal(shards, ranks, workers, training=False, batch=4)) == list(range(21))


def test_fewer_images_than_ranks_leave_some_ranks_without(tmp_path: Path, deal: Callable[..., list[Indices]]) -> None:
    root = write_shards(tmp_path / "two", (2,))
    dealt = deal(root, 3, 2, training=False, split="part-0.tar")
    assert flat(dealt) == [0, 1]
    assert [] in dealt


def test_an_epoch_holds_whole_optimizer_steps(shards: Path, deal: Callable[..., list[Indices]]) -> None:
    assert len(deal(shards, 1, 2, group=4)[0]) == 8


def test_an_epoch_can_be_limited(shards: Path, deal: Callable[..., list[Indices]]) -> None:
    assert len(deal(shards, 1, 2, limit=3)[0]) == 3
    assert flat(deal(shards, 1, 1, split="part-{0..4}.tar|7", training=False)) == list(range(7))


def test_repeated_augmentation_takes_each_image_in_copies(shards: Path, deal: Callable[..., list[Indices]]) -> None:
    taken = flat(deal(shards, 2, 2, repeats=2))
    assert len(taken) == 20
    assert sorted(taken) == sorted(2 * sorted(set(taken)))


def test_a_loader_with_workers_gives_what_its_length_says(shards: Path) -> None:
    split = {"name": "wds/", "root": str(shards), "split": ARGUMENTS["split"], "transform": ARGUMENTS["transform"]}
    for training in (True, False):
        loader = build_loader({**split, "training": training}, 4, 2, seed=3)
        batches = list(loader)
        assert len(batches) == len(loader) == (5 if training else 6)
        targets = torch.cat([batch["targets"] for batch in batches]).tolist()
        assert len(set(targets)) == len(targets) == (20 if training else 21)
        assert all(
            (image == target).all()
            for batch in batches
            for image, target in zip(*(batch[key] for key in ("inputs", "targets")), strict=True)
        )


def test_workers_hear_of_the_next_epoch(shards: Path) -> None:
    split = {"name": "wds/", "root": str(shards), "split": ARGUMENTS["split"], "transform": ARGUMENTS["transform"]}
    loader = build_loader({**split, "training": True}, 4, 1, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        loader.dataset.set_epoch(epoch)
        orders.append(torch.cat([batch["targets"] for batch in loader]).tolist())
    assert orders[0] == orders[2] != orders[1]


def test_an_unreadable_image_is_replaced_in_training_and_left_out_in_evaluation(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "bad", bad=(0, 7, 20))
    stream = ShardStream("wds/", str(root), **{**ARGUMENTS, "batch": 7})
    found = list(stream)
    assert len(found) == 21
    assert {unreadable for *_, unreadable in found} == {-1, 0, 7, 20}
    assert not {0, 7, 20} & {target for _, target, _ in found}
    assert stream.filename(7) == f"{root}/part-2.tar, sample 2"
    evaluated = list(ShardStream("wds/", str(root), **{**ARGUMENTS, "training": False}))
    assert [(target, unreadable) for _, target, unreadable in evaluated if unreadable >= 0] == [
        (-1, 0),
        (-1, 7),
        (-1, 20),
    ]
    assert len(evaluated) == 21


def test_what_a_truncated_shard_does_not_give_is_counted(tmp_path: Path) -> None:
    """Its length is known from _info.json, so that no rank makes fewer steps than the others."""
    root = write_shards(tmp_path / "cut")
    names = [f"part-{shard}.tar" for shard in range(5)]
    info = {"splits": {"train": dict(name="train", num_samples=21, filenames=names, shard_lengths=list(SIZES))}}
    (root / "_info.json").write_text(str(info).replace("'", '"'))
    whole = (root / names[2]).read_bytes()
    (root / names[2]).write_bytes(whole[: len(whole) // 2])
    found = list(ShardStream("wds/", str(root), **{**ARGUMENTS, "split": "train"}))
    lost = {unreadable for *_, unreadable in found} - {-1}
    assert len(found) == 20
    assert lost
    assert lost < set(range(6, 15))


def test_shards_of_nothing_but_unreadable_images_are_an_error(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "none", (4,), bad=(0, 1, 2, 3))
    with pytest.raises(UserError, match=r"none of 4 samples in a row can be read, up to .*part-0.tar, sample "):
        list(ShardStream("wds/", str(root), **{**ARGUMENTS, "split": "part-0.tar"}))


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ("part-{0..9}.tar", r"shard .*part-5.tar does not exist"),
        ("train", "data set wds/ cannot be read: split train not found"),
        ("pipe:cat part-0.tar", "how many samples .* holds is not known"),
    ],
)
def test_shards_that_cannot_be_shared_out_are_one_sentence(shards: Path, split: str, sentence: str) -> None:
    root = "" if split.startswith("pipe:") else str(shards)
    with pytest.raises(UserError, match=sentence):
        ShardStream("wds/", root, **{**ARGUMENTS, "split": split})


def test_a_damaged_shard_whose_length_is_not_known_is_one_sentence(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "cut", (4,))
    (root / "part-0.tar").write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"shard .*part-0.tar is damaged"):
        ShardStream("wds/", str(root), **{**ARGUMENTS, "split": "part-0.tar"})


def test_classes_follow_the_class_map(shards: Path) -> None:
    names = {number: 20 - number for number in range(21)}
    stream = ShardStream("wds/", str(shards), **{**ARGUMENTS, "training": False, "class_map": names})
    assert [target for _, target, _ in stream] == list(range(20, -1, -1))


@pytest.mark.parametrize(
    ("reader", "sentence"),
    [
        (dict(class_map={0: 0, 1: 1}), r"the class of .*part-0.tar, sample 3 is not in class_map"),
        (dict(target_key="label"), r"the label of .*part-0.tar, sample 1 cannot be read"),
    ],
)
def test_labels_that_cannot_be_found_are_not_taken_for_unreadable_images(
    shards: Path, reader: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        list(ShardStream("wds/", str(shards), **{**ARGUMENTS, "training": False, **reader}))


RUN = """
_base_ = "demo/van_b0_digits"
model = dict(num_classes=21, depths=(1, 1, 1, 1))
shards = dict(name="wds/", root={root!r}, transform=dict(input_size=(3, 32, 32)))
train_dataloader = dict(dataset=dict(split="part-{{0..4}}.tar", **shards), batch_size=2, num_workers=1)
val_dataloader = dict(dataset=dict(split="part-4.tar", **shards), batch_size=2, num_workers=1)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=2, val_interval=1)
visualizer = dict(vis_backends=[dict(type="LocalVisBackend")])
custom_hooks = []
"""


@pytest.mark.all
def test_ranks_without_a_validation_image_neither_hang_nor_count(start_together: Callable, tmp_path: Path) -> None:
    """Three ranks share five shards, one of whose samples is no image, and are evaluated on two images."""
    root = write_shards(tmp_path / "shards", bad=(7,))
    (tmp_path / "run.py").write_text(RUN.format(root=str(root)))
    argv = ["run.py", "--work-dir", "wd", "--cfg-options", "default_hooks.logger.interval=1"]
    processes = start_together(3, "train", *argv)
    for process in processes:
        assert process.wait(300).code == 0, process.said
    assert (
        "plan  effective batch 6 (2 x 3 processes)  lr 2.00e-03  3 steps per epoch  2 epochs  21 images"
        in processes[0].said
    )
    assert "part-2.tar, sample 2 cannot be read and is skipped" in "".join(
        p.read_text() for p in tmp_path.glob("wd/*/*.log")
    )
    (log,) = tmp_path.glob("wd/*/vis_data/scalars.json")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["images"] for row in rows if "top1" in row] == [2, 2]


def rates_by_step(work_dir: Path) -> dict[int, float]:
    """The learning rate of each step as it was logged last."""
    rows = [json.loads(line) for path in sorted(work_dir.glob("*/vis_data/scalars.json")) for line in path.open()]
    return {row["step"]: row["lr"] for row in rows if "loss" in row}


@pytest.mark.all
def test_a_stream_that_is_resumed_begins_its_epoch_again_and_says_so(start: Callable, tmp_path: Path) -> None:
    root = write_shards(tmp_path / "shards")
    (tmp_path / "run.py").write_text(RUN.format(root=str(root)))
    argv = ["run.py", "--work-dir", "wd", "--device", "cpu"]
    long = ["--cfg-options", "train_cfg.max_epochs=40", "train_cfg.val_interval=40", "default_hooks.logger.interval=1"]
    whole = start("train", "run.py", "--work-dir", "whole", "--device", "cpu", *long)
    tool = start("train", *argv, *long)
    tool.wait_until(
        lambda: sum(path.read_text().count("loss") for path in tmp_path.glob("wd/*/vis_data/scalars.json")) > 11
    )
    tool.send(signal.SIGTERM)
    tool.wait()
    assert list(tmp_path.glob("wd/iter_*.pth")), f"the signal did not come into an epoch: {tool.said}"
    again = start("train", *argv, "--resume", *long).wait()
    assert again.code == 0, again.said
    assert whole.wait().code == 0, whole.said
    rates = {name: rates_by_step(tmp_path / name) for name in ("whole", "wd")}
    assert rates["wd"] == rates["whole"], "the schedule goes back to the epoch's beginning too"
    assert "in the middle of an epoch that cannot be continued (a stream" in again.said
