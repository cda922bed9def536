"""Where an orthophoto and a mask show the same ground, and whether their grids fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from common.images.grids import Grid, apply, convert
from common.images.windows import Window, WindowFile, clip
from permeability.site import Site

OFF_GRID = 0.1
"""Pixels by which corners may miss those of the other grid, at any place of the overlap."""
EDGE_POINTS = 21
"""Points along each side of an outline, since straight lines bend between coordinate systems."""
Points = NDArray[np.float64]


def same_system(one: CRS, other: CRS) -> bool:
    """Whether two coordinate systems are the same, in whatever words."""
    return bool(one == other) or (one.to_epsg() is not None and one.to_epsg() == other.to_epsg())


def outline(grid: Grid, crs: CRS) -> Points:
    """Points (n, 2) around a grid, in a coordinate system; not finite where it has no place there."""
    steps = np.linspace(0, 1, EDGE_POINTS)[:-1]
    zero, one = np.zeros_like(steps), np.ones_like(steps)
    x = np.concatenate([steps, one, 1 - steps, zero]) * grid.width
    y = np.concatenate([zero, steps, one, 1 - steps]) * grid.height
    points = apply(grid.transform, np.column_stack([x, y]))
    if same_system(grid.crs, crs):
        return points
    try:
        return convert(points, grid.crs, crs)
    except ValueError as error:
        raise ValueError(f"{grid.path}: {error}") from error


class GroundIndex:
    """An index of the ground that rasters show.

    Args:
        grids: the rasters.
    """

    def __init__(self, grids: Sequence[Grid]) -> None:
        members: dict[CRS, list[int]] = defaultdict(list)
        for index, grid in enumerate(grids):
            members[grid.crs].append(index)
        self._trees = [
            (crs, some, shapely.STRtree([shapely.Polygon(outline(grids[i], crs)) for i in some]))
            for crs, some in members.items()
        ]

    def over(self, grid: Grid) -> list[int]:
        """Which of them show ground of another raster, in order."""
        found: list[int] = []
        for crs, some, tree in self._trees:
            points = outline(grid, crs)
            if np.isfinite(points).all():
                found += [some[i] for i in tree.query(shapely.Polygon(points), predicate="intersects")]
        return sorted(found)


@dataclass(frozen=True)
class Shared:
    """The overlap of an orthophoto and a mask."""

    photo: Grid
    mask: Grid
    read_on: Grid
    """The grid in whose pixels windows count."""
    window: Window
    offset: tuple[int, int] | None
    """Of the mask's first pixel; None = it is to be warped."""

    def site(self, name: str, earlier: Sequence[Grid] = ()) -> Site:
        """The site; ground of ``earlier`` orthophotos is ignored in it."""
        photo = WindowFile(self.photo.path, warp=None if self.read_on == self.photo else self.read_on)
        mask = WindowFile(self.mask.path, "index", None if self.offset else self.read_on)
        excluded = [part for grid in earlier if (part := rectangle(grid, self.read_on)) is not None]
        scale = pixel_side(self.photo) / pixel_side(self.read_on)
        return Site(name, self.read_on, photo, mask, self.window, self.offset, tuple(excluded), scale)


def share(photo: Grid, mask: Grid, *, reproject: bool, resolution: float) -> Shared | None:
    """The ground that both show; None = none, or less than a pixel.

    Raises:
        ValueError: their coordinate systems or grids differ and nothing may be warped; names both.
    """
    read_on = at_resolution(photo, resolution)
    window = rectangle(mask, read_on)
    if window is None:
        return None
    if not same_system(photo.crs, mask.crs):
        if not reproject:
            raise ValueError(
                f"{mask.path} has the coordinate system {name(mask.crs)}, the orthophoto {photo.path} below it "
                f"{name(photo.crs)}; pass --reproject to warp the mask while reading"
            )
        return Shared(photo, mask, read_on, window, None)
    misfit = off_grid(photo, mask)
    if misfit is not None and not reproject:
        raise ValueError(
            f"{mask.path} is not on the grid of the orthophoto {photo.path}: {misfit}; pass --reproject to warp the "
            "mask while reading"
        )
    if misfit is not None or resolution:
        return Shared(photo, mask, read_on, window, None)
    col, row = ~photo.transform @ (mask.transform.c, mask.transform.f)
    return Shared(photo, mask, read_on, window, (round(row), round(col)))


def at_resolution(grid: Grid, side: float) -> Grid:
    """The same ground in pixels of another side, in units of the coordinate system (0 = unchanged)."""
    if not side:
        return grid
    shrink = side / pixel_side(grid)
    height, width = (max(1, round(size / shrink)) for size in (grid.height, grid.width))
    fitted = grid.transform @ Affine.scale(grid.width / width, grid.height / height)
    return Grid(grid.path, height, width, fitted, grid.crs)


def pixel_side(grid: Grid) -> float:
    """Side of a square pixel of the same area, in units of the coordinate system."""
    return float(abs(grid.transform.determinant) ** 0.5)


def rectangle(other: Grid, grid: Grid) -> Window | None:
    """The smallest window of a grid around what it has in common with another one; None = nothing."""
    points = outline(other, grid.crs)
    if not np.isfinite(points).all():
        return None
    columns, rows = ~grid.transform @ (points[:, 0], points[:, 1])
    tolerance = 0.5  # a window has whole pixels: those whose centers may lie inside
    top, left = int(np.ceil(rows.min() - tolerance)), int(np.ceil(columns.min() - tolerance))
    bottom, right = int(np.floor(rows.max() + tolerance)), int(np.floor(columns.max() + tolerance))
    if top >= bottom or left >= right:
        return None
    return clip(Window(top, left, bottom - top, right - left), grid.height, grid.width)


def off_grid(photo: Grid, mask: Grid) -> str | None:
    """In which way a mask of the same coordinate system misses the orthophoto's pixels; None = it does not."""
    between = ~photo.transform @ mask.transform
    sizes = between.a, between.e
    if abs(between.b) * mask.height > OFF_GRID or abs(between.d) * mask.width > OFF_GRID:
        return "it is turned against it"
    if abs(sizes[0] - 1) * mask.width > OFF_GRID or abs(sizes[1] - 1) * mask.height > OFF_GRID:
        own, other = (f"{grid.transform.a:g} x {-grid.transform.e:g}" for grid in (mask, photo))
        return f"its pixels are {own}, the other's {other}"
    shift = max(abs(value - round(value)) for value in (between.c, between.f))
    return f"it lies {shift:.2f} pixels beside it" if shift > OFF_GRID else None


def name(crs: CRS) -> str:
    """A coordinate system for a message."""
    return str(crs.to_string())[:60]
