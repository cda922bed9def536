"""How far a command is with its inputs, which of them failed, and with which exit code that ends."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from common.command.cli import PARTIAL, say
from common.command.progress import Work


class Tally:
    """What became of the inputs of a command; `with` shows a bar.

    Args:
        paths: inputs.
        sizes: pixels of those that are worked on; the others failed before.
        folder: where results go, for the last line.
    """

    def __init__(self, paths: Sequence[Path], sizes: Mapping[Path, int], folder: Path) -> None:
        self._count, self._sizes, self._folder = len(paths), sizes, folder
        self._partly: dict[Path, float] = {}
        self._pixels, self._started = 0, time.monotonic()
        self.done = 0

    def __enter__(self) -> Tally:
        """Show the bar; time counts from here."""
        self._work = Work("predicting", sum(self._sizes.values()) / 1e6, "Mpx")
        self._started = time.monotonic()
        self._work.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Take it away."""
        self._work.__exit__(kind, error, at)

    def note(self, text: str) -> None:
        """Show a text behind the bar."""
        self._work.advance(0, text)

    def advance(self, path: Path, pixels: float) -> None:
        """So many more pixels of an input are finished."""
        self._partly[path] = self._partly.get(path, 0) + pixels
        self._show()

    def ended(self, path: Path, error: str = "") -> None:
        """Nothing more is done on an input: it is finished, or failed for a reason, which is said."""
        self._partly.pop(path, None)
        self._pixels += self._sizes[path]
        if error:
            say(f"failed: {error}")
        else:
            self.done += 1
        self._show()

    def _show(self) -> None:
        self._work.advance((self._pixels + sum(self._partly.values())) / 1e6 - self._work.done)

    def close(self) -> int:
        """Say the last line; the command's exit code."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        speed = f"{seconds:.1f} s ({self._pixels / 1e6 / seconds:.2f} Mpx/s)"
        say(f"{self.done} of {self._count} files to {self._folder} in {speed}")
        return 0 if self.done == self._count else PARTIAL


def complaint(path: Path, error: Exception) -> str:
    """One line on what went wrong with an input."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        text = f"not enough memory{f' ({text})' if text else ''}; close other programs, or cut the image into parts"
    elif not isinstance(error, (ValueError, OSError)) or not text:
        text = f"{type(error).__name__}{f': {text}' if text else ''}"
    name = " ".join(str(path).split())
    return text if name in text else f"{name}: {text}"
