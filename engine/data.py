"""Images with classes, through timm's datasets, readers and transforms, in an order that can be resumed.

Folders (`root/split/class/*.png`), tar files (`root/split.tar`), Hugging Face data sets (`hfds/...`) and, in shards.py,
webdataset shards (`wds/`) are read by `timm.data.create_dataset`; transforms come from `timm.data.create_transform`.
What is added here: the sampler and the per-sample seeds that let a run go on in the middle of an epoch, bad images that
are counted, and sentences for folders that do not hold what they should.
"""

import functools
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from mmengine.dist import get_dist_info
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from ..backbones._errors import UserError
from ..backbones._images import as_rgb
from .samples import NEIGHBOURS, NO_TARGET, blank_image, build_transform, data_error, epoch_batches
from .seeding import drawn_from
from .shards import ShardStream

LAYOUT = (
    "it should hold train/ and val/ with one folder of images per class, or train.tar and val.tar; "
    "`vertebra make_dataset digits data/digits` makes demo data"
)
_STREAMS = ("hfids/", "tfds/")


def find_split(root: str | Path, split: str) -> Path:
    """The folder or tar file of one split; `root` itself where it directly holds class folders.

    Raises:
        UserError: `root` is missing, or holds no such split.
    """
    root = Path(root)
    if not root.exists():
        raise UserError(f"data folder {root} does not exist: {LAYOUT}")
    for name in {"train": ("train", "training"), "val": ("val", "validation", "valid")}.get(split, (split,)):
        for path in (root / name, root / f"{name}.tar"):
            if path.exists():
                return path
    if any((root / other).exists() for other in ("train", "val", "validation", "train.tar", "val.tar")):
        raise UserError(f"data folder {root} has no {split}/: {LAYOUT}")
    return root


def _check_class_folders(folder: Path, extensions: tuple[str, ...]) -> None:
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise UserError(f"data folder {folder} holds no class folders: {LAYOUT}")
    for path in classes:
        files = (file for file in path.rglob("*") if file.suffix.lower() in extensions)
        if next(files, None) is None:
            raise UserError(
                f"class folder {path} holds no image ({', '.join(sorted(extensions))}): put images in it or remove it, "
                "since the classes are numbered by their folders"
            )


@DATASETS.register_module()
class TimmDataset(Dataset):
    """One split of labelled images as `(uint8 image (3, H, W), class index, index of an unreadable image or -1)`.

    Args:
        root: the data folder; DESIGN's layouts, see `find_split`.
        split: `train` or `val` (or the split's name in a `hfds/` dataset).
        name: empty for folders and tar files, else timm's name such as `hfds/...`.
        model_name: timm model whose pretrained cfg gives size, crop, interpolation, mean and std.
        training: augmenting transforms, and a readable neighbour in the place of an unreadable image.
        transform: arguments of timm's `create_transform` that differ from the model's cfg.
        class_map: class name to index; default: the class folders in natural order.
        seed: of the augmentation.
        reader: further arguments of timm's `create_dataset`.
    """

    def __init__(
        self,
        root: str,
        split: str,
        model_name: str | None = None,
        name: str = "",
        training: bool = False,
        transform: dict[str, Any] | None = None,
        class_map: dict[str, int] | None = None,
        seed: int = 0,
        **reader: Any,
    ) -> None:
        self.training, self.seed = training, seed
        if not name:
            path = find_split(root, split)
            if path.is_dir():
                _check_class_folders(path, timm.data.get_img_extensions())
            reader["search_split"] = False
            root = str(path)
            if class_map is not None and path.is_dir():
                _check_known_classes(path, class_map)
        try:
            self.images = create_dataset(name, root=root, split=split, class_map=class_map, **reader)
        except (ImportError, RuntimeError, AssertionError, OSError) as error:
            raise data_error(name, root, error) from error
        self.reader: Any = self.images.reader
        self.transform: Any = build_transform(model_name, transform or {}, training)

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class name to index, empty where the reader does not know its names."""
        names = getattr(self.reader, "class_to_idx", None) or getattr(self.reader, "class_name_to_idx", None) or {}
        return {str(key): int(value) for key, value in names.items()}

    @property
    def metainfo(self) -> dict[str, Any]:
        """mmengine's name for what is known of the classes."""
        names = self.class_to_idx
        return {"classes": tuple(sorted(names, key=names.__getitem__)), "images": len(self)}

    def __len__(self) -> int:
        return len(self.images)

    def _read(self, index: int) -> tuple[Image.Image, int]:
        file, target, *_ = self.reader[index]
        image = file if isinstance(file, Image.Image) else Image.open(file)
        return as_rgb(image), NO_TARGET if target is None else target

    def __getitem__(self, key: int | tuple[int, int, int]) -> tuple[np.ndarray | torch.Tensor, int, int]:
        epoch, first, repeat = key if isinstance(key, tuple) else (0, key, 0)
        unreadable = -1
        for index in range(first, first + min(len(self), NEIGHBOURS)):
            try:
                image, target = self._read(index % len(self))
                break
            except Exception:  # Pillow's readers raise whatever their format's decoder raises
                unreadable = first if unreadable < 0 else unreadable
                if not self.training:
                    image, target = blank_image(), NO_TARGET
                    break
        else:
            raise UserError(
                f"none of {min(len(self), NEIGHBOURS)} images in a row can be read, from {self.filename(first)}"
            )
        with drawn_from(self.seed, epoch, first, repeat):
            return self.transform(image), target, unreadable

    def filename(self, index: int) -> str:
        """The file of a sample, for messages."""
        return str(self.images.filename(index) or f"number {index}")  # images inside Parquet files have no name


