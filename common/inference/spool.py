"""Finished rows of a raster on disk: what a killed run leaves behind, and where its successor goes on."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.command.cli import say
from common.files import Workplace, read_json, remove

BLOCK = 1 << 22
"""Bytes read at once."""
PATIENCE = 1.0
"""Seconds of work that a machine may lose when it goes down: to wait for the disk takes longer than to write."""


class Layer(NamedTuple):
    """One value per pixel or several, kept on disk."""

    channels: int
    dtype: str

    @property
    def bytes_per_pixel(self) -> int:
        """Disk space of one pixel."""
        return self.channels * np.dtype(self.dtype).itemsize


class Spool:
    """Finished rows of a raster, in a folder; what is in it survives the process.

    Args:
        folder: where it is.
        size: height and width of the raster.
        layers: what each pixel has.
        key: all that the rows depend on; rows of another key are removed.
        edges: rows at which a band may end; None = any.
    """

    def __init__(
        self,
        folder: Path,
        size: tuple[int, int],
        layers: Mapping[str, Layer],
        key: str = "",
        edges: Collection[int] | None = None,
    ) -> None:
        self.folder, self.size, self.layers, self.key = folder, size, dict(layers), key
        self._grown, self._error = threading.Condition(), list[BaseException]()
        self._kept = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self._state = folder / Workplace.KEPT
        self.rows = self._finished_rows(edges)
        for name in layers:
            with self._path(name).open("ab") as file:  # rows after the last whole band are of no use
                file.truncate(self.rows * self._row_bytes(name))

    def _finished_rows(self, edges: Collection[int] | None) -> int:
        """How many rows a run before finished; what is damaged or was made otherwise is removed."""
        if not os.path.lexists(self._state):
            self._clear()
            return 0
        try:
            state = read_json(self._state)
            rows = state["rows"]
            if state["key"] == self.key:
                if type(rows) is not int or not 0 <= rows <= self.size[0] or (edges is not None and rows not in edges):
                    raise ValueError(f"row {rows!r} ends no band")
                if any(self._bytes_on_disk(name) < rows * self._row_bytes(name) for name in self.layers):
                    raise ValueError("rows are missing")  # the machine itself went down before they were on the disk
                return rows
            reason = "they were made with another checkpoint or other options"
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = f"they are damaged ({' '.join(str(error).split()) or type(error).__name__})"
        say(f"{self.folder}: the rows that a run before finished are of no use, {reason}; starting anew")
        self._clear()
        return 0

    def _clear(self) -> None:
        for path in (self._state, self._state.with_suffix(".new"), *self.folder.glob("*.raw")):
            remove(path)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.raw"

    def _row_bytes(self, name: str) -> int:
        return self.size[1] * self.layers[name].bytes_per_pixel

    def _bytes_on_disk(self, name: str) -> int:
        return self._path(name).stat().st_size if self._path(name).is_file() else -1

    def append(self, band: Mapping[str, NDArray[Any]]) -> None:
        """Add the next rows, (C, rows, W) of every layer; now and then all are kept for the next run."""
        for name, layer in self.layers.items():
            with self._path(name).open("ab") as file:
                file.write(np.ascontiguousarray(band[name].swapaxes(0, 1), dtype=layer.dtype).data)
        with self._grown:
            self.rows += next(iter(band.values())).shape[1]
            self._grown.notify_all()
        if time.monotonic() - self._kept >= PATIENCE:
            self.keep()

    def extend(self, folder: Path, rows: int) -> None:
        """Add the next rows, which lie as a spool with the same layers in another folder, and keep them."""
        for name in self.layers:
            with (folder / self._path(name).name).open("rb") as source, self._path(name).open("ab") as file:
                shutil.copyfileobj(source, file, BLOCK)
        self.rows += rows
        self.keep()

    def keep(self) -> None:
        """Bring what is in it to the disk and mark it, be it nothing yet, as of use to the next run."""
        for name in self.layers:
            with self._path(name).open("ab") as file:
                os.fsync(file.fileno())
        fresh = self._state.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as text:
            json.dump({"rows": self.rows, "of": self.size[0], "key": self.key}, text)
            text.flush()
            os.fsync(text.fileno())
        fresh.replace(self._state)
        self._kept = time.monotonic()

    def wait(self, rows: int) -> None:
        """Wait until so many rows are finished.

        Raises:
            BaseException: what another thread stopped with.
        """
        with self._grown:
            self._grown.wait_for(lambda: self._error or self.rows >= rows)
            if self._error:
                raise self._error[0]

    def stop(self, error: BaseException) -> None:
        """Let nobody wait for rows any more, because of an error."""
        with self._grown:
            self._error.append(error)
            self._grown.notify_all()

    def read(self, name: str, first: int, last: int) -> NDArray[Any]:
        """Rows ``first`` to ``last`` (excluded) of a layer: (C, rows, W), mapped from the disk."""
        layer, shape = self.layers[name], (last - first, self.layers[name].channels, self.size[1])
        if first == last:  # of which no map can be made
            return np.empty(shape, layer.dtype).swapaxes(0, 1)
        return np.memmap(self._path(name), layer.dtype, "r", first * self._row_bytes(name), shape).swapaxes(0, 1)


class Appender:
    """Adds bands to a spool in a thread: what is finished goes to the disk while the next band is predicted.

    Leaving the context keeps what was handed over; errors of the disk are raised at the next band, or then.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool, self._error = spool, list[BaseException]()
        self._bands: queue.Queue[Mapping[str, NDArray[Any]] | None] = queue.Queue(1)
        self._thread = threading.Thread(target=self._work, name="append", daemon=True)

    def __enter__(self) -> Appender:
        """Start the thread."""
        self._thread.start()
        return self

    def __call__(self, band: Mapping[str, NDArray[Any]]) -> None:
        """Hand over the next band."""
        self._bands.put(band)
        if self._error:
            raise self._error[0]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the disk."""
        self._bands.put(None)
        self._thread.join()
        if self._error and kind is None:
            raise self._error[0]

    def _work(self) -> None:
        for band in iter(self._bands.get, None):
            if not self._error:
                self._try(partial(self._spool.append, band))
        self._try(self._spool.keep)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._error.append(error)


def digest(folder: Path) -> str:
    """SHA-256 of the rows in a spool's folder."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.raw")):
        found.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                found.update(block)
    return found.hexdigest()


def workplace(folder: Path, stem: str, source: Path) -> Workplace:
    """The hidden folder in which one run at a time works on an input.

    Args:
        folder: where results go.
        stem: of the results' names.
        source: the input.
    """
    plain = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "_" for letter in stem)
    digest = hashlib.sha256(os.fsencode(f"{source.resolve()}\n{stem}")).hexdigest()
    return Workplace(folder / f".{plain[:40]}-{digest[:16]}{Workplace.SUFFIX}")


def spool_key(source: Path, arguments: Mapping[str, object]) -> str:
    """What the rows of an input depend on: the file as it is now, checkpoints and options; as a hash."""
    info = source.stat()
    key = {"bytes": info.st_size, "changed": info.st_mtime_ns, **arguments}
    return hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
