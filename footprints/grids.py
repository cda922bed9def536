"""Raster grids: affine maps from (column, row) to coordinates, and what follows from them.

The operators of the ``affine`` package changed between its versions (``*`` became ``@``), so they are not used here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

Bounds = tuple[float, float, float, float]
"""Left, bottom, right, top."""


def apply(grid: Affine, points: NDArray[Any]) -> NDArray[np.float64]:
    """Coordinates (n, 2) of (column, row) points (n, 2)."""
    x, y = np.asarray(points, np.float64).T
    return np.column_stack([grid.a * x + grid.b * y + grid.c, grid.d * x + grid.e * y + grid.f])


def window_grid(grid: Affine, row: int, col: int) -> Affine:
    """The grid of a window whose first pixel is at ``row``, ``col``."""
    (x, y) = apply(grid, np.array([[col, row]]))[0]
    return Affine(grid.a, grid.b, float(x), grid.d, grid.e, float(y))


def bounds(grid: Affine, height: int, width: int) -> Bounds:
    """The smallest box around a raster, whichever way its grid runs."""
    corners = apply(grid, np.array([[0, 0], [width, 0], [0, height], [width, height]]))
    (left, bottom), (right, top) = corners.min(axis=0), corners.max(axis=0)
    return float(left), float(bottom), float(right), float(top)
