"""The command's side: gives out units of work, counts what is finished, goes on where a run before ended.

What is to be done for an input is a plan: a generator that yields units of work and is sent what came of them. A few
units per worker are under way at a time. When a worker dies its unit begins again; one that killed its worker `DEATHS`
times, at last while nothing else was under way, is named and left out.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed import Client, Future, KilledWorker

from common.command.cli import one_line, say
from common.inference.cluster.worker import Outcome
from common.inference.tally import Tally

DEATHS = 3
IN_FLIGHT = 2
"""Units per worker that are under way."""
LOOK, WITHOUT_WORKERS = 5.0, 60.0
"""Seconds between two looks at the workers, and after which a run without any gives up."""


class Lost(RuntimeError):
    """The scheduler is gone, or all workers are; what was finished stays."""


@dataclass(eq=False)
class Unit:
    """A piece of work for one worker."""

    what: str
    """For messages."""
    work: Callable[..., list[Outcome]]
    arguments: tuple[Any, ...]
    paths: list[Path]
    pixels: float = 0
    """That are finished with it; 0 = those of the inputs."""
    split: Callable[[], list[Unit]] | None = None
    """Smaller units that are the same."""
    needed: bool = False
    """Without it the others that its plan waits for are of no use."""
    deaths: int = 0
    alone: bool = False
    """Nothing else is under way meanwhile."""
    shown: float = 0
    """Pixels of it that were told of."""


Plan = Generator[list[Unit], list[Outcome], None]


@dataclass(eq=False)
class _Wait:
    """A plan that waits for units."""

    plan: Plan
    units: list[Unit] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)


class Dispatcher:
    """Gives out the units of plans.

    Args:
        client: of the cluster.
        blob: the pickled order, first argument of every unit.
        topic: of the workers' reports.
        tally: what became of the inputs.
    """

    def __init__(self, client: Client, blob: bytes, topic: str, tally: Tally) -> None:
        self._client, self._blob, self._topic, self._tally = client, blob, topic, tally
        self._workers, self._seen, self._looked = 1, time.monotonic(), 0.0
        self._pending: deque[tuple[_Wait, Unit]] = deque()
        self._suspects: deque[tuple[_Wait, Unit]] = deque()
        self._flying: dict[str, tuple[_Wait, Unit, Future]] = {}
        self._inbox: queue.SimpleQueue[tuple[str, float | None]] = queue.SimpleQueue()
        self._said: set[str] = set()
        self._number = 0
        client.subscribe_topic(topic, lambda event: self._inbox.put(tuple(event[1])))

    def carry_out(self, plans: Iterator[Plan]) -> None:
        """Work until all plans have come to their ends.

        Raises:
            Lost: the scheduler or all workers are gone.
        """
        self._look()
        while self._fill(plans):
            try:
                key, pixels = self._inbox.get(timeout=LOOK)
            except queue.Empty:
                pass
            else:
                self._receive(key, pixels)
            if time.monotonic() - self._looked > LOOK:
                self._look()

    def _look(self) -> None:
        """See how many workers there are."""
        try:
            self._workers = len(self._client.nthreads())
        except Exception as error:  # of sockets and of futures
            raise Lost(f"the scheduler does not answer ({one_line(error) or type(error).__name__})") from error
        self._looked = time.monotonic()
        if self._workers:
            self._seen = self._looked
        elif self._looked - self._seen > WITHOUT_WORKERS:
            raise Lost(f"there was no worker for {WITHOUT_WORKERS:.0f} s")

    def _fill(self, plans: Iterator[Plan]) -> bool:
        """Keep some units under way; False when nothing is left to do."""
        while len(self._flying) < IN_FLIGHT * max(1, self._workers) and not self._alone():
            if self._pending:
                self._submit(*self._pending.popleft())
            elif (plan := next(plans, None)) is not None:
                self._proceed(plan, None)
            elif self._suspects and not self._flying:
                wait, unit = self._suspects.popleft()
                unit.alone = True
                self._submit(wait, unit)
            else:
                break
        return bool(self._flying)

    def _alone(self) -> bool:
        return any(unit.alone for _, unit, _ in self._flying.values())

    def _submit(self, wait: _Wait, unit: Unit) -> None:
        self._number += 1
        key = f"{unit.work.__name__}-{self._topic}-{self._number}"
        future = self._client.submit(unit.work, self._blob, *unit.arguments, key=key, pure=False)
        self._flying[key] = wait, unit, future
        future.add_done_callback(lambda done: self._inbox.put((done.key, None)))

    def _proceed(self, plan: Plan, outcomes: list[Outcome] | None) -> None:
        """Let a plan go on to its next units."""
        try:
            units = plan.send(outcomes) if outcomes is not None else next(plan)
            while not units:
                units = plan.send([])
        except StopIteration:
            return
        wait = _Wait(plan, units)
        self._pending.extend((wait, unit) for unit in units)

    def _receive(self, key: str, pixels: float | None) -> None:
        """Take notice of progress (``pixels``), or of a unit that is done."""
        if key not in self._flying:
            return
        wait, unit, future = self._flying[key]
        if pixels is not None:
            self._tally.advance(unit.paths[0], pixels - unit.shown)
            unit.shown = pixels
            return
        del self._flying[key]
        try:
            outcomes = future.result()
        except KilledWorker as error:
            self._died(wait, unit, error.allowed_failures + 1)
        except Exception as error:
            if future.cancelled():
                raise Lost("the connection to the scheduler broke") from error
            self._finish(wait, unit, [Outcome(path, error=f"{path}: {one_line(error)}") for path in unit.paths])
        else:
            self._finish(wait, unit, outcomes)

    def _died(self, wait: _Wait, unit: Unit, times: int) -> None:
        """A unit's worker died; the unit begins again, unless that is its own doing."""
        unit.deaths += times
        self._tally.advance(unit.paths[0], -unit.shown)
        unit.shown = 0
        if unit.alone and unit.deaths >= DEATHS:
            error = f"{unit.what}: killed its worker {unit.deaths} times (too little memory?), so it is left out"
            self._finish(wait, unit, [Outcome(path, error=error, kept=True) for path in unit.paths])
            return
        say(f"note: {unit.what}: its worker died; this begins again with another")
        again = [unit]
        if unit.split is not None:
            again = unit.split()
            at = wait.units.index(unit)
            wait.units[at : at + 1] = again
            for one in again:
                one.deaths = unit.deaths
        todo = self._suspects if unit.deaths >= DEATHS - 1 else self._pending
        todo.extend((wait, one) for one in again)

    def _finish(self, wait: _Wait, unit: Unit, outcomes: list[Outcome]) -> None:
        """A unit is done; when all that a plan waits for are, it goes on."""
        for line in (line for outcome in outcomes for line in outcome.lines if line not in self._said):
            self._said.add(line)
            say(line)
        wait.units.remove(unit)
        wait.outcomes += outcomes
        if unit.pixels:
            self._tally.advance(unit.paths[0], unit.pixels - unit.shown)
        if unit.needed and any(outcome.error for outcome in outcomes):
            for todo in (self._pending, self._suspects):
                for other in [each for each in todo if each[0] is wait]:
                    todo.remove(other)
                    wait.units.remove(other[1])
        if not wait.units:
            self._proceed(wait.plan, wait.outcomes)
