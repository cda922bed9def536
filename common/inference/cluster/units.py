"""What a worker does: whole inputs, or ranges of a large raster's rows, which it leaves as parts on the shared disk."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from distributed import get_worker

from common.command import progress
from common.command.cli import FULL, one_line, say
from common.files import Workplace, read_json, remove, write_text
from common.inference.flags import PredictConfig, read_predictor
from common.inference.job import Job, busy
from common.inference.predictor import Predictor
from common.inference.products import provenance
from common.inference.spool import Spool, digest, workplace
from common.inference.stream import GOING_ON, kept_layers, open_spool, predict_bands
from common.inference.tally import complaint
from common.networks.task import Task

TOKEN = "token"
"""File in the command's workplace that says for which command workers may write."""
WHOLE = "whole.json"
"""File in a finished part: its key and hash."""
BANDS = 8
"""A range of a raster's rows has as many bands, or more."""
LOOK, PATIENCE = 0.5, 600.0
"""Seconds between two reports of progress; and until a part must be free that a worker given up still works on."""


class FileJob(Protocol):
    """What a command does with an input."""

    def run(self, path: Path, stem: str, progress: Callable[[int], None]) -> None:
        """Predict an input and write its products."""


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
    if order.threads:
        torch.set_num_threads(order.threads)
    _take_gpu(order)
    if provenance(order.checkpoints, None)["checkpoint_sha256"] != order.sha256:
        raise ValueError(f"{', '.join(map(str, order.checkpoints))}: not the checkpoint that the command began with")
    predictor = read_predictor(order.config, order.task, order.checkpoints)
    return Bench(order, predictor, order.job(predictor))


def _take_gpu(order: Order) -> None:
    if order.shared and torch.cuda.is_available():
        torch.cuda.set_device(int(get_worker().name) % torch.cuda.device_count())


def bench(blob: bytes) -> Bench:
    """An order and what belongs to it; `Superseded` if the command is gone."""
    found = _loaded(blob)
    found.order.check()
    _take_gpu(found.order)  # of the present thread
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


# Units of work


def do_files(blob: bytes, inputs: Sequence[tuple[Path, str]], parts: Sequence[Part] = ()) -> list[Outcome]:
    """Predict inputs and write their products.

    Args:
        blob: the pickled order.
        inputs: paths and stems.
        parts: of the only input, finished before, in order.
    """
    outcomes = []
    for path, stem in inputs:
        outcome = Outcome(path)
        outcomes.append(outcome)
        with reporting(outcome):
            order, _, job = bench(blob)
            if parts:
                assert isinstance(job, Job)
                join(job, path, stem, parts)
            job.run(path, stem, Meter(order, silent=bool(parts)))
        if parts:
            outcome.lines = [line for line in outcome.lines if GOING_ON not in line]
    return outcomes


def join(job: Job, path: Path, stem: str, parts: Sequence[Part]) -> None:
    """Put finished parts together; the job goes on where they end, or where one is damaged."""
    origin = job.origin(path)
    place = workplace(job.outputs.path, stem, origin)
    if not place.claim():
        raise ValueError(busy(place, origin))
    try:
        predictor, size, value_range = job.reading(path)
        spool = open_spool(path, predictor, place.path, job.products, size, value_range)
        for part in parts:
            folder = place.path / part.name
            if part.first == spool.rows and digest(folder) == part.sha256:
                spool.extend(folder, part.last - part.first)
            remove(folder)
    finally:
        place.release()


def range_of(name: str) -> tuple[int, int]:
    """First row and end of a part, finished or not, by the name of its folder."""
    first, last = name.removesuffix(Workplace.SUFFIX).split("-")[1:]
    return int(first), int(last)


