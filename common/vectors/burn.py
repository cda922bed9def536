"""Polygons of a vector file on the grid of a raster.

Of a file that covers a country only the polygons over the raster are read. Their corners are brought into the raster's
coordinate system and from there to its pixels, so that a window is burnt exactly as the whole raster would be: a pixel
takes the class of the last polygon (in the file's order) that its center lies in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.features import rasterize
from rasterio.warp import transform_bounds

from common.images.grids import Bounds, Grid, apply, convert, describe
from common.images.ground import Ground
from common.images.windows import Window
from common.vectors.formats import offline, require_shapes

POLYGONAL = (3, 6)
"""shapely's type ids of polygon and multipolygon."""
Objects = NDArray[np.object_]


class Outlines:
    """Polygons over a raster, in the file's order.

    Args:
        shapes: in pixels of the raster: x = columns, y = rows.
        values: value of each one's field as text, '' without a field.
    """

    def __init__(self, shapes: Objects, values: Objects) -> None:
        self.shapes, self.values = shapes, values
        self._tree = shapely.STRtree(shapes)

    def burn(
        self, window: Window | tuple[int, int, int, int], classes: NDArray[np.uint8] | int = 1, background: int = 0
    ) -> NDArray[np.uint8]:
        """Classes of a window's pixels.

        Args:
            window: row, column, height, width.
            classes: class of each polygon, or of all.
            background: class where there is no polygon.

        Returns:
            (height, width) uint8.
        """
        row, column, height, width = window
        here = np.sort(self._tree.query(shapely.box(column, row, column + width, row + height)))
        if not len(here):
            return np.full((height, width), background, np.uint8)
        moved = shapely.transform(self.shapes[here], lambda points: points - (column, row))
        pairs = zip(moved, np.broadcast_to(classes, len(self.shapes))[here].tolist(), strict=True)
        burnt = rasterize(pairs, (height, width), fill=background, dtype="uint8", transform=Affine.identity())
        return np.asarray(burnt, np.uint8)


