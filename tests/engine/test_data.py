"""Data: what an epoch holds, in which order, and what a sample is, wherever and whenever it is read."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_images import write_images
from vertebra.backbones._errors import UserError
from vertebra.engine.data import EpochSampler, TimmDataset, build_loader, collate, find_split

AUGMENT = {"input_size": (3, 32, 32), "auto_augment": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4}


def keys(**changes: object) -> list[tuple[int, int, int]]:
    arguments = {"size": 50, "batch": 4, "training": True, "seed": 1, **changes}
    epoch, skip = arguments.pop("epoch", 0), arguments.pop("skip", 0)
    sampler = EpochSampler(**arguments)
    sampler.set_epoch(epoch, skip)
    return list(sampler)


def test_an_epoch_continued_takes_exactly_what_was_left() -> None:
    assert keys(epoch=3, skip=5) == keys(epoch=3)[20:]


def test_an_epoch_holds_whole_optimizer_steps() -> None:
    assert len(keys(group=5)) == 40


def test_no_image_is_taken_twice_in_an_epoch() -> None:
    indices = [index for _, index, _ in keys()]
    assert len(set(indices)) == len(indices) == 48


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(index for _, index, _ in keys(epoch=epoch, seed=seed)) for epoch in (0, 1) for seed in (0, 1)}
    assert len(orders) == 4


def test_repeated_augmentation_takes_each_image_in_differing_copies() -> None:
    taken = keys(repeats=3)
    assert len(taken) == 48
    assert len({(index, repeat) for _, index, repeat in taken}) == 48
    assert len({index for _, index, _ in taken}) == 16


def test_evaluation_takes_every_image_once() -> None:
    assert [index for _, index, _ in keys(training=False)] == list(range(50))


@pytest.mark.parametrize("size", [7, 8, 9])
def test_any_number_of_ranks_evaluates_each_image_once(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    seen: list[int] = []
    for rank in range(3):
        monkeypatch.setattr("vertebra.engine.data.get_dist_info", lambda rank=rank: (rank, 3))
        seen += [index for _, index, _ in EpochSampler(size, 2, training=False)]
    assert sorted(seen) == list(range(size))


def test_ranks_share_an_epoch_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for rank in range(2):
        monkeypatch.setattr("vertebra.engine.data.get_dist_info", lambda rank=rank: (rank, 2))
        parts.append({index for _, index, _ in EpochSampler(50, 4, training=True, seed=1)})
    assert len(parts[0]) == len(parts[1]) == 24
    assert not parts[0] & parts[1]


@pytest.mark.parametrize("world", [2, 3])
def test_copies_of_an_image_go_to_the_ranks_without_one_being_taken_twice(
    monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    taken = []
    for rank in range(world):
        monkeypatch.setattr("vertebra.engine.data.get_dist_info", lambda rank=rank: (rank, world))
        taken += [key[1:] for key in EpochSampler(48, 4, training=True, repeats=3, seed=1)]
    assert len(taken) == len(set(taken)) == 48
    assert sorted(copy for _, copy in taken) == [0] * 16 + [1] * 16 + [2] * 16
    assert len({index for index, _ in taken}) == 16


def test_too_few_images_for_a_batch_are_an_error() -> None:
    with pytest.raises(UserError, match="3 training images are fewer"):
        EpochSampler(3, 4, training=True)


def dataset(root: Path, **changes: object) -> TimmDataset:
    arguments = {"split": "train", "training": True, "transform": AUGMENT, "seed": 5, **changes}
    return TimmDataset(str(root), **arguments)


def test_a_sample_depends_on_seed_epoch_and_index_alone(images: Path) -> None:
    first, again = dataset(images), dataset(images)
    torch.rand(3), np.random.rand(3)
    assert np.array_equal(first[1, 7, 0][0], again[1, 7, 0][0])
    assert not np.array_equal(first[1, 7, 0][0], first[2, 7, 0][0])
    assert not np.array_equal(first[1, 7, 0][0], first[1, 7, 1][0])
    assert not np.array_equal(first[1, 7, 0][0], dataset(images, seed=6)[1, 7, 0][0])


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "original", "augmix-m9"])
def test_posterizing_to_no_bits_gives_black_and_not_an_error(images: Path, policy: str) -> None:
    """timm asks Pillow for 0 bits now and then, which Pillow 13 refuses."""
    parts = dataset(images, transform={**AUGMENT, "auto_augment": policy}).transform.transforms
    augment = next(part for part in parts if hasattr(part, "ops") or hasattr(part, "policy"))
    operations = [*getattr(augment, "ops", ()), *(op for policy in getattr(augment, "policy", ()) for op in policy)]
    functions = {op.aug_fn for op in operations if "osterize" in op.name}
    assert functions
    assert all(np.asarray(function(Image.new("RGB", (4, 4), "white"), 0)).max() == 0 for function in functions)


def test_reading_a_sample_leaves_the_random_state_as_it_was(images: Path) -> None:
    samples = dataset(images)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    samples[0, 3, 0]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing_in_a_batch(images: Path, workers: int) -> None:
    split = {"root": str(images), "split": "train", "training": True, "transform": AUGMENT}
    alone = list(build_loader(split, 8, 0, seed=3))
    shared = list(build_loader(split, 8, workers, seed=3))
    assert all(torch.equal(a["inputs"], b["inputs"]) for a, b in zip(alone, shared, strict=True))


def test_an_unreadable_image_is_replaced_in_training_and_left_out_in_evaluation(tmp_path: Path) -> None:
    root = write_images(tmp_path, train=4, val=2)
    for path in (root / "train/class0/0.png", root / "val/class0/0.png"):
        path.write_text("no image")
    _, target, unreadable = dataset(root)[0, 0, 0]
    assert (target, unreadable) == (0, 0)
    _, target, unreadable = dataset(root, split="val", training=False)[0]
    assert (target, unreadable) == (-1, 0)


def test_sixteen_bits_of_grey_are_not_cut_off_at_eight(tmp_path: Path) -> None:
    root = write_images(tmp_path, classes=1, train=1, val=1)
    Image.fromarray(np.full((40, 40), 0x5000, np.uint16)).save(root / "val/class0/0.png")
    pixels, *_ = dataset(root, split="val", training=False)[0]
    assert (np.asarray(pixels) == 0x50).all()


def test_a_folder_of_nothing_but_unreadable_images_is_an_error(tmp_path: Path) -> None:
    root = write_images(tmp_path, classes=1, train=2, val=1)
    for path in root.glob("train/*/*.png"):
        path.write_text("no image")
    with pytest.raises(UserError, match="none of 2 images in a row"):
        dataset(root)[0, 0, 0]


def test_tar_files_are_read_like_folders(tmp_path: Path) -> None:
    root = write_images(tmp_path / "folders", train=3, val=2)
    packed = tmp_path / "packed"
    packed.mkdir()
    for split in ("train", "val"):
        with tarfile.open(packed / f"{split}.tar", "w") as tar:
            tar.add(root / split, arcname=".")
    from_folder, from_tar = dataset(root), dataset(packed)
    assert from_tar.class_to_idx == from_folder.class_to_idx
    assert len(from_tar) == len(from_folder) == 12
    assert {from_tar[0, i, 0][1] for i in range(12)} == {0, 1, 2, 3}


def test_a_root_that_itself_holds_the_classes_is_a_split(images: Path) -> None:
    assert find_split(images / "val", "val") == images / "val"


def test_a_root_without_the_split_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"has no val/"):
        find_split(tmp_path, "val")


def test_an_evaluated_folder_may_lack_classes_but_not_invent_them(tmp_path: Path) -> None:
    root = write_images(tmp_path, train=1, val=1)
    names = {f"class{label}": label for label in range(4)}
    (root / "val/class0/0.png").unlink()
    (root / "val/class0").rmdir()
    found = dataset(root, split="val", training=False, class_map=names)
    assert [found[index][1] for index in range(len(found))] == [1, 2, 3]
    with pytest.raises(UserError, match="'class3', which is not among the model's 2"):
        dataset(root, split="val", training=False, class_map={"class1": 0, "class2": 1})


def test_batches_keep_bytes_until_they_are_on_the_device(images: Path) -> None:
    samples = dataset(images)
    batch = collate([samples[0, index, 0] for index in range(3)])
    assert batch["inputs"].dtype == torch.uint8
    assert batch["inputs"].shape == (3, 3, 32, 32)


def test_webdataset_shards_are_read_through_timm(tmp_path: Path, images: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the extra `data` is not installed")
    with webdataset.TarWriter(str(tmp_path / "train-0000.tar")) as shard:
        for number, path in enumerate(sorted(images.glob("train/*/*.png"))):
            label = int(path.parent.name[-1])
            shard.write({"__key__": f"{number:04d}", "png": path.read_bytes(), "cls": label})
    split = {"root": str(tmp_path), "name": "wds/", "split": "train-0000.tar|48", "training": True}
    loader = build_loader({**split, "transform": AUGMENT}, 8, 0, seed=3)
    batches = list(loader)
    assert sum(len(batch["targets"]) for batch in batches) == 48
    assert set(torch.cat([batch["targets"] for batch in batches]).tolist()) == {0, 1, 2, 3}


def test_hugging_face_data_sets_are_read_through_timm(tmp_path: Path, images: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    built = datasets.load_dataset("imagefolder", data_dir=str(images), cache_dir=str(tmp_path / "cache"))
    built["train"].to_parquet(str(tmp_path / "shards/train.parquet"))
    split = {"root": str(tmp_path / "cache2"), "name": f"hfds/{tmp_path / 'shards'}", "split": "train"}
    found = TimmDataset(**split, training=True, transform=AUGMENT)
    assert len(found) == 48
    assert {found[0, index, 0][1] for index in range(48)} == {0, 1, 2, 3}
