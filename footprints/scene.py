"""A scene: an image with its building labels, in memory or read window by window.

Labels are grey or RGB rasters (building where any band is above 0) or outlines in a vector file. Nothing is ignored but
transparent and declared nodata pixels, of the image or of its label. A label that declares 0 as nodata means background
by it: masks are often saved so, and the rest would be buildings alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from common.data.pairs import Pair
from common.images.gdal import place_of, sample_bands
from common.images.grids import Grid, apply
from common.images.ranges import ValueRanges, to_pixels
from common.images.rasters import TIFF_EXTENSIONS, read_label, read_raster
from common.images.windows import Window, WindowFile
from common.labels import IGNORE
from common.vectors.burn import Outlines, PolygonLayer

Image = NDArray[np.uint8] | NDArray[np.float32]
Classes = NDArray[np.uint8]
HALF_PIXEL = 0.5
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

    @classmethod
    def of(cls, file: WindowFile) -> Frame:
        """That of a file.

        Raises:
            ValueError, FileNotFoundError: it cannot be opened.
        """
        dataset, _ = file.open()
        return cls(dataset.height, dataset.width, place_of(dataset), dataset.crs)

    @property
    def window(self) -> Window:
        """All of it."""
        return Window(0, 0, self.height, self.width)

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.height * self.width


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

    def read(self, window: Window) -> tuple[Image, Classes]:
        """A window of image and classes."""
        return self.image[:, *window.slices], self.classes[window.slices]


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
        self._image = WindowFile(pair.image)
        dataset, meaning = self._image.open()
        data, valid = sample_bands(dataset, bands=meaning)
        self._ranges.see(data[:3], valid)
        self.frame = Frame.of(self._image)
        self._label = LabelReader(pair.label, self.frame, pair.image)

    def read(self, window: Window) -> tuple[Image, Classes]:
        """A window of image and classes."""
        data, valid = self._image.read(window, 3)
        classes = self._label.read(window)
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
        self._raster: WindowFile | None = None
        if is_vector(path):
            self._outlines = read_outlines(path, frame, image)
        else:
            self._raster = WindowFile(path, "label")
            check_grid(image, frame, path, Frame.of(self._raster))

    def read(self, window: Window) -> Classes:
        """(height, width): 1 building, 0 not, 255 ignored."""
        if self._outlines is not None:
            return self._outlines.burn(window)
        assert self._raster is not None
        values, valid = self._raster.read(window)
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
        classes = LabelReader(pair.label, frame, pair.image).read(frame.window)
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
        file = WindowFile(path, "label")
        strips = (file.read(strip)[0].max(axis=0) for strip in Frame.of(file).window.strips(STRIP))
    else:
        values = read_label(path)
        strips = [values if values.ndim == 2 else values.max(axis=-1)]
    for strip in strips:
        for value, count in zip(*np.unique(strip, return_counts=True), strict=True):
            found[float(value)] += int(count)
    return found
