"""Batches of samples: loaded by this process, or by data workers where that pays."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from common import processes
from common.command.cli import say
from common.data.sampling import EpochBatches
from common.samples import SegmentationData
from common.training.estimate import Estimate
from common.training.experiment import Batch

SHORT = 0.05
"""Loading that takes less than this share of the network's time is not worth a worker."""
WORTH = 15.0
"""Seconds that workers must save in a run: they cost some to start."""
SPARE = 1.25
"""Workers load so much faster than the network learns."""


def choose_workers(wanted: int | Literal["auto"], expected: Estimate, batches: int, seconds: float = math.inf) -> int:
    """How many data workers a process has: with ``auto``, as many as keep the network busy, if it would wait.

    Args:
        wanted: ``--workers``.
        expected: what a sample and a batch take.
        batches: of the run.
        seconds: after which it ends in any case.
    """
    if wanted != "auto":
        return wanted
    load, learn = expected.load, max(expected.batch, 1e-9)
    cores = usable_cores() // processes.local_count()
    if load < SHORT * learn or cores < 2 or multiprocessing.get_start_method() != "fork":
        return 0
    workers = min(math.ceil(SPARE * load / learn), cores - 1)
    saved = load + learn - max(load / workers, learn)
    if saved * min(batches, seconds / (load + learn)) < WORTH:
        return 0
    say(
        f"data workers: {workers}, since a batch takes {1000 * expected.load:.0f} ms to load and "
        f"{1000 * expected.batch:.0f} ms to learn"
    )
    return workers


def usable_cores() -> int:
    """Processor cores that this process may use: of a job on a shared machine only its own, where the system tells."""
    own = getattr(os, "sched_getaffinity", None)  # not on Windows and macOS
    return len(own(0)) if own else os.cpu_count() or 1


def training_loader(data: SegmentationData, sampler: EpochBatches, workers: int) -> DataLoader[Batch]:
    """The batches that the sampler has left, at every iteration."""
    return _loader(data, workers, batch_sampler=sampler)


def validation_loader(data: SegmentationData, workers: int = 0) -> DataLoader[Batch]:
    """This process' share of the images, one by one, dealt to the processes in turn."""
    return _loader(part(data, range(processes.rank(), len(data), processes.count())), workers, batch_size=1)


@contextlib.contextmanager
def closing_workers(*loaders: DataLoader[Batch]) -> Iterator[None]:
    """End the workers of loaders after the block, also while an error is on its way whose traceback would keep them.

    They leave signals to this process, so at its end it would wait for them for ever.
    """
    try:
        yield
    finally:
        for loader in loaders:
            if shut_down := getattr(loader._iterator, "_shutdown_workers", None):
                shut_down()


def part(data: SegmentationData, indices: Sequence[int]) -> SegmentationData:
    """Some of the samples."""
    return cast(SegmentationData, Subset(cast("Dataset[Batch]", data), indices))


def _loader(data: SegmentationData, workers: int, **batches: Any) -> DataLoader[Batch]:  # noqa: ANN401
    """Load ``data``; a generator of its own keeps the loader from drawing at the global one whenever it starts."""
    return DataLoader(
        cast("Dataset[Batch]", data),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_to_parent,
        generator=torch.Generator(),
        **batches,
    )


def _leave_signals_to_parent(worker: int) -> None:
    """In a data worker: a signal to the whole process group must not take the data from the batch being finished."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
