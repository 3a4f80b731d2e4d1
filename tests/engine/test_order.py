"""An order of samples that is continued in its middle, with augmentation that hangs on nothing but the place in it."""

import logging
import random
import sys
from collections.abc import Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import BatchSampler, DataLoader, Sampler
from vertebra.backbones._errors import UserError
from vertebra.engine.order import ContinuedBatches, continued, order_of


class Numbers:
    """A data set whose samples are their index and what was drawn for them."""

    metainfo: ClassVar = {"classes": ("one",)}

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> tuple[int, float, float]:
        return index, random.random(), float(np.random.rand())


def dealt(epoch: int, skip: int = 0, workers: int = 0, seed: int = 3, count: int | None = None, **kinds: Any) -> list:
    """The batches of an epoch, or `count` of them."""
    kind = kinds.get("kind", DefaultSampler)
    numbers = Numbers()
    plain = DataLoader(
        numbers, batch_size=2, sampler=kind(numbers, shuffle=True, seed=seed), num_workers=workers, collate_fn=list
    )
    loader = continued(plain, seed, kinds.get("group", 1))
    order_of(loader).set_epoch(epoch, skip)
    batches = iter(loader)
    return list(batches) if count is None else [next(batches) for _ in range(count)]


def test_an_epoch_is_continued_as_it_would_have_gone_on() -> None:
    whole = dealt(epoch=1)
    assert len(whole) == 6
    assert dealt(epoch=1, skip=4) == whole[4:]
    assert dealt(epoch=1, skip=6) == []


def test_what_does_not_fill_an_optimizer_step_stays_out() -> None:
    whole = dealt(epoch=1)
    assert dealt(epoch=1, group=4) == whole[:4]
    assert dealt(epoch=1, group=4, skip=2) == whole[2:4]
    with pytest.raises(UserError, match="11 training images are fewer than one step takes"):
        dealt(epoch=1, group=7)


def test_a_batch_sampler_that_keeps_leftovers_begins_every_epoch_without_any() -> None:
    samplers = pytest.importorskip("mmdet.datasets.samplers")
    numbers = Numbers()
    numbers.get_data_info = lambda index: {"width": index % 3, "height": 1}  # narrow and wide ones

    def batches(epochs: list[int]) -> list[list[tuple[int, int]]]:
        inner = samplers.AspectRatioBatchSampler(DefaultSampler(numbers, shuffle=True, seed=0), batch_size=2)
        order = ContinuedBatches(inner, group=4)
        for epoch in epochs:
            order.set_epoch(epoch)
            last = list(order)
        return last

    assert batches([0, 1]) == batches([1])


def test_workers_change_nothing() -> None:
    assert dealt(epoch=1, skip=1, workers=2) == dealt(epoch=1, skip=1)


@pytest.mark.parametrize("other", [{"epoch": 2}, {"epoch": 1, "seed": 4}])
def test_another_epoch_or_seed_is_another_order_and_other_draws(other: dict[str, int]) -> None:
    one, two = ({index: drawn for batch in dealt(**how) for index, *drawn in batch} for how in ({"epoch": 1}, other))
    assert one.keys() == two.keys()
    assert all(one[index] != two[index] for index in one)


def test_an_order_without_end_is_continued_too_and_never_draws_the_same_twice() -> None:
    long = dealt(epoch=0, count=20, kind=InfiniteSampler)
    assert dealt(epoch=0, skip=15, count=5, kind=InfiniteSampler) == long[15:]
    drawn = [tuple(draws) for batch in long for _, *draws in batch]
    assert len(set(drawn)) == len(drawn)


class Sources(Numbers):
    """Five and six samples of two sources, as mmengine's ConcatDataset tells them."""

    def __init__(self) -> None:
        self.datasets, self.cumulative_sizes = (range(5), range(6)), [5, 11]


def test_batches_of_several_sources_go_on_for_ever_and_are_continued() -> None:
    samplers = pytest.importorskip("mmdet.datasets.samplers")

    def batches(skip: int, count: int) -> list[list[tuple[int, int]]]:
        sources = Sources()
        inner = BatchSampler(samplers.MultiSourceSampler(sources, 3, [1, 2], seed=0), 3, drop_last=False)
        order = ContinuedBatches(inner)
        order.set_epoch(0, skip)
        return list(islice(order, count))

    long = batches(0, 20)
    assert all([index < 5 for _, index in batch] == [True, False, False] for batch in long)
    assert batches(15, 5) == long[15:]


class Rolling(Sampler):
    """Deals what the process's own generator draws, as mmdet's GroupMultiSourceSampler does."""

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.randint(11) for _ in range(11))

    def __len__(self) -> int:
        return 11


def test_an_order_that_is_drawn_from_the_process_depends_on_the_place_alone() -> None:
    def batches(skip: int, drawn_before: int, seed: int = 0) -> list[list[tuple[int, int]]]:
        np.random.seed(drawn_before)
        order = ContinuedBatches(BatchSampler(Rolling(), 2, drop_last=False), seed=seed)
        order.set_epoch(1, skip)
        return list(order)

    whole = batches(0, drawn_before=1)
    assert batches(2, drawn_before=2) == whole[2:]
    assert batches(0, drawn_before=1, seed=4) != whole


class Piped(Numbers):
    """A data set with a pipeline, as mmdet's have one."""

    pipeline: Any = staticmethod(lambda index: index)

    def __getitem__(self, index: int) -> int:
        return self.pipeline(index)


def minus(index: int) -> int:
    return -index


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pipeline_that_a_hook_puts_in_reaches_the_data_set_and_its_workers(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = pytest.importorskip("mmdet.engine.hooks")
    monkeypatch.setattr(sys.modules[hooks.PipelineSwitchHook.__module__], "Compose", lambda pipeline: pipeline)
    numbers = Piped()
    plain = DataLoader(numbers, batch_size=11, sampler=DefaultSampler(numbers), num_workers=workers, collate_fn=sorted)
    loader = continued(plain, seed=0)
    runner = SimpleNamespace(train_dataloader=loader, logger=logging.getLogger(), epoch=0)
    hook = hooks.PipelineSwitchHook(1, minus)
    seen = []
    for runner.epoch in range(3):
        hook.before_train_epoch(runner)
        seen += list(loader)
    assert seen == [list(range(11)), *[list(range(-10, 1))] * 2]


def test_what_is_asked_of_the_data_set_is_answered_by_it() -> None:
    numbers = Numbers()
    loader = continued(DataLoader(numbers, batch_size=3, sampler=DefaultSampler(numbers)), seed=0)
    assert loader.dataset.metainfo == {"classes": ("one",)}
    assert len(loader.dataset) == 11
    assert len(loader) == 4
