"""Overviews of GeoTIFFs that are written from top to bottom: smaller copies, each half as large as the one above.

They are made of the rows as those come. GDAL would read the whole file again and takes several times as long.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import DTypeLike, NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetWriter

from common.images.rasters import Array

Halve = Callable[[Array], Array]
ROWS = 512
"""Rows of a level that are written at once; a multiple of the files' block height."""


def factors(size: tuple[int, int], smallest: int) -> list[int]:
    """By what the overviews of a raster are smaller: halves until the longer side is at most ``smallest`` pixels."""
    return [2**level for level in range(1, 32) if max(size) / 2 ** (level - 1) > smallest]


def halve_classes(rows: NDArray[np.uint8], nodata: int) -> NDArray[np.uint8]:
    """The most frequent class of every 2 x 2 pixels; of two that are as frequent the first to be so, by rows.

    Args:
        rows: (C, h, w).
        nodata: what counts only where there is nothing else.

    Returns:
        (C, h / 2, w / 2), rounded up.
    """
    pairs = _even(rows).view(np.uint16)
    top, bottom, width = pairs[:, ::2], pairs[:, 1::2], pairs.shape[2]
    one = top & 255
    differs = top >> 8
    differs ^= one
    differs |= top ^ bottom
    result = one.astype(np.uint8)
    mixed = np.flatnonzero(differs)
    if len(mixed):
        first = mixed + mixed // width * width
        (a, b), (c, d) = (pairs.ravel()[at].view(np.uint8).reshape(-1, 2).T for at in (first, first + width))
        result.ravel()[mixed] = _mode(a, b, c, d, nodata)
    return result


def _mode(a: Array, b: Array, c: Array, d: Array, nodata: int) -> Array:
    """The most frequent of four values, or the first one of those that reach the most."""
    later = np.where((b == c) | (b == d), b, np.where(c == d, c, a))
    found = np.where((a == b) | (a == c), a, later)
    lost = np.flatnonzero(np.any([each == nodata for each in (a, b, c, d)], axis=0))
    if len(lost):
        found[lost] = _mode_of_known(np.stack([each[lost] for each in (a, b, c, d)]), nodata)
    return found


def _mode_of_known(values: Array, nodata: int) -> Array:
    """The same of values (4, n) some of which are nodata: of two as frequent the first."""
    known = values != nodata
    votes = (values[:, None] == values[None]).sum(axis=1) * known
    return np.asarray(np.take_along_axis(values, votes.argmax(axis=0)[None], axis=0)[0])


def halve_means(rows: Array, nodata: float) -> Array:
    """The mean of every 2 x 2 pixels without nodata, which stays where there is nothing else.

    Args:
        rows: (C, h, w) uint8, uint16 or float32.
        nodata: the value of pixels that do not count; NaN for floats.

    Returns:
        (C, h / 2, w / 2), rounded up, of the same type; whole numbers are rounded.
    """
    rows = _even(rows)
    whole = rows.dtype.kind != "f"
    wide = {"uint8": np.uint16, "uint16": np.uint32}.get(rows.dtype.name, np.float32)
    known = rows != nodata if whole else ~np.isnan(rows)
    if known.all():
        total = _sums(rows, wide)
        return ((total + 2) >> 2 if whole else total / 4).astype(rows.dtype)
    total, count = _sums(np.where(known, rows, 0), wide), _sums(known, wide)
    some = np.maximum(count, 1)
    mean = (total + some // 2) // some if whole else total / some
    return np.where(count > 0, mean, nodata).astype(rows.dtype)


def _sums(rows: Array, dtype: DTypeLike) -> Array:
    """The sum of every 2 x 2 pixels."""
    total = rows[:, ::2, ::2].astype(dtype)
    for part in (rows[:, ::2, 1::2], rows[:, 1::2, ::2], rows[:, 1::2, 1::2]):
        total += part
    return total


def _even(rows: Array) -> Array:
    """Rows (C, h, w) whose last row and column is repeated where their number is odd."""
    height, width = rows.shape[1:]
    if height % 2 or width % 2:
        return np.pad(rows, ((0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    return np.ascontiguousarray(rows)


class Overviews:
    """The overviews of a GeoTIFF whose rows are shown from top to bottom; on disk until they are written.

    Args:
        folder: where there is space for them.
        size: height and width of the raster.
        sample: some of its rows (C, n, W).
        smallest: the last overview is at most so many pixels long.
        halve: makes (C, h / 2, w / 2) of rows (C, h, w).
    """

    def __init__(self, folder: Path, size: tuple[int, int], sample: Array, smallest: int, halve: Halve) -> None:
        self.factors = factors(size, smallest)
        self._size, self._bands, self._dtype, self._halve = size, len(sample), sample.dtype, halve
        self._open = ExitStack()
        self._levels = [self._open.enter_context(tempfile.TemporaryFile(dir=folder)) for _ in self.factors]  # noqa: SIM115 - closed with the stack

    def __enter__(self) -> Overviews:
        """Nothing more is needed."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what lies on the disk."""
        self._open.close()

    def prepare(self, dataset: DatasetWriter) -> None:
        """Make room in a file to which nothing was written yet."""
        if self.factors:
            dataset.build_overviews(self.factors, Resampling.nearest)

    def add(self, rows: Array) -> None:
        """Take the next rows (C, n, W); their number is even but for the last ones."""
        if self.factors:
            self._keep(0, rows)

    def _keep(self, level: int, rows: Array) -> None:
        self._levels[level].write(np.ascontiguousarray(self._halve(rows).swapaxes(0, 1)).data)

    def write(self, path: Path) -> None:
        """Write all of them to the file, which is closed."""
        for level, (factor, kept) in enumerate(zip(self.factors, self._levels, strict=True)):
            height, width = (-(-side // factor) for side in self._size)
            kept.seek(0)
            with rasterio.open(path, "r+", overview_level=level, num_threads="all_cpus") as file:
                for row in range(0, height, ROWS):
                    rows = np.empty((min(ROWS, height - row), self._bands, width), self._dtype)
                    kept.readinto(rows.data)
                    file.write(rows.swapaxes(0, 1), window=((row, row + len(rows)), (0, width)))
                    if level + 1 < len(self._levels):
                        self._keep(level + 1, rows.swapaxes(0, 1))
