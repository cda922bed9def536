"""A site: ground that an orthophoto and a mask show both, read window by window straight from the two files.

Windows count in pixels of the orthophoto, or of a coarser or finer grid over it (``--resolution``). A mask on the same
grid is read with an offset; any other one is warped to it while it is read (``--reproject``), by nearest neighbor. What
lies beyond either file is ignored. Files are opened when they are needed, in every process anew, so that a site can be
copied to data workers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from common.images.gdal import Bands, decoding, open_dataset, read_bands
from common.images.grids import Grid
from common.images.pictures import PaletteReading
from common.images.ranges import ValueRanges, to_pixels
from common.inference.windows import Window
from common.labels import IGNORE
from permeability.labels import to_classes

MOST_OPEN = 160
"""Files that a process keeps open."""
MASK_NODATA = 255


@dataclass(frozen=True)
class Warp:
    """The grid that a file is warped to while it is read."""

    height: int
    width: int
    transform: Affine
    crs: CRS

    @classmethod
    def to(cls, grid: Grid) -> Warp:
        """The grid itself, without its file."""
        return cls(grid.height, grid.width, grid.transform, grid.crs)


@dataclass(frozen=True)
class Source:
    """A raster file that is read by windows; nothing of it is open in this object.

    Args:
        path: the file.
        warp: grid to warp it to; None = its own.
        is_mask: whether its values are classes (nearest neighbor) or intensities (bilinear).
    """

    path: Path
    warp: Warp | None = None
    is_mask: bool = False

    def read(self, window: Window, channels: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """A window that lies inside.

        Args:
            window: in pixels of its own grid, or of the one that it is warped to.
            channels: bands to read, from the first on, alpha not counted; fewer if it has fewer.

        Returns:
            (C, height, width) in the file's own numbers, and (height, width) bool where they mean something.

        Raises:
            ValueError: the file is damaged.
        """
        opened = open_source(self, os.getpid())
        rows, cols = (window.row, window.row + window.height), (window.col, window.col + window.width)
        palette: PaletteReading = "index" if self.is_mask else "rgb"
        return read_bands(opened.dataset, rows, cols, palette, bands=opened.bands, count=channels)

    @property
    def nodata(self) -> float | None:
        """Declared nodata value, after warping."""
        found: float | None = open_source(self, os.getpid()).dataset.nodata
        return found


@dataclass(frozen=True)
class Opened:
    """An open file."""

    dataset: DatasetReader | WarpedVRT
    bands: Bands


@lru_cache(MOST_OPEN)
def open_source(source: Source, process: int) -> Opened:
    """Open a file for this process: handles do not survive a fork, so the process is part of the key.

    Raises:
        FileNotFoundError, ValueError: it cannot be opened, or has nothing but alpha.
    """
    dataset: DatasetReader | WarpedVRT = open_dataset(source.path)
    if source.warp is not None:
        with decoding(source.path):
            dataset = warped(dataset, source.warp, is_mask=source.is_mask)
    bands = Bands.of(dataset)
    return Opened(dataset, replace(bands, masked=()) if source.is_mask else bands)


def warped(dataset: DatasetReader, warp: Warp, *, is_mask: bool) -> WarpedVRT:
    """A view of an open file on another grid."""
    options = {"crs": warp.crs, "transform": warp.transform, "width": warp.width, "height": warp.height}
    if not is_mask:
        return WarpedVRT(dataset, resampling=Resampling.bilinear, **options)
    declared = dataset.nodata if dataset.nodata not in (None, 0, 1) else MASK_NODATA
    return WarpedVRT(dataset, resampling=Resampling.nearest, src_nodata=declared, nodata=MASK_NODATA, **options)


@dataclass(frozen=True)
class Site:
    """An orthophoto and a mask where they show the same ground."""

    id: str
    grid: Grid
    """In whose pixels windows count: the orthophoto's, or a coarser or finer one over it."""
    image: Source
    mask: Source
    window: Window
    """Rectangle of the grid that both reach."""
    offset: tuple[int, int] | None
    """Row and column of the mask's first pixel in the grid; None = the mask is warped to the grid."""
    mask_size: tuple[int, int]
    """Height and width of the mask on the grid that it is read on."""
    excluded: tuple[Window, ...] = ()
    """Parts of the grid whose ground belongs to another orthophoto of the same mask: ignored here."""
    scale: float = 1.0
    """Side of the orthophoto's own pixels, in pixels of the grid."""
    ranges: ValueRanges = field(default_factory=ValueRanges, compare=False)
    """What the orthophoto's values mean."""

    def look(self, window: Window, channels: int = 3) -> None:
        """Take note of the values of the orthophoto in a window that lies inside.

        Raises:
            ValueError: it is damaged, or has too few bands.
        """
        self.ranges.see(*self.image.read(window, channels))
        self._read_image(window, channels)

    def read(self, window: Window, channels: int = 3) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Image and classes of any window, also beyond the edge.

        Args:
            window: in pixels of the grid.
            channels: bands that the network reads; for three of them a grey image is repeated.

        Returns:
            (channels, height, width) uint8, or float32 in 0...1 for other number types, 0 where there is nothing; and
            (height, width) uint8: 0 non-permeable, 1 permeable, 255 ignored.

        Raises:
            ValueError: a file is damaged, or has too few bands, or a mask's value is no class.
        """
        image, valid = self._read_image(window, channels)
        classes = self.read_classes(window)
        if not valid.all():
            classes = np.where(valid, classes, np.uint8(IGNORE))
        return image, classes

    def _read_image(self, window: Window, channels: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        inside = clip(window, self.grid.height, self.grid.width)
        if inside is None:
            shape = (window.height, window.width)
            return np.zeros((channels, *shape), np.uint8), np.zeros(shape, np.bool_)
        data, valid = self.image.read(inside, channels)
        try:
            data = to_pixels(data, valid, channels, self.ranges.of(data.dtype))
        except ValueError as error:
            raise ValueError(f"{self.image.path}: {error}") from error
        if inside == window:
            return data, valid
        return pad(data, inside, window, 0), pad(valid[None], inside, window, 0)[0]

    def read_classes(self, window: Window) -> NDArray[np.uint8]:
        """Classes (height, width) of any window by the mask alone.

        Raises:
            ValueError: it is damaged, or holds a value that is no class.
        """
        row, col = self.offset or (0, 0)
        own = Window(window.row - row, window.col - col, window.height, window.width)
        inside = clip(own, *self.mask_size)
        if inside is None:
            return np.full((window.height, window.width), IGNORE, np.uint8)
        values, _ = self.mask.read(inside, 1)
        try:
            classes = to_classes(values[0], self.mask.nodata)
        except ValueError as error:
            raise ValueError(f"{self.mask.path}: {error}") from error
        if inside != own:
            classes = pad(classes[None], inside, own, IGNORE)[0]
        for other in self.excluded:
            classes = without(classes, other, window)
        return classes


def clip(window: Window, height: int, width: int) -> Window | None:
    """The part of a window that lies in a raster of this size; None = none of it."""
    top, bottom = max(window.row, 0), min(window.row + window.height, height)
    left, right = max(window.col, 0), min(window.col + window.width, width)
    if top >= bottom or left >= right:
        return None
    return Window(top, left, bottom - top, right - left)


def pad(data: NDArray[Any], inside: Window, window: Window, value: int) -> NDArray[Any]:
    """Bring data of the part ``inside`` of a window to the window's size, with a value around it."""
    result = np.full((len(data), window.height, window.width), value, data.dtype)
    row, col = inside.row - window.row, inside.col - window.col
    result[:, row : row + inside.height, col : col + inside.width] = data
    return result


def without(classes: NDArray[np.uint8], other: Window, window: Window) -> NDArray[np.uint8]:
    """Classes of a window, ignored where ``other`` covers it."""
    moved = Window(other.row - window.row, other.col - window.col, other.height, other.width)
    part = clip(moved, window.height, window.width)
    if part is None:
        return classes
    result = classes.copy()
    result[part.slices] = IGNORE
    return result
