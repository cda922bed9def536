"""A scene: an image with its building labels, in memory or read window by window.

Labels are grey or RGB rasters (building where any band is above 0) or outlines in a vector file. Nothing is ignored but
transparent and declared nodata pixels, of the image or of its label. A label that declares 0 as nodata means background
by it: masks are often saved so, and the rest would be buildings alone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.io import DatasetReader

from common.data.pairs import Pair
from common.images.gdal import Bands, open_dataset, place_of, read_bands, require_file, sample_bands
from common.images.grids import Grid, apply
from common.images.pictures import PaletteReading
from common.images.ranges import ValueRanges, to_pixels
from common.images.rasters import TIFF_EXTENSIONS, read_label, read_raster
from common.labels import IGNORE
from common.vectors.burn import Outlines, PolygonLayer

Image = NDArray[np.uint8] | NDArray[np.float32]
Classes = NDArray[np.uint8]
HALF_PIXEL = 0.5
MOST_OPEN = 64
"""Files that a process keeps open."""
VECTOR_EXTENSIONS = (".gpkg", ".shp", ".geojson", ".json", ".fgb")
STRIP = 4 << 20
"""Pixels looked at at a time."""


@dataclass(frozen=True)
class Frame:
    """Size and place of a raster."""

    height: int
    width: int
    transform: Affine | None = None
    crs: CRS | None = None

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.height * self.width


@lru_cache(MOST_OPEN)
def _opened(path: Path, version: int, process: int) -> tuple[DatasetReader, Bands]:
    """An open file of this process (handles do not survive a fork), of this version, and what its bands mean."""
    dataset = open_dataset(path)
    return dataset, Bands.of(dataset)


class WindowReader:
    """A raster file read by windows; it is opened when it is needed, in every process anew.

    Args:
        path: the file.
        palette: whether its numbers are colors or labels, see `common.images.gdal.read_bands`.

    Raises:
        ValueError, FileNotFoundError: it cannot be opened.
    """

    def __init__(self, path: Path, palette: PaletteReading = "rgb") -> None:
        self.path, self.palette = path, palette
        dataset, self.bands = self.open()
        self.frame = Frame(dataset.height, dataset.width, place_of(dataset), dataset.crs)
        self.expanded = self.bands.colormap is not None and not self.bands.decorated
        """Whether what is read are the colors of a palette."""
        white, nodata = self.bands.white_is_zero, dataset.nodata
        self.nodata: float | None = None if self.expanded or nodata is None else white - nodata if white else nodata

    def open(self) -> tuple[DatasetReader, Bands]:
        """The open file of this process, and what its bands mean."""
        require_file(self.path)
        return _opened(self.path, self.path.stat().st_mtime_ns, os.getpid())

    def read(
        self, row: int, col: int, height: int, width: int, *, bands: int | None = None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Bands of a window without alpha, and where they mean something.

        Args:
            row: of its first pixel.
            col: of its first pixel.
            height: of the window, pixels.
            width: of the window, pixels.
            bands: how many of them, from the first on (None = all).

        Returns:
            (C, height, width) in the file's own numbers, and (height, width) bool.

        Raises:
            ValueError: the file is damaged.
        """
        dataset, meaning = self.open()
        place = (row, row + height), (col, col + width)
        return read_bands(dataset, *place, self.palette, bands=meaning, count=bands)


class ArrayScene:
    """A scene in memory.

    Args:
        name: its id.
        image: (3, H, W) uint8, or float32 in 0...1.
        classes: (H, W): 1 building, 0 not, 255 ignored.
    """

    def __init__(self, name: str, image: Image, classes: Classes, frame: Frame | None = None) -> None:
        self.id, self.image, self.classes = name, image, classes
        self.frame = frame or Frame(*classes.shape)

    def read(self, row: int, col: int, height: int, width: int) -> tuple[Image, Classes]:
        """A window of image and classes."""
        rows, cols = slice(row, row + height), slice(col, col + width)
        return self.image[:, rows, cols], self.classes[rows, cols]


class RasterScene:
    """A scene too large for memory: every window is read from its files.

    Args:
        pair: its files; the label may be a vector file.
        ranges: what the image's values mean; windows spread over it are taken note of.

    Raises:
        ValueError, FileNotFoundError: a file is damaged, or image and label do not fit.
    """

    def __init__(self, pair: Pair, ranges: ValueRanges | None = None) -> None:
        self.id, self._ranges = pair.id, ranges or ValueRanges()
        self._image = WindowReader(pair.image)
        dataset, meaning = self._image.open()
        data, valid = sample_bands(dataset, bands=meaning)
        self._ranges.see(data[:3], valid)
        self.frame = self._image.frame
        self._label = LabelReader(pair.label, self.frame, pair.image)

    def read(self, row: int, col: int, height: int, width: int) -> tuple[Image, Classes]:
        """A window of image and classes."""
        data, valid = self._image.read(row, col, height, width, bands=3)
        classes = self._label.read(row, col, height, width)
        return to_pixels(data, valid, 3, self._ranges.of(data.dtype)), np.where(valid, classes, np.uint8(IGNORE))


Scene = ArrayScene | RasterScene


