"""How far a command is: a bar on a terminal, elsewhere a line every half minute.

Whatever takes long is a `Work`, loops over items mostly by `progress`. While one is open, a thread keeps the bar's
clock running, and without a terminal says a line when nothing else was said for `PATIENCE` seconds, also while one item
alone takes minutes.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from operator import length_hint
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from common.command import cli

T = TypeVar("T")
BEAT = 1.0
"""Seconds between two looks at what is under way; a bar's clock moves as often."""
PATIENCE = 30.0
"""Without a terminal, seconds of silence before a line says how far it is."""
_open: list[Work] = []
_heart: list[_Heart] = []


def progress(items: Iterable[T], what: str, unit: str = "item") -> Iterator[T]:
    """The items, while it is shown how many of them are done.

    Args:
        items: whose number is known, if they have a length.
        what: what is done with them, such as ``reading pictures``.
        unit: what they are, such as ``file``.
    """
    source = iter(items)  # before the thread: this may fork data workers
    with Work(what, length_hint(items), unit) as work:
        for item in source:
            yield item
            work.advance()


def duration(seconds: float) -> str:
    """A time for people: 45 s, 12 min, 3.5 h, 2.1 days."""
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"


class Work:
    """Something long; `with` opens and closes it.

    Args:
        what: what is done.
        total: how much there is to do; 0 = nobody knows.
        unit: of ``total``, such as ``file`` or ``Mpx``.
    """

    def __init__(self, what: str, total: float = 0, unit: str = "item") -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done, self.note, self.started = 0.0, "", time.monotonic()
        rate = ", {rate_fmt}" if unit == "Mpx" else ""
        counted = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}" + rate + "{postfix}]"
        size = shutil.get_terminal_size()  # tqdm's own way shows nothing where a terminal claims to be of size 0
        self.bar = tqdm(
            desc=what,
            total=total or None,
            unit=unit,
            leave=False,
            delay=0.5,
            disable=None,
            ncols=size.columns,
            nrows=size.lines,
            bar_format=counted if total else "{desc}: {elapsed}{postfix}",
        )

    def __enter__(self) -> Work:
        """Show it."""
        _open.append(self)
        cli.VOICE.pause = tqdm.external_write_mode
        if not _heart:
            _heart.append(_Heart())
            _heart[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Take the bar away."""
        _open.remove(self)
        if not _open:
            _heart.pop().stopped.set()
        self.bar.close()

    def advance(self, count: float = 1, note: str | None = None) -> None:
        """So much more is done; ``note`` is shown behind."""
        self.done += count
        if note is not None:
            self.note = note
            self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(count)

    def line(self, now: float) -> str:
        """How far it is, at a time of the monotonic clock."""
        seconds, share = now - self.started, self.done / self.total if self.total else 0.0
        units = self.unit + ("es" if self.unit.endswith("ch") else "s" if self.unit.islower() else "")
        parts = [f"{self.done:.4g} of {self.total:.4g} {units}"] if self.total else []
        parts += [self.note] if self.note else []
        parts.append(f"{duration(seconds)} so far")
        if 0 < share < 1:
            parts.append(f"about {duration(seconds / share - seconds)} to go")
        return f"{self.what}: {', '.join(parts)}"


def beat(now: float) -> None:
    """Show that the innermost work goes on: move its bar's clock, or say a line after enough silence."""
    for work in _open[-1:]:
        if not work.bar.disable:
            work.bar.delay = 0  # shown from now on, so that its end takes it away
            work.bar.refresh()
        elif now - max(cli.VOICE.spoke, work.started) >= PATIENCE:
            cli.say(work.line(now))


class _Heart(threading.Thread):
    """Beats while something is open."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="progress")
        self.stopped = threading.Event()

    def run(self) -> None:
        """Beat until stopped."""
        while not self.stopped.wait(BEAT):
            beat(time.monotonic())
