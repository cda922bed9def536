"""Land-cover polygons from vector files, on the grid of a raster.

Of a file that covers a country only the polygons over the raster are read. Their corners are brought into the raster's
coordinate system and from there to its pixels, so that a window is burnt exactly as the whole raster would be: a pixel
takes the class of the last polygon (in the file's order) that its center lies in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.features import rasterize
from rasterio.warp import transform, transform_bounds

from common.bands import open_raster

POLYGON, MULTIPOLYGON = 3, 6
"""shapely's type ids."""
Bounds = tuple[float, float, float, float]
"""Left, bottom, right, top."""


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a raster lie."""

    path: Path
    height: int
    width: int
    transform: Affine
    """Affine map from (column, row) to coordinates."""
    crs: CRS

    @classmethod
    def of(cls, path: Path) -> Grid:
        """The grid of a file.

        Raises:
            ValueError: it has no georeference.
            rasterio.errors.RasterioIOError: it cannot be opened.
        """
        with open_raster(path) as dataset:
            if dataset.crs is None or dataset.transform.is_identity:
                raise ValueError(f"{path}: has no georeference, so no polygon has a place on it; georeference it first")
            return cls(path, dataset.height, dataset.width, dataset.transform, dataset.crs)

    @property
    def bounds(self) -> Bounds:
        """Extent in its coordinate system."""
        corners = [self.transform @ (column, row) for column in (0, self.width) for row in (0, self.height)]
        x, y = zip(*corners, strict=True)
        return min(x), min(y), max(x), max(y)


@dataclass(frozen=True)
class Polygons:
    """Polygons over a raster, in the file's order."""

    shapes: NDArray[np.object_]
    """In pixels of the raster: x = columns, y = rows."""
    values: NDArray[np.object_]
    """Value of the field as text, '' without a field."""

    def burn(self, classes: NDArray[np.uint8], window: tuple[int, int, int, int], background: int) -> NDArray[np.uint8]:
        """Classes of a window's pixels.

        Args:
            classes: class of each polygon.
            window: row, column, height, width.
            background: class where there is no polygon.

        Returns:
            (height, width) uint8.
        """
        row, column, height, width = window
        here = shapely.intersects(self.shapes, shapely.box(column, row, column + width, row + height))
        moved = shapely.transform(self.shapes[here], lambda points: points - (column, row))
        if not len(moved):
            return np.full((height, width), background, np.uint8)
        pairs = zip(moved, classes[here].tolist(), strict=True)
        burnt = rasterize(pairs, (height, width), fill=background, dtype="uint8", transform=Affine.identity())
        return np.asarray(burnt, np.uint8)


class LandCover:
    """One layer of polygons in a vector file.

    Args:
        path: SHP, GPKG, GeoJSON or whatever else GDAL reads.
        layer: name of the layer, where there are several.
        field: attribute that tells the class of a polygon; None = not needed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or has no such layer or field, no coordinate system or no shapes.
    """

    def __init__(self, path: Path, layer: str | None = None, field: str | None = None) -> None:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; check the path")
        self.path, self.field = path, field
        self.layer = self._reading(lambda: self._choose(layer))
        info = self._reading(
            lambda: pyogrio.read_info(path, layer=self.layer, force_total_bounds=True, force_feature_count=True)
        )
        if not info["features"] or info["total_bounds"] is None:
            raise ValueError(f"{path}: holds no shapes; nothing could be burnt")
        if field is not None and field not in info["fields"]:
            raise ValueError(f"{path}: has no field '{field}'; its fields are {', '.join(info['fields']) or 'none'}")
        if not info["crs"]:
            raise ValueError(
                f"{path}: names no coordinate system (a shapefile has it in a .prj file); assign the right one, "
                "for example with ogr2ogr -a_srs EPSG:25830"
            )
        self.crs: CRS = self._reading(lambda: CRS.from_user_input(info["crs"]))
        left, bottom, right, top = (float(value) for value in info["total_bounds"])
        self.bounds = (left, bottom, right, top)

    def _choose(self, layer: str | None) -> str:
        layers = [str(name) for name, kind in pyogrio.list_layers(self.path) if kind is not None]
        if layer is not None and layer not in layers:
            raise ValueError(f"it has no layer '{layer}'; its layers are {', '.join(layers) or 'none'}")
        if layer is None and len(layers) != 1:
            raise ValueError(f"it has the layers {', '.join(layers) or 'none with shapes'}; choose one with --layer")
        return layer or layers[0]

    def _reading(self, read: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever ``read`` gives
        try:
            return read()
        except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, CRSError, ValueError) as error:
            raise ValueError(f"{self.path}: cannot be used: {' '.join(str(error).split())}") from error

    def bounds_of(self, grid: Grid) -> Bounds:
        """A raster's extent in the coordinates of this file."""
        if grid.crs == self.crs:
            return grid.bounds
        try:
            left, bottom, right, top = transform_bounds(grid.crs, self.crs, *grid.bounds)
        except CRSError as error:
            raise ValueError(f"{grid.path}: {grid.crs} cannot be converted to {self.crs}: {error}") from error
        return left, bottom, right, top

    def meets(self, grid: Grid) -> bool:
        """Whether a raster overlaps the extent of this file."""
        one, other = self.bounds_of(grid), self.bounds
        return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]

    def over(self, grid: Grid) -> Polygons:
        """The polygons over a raster.

        Raises:
            ValueError: they cannot be read, or what is there is lines or points only.
        """
        _, fids, encoded, fields = self._reading(
            lambda: pyogrio.raw.read(
                self.path,
                layer=self.layer,
                columns=[] if self.field is None else [self.field],
                bbox=self.bounds_of(grid),
                return_fids=True,
            )
        )
        order = np.argsort(fids, kind="stable")  # a spatial index gives them in its own order
        shapes = shapely.from_wkb(encoded[order], on_invalid="fix")
        texts = [as_text(value) for value in fields[0][order]] if fields else [""] * len(shapes)
        polygonal = np.isin(shapely.get_type_id(shapes), (POLYGON, MULTIPOLYGON))
        if len(shapes) and not polygonal.any():
            raise ValueError(f"{self.path}: over {grid.path} it holds lines or points alone; polygons are needed")
        shapes = shapely.transform(shapes[polygonal], lambda points: self._to_pixels(points, grid))
        inside = shapely.intersects(shapes, shapely.box(0, 0, grid.width, grid.height))
        return Polygons(shapes[inside], np.array(texts, object)[polygonal][inside])

    def _to_pixels(self, points: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
        x, y = points[:, 0], points[:, 1]
        if grid.crs != self.crs and len(points):
            x, y = (np.asarray(axis) for axis in transform(self.crs, grid.crs, x, y))
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ValueError(f"{self.path}: a polygon over {grid.path} has corners without a place in {grid.crs}")
        columns, rows = ~grid.transform @ (x, y)
        return np.column_stack([columns, rows])


def as_text(value: object) -> str:
    """A field's value as a map's key: whole numbers without decimals, missing values as ``null``."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return "null"
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)
