"""A Dask cluster: one that exists, or workers that are started on this machine and listen on its loopback alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed import Client, LocalCluster

from common.command.cli import one_line
from common.files import read_json

JOINING, STARTING = 20.0, 120.0
"""Seconds until a scheduler has to answer, and until workers have to be there."""
LONGEST = 160
"""Letters of a library's reason that are said."""
SCHEMES = ("tcp://", "tls://")


@contextmanager
def connected(workers: int, scheduler: str) -> Iterator[Client]:
    """A client of a cluster that has workers.

    Args:
        workers: how many processes are started here; 0 = those of the scheduler.
        scheduler: address of a scheduler, or the file that it wrote.

    Raises:
        ValueError: nothing can be started, nothing answers, or there are no workers.
    """
    for name in ("distributed", "tornado", "asyncio"):  # what happens is said by us, in a line
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with _started(workers) if workers else _joined(scheduler) as client:
        yield client


@contextmanager
def _started(workers: int) -> Iterator[Client]:
    try:
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,  # a unit of work uses the cores of its process by itself
            host="127.0.0.1",
            dashboard_address=None,
            memory_limit=0,
            silence_logs=logging.CRITICAL + 1,
            scheduler_kwargs={
                "allowed_failures": 0,  # every death is told, and counted by us
                "dashboard_address": "127.0.0.1:0",  # its health page would take a fixed port
            },
        )
    except Exception as error:  # multiprocessing, tornado, the system's limits: nearly anything
        raise ValueError(f"--workers {workers}: the workers cannot be started: {one_line(error)}") from error
    with cluster, Client(cluster, timeout=JOINING) as client:
        client.wait_for_workers(workers, timeout=STARTING)
        yield client


@contextmanager
def _joined(scheduler: str) -> Iterator[Client]:
    address = address_of(scheduler)
    try:
        client = Client(address, timeout=JOINING)
    except Exception as error:  # of sockets, TLS, versions
        reason = one_line(error)[:LONGEST] or type(error).__name__
        raise ValueError(
            f"--scheduler {scheduler}: no scheduler answers at {address} ({reason}); start one with: dask scheduler"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=JOINING)
        except TimeoutError:
            raise ValueError(
                f"--scheduler {scheduler}: it has no workers; start some with: dask worker --nthreads 1 {address}"
            ) from None
        yield client


def address_of(scheduler: str) -> str:
    """The address that ``--scheduler`` names, itself or by the file that a scheduler wrote.

    Raises:
        ValueError: it is neither.
    """
    if "://" in scheduler:
        if not scheduler.startswith(SCHEMES):
            raise ValueError(f"--scheduler {scheduler}: the address begins with tcp:// or tls://")
        return scheduler
    path = Path(scheduler)
    if not path.exists():
        raise ValueError(
            f"--scheduler {scheduler}: there is no such file; give the one that dask scheduler --scheduler-file wrote, "
            "or an address such as tcp://HOST:8786"
        )
    try:
        return str(read_json(path)["address"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"--scheduler {scheduler}: no scheduler wrote this file; {one_line(error)}") from error