class PolygonLayer:
    """One layer of polygons in a vector file.

    Args:
        path: SHP, GPKG, GeoJSON or FlatGeobuf, or the folder of a file geodatabase.
        layer: name of the layer, where there are several.
        field: attribute to be read with the polygons.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, has no such layer or field, several layers or no shapes.
    """

    def __init__(self, path: Path, layer: str | None = None, field: str | None = None) -> None:
        require_shapes(path)
        self.path, self.field = path, field
        import pyogrio

        with reading(path):
            self.layer = _choose(path, layer)
            info = pyogrio.read_info(path, layer=self.layer, force_total_bounds=True, force_feature_count=True)
            self.crs = CRS.from_user_input(info["crs"]) if info["crs"] else CRS()
        if not info["features"] or info["total_bounds"] is None:
            raise ValueError(f"{path}: holds no shapes; the label of an area without any is a raster of background")
        if field is not None and field not in info["fields"]:
            raise ValueError(f"{path}: has no field '{field}'; its fields are {', '.join(info['fields']) or 'none'}")
        left, bottom, right, top = (float(value) for value in info["total_bounds"])
        self.bounds = (left, bottom, right, top)
        self._turn = _full_turn(self.crs)

    def bounds_of(self, grid: Grid) -> Bounds:
        """A raster's extent in the coordinates of this file; where one of them names none, both are taken to be equal.

        East of the antimeridian longitudes go on beyond 180 degrees.

        Raises:
            ValueError: there is no way from one coordinate system to the other.
        """
        if self._shares_system(grid):
            return grid.bounds
        try:
            left, bottom, right, top = transform_bounds(grid.crs, self.crs, *grid.bounds)
        except (CRSError, CPLE_BaseError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{grid} cannot be converted to {describe(self.bounds, self.crs)}: {reason}") from error
        return left, bottom, right + self._turn if right < left else right, top

    def meets(self, grid: Grid) -> bool:
        """Whether a raster overlaps the extent of this file."""
        return bool(self._turns(grid))

    def _turns(self, grid: Grid) -> list[float]:
        """By how much longitudes of this file differ from a raster's where they overlap: 0, or once around the earth.

        Files that cross the antimeridian count on beyond 180 degrees, or begin again at -180.
        """
        one, other = self.bounds_of(grid), self.bounds
        if not (one[1] < other[3] and other[1] < one[3]):
            return []
        shifts = [0.0, -self._turn, self._turn] if self._turn else [0.0]
        return [shift for shift in shifts if one[0] + shift < other[2] and other[0] < one[2] + shift]

    def places(self, grid: Grid) -> str:
        """Where this file and a raster lie, for a message that they do not meet."""
        own, there = describe(self.bounds, self.crs), describe(self.bounds_of(grid), self.crs)
        return f"it lies at {own}, {grid}, which is {there}; check the coordinate system of both"

    def over(self, grid: Grid) -> Outlines:
        """The polygons over a raster.

        Raises:
            ValueError: they cannot be read, or what is there is lines or points only.
        """
        parts = [self._read(grid, shift) for shift in self._turns(grid)]
        if not parts:
            return Outlines(np.empty(0, object), np.empty(0, object))
        shapes, values, numbers = (np.concatenate(part) for part in zip(*parts, strict=True))
        order = np.argsort(numbers, kind="stable")  # a spatial index gives them in its own order
        shapes, values = shapes[order], values[order]
        kinds = shapely.get_type_id(shapes)
        polygonal = np.isin(kinds, POLYGONAL)
        if (kinds >= 0).any() and not polygonal.any():
            found = ", ".join(sorted({shape.geom_type for shape in shapes[kinds >= 0]}))
            raise ValueError(f"{self.path}: over {grid.path} it holds {found}, no polygons; polygons are needed")
        shapes = shapely.transform(shapes[polygonal], lambda points: self._to_pixels(points, grid))
        inside = shapely.intersects(shapes, shapely.box(0, 0, grid.width, grid.height))
        return Outlines(shapes[inside], values[polygonal][inside])

    def _read(self, grid: Grid, shift: float) -> tuple[Objects, Objects, NDArray[np.int64]]:
        """Shapes over a raster, moved by ``-shift`` along x, their values as text, and their numbers in the file."""
        left, bottom, right, top = self.bounds_of(grid)
        columns, box = [] if self.field is None else [self.field], (left + shift, bottom, right + shift, top)
        import pyogrio

        with reading(self.path):
            _, numbers, encoded, fields = pyogrio.raw.read(
                self.path, layer=self.layer, columns=columns, bbox=box, return_fids=True
            )
            shapes = shapely.from_wkb(encoded, on_invalid="fix")
            if shift:
                shapes = shapely.transform(shapes, lambda points: points - (shift, 0))
        values = np.array([as_text(value) for value in fields[0]] if fields else [""] * len(shapes), object)
        return shapes, values, numbers

    def _shares_system(self, grid: Grid) -> bool:
        return not self.crs or not grid.crs or bool(self.crs == grid.crs)

    def _to_pixels(self, points: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
        if not self._shares_system(grid):
            own, points = points, convert(points, self.crs, grid.crs)
            if turn := _full_turn(grid.crs):  # longitudes as the raster counts them, be it beyond 180 degrees
                near = own[:, 0] * turn / self._turn if self._turn else (grid.bounds[0] + grid.bounds[2]) / 2
                points[:, 0] -= turn * np.round((points[:, 0] - near) / turn)
        if not np.isfinite(points).all():
            raise ValueError(f"{self.path}: a polygon over {grid.path} has corners without a place in {grid.crs}")
        return apply(~grid.transform, points)


def _full_turn(crs: CRS) -> float:
    """Once around the earth in the units of a geographic system; 0 in others."""
    return 2 * math.pi / Ground(crs).unit if crs and crs.is_geographic else 0.0


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Errors of reading a vector file, in one line that names it; the network is out of reach meanwhile.

    Corners that are no numbers give no warning: they are refused with their place.
    """
    from pyogrio.errors import DataLayerError, DataSourceError

    try:
        with offline(), np.errstate(invalid="ignore"):
            yield
    except (DataSourceError, DataLayerError, shapely.errors.ShapelyError, CRSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be used: {' '.join(str(error).split())}") from error


def _choose(path: Path, layer: str | None) -> str:
    import pyogrio

    layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    if layer is not None and layer not in layers:
        raise ValueError(f"it has no layer '{layer}'; its layers are {', '.join(layers) or 'none'}")
    if layer is None and len(layers) != 1:
        found = f"the layers {', '.join(layers)}" if layers else "no layer with shapes"
        raise ValueError(
            f"it has {found}; choose one (--layer, where the command has it) or save it as a file with one layer"
        )
    return layer or layers[0]


def as_text(value: object) -> str:
    """A field's value as text: whole numbers without decimals, missing values as ``null``."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return "null"
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)
