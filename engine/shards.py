"""Webdataset shards (`wds/`), dealt so that ranks and workers share an epoch exactly, whatever the shards' sizes.

timm reads the shards and decodes their samples. Which sample goes where is decided here: an epoch is one long row of
samples, shard behind shard, in training the shards shuffled by (seed, epoch). Each rank takes a stretch of that row,
and each of its workers a part of the stretch, cut into whole batches. So all ranks make the same number of steps, no
sample comes twice, an evaluation counts each once, and there may be fewer shards than workers. A worker reads the
shards that its part touches from their beginning, so many small shards are read with the least waste.
"""

import logging
import os
import re
import tarfile
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.logging import MMLogger
from timm.data import create_dataset
from timm.data.readers.class_map import remap_target
from timm.data.readers.shared_count import SharedCount
from torch.utils.data import IterableDataset, get_worker_info

from ..backbones._errors import UserError
from .samples import NEIGHBOURS, NO_TARGET, blank_image, build_transform, data_error, epoch_batches
from .seeding import drawn_from

_OF_SHARDS = re.compile(r"__[^/]*__($|/)")  # names that webdataset leaves out
Sample = tuple[np.ndarray | torch.Tensor, int, int]

# it warns where there is no _info.json; what cannot be done without one is said below
logging.getLogger("timm.data.readers.reader_wds").setLevel(logging.ERROR)