def rows_of(folder: Path) -> int:
    """Finished rows of a part that was begun."""
    try:
        return int(read_json(folder / Workplace.KEPT)["rows"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0


def whole(folder: Path, key: str) -> str:
    """The hash of a finished part; nothing if there is none, or if it is damaged or of other rows."""
    try:
        said = read_json(folder / WHOLE)
        return str(said["sha256"]) if (said["key"], said["sha256"]) == (key, digest(folder)) else ""
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def survey(blob: bytes, path: Path, stem: str, pieces: int, workers: int) -> list[Outcome]:
    """See how far a raster is and divide the rest; what is of no use any more is removed.

    Args:
        blob: the pickled order.
        path: the raster.
        stem: of its results.
        pieces: ranges of rows wanted.
        workers: of the cluster.
    """
    outcome = Outcome(path)
    with reporting(outcome):
        _, _, job = bench(blob)
        assert isinstance(job, Job)
        place = workplace(job.outputs.path, stem, job.origin(path)).path
        predictor, size, value_range = job.reading(path)
        spool = open_spool(path, predictor, place, job.products, size, value_range)
        spool.keep()
        edges = predictor.band_edges(size)
        parts, begun = found_parts(place, spool, edges)
        known = sorted([(0, spool.rows), *(part[:2] for part in parts), *begun, (size[0], size[0])])
        gaps = [(before[1], after[0]) for before, after in pairwise(known)]
        count = pieces_of(len(edges) - 1, pieces, workers)
        todo = sorted([*begun, *(piece for gap in gaps for piece in divide(edges, gap, count))])
        rows = size[0] - sum(last - first for first, last in todo)
        if finished := rows + sum(rows_of(place / f"{Part(*each, '').name}{Workplace.SUFFIX}") for each in begun):
            say(f"{path}: {finished} of {size[0]} {GOING_ON}")
        outcome.survey = Survey(spool.key, rows, size[1], parts, todo)
    return [outcome]


def found_parts(place: Path, spool: Spool, edges: Sequence[int]) -> tuple[list[Part], list[tuple[int, int]]]:
    """Finished parts behind a spool's rows, and ranges that were begun; whatever else there is of parts is removed."""
    parts: list[Part] = []
    begun: list[tuple[int, int]] = []
    end = spool.rows
    for folder in sorted(place.glob("rows-*-*"), key=lambda path: range_of(path.name)):
        first, last = range_of(folder.name)
        if end <= first < last and first in edges and last in edges:
            if sha256 := whole(folder, spool.key):
                parts.append(Part(first, last, sha256))
                end = last
                continue
            if folder.name.endswith(Workplace.SUFFIX):
                begun.append((first, last))
                end = last
                continue
        remove(folder)
    return parts, begun


def pieces_of(bands: int, wanted: int, workers: int) -> int:
    """Into how many ranges a raster is divided: at each cut a row of tiles is predicted twice, so into few."""
    most = max(bands // BANDS, min(workers, bands // 2), 1)
    count = min(wanted, most)
    return count // workers * workers if count > workers else count


def divide(edges: Sequence[int], gap: tuple[int, int], pieces: int) -> list[tuple[int, int]]:
    """Divide rows between two ends of bands into ranges of about as many bands; ``pieces`` = of the whole raster."""
    inside = [edge for edge in edges if gap[0] <= edge <= gap[1]]
    bands = len(inside) - 1
    count = min(bands, max(1, round(bands * pieces / (len(edges) - 1)))) if bands > 0 else 0
    cuts = [inside[round(index * bands / count)] for index in range(count + 1)] if count else []
    return list(pairwise(cuts))


def do_rows(blob: bytes, path: Path, stem: str, rows: tuple[int, int], key: str) -> list[Outcome]:
    """Predict a range of a raster's rows into a part of its own, unless that is there and whole.

    Args:
        blob: the pickled order.
        path: the raster.
        stem: of its results.
        rows: first row and end.
        key: of the raster's rows.
    """
    outcome = Outcome(path)
    with reporting(outcome):
        order, _, job = bench(blob)
        assert isinstance(job, Job)
        done = workplace(job.outputs.path, stem, job.origin(path)).path / Part(*rows, "").name
        sha256 = whole(done, key) or _predict_part(order, job, path, done, rows, key)
        outcome.part = Part(*rows, sha256)
    return [outcome]


def _predict_part(order: Order, job: Job, path: Path, done: Path, rows: tuple[int, int], key: str) -> str:
    """Predict rows under a temporary name, which a killed worker's successor goes on with; then rename."""
    meter, place = Meter(order), Workplace(done.with_name(done.name + Workplace.SUFFIX))
    until = time.monotonic() + PATIENCE
    while not place.claim():  # a worker that was given up
        if time.monotonic() > until:
            raise ValueError(busy(place, path))
        meter(0)
        time.sleep(LOOK)
    try:
        predictor, (height, width), value_range = job.reading(path)
        edges = [edge - rows[0] for edge in predictor.band_edges((height, width))]
        size, layers = (rows[1] - rows[0], width), kept_layers(predictor, job.products)
        part = Spool(place.path, size, layers, f"{key} {rows}", edges)
        meter(part.rows * width)
        start = rows[0] + part.rows
        with closing(predict_bands(path, predictor, layers, (start, rows[1]), input_range=value_range)) as bands:
            for _, band in bands:
                part.append(band)
                meter(band["mask"].size)
        sha256 = digest(place.path)
        write_text(place.path / WHOLE, json.dumps({"key": key, "sha256": sha256}))
    finally:
        place.release()
    place.path.rename(done)
    return sha256
