"""Reading any picture or raster, and writing masks and probabilities in its frame.

Every image becomes bands (C, H, W) in the file's own numbers and a mask of the pixels that mean something: alpha, mask
bands, declared nodata and NaN all end up in that mask. Values are brought to 0-1 by a range that is known beforehand
(given, or the number type's), never by the image's own maximum, so that equal values mean the same in every image.
What is written has the input's size, coordinate system and nodata area.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from affine import Affine
from rasterio.crs import CRS

from common.images.gdal import decoding, open_raster, place_of, read_whole, require_file
from common.images.mosaics import MOSAIC
from common.images.pictures import PaletteReading, read_picture, read_tiff_pages

TIFF_EXTENSIONS = (".tif", ".tiff")
LARGEST_CLASS = 2**31
"""No class or object of a label has a larger number."""
WORLD_FILES = (".jgw", ".pgw", ".bpw", ".wld")

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.uint8]
Color = tuple[int, int, int]


@dataclass
class Raster:
    """An image in memory, with what is needed to write a result in the same frame."""

    data: Array
    """Bands (C, H, W) in the file's own number type, without alpha."""
    valid: npt.NDArray[np.bool_]
    """(H, W); False where a pixel is transparent, masked out, nodata or not finite."""
    path: Path
    """File it was read from."""
    crs: CRS | None = None
    """Coordinate reference system."""
    transform: Affine | None = None
    """Affine map from (column, row) to coordinates; None without georeference."""
    nodata: float | None = None
    """Declared nodata value."""


# Reading


def _read_gdal(path: Path, palette: PaletteReading) -> Raster:
    """Read with rasterio: georeference, masks, world files."""
    with open_raster(path, pages=True) as dataset:
        if dataset.subdatasets:
            return Raster(*read_tiff_pages(path), path)
        data, valid = read_whole(dataset, path, palette)
        return Raster(data, valid, path, dataset.crs, place_of(dataset), dataset.nodata)


def _read_tiff(path: Path, palette: PaletteReading) -> Raster:
    try:
        return _read_gdal(path, palette)
    except ValueError as error:
        if "missing codec" not in str(error):
            raise
        return Raster(*read_tiff_pages(path), path)


def _read_other(path: Path, palette: PaletteReading) -> Raster:
    return Raster(*read_picture(path, palette), path)


def _read(path: Path, palette: PaletteReading) -> Raster:
    require_file(path)
    suffix = path.suffix.lower()
    placed = palette == "rgb" and any(path.with_suffix(world).exists() for world in WORLD_FILES)
    by_gdal = placed or suffix in (".jp2", MOSAIC)
    reader = _read_tiff if suffix in TIFF_EXTENSIONS else _read_gdal if by_gdal else _read_other
    with decoding(path):
        raster = reader(path, palette)
    if raster.data.dtype.kind not in "buif":
        raise ValueError(f"{path}: has {raster.data.dtype} values; save it with whole or real numbers")
    if raster.data.dtype.kind == "f":
        raster.valid &= np.isfinite(raster.data).all(axis=0)
    return raster


def read_raster(path: Path) -> Raster:
    """Read an image of any kind: RGB(A), grey, palette (as RGB), 8 or 16 bit, float, any number of bands.

    Alpha is taken off the bands and becomes ``valid``, as do mask bands, declared nodata (where all bands have it) and
    NaN. Pictures are turned as their EXIF orientation says; a picture with a world file is georeferenced and is not.
    The fourth band of a TIFF counts as alpha if and only if the file declares it so.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image, is damaged, or is a stack of several pictures.
    """
    return _read(path, "rgb")


def read_label(path: Path, *, colors: bool = True) -> Array:
    """Read a label picture in its own values.

    A palette PNG gives its colors if any color of the palette is not grey, else the grey values; with ``colors=False``
    it gives the palette indices. The color table of a TIFF only decorates class indices (`write_mask` makes such
    files), so a TIFF always gives the indices. Transparency is dropped; `read_raster` has it.

    Args:
        path: Label file.
        colors: Read a palette PNG as colors, not as indices.

    Returns:
        (H, W) of whole numbers, or (H, W, 3) uint8 or uint16 colors.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, has neither one nor three bands, or its values are not whole numbers.
    """
    data = _read(path, "label" if colors else "index").data
    if len(data) not in (1, 3):
        raise ValueError(f"{path}: a label has 1 band (classes) or 3 (colors), this file has {len(data)}")
    if data.dtype.kind == "f":
        if not np.isfinite(data).all() or (data != np.rint(data)).any() or np.abs(data).max(initial=0) > LARGEST_CLASS:
            raise ValueError(f"{path}: label values are not whole numbers; save classes as integers")
        data = data.astype(np.int64)
    return data[0] if len(data) == 1 else np.ascontiguousarray(np.moveaxis(data, 0, -1))
