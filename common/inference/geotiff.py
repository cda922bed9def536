"""From a finished spool to files: tiled, compressed GeoTIFFs with overviews, or Cloud Optimized GeoTIFFs.

Each file is made in the spool's folder, row by row, and moved to its name when it is whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.shutil import copy as copy_raster

from common.images.gdal import CACHE, open_raster, place_of, quiet
from common.images.write import GEOTIFF, gdal_colors
from common.inference.spool import Spool
from common.labels import NODATA, Color

ROWS = 512
"""Rows written at once; a multiple of the files' block height."""
SMALLEST_OVERVIEW = 256
"""Pixels: overviews are halved until the longer side is no longer than this."""


@dataclass(frozen=True)
class Frame:
    """What results take over from their input, and what they say about themselves."""

    crs: CRS | None = None
    transform: Affine | None = None
    """None = not georeferenced."""
    palette: Mapping[int, Color] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Path, palette: Mapping[int, Color], tags: Mapping[str, str]) -> Frame:
        """The frame of an input file."""
        with open_raster(source) as dataset:
            return cls(dataset.crs, place_of(dataset), palette, tags)


def publish(made: Path, target: Path) -> None:
    """Flush a finished file and move it to its name in one step."""
    with made.open("rb+") as file:
        os.fsync(file.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    made.replace(target)


def write_mask_raster(spool: Spool, target: Path, frame: Frame, *, cog: bool = False) -> None:
    """Write the class mask: uint8, 255 = no data, with a color table.

    Args:
        spool: all rows of the raster.
        target: ``.tif``, or ``.png`` for a picture without georeference.
        frame: coordinate system, palette, provenance.
        cog: Cloud Optimized GeoTIFF.
    """
    made = _write_layer(spool, "mask", frame, nodata=NODATA, cog=cog, overviews=Resampling.mode)
    if target.suffix == ".png":
        picture = made.with_suffix(".png")
        with quiet():
            copy_raster(made, picture, driver="PNG")
        made.unlink()
        made = picture
    publish(made, target)


def write_probability_raster(spool: Spool, target: Path, frame: Frame, *, cog: bool = False) -> None:
    """Write the probabilities: float32, a band per class (two classes: one band, P of the second), NaN = no data."""
    made = _write_layer(spool, "probability", frame, nodata=float("nan"), cog=cog, overviews=Resampling.average)
    publish(made, target)


def _write_layer(spool: Spool, name: str, frame: Frame, *, nodata: float, cog: bool, overviews: Resampling) -> Path:
    """Make one layer's file in the spool's folder."""
    layer = spool.layers[name]
    made, plain = spool.folder / f"{name}.tif", spool.folder / f"{name}-plain.tif"
    path = plain if cog else made
    options: dict[str, Any] = GEOTIFF | {"count": layer.channels, "height": spool.height, "width": spool.width}
    options |= {"dtype": layer.dtype, "nodata": nodata, "num_threads": "all_cpus"}
    if layer.dtype == "float32":
        options["predictor"] = 3
    if frame.transform is not None:
        options |= {"crs": frame.crs, "transform": frame.transform}
    if cog:
        options |= {"compress": "none", "predictor": 1}
    if name == "mask" and frame.palette:
        options["photometric"] = "palette"
    with rasterio.Env(GDAL_CACHEMAX=CACHE), quiet():
        with rasterio.open(path, "w", **options) as dataset:
            if name == "mask" and frame.palette:
                dataset.write_colormap(1, gdal_colors(frame.palette))
            dataset.update_tags(**frame.tags)
            for row in range(0, spool.height, ROWS):
                last = min(row + ROWS, spool.height)
                dataset.write(spool.read(name, row, last), window=((row, last), (0, spool.width)))
        if cog:
            _optimize(plain, made, overviews)
        else:
            _add_overviews(made, overviews)
    return made


def _add_overviews(path: Path, resampling: Resampling) -> None:
    with rasterio.open(path, "r+", num_threads="all_cpus") as dataset:
        factors = [2**level for level in range(1, 32) if max(dataset.shape) / 2 ** (level - 1) > SMALLEST_OVERVIEW]
        if factors:
            dataset.build_overviews(factors, resampling)


def _optimize(plain: Path, target: Path, resampling: Resampling) -> None:
    """Copy a GeoTIFF with GDAL's COG driver, which orders header, overviews and pixels as the format wants."""
    copy_raster(
        plain,
        target,
        driver="COG",
        compress="deflate",
        predictor="yes",
        bigtiff="if_safer",
        overview_resampling=resampling.name,
        num_threads="all_cpus",
    )
    plain.unlink()
