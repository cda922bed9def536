"""A worker of a command: its networks, loaded once, what it reports, and when it stops."""

from __future__ import annotations

import io
import math
import os
import pickle
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from distributed import get_worker
from numpy.typing import NDArray

from common.command import progress
from common.command.cli import FULL, one_line
from common.inference.flags import PredictConfig, read_predictor
from common.inference.predictor import Predictor
from common.inference.products import provenance
from common.inference.tally import complaint
from common.networks.task import Task

TOKEN = "token"
"""File in the command's workplace that says for which command workers may write."""
LOOK = 0.5
"""Seconds between two reports of progress."""


class FileJob(Protocol):
    """What a command does with an input."""

    def run(self, path: Path, stem: str, progress: Callable[[int], None]) -> None:
        """Predict an input and write its products."""


@runtime_checkable
class PreparingJob(Protocol):
    """One whose inputs are finished by the command, one after another, of what workers prepare."""

    def prepare(self, path: Path, progress: Callable[[int], None]) -> Mapping[str, NDArray[Any]]:
        """What takes long in an input, and needs no other."""

    def finish(self, path: Path, stem: str, prepared: Mapping[str, NDArray[Any]]) -> None:
        """Write the products of an input of what was prepared."""


class Superseded(BaseException):
    """The command that a worker works for is gone, so it stops; finished rows stay."""


@dataclass(frozen=True)
class Order:
    """All that a worker has to know of a command."""

    task: Task
    config: PredictConfig
    checkpoints: tuple[Path, ...]
    sha256: str
    """Of the checkpoints."""
    job: Callable[[Predictor], FileJob]
    place: Path
    """The command's workplace, on a disk that workers see."""
    token: str
    """Of the command: what lies in the file `TOKEN` there while it lives."""
    folder: Path
    """Working directory, from which the user's paths are seen."""
    threads: int = 0
    """Of a worker; 0 = as it was started."""
    shared: bool = False
    """Workers are on one machine, and take its GPUs in turn."""

    def check(self) -> None:
        """Stop if the command is gone."""
        try:
            current = (self.place / TOKEN).read_text()
        except OSError:
            current = ""
        if current != self.token:
            raise Superseded


class Part(NamedTuple):
    """A finished range of rows, which lies in a folder of the raster's workplace, and its hash."""

    first: int
    last: int
    sha256: str

    @property
    def name(self) -> str:
        """Of the folder."""
        return f"rows-{self.first}-{self.last}"


class Survey(NamedTuple):
    """How far a raster is."""

    key: str
    """Of its rows."""
    rows: int
    """How many are finished."""
    width: int
    parts: list[Part]
    todo: list[tuple[int, int]]
    """Ranges of rows."""


@dataclass
class Outcome:
    """What came of a unit of work."""

    path: Path
    lines: list[str] = field(default_factory=list)
    """To be said."""
    error: str = ""
    kept: bool = False
    """Whether what was finished is of use to the next run."""
    survey: Survey | None = None
    part: Part | None = None


# A worker's own


class Bench(NamedTuple):
    """What a worker process keeps from unit to unit."""

    order: Order
    predictor: Predictor
    job: FileJob


@lru_cache(maxsize=1)
def _loaded(blob: bytes) -> Bench:
    order: Order = pickle.loads(blob)
    os.chdir(order.folder)
    progress.PATIENCE = math.inf  # the command itself says how far it is
    _settle(order)
    if provenance(order.checkpoints, None)["checkpoint_sha256"] != order.sha256:
        raise ValueError(f"{', '.join(map(str, order.checkpoints))}: not the checkpoint that the command began with")
    predictor = read_predictor(order.config, order.task, order.checkpoints)
    return Bench(order, predictor, order.job(predictor))


def _settle(order: Order) -> None:
    """Take the threads and the GPU that are this worker's; both belong to the present thread."""
    if order.threads:
        torch.set_num_threads(order.threads)
    if order.shared and torch.cuda.is_available():
        torch.cuda.set_device(int(get_worker().name) % torch.cuda.device_count())


def bench(blob: bytes) -> Bench:
    """An order and what belongs to it; `Superseded` if the command is gone."""
    found = _loaded(blob)
    found.order.check()
    _settle(found.order)
    return found


def greet(blob: bytes) -> dict[str, str]:
    """Load the networks; say where and how they run, or what is wrong here."""
    try:
        return {"host": platform.node(), "precision": str(bench(blob).predictor.precision)}
    except Superseded:
        error = "does not see the folder of the outputs, which has to be on a disk that all machines share"
    except Exception as problem:
        error = one_line(problem) or type(problem).__name__
    return {"host": platform.node(), "error": error}


class Meter:
    """Tells the command how many pixels of a unit are finished, and stops where the command is gone."""

    def __init__(self, order: Order, *, silent: bool = False) -> None:
        self._order, self._worker, self._silent = order, get_worker(), silent
        self._key = str(self._worker.get_current_task())
        self._told, self.pixels = 0.0, 0

    def __call__(self, count: int) -> None:
        """So many more are finished."""
        self._order.check()
        self.pixels += count
        if not self._silent and time.monotonic() - self._told > LOOK:
            self._told = time.monotonic()
            self._worker.log_event(self._order.token, [self._key, self.pixels])


@contextmanager
def reporting(outcome: Outcome) -> Iterator[None]:
    """Note what is said and what goes wrong."""
    with redirect_stderr(io.StringIO()) as said:
        try:
            yield
        except Exception as error:
            outcome.error = complaint(outcome.path, error)
            outcome.kept = isinstance(error, OSError) and error.errno in FULL
        except Superseded:
            outcome.error, outcome.kept = f"{outcome.path}: the command is gone", True
    outcome.lines = said.getvalue().splitlines()