class ShardStream(IterableDataset):
    """Samples of shards as `TimmDataset` gives them: image, class, and the number of an unreadable sample or -1.

    Args:
        name: `wds/`.
        root: the folder of the shards, or where they are fetched from.
        split: as timm has it: a name in `_info.json`, or `train-{0000..0009}.tar`, with `|N` to take N samples only.
        batch: images a step on this rank.
        group: batches per optimizer step; a training epoch holds whole optimizer steps.
        repeats: augmented copies of an image in an epoch; 0 and 1 mean one.
        limit: at most so many batches an epoch, None for all.
        seed: of the shuffle and of the augmentation.
        others: see `TimmDataset`; further arguments of timm's reader (`input_key`, `target_key` ...).

    Raises:
        UserError: a shard is missing or damaged, or lengths of shards are not known.
    """

    def __init__(
        self,
        name: str,
        root: str,
        split: str,
        batch: int,
        training: bool = False,
        group: int = 1,
        repeats: int = 0,
        limit: int | None = None,
        seed: int = 0,
        model_name: str | None = None,
        transform: dict[str, Any] | None = None,
        **reader: Any,
    ) -> None:
        self.batch, self.training, self.seed, self.copies = batch, training, seed, max(repeats, 1)
        try:  # not as training, for which timm wants the number of samples and deals shards in its own way
            self.images: Any = create_dataset(name, root=root, split=split, is_training=False, **reader)
        except (ImportError, RuntimeError, AssertionError, OSError) as error:
            raise data_error(name, root, error) from error
        self.reader = self.images.reader
        self.transform = build_transform(model_name, transform or {}, training)
        self.urls, self.lengths = _shards(self.reader)
        wanted = self.reader.num_samples or sum(self.lengths)
        if wanted > sum(self.lengths):
            MMLogger.get_current_instance().warning(
                f"{root} holds {sum(self.lengths)} samples, fewer than the {wanted} that are named: all are taken once"
            )
        self.size = min(wanted, sum(self.lengths))
        self.rank, self.world = get_dist_info()
        if training:
            self.count = epoch_batches(self.size, batch, self.world, group, limit) * batch
            self.first = self.rank * -(-self.count // self.copies)
        else:
            self.first, end = _part(self.size, self.rank, self.world)
            self.count = min(end - self.first, limit * batch) if limit else end - self.first
        self.epoch = SharedCount()  # workers that live for several epochs have to hear of the next one
        self.class_to_idx: dict[str, int] = {}
        self.metainfo = {"classes": (), "images": self.size}

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        """Start `epoch`, from its beginning: a stream is not continued in its middle."""
        self.epoch.value = epoch

    def filename(self, index: int) -> str:
        """Where a sample is, for messages."""
        shard, place = self._locate(index)
        return f"{self.urls[shard]}, sample {place + 1}"

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        batches = -(-self.count // self.batch)
        first, last = (part * self.batch for part in _part(batches, number, workers))
        asked = self._asked(first, min(last, self.count))
        if not self.training:
            return self._evaluated(asked)
        reader, draw = self.reader, np.random.default_rng([self.seed, self.epoch.value, self.rank, number])
        return self._replaced(_shuffled(asked, reader.sample_initial_size, reader.sample_shuffle_size, draw))

    def _locate(self, index: int) -> tuple[int, int]:
        ends = list(accumulate(self.lengths))
        shard = next(number for number, end in enumerate(ends) if index < end)
        return shard, index - ends[shard] + self.lengths[shard]

    def _asked(self, first: int, last: int) -> Iterator[tuple[int, int, Any]]:
        """(index of the sample, copy, raw sample) at the places `first` to `last` of this rank's stretch."""
        order, begins = np.arange(len(self.urls)), [0, *accumulate(self.lengths)]
        if self.training:
            order = np.random.default_rng([self.seed, self.epoch.value]).permutation(len(self.urls))
        low, high = self.first + first // self.copies, self.first + -(-last // self.copies)
        place = 0  # in the row of the epoch
        for shard in order.tolist():
            taken = range(max(low - place, 0), min(high - place, self.lengths[shard]))
            for position, raw in _read(self.urls[shard], taken):
                at = (place + position - self.first) * self.copies
                for copy in range(max(first - at, 0), min(last - at, self.copies)):
                    yield begins[shard] + position, copy, raw
            place += self.lengths[shard]

    def _decode(self, index: int, raw: Any) -> tuple[Any, int] | None:
        """The image and its class; None for a sample whose label says that it is to be left out.

        Raises:
            UserError: the label is not where `target_key` says, or not in the class map.
        """
        from timm.data.readers.reader_wds import WdsTargetKeyError  # brings webdataset along

        if raw is None:
            raise ValueError("the shard ends before it")
        reader = self.reader
        if reader.ds is None:
            reader._lazy_init()
        steps: Any = reader.ds
        try:
            decoded = steps.pipeline[-2].args[0](raw)  # timm's `_decode` with the reader's keys
        except WdsTargetKeyError as error:
            raise UserError(f"the label of {self.filename(index)} cannot be read: {error}") from error
        if decoded is None or not reader.remap_class:
            return decoded and (decoded["jpg"], decoded["target"])
        try:
            target = remap_target(decoded["target"], reader.class_to_idx, reader._source_names, reader.dense_target)
        except (KeyError, ValueError) as error:
            raise UserError(f"the class of {self.filename(index)} is not in class_map: {error}") from error
        return decoded["jpg"], target

    def _evaluated(self, asked: Iterator[tuple[int, int, Any]]) -> Iterator[Sample]:
        for index, _, raw in asked:
            try:
                decoded, unreadable = self._decode(index, raw), -1
            except UserError:
                raise
            except Exception:  # Pillow's readers raise whatever their format's decoder raises
                decoded, unreadable = (blank_image(), NO_TARGET), index
            if decoded is not None:
                yield self.transform(decoded[0]), decoded[1], unreadable

    def _replaced(self, asked: Iterator[tuple[int, int, Any]]) -> Iterator[Sample]:
        """A readable sample for each that is asked for: the next one stands in for those that cannot be read."""
        waiting: list[tuple[int, int, int]] = []  # index, copy, index if it is unreadable or -1
        readable: tuple[Any, int] | None = None
        reason = ""
        for index, copy, raw in asked:
            try:
                decoded, unreadable = self._decode(index, raw), -1
            except UserError:
                raise
            except Exception as error:  # see above
                decoded, unreadable, reason = None, index, f"{type(error).__name__}: {error}"
            waiting.append((index, copy, unreadable))
            if decoded is not None:
                readable = decoded
                yield from self._given(waiting, readable)
                waiting.clear()
            elif len(waiting) > NEIGHBOURS:
                break
        if waiting and (readable is None or len(waiting) > NEIGHBOURS):
            last = self.filename(waiting[-1][0])
            raise UserError(f"none of {len(waiting)} samples in a row can be read, up to {last}: {reason}")
        yield from self._given(waiting, readable)

    def _given(self, asked: list[tuple[int, int, int]], decoded: tuple[Any, int] | None) -> Iterator[Sample]:
        for index, copy, unreadable in asked:
            assert decoded is not None
            with drawn_from(self.seed, self.epoch.value, index, copy):
                yield self.transform(decoded[0]), decoded[1], unreadable


def _part(size: int, number: int, parts: int) -> tuple[int, int]:
    """The `number`th of so many contiguous parts of a row, which differ by one at most: where it begins and ends."""
    return size * number // parts, size * (number + 1) // parts


def _shards(reader: Any) -> tuple[list[str], list[int]]:
    """Where the shards are, and how many samples each holds: as `_info.json` says, else counted where they are local.

    Raises:
        UserError: a local shard is missing or damaged; one that is not local has no known length.
    """
    names, known = list(reader.split_info.filenames), dict(_known_lengths(reader.info))
    urls = [os.path.join(reader.root, name) for name in names]  # as timm does, for URLs too
    lengths = []
    for url, name in zip(urls, names, strict=True):
        remote = "://" in url or url.startswith("pipe:")
        if not remote and not Path(url).is_file():
            raise UserError(f"shard {url} does not exist: `split` names the shards, {names[0]} to {names[-1]}")
        if remote and name not in known:
            raise UserError(
                f"how many samples {url} holds is not known, so it cannot be shared out: name filenames and "
                "shard_lengths of each split in _info.json beside the shards"
            )
        lengths.append(known[name] if name in known else _count(Path(url)))
    return urls, lengths


def _known_lengths(info: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for split in (info.get("splits") or {}).values():
        yield from zip(split.get("filenames", ()), split.get("shard_lengths", ()), strict=False)


def _count(path: Path) -> int:
    """Samples in a local shard: runs of files whose names are alike up to the first dot; only headers are read."""
    from webdataset.tariterators import base_plus_ext

    count, last = 0, None
    try:
        with tarfile.open(path) as shard:
            for member in shard:
                key = base_plus_ext(member.name)[0] if member.isreg() else None
                if key is not None and not _OF_SHARDS.match(member.name) and key != last:
                    count, last = count + 1, key
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"shard {path} is damaged: {error}") from error
    return count


def _read(url: str, places: range) -> Iterator[tuple[int, Any]]:
    """(place, raw sample) at these places of a shard; None for what a damaged or vanished shard does not give."""
    import webdataset

    if not places:
        return
    reached = places.start
    samples = webdataset.tarfile_to_samples(handler=lambda error: True)(iter([{"url": url}]))
    for place, sample in enumerate(samples):
        if place in places:
            yield place, sample
            reached = place + 1
        if reached == places.stop:
            break
    yield from ((place, None) for place in range(reached, places.stop))


def _shuffled(items: Iterator[Any], initial: int, most: int, draw: np.random.Generator) -> Iterator[Any]:
    """Items in another order, through a buffer that gives its first when it holds `initial` and grows to `most`."""
    held: list[Any] = []
    for number, item in enumerate(items):
        held.append(item)
        # while it grows, every other item stays in it
        if len(held) > most or (len(held) > initial and number % 2):
            place = int(draw.integers(len(held)))
            held[place], held[-1] = held[-1], held[place]
            yield held.pop()
    draw.shuffle(held)  # type: ignore[arg-type]  # a list is a sequence that it shuffles in place
    yield from held
