"""The order of training samples, reproducible from (seed, epoch) alone.

Each sample is asked for with a seed of its own, so its augmentation depends neither on the number of data workers nor
on what was drawn before it: an interrupted epoch goes on with exactly the batches it would have had.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]
"""(index of the sample, seed of its augmentation): what a training dataset's ``__getitem__`` receives."""


class EpochBatches(Sampler[list[Key]]):
    """Shuffled batches of sample keys for one epoch, starting at any batch.

    Args:
        length: number of samples in the dataset.
        batch_size: samples per batch; an incomplete last batch is left out, unless it is the only one.
        seed: seed of the run.
        rank: number of this process among ``processes``, which share every batch; at most ``batch_size``, so that none
            goes without.
        processes: how many there are; the order does not depend on it.
    """

    def __init__(self, length: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.rank, self.processes = rank, processes
        self.length, self.batch_size, self.seed = length, min(batch_size, length), seed
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.length // self.batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield the epoch's batches from ``first_batch`` on, this process' share of each."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.length).tolist()
        seeds = rng.integers(0, 2**31, self.length).tolist()
        for batch in range(self.first_batch, len(self)):
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            yield list(zip(order[part], seeds[part], strict=True))[self.rank :: self.processes]
