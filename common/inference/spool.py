"""Finished rows of a raster on disk: what a killed run leaves behind, and where its successor goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FULL = 65535
"""A confidence of 1 as it is kept: half the disk of a float, and a mean over pixels needs no more."""


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
        folder: where it is; made if it is not there, else its rows are kept.
        size: height and width of the raster.
        layers: what each pixel has.
    """

    def __init__(self, folder: Path, size: tuple[int, int], layers: Mapping[str, Layer]) -> None:
        self.folder, (self.height, self.width), self.layers = folder, size, dict(layers)
        folder.mkdir(parents=True, exist_ok=True)
        self._state = folder / "finished.json"
        self.rows = int(json.loads(self._state.read_text())["rows"]) if self._state.is_file() else 0
        if any(self._bytes_on_disk(name) < self.rows * self._row_bytes(name) for name in layers):
            self.rows = 0  # the machine itself went down before they were on the disk
        for name in layers:
            with self._path(name).open("ab") as file:  # rows after the last whole band are of no use
                file.truncate(self.rows * self._row_bytes(name))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.raw"

    def _row_bytes(self, name: str) -> int:
        return self.width * self.layers[name].bytes_per_pixel

    def _bytes_on_disk(self, name: str) -> int:
        return self._path(name).stat().st_size if self._path(name).is_file() else 0

    def append(self, band: Mapping[str, NDArray[Any]]) -> None:
        """Add the next rows, (C, rows, W) of every layer; they count once all of them are in their files."""
        count = next(iter(band.values())).shape[1]
        for name, layer in self.layers.items():
            values = np.ascontiguousarray(band[name].swapaxes(0, 1), dtype=layer.dtype)
            with self._path(name).open("ab") as file:
                file.write(values.data)
        self.rows += count
        fresh = self._state.with_suffix(".new")
        fresh.write_text(json.dumps({"rows": self.rows, "of": self.height}))
        fresh.replace(self._state)

    def read(self, name: str, first: int, last: int) -> NDArray[Any]:
        """Rows ``first`` to ``last`` (excluded) of a layer: (C, rows, W)."""
        layer, count = self.layers[name], last - first
        values = np.fromfile(
            self._path(name), layer.dtype, count * layer.channels * self.width, offset=first * self._row_bytes(name)
        )
        return values.reshape(count, layer.channels, self.width).swapaxes(0, 1)

    def confidence(self, first: int, last: int) -> NDArray[np.float32]:
        """Probability of each pixel's class (rows, W)."""
        return np.asarray(self.read("confidence", first, last)[0] / np.float32(FULL))

    def remove(self) -> None:
        """Delete it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def spool_folder(folder: Path, stem: str, source: Path, arguments: Mapping[str, object]) -> Path:
    """Hidden folder of a run's spool, tied to the input and to all that the result depends on.

    Args:
        folder: where results go.
        stem: of the results' names.
        source: the input; another size or time of change makes another folder.
        arguments: checkpoint hashes and options.
    """
    info = source.stat()
    key = {"source": str(source.resolve()), "bytes": info.st_size, "changed": info.st_mtime_ns, **arguments}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    return folder / f".{stem[:100]}-{digest[:16]}.partial"
