"""Reading any picture or raster, and writing masks and probabilities in its frame.

Every image becomes bands (C, H, W) in the file's own numbers and a mask of the pixels that mean something: alpha, mask
bands, declared nodata and NaN all end up in that mask. Values are brought to 0-1 by a range that is known beforehand
(given, or the number type's), never by the image's own maximum, so that equal values mean the same in every image.
What is written has the input's size, coordinate system and nodata area.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from PIL import Image, PngImagePlugin
from rasterio.crs import CRS
from rasterio.errors import RasterioIOError

from common.bands import open_raster, place_of, quiet, read_bands
from common.checkpoint import atomic_path
from common.pictures import PaletteReading, read_picture, read_tiff_pages

TIFF_EXTENSIONS = (".tif", ".tiff")
WORLD_FILES = (".jgw", ".pgw", ".bpw", ".wld")
NODATA = 255
MIN_USED_RANGE = 0.1
GEOTIFF = {
    "driver": "GTiff",
    "tiled": True,
    "blockxsize": 256,
    "blockysize": 256,
    "compress": "deflate",
    "bigtiff": "IF_SAFER",
}

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

    @property
    def is_georeferenced(self) -> bool:
        """Whether pixels have a place on the ground."""
        return self.transform is not None


# Reading


def _read_gdal(path: Path, palette: PaletteReading) -> Raster:
    """Read with rasterio: georeference, masks, world files."""
    with open_raster(path) as dataset:
        if dataset.subdatasets:
            return Raster(*read_tiff_pages(path), path)
        data, valid = read_bands(dataset, palette=palette)
        return Raster(data, valid, path, dataset.crs, place_of(dataset), dataset.nodata)


def _read_tiff(path: Path, palette: PaletteReading) -> Raster:
    try:
        return _read_gdal(path, palette)
    except RasterioIOError as error:
        if "missing codec" not in str(error):
            raise
        return Raster(*read_tiff_pages(path), path)


def unreadable(path: Path, error: Exception) -> ValueError:
    """What to say of a file at which a decoder failed."""
    reason = str(error.__cause__ or error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    return ValueError(f"{path}: cannot be read as an image: {reason}; remove or replace it")


def _read_other(path: Path, palette: PaletteReading) -> Raster:
    return Raster(*read_picture(path, palette), path)


def _read(path: Path, palette: PaletteReading) -> Raster:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    suffix = path.suffix.lower()
    placed = palette == "rgb" and any(path.with_suffix(world).exists() for world in WORLD_FILES)
    reader = _read_tiff if suffix in TIFF_EXTENSIONS else _read_gdal if placed or suffix == ".jp2" else _read_other
    try:
        with quiet():
            raster = reader(path, palette)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make the decoders raise nearly anything
        raise unreadable(path, error) from error
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
        if not np.isfinite(data).all() or (data != np.rint(data)).any():
            raise ValueError(f"{path}: label values are not whole numbers; save classes as integers")
        data = data.astype(np.int64)
    return data[0] if len(data) == 1 else np.ascontiguousarray(np.moveaxis(data, 0, -1))


# Value ranges


def dtype_range(dtype: npt.DTypeLike) -> tuple[float, float]:
    """Values that mean black and white in a number type: 0-255, 0-65535, ..., and 0-1 for floats and booleans."""
    kind = np.dtype(dtype)
    return (0.0, float(np.iinfo(kind).max)) if kind.kind in "ui" else (0.0, 1.0)


def _checked_range(data: Array, value_range: tuple[float, float] | None) -> tuple[float, float]:
    low, high = dtype_range(data.dtype) if value_range is None else value_range
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"--input-range needs two numbers LO < HI, got {low} {high}")
    return low, high


def to_unit(image: Array) -> npt.NDArray[np.float32]:
    """An image (C, H, W), uint8 or already in 0-1, as float32 in 0-1."""
    return image.astype(np.float32) * np.float32(1 / 255 if image.dtype == np.uint8 else 1)


def scale_to_unit(
    data: Array, valid: npt.NDArray[np.bool_], value_range: tuple[float, float] | None = None
) -> npt.NDArray[np.float32]:
    """Map values to 0-1 by a fixed range, clipped; invalid pixels become 0.

    Args:
        data: (C, H, W) of any number type.
        valid: (H, W).
        value_range: Values that become 0 and 1; None = `dtype_range`.

    Returns:
        (C, H, W) float32, finite.

    Raises:
        ValueError: The range is empty or not finite, or a valid pixel is NaN.
    """
    low, high = _checked_range(data, value_range)
    whole = data.dtype.kind in "ui"
    wide = data.dtype.itemsize > 4 or (whole and data.dtype.itemsize > 2)
    scaled: npt.NDArray[np.floating[Any]] = data.astype(np.float64 if wide else np.float32)
    if low != 0.0:
        scaled -= low
    scaled /= high - low
    if data.dtype.kind != "u" or (low, high) != dtype_range(data.dtype):
        np.clip(scaled, 0.0, 1.0, out=scaled)
    if not valid.all():
        scaled[:, ~valid] = 0.0
    if not whole and np.isnan(scaled).any():
        raise ValueError(f"{int(np.isnan(scaled).sum())} values marked as valid are NaN")
    return scaled.astype(np.float32, copy=False)


def to_channels(
    data: Array, valid: npt.NDArray[np.bool_], channels: int = 3, value_range: tuple[float, float] | None = None
) -> npt.NDArray[np.float32]:
    """The bands that a network reads, in 0-1: the first ``channels``; for three of them a grey image is repeated.

    Args:
        data: (C, H, W) of any number type.
        valid: (H, W); invalid pixels become 0.
        channels: How many bands the network reads.
        value_range: Values that become 0 and 1; None = `dtype_range`.

    Returns:
        (channels, H, W) float32.

    Raises:
        ValueError: The image has too few bands.
    """
    if channels == 3 and len(data) < 3:
        return np.repeat(scale_to_unit(data[:1], valid, value_range), 3, axis=0)
    if len(data) < channels:
        raise ValueError(f"it has {len(data)} bands, the network reads {channels}; use images like those it learned on")
    return scale_to_unit(data[:channels], valid, value_range)


def range_warning(
    data: Array, valid: npt.NDArray[np.bool_], value_range: tuple[float, float] | None = None
) -> str | None:
    """One line if the valid values span under a tenth of the range or mostly lie outside it, else None."""
    low, high = _checked_range(data, value_range)
    values = data[:, valid]
    if not values.size:
        return None
    seen = float(values.min()), float(values.max())
    used = float(np.ptp(np.clip(seen, low, high))) / (high - low)
    outside = float(np.mean((values < low) | (values > high)))
    if used >= MIN_USED_RANGE and outside <= 0.5:
        return None
    problem = f"{outside:.0%} of them lie outside" if outside > 0.5 else f"only {used:.1%} of it is used"
    return (
        f"values {seen[0]:g} to {seen[1]:g} are read with the range {low:g} to {high:g}, {problem}; "
        f"set --input-range {seen[0]:g} {seen[1]:g}, or the sensor's range, if that is wrong"
    )


# Writing


def mask_suffix(like: Raster | None) -> str:
    """File type of a mask: ``.tif`` where there is a georeference to keep, else ``.png``."""
    return ".tif" if like is not None and like.is_georeferenced else ".png"


def _check_frame(path: Path, shape: tuple[int, ...], like: Raster | None) -> None:
    if like is not None and shape != like.valid.shape:
        raise ValueError(f"{path}: result of {shape} pixels does not fit its input of {like.valid.shape} ({like.path})")


def gdal_colors(palette: Mapping[int, Color]) -> dict[int, tuple[int, int, int, int]]:
    """A GeoTIFF's color table, in which nodata is transparent."""
    return {**{index: (*rgb, 255) for index, rgb in palette.items()}, NODATA: (0, 0, 0, 0)}