class LabelReader:
    """The classes of a label file, raster or vector, by windows of its image.

    Args:
        path: the label.
        frame: of the image.
        image: the image's path, for messages.

    Raises:
        ValueError, FileNotFoundError: it is damaged, or is not on the image's grid.
    """

    def __init__(self, path: Path, frame: Frame, image: Path) -> None:
        self._outlines: Outlines | None = None
        self._raster: WindowReader | None = None
        if is_vector(path):
            self._outlines = read_outlines(path, frame, image)
        else:
            self._raster = WindowReader(path, "label")
            check_grid(image, frame, path, self._raster.frame)

    def read(self, row: int, col: int, height: int, width: int) -> Classes:
        """(height, width): 1 building, 0 not, 255 ignored."""
        if self._outlines is not None:
            return self._outlines.burn((row, col, height, width))
        assert self._raster is not None
        values, valid = self._raster.read(row, col, height, width)
        return to_classes(values, valid, self._raster.nodata)


def is_vector(path: Path) -> bool:
    """Tell a vector file by its name."""
    return path.suffix.lower() in VECTOR_EXTENSIONS


def read_outlines(path: Path, frame: Frame, image: Path) -> Outlines:
    """The building outlines of a vector file over an image; where one of them names no coordinate system, the other's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, has no polygons, or lies somewhere else than the image.
    """
    if frame.transform is None:
        raise ValueError(
            f"{image}: has no georeference, so the outlines of {path} have no place on it; "
            "georeference it, or give its labels as a raster of its size"
        )
    layer = PolygonLayer(path)
    grid = Grid(image, frame.height, frame.width, frame.transform, frame.crs or CRS())
    if not layer.meets(grid):
        raise ValueError(f"{path}: its outlines do not meet {image}: {layer.places(grid)}")
    return layer.over(grid)


def to_classes(values: NDArray[Any], valid: NDArray[np.bool_], nodata: float | None) -> Classes:
    """Label bands (C, H, W) -> 1 where any is above 0, else 0; 255 where they are not valid, unless 0 is the nodata."""
    classes = np.asarray((values > 0).any(axis=0), np.uint8)
    return classes if nodata == 0 else np.asarray(np.where(valid, classes, IGNORE), np.uint8)


def check_grid(image: Path, frame: Frame, label: Path, other: Frame) -> None:
    """Refuse a label that is not on its image's grid.

    Raises:
        ValueError: another size, coordinate system or place; names both.
    """
    if (frame.height, frame.width) != (other.height, other.width):
        raise ValueError(
            f"{image} is {frame.height} x {frame.width}, its label {label} {other.height} x {other.width} "
            "(rows x columns); both must be of one size"
        )
    if frame.crs is not None and other.crs is not None and frame.crs != other.crs:
        raise ValueError(
            f"{image} has the coordinate system {frame.crs.to_string()}, its label {label} {other.crs.to_string()}; "
            "warp one of them to the other's grid"
        )
    if frame.transform is None or other.transform is None:
        return
    corners = np.array([[0, 0], [frame.width, 0], [0, frame.height], [frame.width, frame.height]])
    shift = float(np.abs(apply(~frame.transform, apply(other.transform, corners)) - corners).max())
    if shift > HALF_PIXEL:
        raise ValueError(
            f"{label}: lies up to {shift:.1f} pixels beside its image {image}; save it on the image's grid"
        )


def load_scene(pair: Pair, ranges: ValueRanges | None = None) -> ArrayScene:
    """Read a pair into memory: any picture format, any label; the image's values are noted in ``ranges``.

    Raises:
        ValueError, FileNotFoundError: a file is damaged, or image and label do not fit.
    """
    raster = read_raster(pair.image)
    height, width = raster.valid.shape
    frame = Frame(height, width, raster.transform, raster.crs)
    if is_vector(pair.label) or pair.label.suffix.lower() in TIFF_EXTENSIONS:
        classes = LabelReader(pair.label, frame, pair.image).read(0, 0, height, width)
    else:
        classes = _picture_classes(pair.label)
        check_grid(pair.image, frame, pair.label, Frame(*classes.shape))
    ranges = ranges or ValueRanges()
    ranges.see(raster.data[:3], raster.valid)
    image = to_pixels(raster.data, raster.valid, 3, ranges.of(raster.data.dtype))
    return ArrayScene(pair.id, image, np.where(raster.valid, classes, np.uint8(IGNORE)), frame)


def _picture_classes(path: Path) -> Classes:
    """Classes of a label picture; its values, not the colors of a grey palette."""
    values = read_label(path)
    bands = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    return to_classes(bands, read_raster(path).valid, None)


def label_values(path: Path) -> Counter[float]:
    """How many pixels have which value in a label raster (the largest band's, of colors); empty for a vector file.

    Raises:
        ValueError, FileNotFoundError: it is damaged.
    """
    found: Counter[float] = Counter()
    strips: Iterable[NDArray[Any]]
    if is_vector(path):
        return found
    if path.suffix.lower() in TIFF_EXTENSIONS:
        reader = WindowReader(path, "label")
        height, width = reader.frame.height, reader.frame.width
        rows = max(1, STRIP // width)
        strips = (reader.read(row, 0, min(rows, height - row), width)[0].max(axis=0) for row in range(0, height, rows))
    else:
        values = read_label(path)
        strips = [values if values.ndim == 2 else values.max(axis=-1)]
    for strip in strips:
        for value, count in zip(*np.unique(strip, return_counts=True), strict=True):
            found[float(value)] += int(count)
    return found
