"""Inference of many inputs by the workers of a cluster: what is done for each of them, in units of work."""

from __future__ import annotations

import contextlib
import math
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Protocol

import cloudpickle
import numpy as np
import torch
from distributed import Client, wait

from common.command.cli import PARTIAL, one_line, say
from common.files import Workplace
from common.inference.cluster.connect import JOINING, STARTING, connected
from common.inference.cluster.run import Dispatcher, Lost, Plan, Unit
from common.inference.cluster.units import do_ahead, do_files, do_rows, survey
from common.inference.cluster.worker import TOKEN, FileJob, Order, Outcome, PreparingJob, greet
from common.inference.flags import PredictConfig
from common.inference.job import busy
from common.inference.predictor import Predictor
from common.inference.products import provenance
from common.inference.spool import spool_key, workplace
from common.inference.tally import Tally, complaint
from common.outputs import OutputFolder

PLACE = f".workers{Workplace.SUFFIX}"
"""The command's workplace in the folder of the outputs."""
BATCH, BATCH_PIXELS, BATCHES = 32, 4_000_000, 8
"""Small files are done so many at a time, or so many pixels; at least so many times per worker."""
PIECES = 2
"""A raster with more than a worker's share of all pixels, divided by this, is divided."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of a command."""

    paths: Sequence[Path]
    stems: Mapping[Path, str]
    sizes: Mapping[Path, int]
    """Pixels of those that are worked on."""
    in_turn: Sequence[Path] = ()
    """Those that the command itself finishes, in this order, of what workers prepare (`PreparingJob`)."""


class SharedJob(FileJob, Protocol):
    """What a command does with an input, in whatever process."""

    @property
    def outputs(self) -> OutputFolder:
        """Where results go."""

    def origin(self, path: Path) -> Path:
        """The user's file that an input is, or is a part of."""

    def divides(self, path: Path) -> bool:
        """Whether an input can be predicted in ranges of rows."""

    def shipped(self) -> Callable[[Predictor], FileJob]:
        """What makes this job in another process, of the networks that were loaded there."""


def on_workers(config: PredictConfig, predictor: Predictor, job: SharedJob, inputs: Inputs) -> int:
    """Predict inputs on a cluster and write their products; bad ones are named and left out.

    Args:
        config: the command's flags.
        predictor: the network(s), read from files that the workers see too.
        job: what is done with an input.
        inputs: what it is done with.

    Returns:
        The command's exit code.

    Raises:
        ValueError: there is no cluster, its workers cannot work, or another command works in the folder.
    """
    tally = Tally(inputs.paths, inputs.sizes, job.outputs.path)
    try:
        with _journal(job.outputs.path, config) as journal:
            order = order_of(config, predictor, job, journal)
            blob = cloudpickle.dumps(order)
            with connected(config.workers, config.scheduler) as client:
                workers = check_workers(client, blob)
                with tally:
                    plans = Plans(job, inputs, workers, tally, journal)
                    Dispatcher(client, blob, order.token, tally).carry_out(plans.all())
    except Lost as error:
        say(f"error: {error}; {tally.done} of {len(inputs.paths)} files are done: start the command again to go on")
        return PARTIAL
    return tally.close()


class Journal:
    """The command's workplace, and which inputs are finished; a run after a kill goes on behind them.

    Args:
        place: the workplace, held by this command.
        key: all that results depend on besides the inputs.
    """

    def __init__(self, place: Workplace, key: str) -> None:
        self.place, self._key, self.token = place, key, secrets.token_hex(8)
        self._path = place.path / Workplace.KEPT
        self.done = set(self._path.read_text().split()) if self._path.is_file() else set()
        (place.path / TOKEN).write_text(self.token)

    def key(self, path: Path) -> str:
        """What the results of an input depend on."""
        return spool_key(path, {"command": self._key})

    def add(self, path: Path) -> None:
        """Note that an input is finished."""
        with contextlib.suppress(OSError), self._path.open("a") as file:  # it is gone by now, or the disk is full
            file.write(f"{self.key(path)}\n")