def _write_geotiff(
    path: Path, bands: Array, like: Raster | None, tags: Mapping[str, str], colors: Mapping[int, Color] | None = None
) -> None:
    options: dict[str, Any] = dict(GEOTIFF, count=len(bands), height=bands.shape[1], width=bands.shape[2])
    options |= {"dtype": bands.dtype.name, "nodata": np.nan if bands.dtype.kind == "f" else NODATA}
    if bands.dtype.kind == "f":
        options["predictor"] = 3
    if like is not None and like.is_georeferenced:
        options |= {"crs": like.crs, "transform": like.transform}
    if colors is not None:
        options["photometric"] = "palette"
    with atomic_path(path) as temporary, quiet(), rasterio.open(temporary, "w", **options) as dataset:
        if colors is not None:
            dataset.write_colormap(1, gdal_colors(colors))
        dataset.update_tags(**tags)
        dataset.write(bands)


def _write_png(path: Path, mask: Mask, palette: Mapping[int, Color] | None, tags: Mapping[str, str]) -> None:
    image, options = Image.fromarray(mask), {}
    if palette is not None:
        table = np.zeros((256, 3), np.uint8)
        for index, rgb in palette.items():
            table[index] = rgb
        image.putpalette(table.tobytes())
        if NODATA not in palette:
            options["transparency"] = NODATA
    text = PngImagePlugin.PngInfo()
    for key, value in tags.items():
        text.add_text(key, value)
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=text, **options)


def write_mask(
    path: Path,
    mask: Mask,
    *,
    palette: Mapping[int, Color] | None = None,
    like: Raster | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write a class mask as PNG or tiled GeoTIFF, whichever the suffix says (see `mask_suffix`).

    Args:
        path: ``.png`` or ``.tif`` file; replaced in one step.
        mask: (H, W) uint8 class indices, 255 = nodata; 255 is also written wherever ``like`` is not valid.
        palette: Display color of each class; nodata is transparent in a PNG.
        like: Input whose frame and nodata area the mask gets.
        tags: Provenance, stored as TIFF tags or PNG text.

    Raises:
        ValueError: Mask of another type or size than the input, or a PNG that would lose a georeference.
    """
    _check_frame(path, mask.shape, like)
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise ValueError(f"{path}: a mask is (H, W) uint8, got {mask.dtype} of shape {mask.shape}")
    if like is not None:
        mask = np.where(like.valid, mask, np.uint8(NODATA))
    if path.suffix.lower() in TIFF_EXTENSIONS:
        _write_geotiff(path, mask[None], like, tags or {}, palette)
    elif like is not None and like.is_georeferenced:
        raise ValueError(f"{path}: would lose the georeference of {like.path}; write {mask_suffix(like)}")
    else:
        _write_png(path, mask, palette, tags or {})


def write_probability(
    path: Path,
    probability: npt.NDArray[np.float32],
    *,
    like: Raster | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write class probabilities (C, H, W) as a tiled float32 GeoTIFF; NaN = nodata, set where ``like`` is not valid.

    Raises:
        ValueError: Another size than the input's, or a valid pixel without a finite probability.
    """
    _check_frame(path, probability.shape[1:], like)
    bands = np.array(probability, dtype=np.float32)
    valid = np.ones(bands.shape[1:], bool) if like is None else like.valid
    if not np.isfinite(bands[:, valid]).all():
        raise ValueError(f"{path}: some probabilities are NaN or infinite; try --amp off, or check the checkpoint")
    bands[:, ~valid] = np.nan
    _write_geotiff(path, bands, like, tags or {})
