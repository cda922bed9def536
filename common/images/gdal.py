"""Reading a file that GDAL has open, as a whole or in parts: bands without alpha, and which pixels are valid."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader

from common.images.pictures import PaletteReading, expand_palette

CACHE = 64 << 20
"""Bytes of GDAL's block cache; by default it is a share of the machine's memory."""

Array = npt.NDArray[Any]


@contextmanager
def quiet() -> Iterator[None]:
    """A raster without georeference is as good as any other here; damaged EXIF or odd palettes are not news either."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextmanager
def open_raster(path: Path) -> Iterator[DatasetReader]:
    """Open a file with GDAL, with a bounded cache and without its remarks on missing georeference."""
    with rasterio.Env(GDAL_CACHEMAX=CACHE), quiet(), rasterio.open(path) as dataset:
        yield dataset


def read_bands(
    dataset: DatasetReader,
    rows: tuple[int, int] | None = None,
    cols: tuple[int, int] | None = None,
    palette: PaletteReading = "rgb",
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Bands (C, H, W) without alpha, and which pixels are valid (H, W), of a part of an open file or all of it.

    Args:
        dataset: Open file.
        rows: First row, and the row after the last; None = all.
        cols: First column, and the column after the last; None = all.
        palette: A color table is applied for ``rgb`` only.

    Raises:
        ValueError: The file has nothing but alpha.
    """
    window = (rows or (0, dataset.height), cols or (0, dataset.width))
    interpretation = dataset.colorinterp
    bands = [i for i, meaning in enumerate(interpretation, start=1) if meaning != ColorInterp.alpha]
    if not bands:
        raise ValueError("it has an alpha band only")
    data: Array = dataset.read(bands, window=window)
    valid = np.asarray(dataset.dataset_mask(window=window) != 0)
    if palette == "rgb" and len(bands) == 1 and interpretation[0] == ColorInterp.palette:
        data, opaque = expand_palette(data[0], dataset.colormap(1))
        valid &= opaque
    if data.dtype.kind == "f":
        valid &= np.isfinite(data).all(axis=0)
    return data, valid


def sample_bands(dataset: DatasetReader, side: int = 256, count: int = 4) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Bands (C, n, side) and validity of some small windows spread over an open file: a look at its values."""
    height, width = min(side, dataset.height), min(side, dataset.width)
    rows = np.unique(np.linspace(0, dataset.height - height, count).astype(int))
    cols = np.unique(np.linspace(0, dataset.width - width, count).astype(int))
    parts = [read_bands(dataset, (row, row + height), (col, col + width)) for row in rows for col in cols]
    return np.concatenate([data for data, _ in parts], axis=1), np.concatenate([valid for _, valid in parts])


def place_of(dataset: DatasetReader) -> Affine | None:
    """The affine map of an open file to coordinates; None where it has no georeference."""
    return dataset.transform if dataset.crs is not None or not dataset.transform.is_identity else None
