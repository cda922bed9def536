"""Windows of rasters: rectangles of pixels, files that are read by them, and tiles that cover an area once.

A file is opened when it is first read, in every process anew, so that what holds it can be copied to data workers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from common.images.gdal import Bands, decoding, open_dataset, read_bands, require_file
from common.images.grids import Grid
from common.images.pictures import PaletteReading
from common.labels import IGNORE

MOST_OPEN = 160
"""Files that a process keeps open."""


class Window(NamedTuple):
    """A rectangle of pixels: rows ``row .. row + height - 1``, columns ``col .. col + width - 1``."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slice that cut the window out of an array."""
        return slice(self.row, self.row + self.height), slice(self.col, self.col + self.width)

    @property
    def spans(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """First row and the one after the last, and so the columns: what rasterio takes for a window."""
        return (self.row, self.row + self.height), (self.col, self.col + self.width)

    def strips(self, pixels: int) -> Iterator[Window]:
        """Bands of whole rows of at most about so many pixels, from top to bottom."""
        rows, last = max(1, pixels // self.width), self.row + self.height
        for row in range(self.row, last, rows):
            yield Window(row, self.col, min(rows, last - row), self.width)

    def within(self, other: Window) -> Window:
        """The same pixels counted from the first one of another window."""
        return Window(self.row - other.row, self.col - other.col, self.height, self.width)


def clip(window: Window, height: int, width: int) -> Window | None:
    """The part of a window that lies in a raster of this size; None = none of it."""
    top, bottom = max(window.row, 0), min(window.row + window.height, height)
    left, right = max(window.col, 0), min(window.col + window.width, width)
    if top >= bottom or left >= right:
        return None
    return Window(top, left, bottom - top, right - left)


def pad(data: NDArray[Any], inside: Window, window: Window, value: int) -> NDArray[Any]:
    """Bring data (..., H, W) of the part ``inside`` of a window to the window's size, with a value around it."""
    if inside == window:
        return data
    result = np.full((*data.shape[:-2], window.height, window.width), value, data.dtype)
    result[(..., *inside.within(window).slices)] = data
    return result


def ignore(classes: NDArray[np.uint8], other: Window, window: Window) -> NDArray[np.uint8]:
    """Classes of a window, ignored where another window covers it."""
    part = clip(other.within(window), window.height, window.width)
    if part is None:
        return classes
    result = classes.copy()
    result[part.slices] = IGNORE
    return result


# Files


class Opened(NamedTuple):
    """A file that is open in this process."""

    dataset: DatasetReader | WarpedVRT
    bands: Bands


@dataclass(frozen=True)
class WindowFile:
    """A raster file that is read by windows; nothing of it is open in this object."""

    path: Path
    palette: PaletteReading = "rgb"
    """What its numbers are, see `common.images.gdal.read_bands`; with ``index`` values alone tell what is valid."""
    warp: Grid | None = None
    """The grid that it is warped to while it is read (``index``: by nearest neighbor); None = its own."""

    def open(self) -> Opened:
        """The file, open in this process.

        Raises:
            FileNotFoundError, ValueError: it cannot be opened, or has nothing but alpha.
        """
        require_file(self.path)
        return opened(self, self.path.stat().st_mtime_ns, os.getpid())

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, after warping."""
        dataset = self.open().dataset
        return dataset.height, dataset.width

    @property
    def is_expanded(self) -> bool:
        """Whether what is read are the colors of a palette."""
        bands = self.open().bands
        return self.palette != "index" and bands.colormap is not None and not bands.decorated

    @property
    def nodata(self) -> float | None:
        """Declared nodata in the numbers that are read, after warping."""
        dataset, bands = self.open()
        nodata: float | None = dataset.nodata
        if nodata is None or self.palette == "index":
            return nodata
        return None if self.is_expanded else bands.white_is_zero - nodata if bands.white_is_zero else nodata

    def read(self, window: Window, count: int | None = None) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Bands of any window without alpha, and where they mean something: not beyond the edge.

        Args:
            window: in pixels of its own grid, or of the one that it is warped to.
            count: how many bands, from the first on; fewer if it has fewer; None = all.

        Returns:
            (C, height, width) in the file's own numbers, 0 beyond the edge, and (height, width) bool.

        Raises:
            ValueError: the file is damaged.
        """
        dataset, bands = self.open()
        inside = clip(window, dataset.height, dataset.width)
        place = inside or Window(0, 0, 1, 1)
        data, valid = read_bands(dataset, *place.spans, self.palette, bands=bands, count=count)
        if inside is None:
            shape = (window.height, window.width)
            return np.zeros((len(data), *shape), data.dtype), np.zeros(shape, np.bool_)
        return pad(data, inside, window, 0), pad(valid, inside, window, 0)


@lru_cache(MOST_OPEN)
def opened(file: WindowFile, version: int, process: int) -> Opened:
    """Open a file of this version for this process: handles do not survive a fork."""
    dataset: DatasetReader | WarpedVRT = open_dataset(file.path)
    if file.warp is not None:
        with decoding(file.path):
            dataset = _warped(dataset, file.warp, is_mask=file.palette == "index")
    bands = Bands.of(dataset)
    return Opened(dataset, replace(bands, masked=()) if file.palette == "index" else bands)


def _warped(dataset: DatasetReader, grid: Grid, *, is_mask: bool) -> WarpedVRT:
    """A view of an open file on another grid."""
    options = {"crs": grid.crs, "transform": grid.transform, "width": grid.width, "height": grid.height}
    if not is_mask:
        return WarpedVRT(dataset, resampling=Resampling.bilinear, **options)
    declared = dataset.nodata if dataset.nodata not in (None, 0, 1) else IGNORE
    return WarpedVRT(dataset, resampling=Resampling.nearest, src_nodata=declared, nodata=IGNORE, **options)


# Tiles


def plan_tiles(
    area: Window, size: tuple[int, int], side: int, context: int, slack: int = 0
) -> Iterator[tuple[Window, Window]]:
    """Cover an area once with tiles.

    Args:
        area: what is covered.
        size: height and width of the raster around it.
        side: tiles are at most so large, and of about equal size.
        context: pixels around a tile that are read with it, where there are any.
        slack: an area that is by so much larger than one tile stays whole.

    Returns:
        Each tile's own window, and that with its context.
    """
    rows, cols = (_cuts(start, length, side, slack) for start, length in (area[::2], area[1::2]))
    for (row, height), (col, width) in product(rows, cols):
        around = Window(row - context, col - context, height + 2 * context, width + 2 * context)
        yield Window(row, col, height, width), clip(around, *size) or area


def _cuts(start: int, length: int, side: int, slack: int) -> list[tuple[int, int]]:
    """Start and length of equal pieces."""
    pieces = 1 if length <= side + slack else -(-length // side)
    edges = [start + length * i // pieces for i in range(pieces + 1)]
    return [(a, b - a) for a, b in pairwise(edges)]


def only_core(classes: NDArray[np.uint8], core: Window, window: Window) -> NDArray[np.uint8]:
    """Classes of a tile's window, ignored in its context."""
    own = np.full_like(classes, IGNORE)
    inner = core.within(window).slices
    own[inner] = classes[inner]
    return own