@contextmanager
def _journal(folder: Path, config: PredictConfig) -> Iterator[Journal]:
    """Hold a folder of outputs against other commands with workers; what a killed one noted is gone on with."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    place = Workplace(folder / PLACE)
    if not place.claim():
        raise ValueError(f"{folder}: {place.owner()} works there; wait for that to end, or choose another --output-dir")
    try:
        journal = Journal(place, str(replace(config, input=(), workers=0, scheduler="")))
        yield journal
        place.remove()
    finally:
        (place.path / TOKEN).unlink(missing_ok=True)  # workers stop
        if not (place.path / Workplace.KEPT).exists():
            place.remove()
        place.release()
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if nothing came to lie in it


def order_of(config: PredictConfig, predictor: Predictor, job: SharedJob, journal: Journal) -> Order:
    """What the workers have to know of a command."""
    if predictor.task is None:
        raise ValueError("only networks that were read from files can be read by workers")
    shared = {each.name: getattr(config, each.name) for each in fields(PredictConfig)}
    return Order(
        task=predictor.task,
        config=PredictConfig(**shared),
        checkpoints=predictor.checkpoints,
        sha256=provenance(predictor.checkpoints, None)["checkpoint_sha256"],
        job=job.shipped(),
        place=journal.place.path,
        token=journal.token,
        folder=Path.cwd(),
        threads=max(1, torch.get_num_threads() // config.workers) if config.workers else 0,
        shared=bool(config.workers),
    )


def check_workers(client: Client, blob: bytes) -> int:
    """See that every worker can load the networks and sees the outputs, and that all compute alike; their number.

    Raises:
        ValueError: one does not; says why.
    """
    threads = client.nthreads()
    if wrong := [address for address, count in threads.items() if count != 1]:
        raise ValueError(
            f"worker {wrong[0]} has {threads[wrong[0]]} threads for units of work: start workers with --nthreads 1; "
            "one unit uses all the cores that OMP_NUM_THREADS allows"
        )
    greetings = {address: client.submit(greet, blob, workers=[address], pure=False) for address in threads}
    with contextlib.suppress(TimeoutError):
        wait(list(greetings.values()), timeout=STARTING)
    alike: dict[str, str] = {}
    for address, future in greetings.items():
        try:
            said = future.result(timeout=JOINING if future.done() else 0.1)
        except Exception as error:
            hint = " (PYTHONPATH has to name this repository there)" if isinstance(error, ImportError) else ""
            said = {"error": f"{one_line(error) or type(error).__name__}{hint}"}
        if "error" in said:
            raise ValueError(f"worker {address}: {said['error']}")
        alike[said["precision"]] = address
    if len(alike) > 1:
        told = ", ".join(f"{address} with {precision}" for precision, address in alike.items())
        raise ValueError(f"the workers compute differently ({told}): choose --device and --amp, or workers of one kind")
    return len(threads)


class Plans:
    """What is done for each input, in units of work."""

    def __init__(self, job: SharedJob, inputs: Inputs, workers: int, tally: Tally, journal: Journal) -> None:
        self._job, self._inputs, self._workers, self._tally, self._journal = job, inputs, workers, tally, journal
        self._folder = job.outputs.path
        self._share = max(1, sum(inputs.sizes.values()) // workers)
        self._turn = deque(path for path in inputs.in_turn if path in inputs.sizes)
        self._ready: dict[Path, Outcome] = {}

    def all(self) -> Iterator[Plan]:
        """The plans of all inputs that are not finished."""
        paths = [path for path in self._inputs.paths if path in self._inputs.sizes]
        in_turn = set(self._turn)
        before = {path for path in paths if path not in in_turn and self._is_done(path)}
        if before:
            say(f"{len(before)} of {len(paths)} files were finished before, going on with the others")
        for path in before:
            self._tally.ended(path)
        batch: list[Path] = []
        for path in paths:
            if path in before:
                continue
            if path in in_turn:
                yield self.ahead(path)
                continue
            pieces = math.ceil(PIECES * self._inputs.sizes[path] / self._share)
            if (pieces > 1 or any(self._place(path).path.glob("rows-*"))) and self._job.divides(path):
                yield self.raster(path, pieces)
                continue
            batch.append(path)
            if self._is_full(batch):
                yield self.files(batch)
                batch = []
        if batch:
            yield self.files(batch)

    def _is_done(self, path: Path) -> bool:
        """Whether a run before finished an input, and what it wrote is still there."""
        if not self._journal.done or self._journal.key(path) not in self._journal.done:
            return False
        return all((self._folder / name).exists() for name in self._job.outputs.written(self._job.origin(path)))

    def _is_full(self, batch: Sequence[Path]) -> bool:
        pixels = sum(self._inputs.sizes[path] for path in batch)
        return len(batch) >= BATCH or pixels >= min(BATCH_PIXELS, self._share // BATCHES)

    def _place(self, path: Path) -> Workplace:
        return workplace(self._folder, self._inputs.stems[path], self._job.origin(path))

    def _ended(self, outcome: Outcome) -> None:
        self._tally.ended(outcome.path, outcome.error)
        if not outcome.error:
            self._journal.add(outcome.path)

    def files(self, paths: Sequence[Path]) -> Plan:
        """Whole inputs."""

        def unit(some: Sequence[Path]) -> Unit:
            named = [(path, self._inputs.stems[path]) for path in some]
            split = (lambda: [unit([path]) for path in some]) if len(some) > 1 else None
            return Unit(", ".join(map(str, some)), do_files, (named,), list(some), split=split)

        for outcome in (yield [unit(paths)]):
            self._ended(outcome)

    def ahead(self, path: Path) -> Plan:
        """What takes long in an input; its turn comes when those before it are finished."""
        name = f"{self._inputs.stems[path]}.npz"
        (self._ready[path],) = yield [Unit(str(path), do_ahead, (path, name), [path])]
        while self._turn and self._turn[0] in self._ready:
            path = self._turn.popleft()
            self._finish(path, self._ready.pop(path))

    def _finish(self, path: Path, outcome: Outcome) -> None:
        """Finish an input of what a worker prepared."""
        stem = self._inputs.stems[path]
        file = self._journal.place.path / f"{stem}.npz"
        if not outcome.error:
            try:
                assert isinstance(self._job, PreparingJob)
                with np.load(file) as prepared:
                    self._job.finish(path, stem, dict(prepared))
            except Exception as error:  # decoders, disks...: as of any input
                outcome.error = complaint(path, error)
        file.unlink(missing_ok=True)
        self._tally.ended(path, outcome.error)

    def raster(self, path: Path, pieces: int) -> Plan:
        """Ranges of a raster's rows, then what is made of them."""
        try:
            yield from self._raster(path, pieces)
        except Exception as error:  # of its workplace: no rights, a full disk
            self._tally.ended(path, complaint(path, error))

    def _raster(self, path: Path, pieces: int) -> Plan:
        stem, place = self._inputs.stems[path], self._place(path)
        origin = self._job.origin(path)
        if not place.claim():
            self._tally.ended(path, busy(place, origin))
            return
        try:
            (found,) = yield [Unit(str(path), survey, (path, stem, pieces, self._workers), [path])]
            if found.survey is None:
                self._failed(place, found)
                return
            key, rows, width, parts, todo = found.survey
            if not rows and len(todo) == 1:  # no range for others
                todo = []
            self._tally.advance(path, rows * width)
            done = yield [
                Unit(
                    f"{path}, rows {first} to {last}",
                    do_rows,
                    (path, stem, (first, last), key),
                    [path],
                    pixels=(last - first) * width,
                    needed=True,
                )
                for first, last in todo
            ]
            if bad := sorted((outcome for outcome in done if outcome.error), key=lambda outcome: outcome.kept):
                self._failed(place, bad[0])
                return
        finally:
            place.release()
        parts = sorted([*parts, *(outcome.part for outcome in done if outcome.part)], key=lambda part: part.first)
        for outcome in (yield [Unit(str(path), do_files, ([(path, stem)], parts), [path])]):
            self._ended(outcome)

    def _failed(self, place: Workplace, outcome: Outcome) -> None:
        """A raster is left out; its finished rows stay if they are of use."""
        self._tally.ended(outcome.path, outcome.error)
        if outcome.kept:
            say(f"note: {outcome.path}: the finished rows stay in {place.path}; the next run goes on there")
        else:
            place.remove()
