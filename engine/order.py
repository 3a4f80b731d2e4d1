"""Any data set of mmdet or mmseg in an order that can be continued in its middle.

mmengine builds data set, sampler and batch sampler as the config says. Added here: a sample draws its augmentation from
(seed, epoch, index), whichever worker it meets, and batches that were taken before are left out without being read.
"""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from ..backbones._errors import UserError
from .data import start_worker, usable_workers
from .dense_samples import CheckedSteps
from .seeding import drawn_from

_ENDLESS = ("Infinite", "MultiSource")  # in the names of mmengine's and mmdet's samplers that never end


class SeededSamples(Dataset):
    """A data set whose samples are asked for by (epoch, index); all else is the data set's own, what is set too."""

    def __init__(self, samples: Any, seed: int) -> None:
        self.samples, self.seed = samples, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        with drawn_from(self.seed, epoch, index):
            return self.samples[index]

    def __getattr__(self, name: str) -> Any:
        if name == "samples":  # asked for by pickle, before there is one
            raise AttributeError(name)
        return getattr(self.samples, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("samples", "seed"):
            super().__setattr__(name, value)
            return
        # mmdet's PipelineSwitchHook puts another pipeline here in the middle of a run: its samples are checked too
        checked = getattr(self.samples, name, None)
        if name == "pipeline" and isinstance(checked, CheckedSteps):
            value = CheckedSteps(value, self.samples, checked.training)
        setattr(self.samples, name, value)


class ContinuedBatches(Sampler):
    """Batches of (epoch, index), as another sampler deals indices, without the first `skip` of them.

    Where that one never ends, the number of a batch stands for the epoch, so that no two augmentations are alike. Where
    it does, what does not fill a group of batches, which make one optimizer step, stays out. What the other sampler
    draws from the process's own generators comes from (seed, epoch, number of the batch).
    """

    def __init__(self, batches: BatchSampler, group: int = 1, seed: int = 0) -> None:
        self.batches, self.group, self.seed, self.epoch, self.skip = batches, group, seed, 0, 0

    @property
    def sampler(self) -> Sampler:
        """What deals single indices; mmengine's hooks look for it here."""
        return self.batches.sampler

    @property
    def endless(self) -> bool:
        """Whether the indices go on for ever."""
        return any(name in type(self.sampler).__name__ for name in _ENDLESS)

    def set_epoch(self, epoch: int, skip_batches: int = 0) -> None:
        """Start `epoch`, leaving out the batches of it that have been taken already."""
        self.epoch, self.skip = epoch, skip_batches
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches) // self.group * self.group

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches, number, count = iter(self.batches), -1, None if self.endless else len(self)
        while True:
            number += 1
            with drawn_from(self.seed, self.epoch, number):
                batch = next(batches, None)
            # the other sampler is heard to its end: mmdet's keep what is left over for the next epoch otherwise
            if batch is None:
                return
            if number >= self.skip and (count is None or number < count):
                epoch = number if count is None else self.epoch
                yield [(epoch, index) for index in batch]


def continued(loader: DataLoader, seed: int, group: int = 1) -> DataLoader:
    """The same loader, with samples that are seeded one by one and an order that can be continued.

    Raises:
        UserError: the data makes less than one group of batches, which are an optimizer step.
    """
    workers = usable_workers(loader.num_workers)
    batches = ContinuedBatches(loader.batch_sampler, group, seed)
    if not batches.endless and not len(batches):
        raise UserError(
            f"{len(loader.dataset)} training images are fewer than one step takes ({group} accumulated): lower "
            "train_dataloader.batch_size"
        )
    several: dict[str, Any] = {"prefetch_factor": loader.prefetch_factor, "persistent_workers": True} if workers else {}
    return DataLoader(
        SeededSamples(loader.dataset, seed),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout if workers else 0,
        worker_init_fn=start_worker,
        **several,
    )


def order_of(loader: DataLoader) -> Any:
    """What deals the loader's samples and can leave some out: has `skip` and `set_epoch`; None where nothing can."""
    return next((order for order in (loader.batch_sampler, loader.sampler) if hasattr(order, "skip")), None)
