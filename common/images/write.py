"""Masks and probabilities as files, in the frame of their input."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from PIL import Image, PngImagePlugin

from common.files import atomic_path
from common.images.gdal import quiet
from common.images.rasters import TIFF_EXTENSIONS, Array, Mask, Raster
from common.labels import NODATA, Color

GEOTIFF = {
    "driver": "GTiff",
    "tiled": True,
    "blockxsize": 256,
    "blockysize": 256,
    "compress": "deflate",
    "bigtiff": "IF_SAFER",
}


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