def _check_known_classes(folder: Path, class_map: dict[str, int]) -> None:
    folders = (path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    unknown = sorted(name for name in folders if name not in class_map)
    if unknown and not any(child.is_dir() for child in (folder / unknown[0]).iterdir()):
        raise UserError(
            f"{folder} has the class folder {unknown[0]!r}, which is not among the model's {len(class_map)} classes"
        )


class TimmStream(IterableDataset):
    """A data set that timm streams (`hfids/...`, `tfds/...`): an interrupted epoch starts again.

    Its order is timm's own, and so is how it is shared out: in training, unequal shares of ranks repeat images.
    """

    def __init__(self, **arguments: Any) -> None:
        transform, model_name = arguments.pop("transform", None) or {}, arguments.pop("model_name", None)
        training, name = arguments.pop("training", False), arguments.pop("name")
        try:
            self.images = create_dataset(name, is_training=training, **arguments)
        except (ImportError, RuntimeError, AssertionError, OSError) as error:
            raise data_error(name, arguments.get("root", ""), error) from error
        self.images.transform = build_transform(model_name, transform, training)
        self.class_to_idx: dict[str, int] = {}
        self.metainfo = {"classes": (), "images": len(self.images)}

    def __iter__(self) -> Iterator[tuple[np.ndarray, int, int]]:
        for image, target in self.images:
            yield image, target, -1

    def __len__(self) -> int:
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        """timm's streams draw their shuffle from the epoch."""
        self.images.set_epoch(epoch)


class EpochSampler(Sampler):
    """Which samples this rank takes in an epoch, and in which order: a pure function of (seed, epoch, rank).

    It yields `(epoch, index, repeat)`, so that a data set can seed the augmentation of a sample without knowing more.

    Args:
        size: images in the data set.
        batch: images per step on this rank.
        group: batches per optimizer step; a training epoch holds whole optimizer steps, what is left over stays out.
        training: shuffle and drop what does not fill a group; else every image once, on one rank, in order.
        repeats: how often an image occurs in a row of augmented copies (repeated augmentation); 0 and 1 mean once.
        limit: at most so many batches an epoch, None for all.
        seed: of the shuffle.
    """

    def __init__(
        self,
        size: int,
        batch: int,
        training: bool,
        group: int = 1,
        repeats: int = 0,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        self.size, self.batch, self.training, self.repeats, self.seed = size, batch, training, repeats, seed
        self.rank, self.world = get_dist_info()
        self.epoch, self.skip = 0, 0
        if training:
            self.count = epoch_batches(size, batch, self.world, group, limit) * batch
        else:
            self.count = len(range(self.rank, size, self.world))
            self.count = min(self.count, limit * batch) if limit else self.count

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """Start `epoch`, leaving out the batches of it that have been taken already."""
        self.epoch, self.skip = epoch, skip_batches * self.batch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        if not self.training:
            yield from ((0, index, 0) for index in list(range(self.rank, self.size, self.world))[: self.count])
            return
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        repeats = max(self.repeats, 1)
        mine = np.repeat(order, repeats)[self.rank :: self.world]
        copy = np.tile(np.arange(repeats), self.size)[self.rank :: self.world]
        for place in range(self.skip, self.count):
            yield self.epoch, int(mine[place]), int(copy[place])


def collate(samples: list[tuple[Any, int, int]]) -> dict[str, torch.Tensor]:
    """Samples of `TimmDataset` as `inputs` (B, 3, H, W) uint8, `targets` (B,) and `unreadable` (B,)."""
    images, targets, unreadable = zip(*samples, strict=True)
    return {
        "inputs": torch.stack([torch.as_tensor(np.asarray(image)) for image in images]),
        "targets": torch.tensor(targets, dtype=torch.long),
        "unreadable": torch.tensor(unreadable, dtype=torch.long),
    }


_GRACE_SECONDS = 60  # that a worker goes on after a SIGTERM, so that the main process can finish its step


def start_worker(worker_id: int) -> None:
    """What a loader's worker does first: leave signals to the main process, and the other cores alone."""
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group, but ending the run is the main process's to do
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.alarm(_GRACE_SECONDS))
    signal.set_wakeup_fd(-1)  # a forked worker shares the main process's, and would speak in its name
    torch.set_num_threads(1)


def end_workers(loader: object) -> None:
    """Ask a loader's workers to end; the SIGTERM of an exiting process is not obeyed by them at once."""
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()


@contextmanager
def ending_workers(runner: Any) -> Iterator[None]:
    """Leave no worker of a runner's loaders behind, however its run ends."""
    try:
        yield
    finally:
        for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
            end_workers(getattr(loop, "dataloader", None))


def usable_workers(asked: int) -> int:
    """At most one worker for each core that this process may use; where that is fewer than asked, it is said once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else asked
    if asked > cores:
        _say_fewer(asked, cores)
    return min(asked, cores)


@functools.cache
def _say_fewer(asked: int, cores: int) -> None:
    MMLogger.get_current_instance().warning(
        f"num_workers is {asked}, and this process may use {cores} of the machine's cores: {cores} workers start"
    )


def build_loader(
    dataset: dict[str, Any],
    batch_size: int,
    num_workers: int = 0,
    num_batches: int | None = None,
    repeats: int = 0,
    group: int = 1,
    seed: int = 0,
    class_map: dict[str, int] | None = None,
    **loader: Any,
) -> DataLoader:
    """The loader of one split from its config.

    See `TimmDataset` and `EpochSampler` for the arguments; further ones are DataLoader's (`prefetch_factor` ...).
    """
    if batch_size < 1 or group < 1:
        raise UserError(f"batch_size {batch_size} with accumulative_counts {group}: both are numbers from 1 up")
    arguments = {key: value for key, value in dataset.items() if key != "type"}
    training = arguments.get("training", False)
    num_workers = usable_workers(num_workers)
    shared: dict[str, Any] = dict(
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate,
        worker_init_fn=start_worker,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
    shared |= loader
    if class_map and arguments.get("name"):
        arguments["class_map"] = class_map
    if arguments.get("name", "").startswith("wds/"):
        arguments |= dict(batch=batch_size, group=group, repeats=repeats, limit=num_batches, seed=seed)
        return DataLoader(ShardStream(**arguments), drop_last=training, **shared)
    if arguments.get("name", "").startswith(_STREAMS):
        stream = TimmStream(batch_size=batch_size, seed=seed, **arguments)
        stream.images.set_loader_cfg(num_workers)  # which its length depends on
        return DataLoader(stream, drop_last=training, **shared)
    images = TimmDataset(**{"class_map": class_map, **arguments}, seed=seed)
    sampler = EpochSampler(len(images), batch_size, training, group, repeats, num_batches, seed)
    return DataLoader(images, sampler=sampler, **shared)
