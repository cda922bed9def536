"""Raster grids: affine maps from (column, row) to coordinates, and what follows from them.

The operators of the ``affine`` package changed between its versions (``*`` became ``@``), so they are not used here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform

from common.images.gdal import control_points, open_raster

Bounds = tuple[float, float, float, float]
"""Left, bottom, right, top."""


def apply(grid: Affine, points: NDArray[Any]) -> NDArray[np.float64]:
    """Coordinates (n, 2) of (column, row) points (n, 2)."""
    x, y = np.asarray(points, np.float64).T
    return np.column_stack([grid.a * x + grid.b * y + grid.c, grid.d * x + grid.e * y + grid.f])


def convert(points: NDArray[np.float64], source: CRS, target: CRS) -> NDArray[np.float64]:
    """Points (n, 2) in another coordinate system; all infinite where one of them has no place there.

    Raises:
        ValueError: there is no way from one system to the other.
    """
    if not len(points):
        return points
    try:
        return np.column_stack(transform(source, target, points[:, 0], points[:, 1]))
    except CRSError as error:
        raise ValueError(f"{source} cannot be converted to {target}: {' '.join(str(error).split())}") from error
    except CPLE_BaseError:  # beyond the edge of a projection, such as metres that are taken for degrees
        return np.full_like(points, np.inf)


def window_grid(grid: Affine, row: int, col: int) -> Affine:
    """The grid of a window whose first pixel is at ``row``, ``col``."""
    (x, y) = apply(grid, np.array([[col, row]]))[0]
    return Affine(grid.a, grid.b, float(x), grid.d, grid.e, float(y))


def bounds(grid: Affine, height: int, width: int) -> Bounds:
    """The smallest box around a raster, whichever way its grid runs."""
    corners = apply(grid, np.array([[0, 0], [width, 0], [0, height], [width, height]]))
    (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
    return float(left), float(bottom), float(right), float(top)


def describe(box: Bounds, crs: CRS) -> str:
    """Bounds and their coordinate system, for messages."""
    name = crs.to_string()[:60] if crs else "no coordinate system"
    return f"x {box[0]:.7g}...{box[2]:.7g}, y {box[1]:.7g}...{box[3]:.7g} ({name})"


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a raster lie."""

    path: Path
    height: int
    width: int
    transform: Affine
    """Affine map from (column, row) to coordinates."""
    crs: CRS
    """Empty where none is named."""

    @classmethod
    def of(cls, path: Path) -> Grid:
        """The grid of a file.

        Raises:
            FileNotFoundError, ValueError: it cannot be opened, or has no georeference.
        """
        with open_raster(path) as dataset:
            if dataset.crs is None or dataset.transform.is_identity:
                points = control_points(dataset)
                remedy = f"warp it by its {points} control points (gdalwarp)" if points else "georeference it"
                raise ValueError(f"{path}: has no georeference (coordinate system and place); {remedy} first")
            if dataset.transform.is_degenerate:
                raise ValueError(f"{path}: its georeference gives pixels no extent: {tuple(dataset.transform)[:6]}")
            return cls(path, dataset.height, dataset.width, dataset.transform, dataset.crs)

    @property
    def bounds(self) -> Bounds:
        """Extent in its coordinate system."""
        return bounds(self.transform, self.height, self.width)

    def __str__(self) -> str:
        """Name and place, for messages."""
        return f"{self.path} at {describe(self.bounds, self.crs)}"
