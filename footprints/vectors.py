"""Building outlines from vector files, burnt onto a raster's grid window by window.

Only the outlines over the raster are read, whatever the file covers. Where the file has another coordinate system its
outlines are brought into the raster's. A pixel is building if its center lies in an outline.
"""

from __future__ import annotations

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

from footprints.grids import Bounds, bounds, window_grid

VECTOR_EXTENSIONS = (".gpkg", ".shp", ".geojson", ".json", ".fgb")
POLYGON, MULTIPOLYGON = 3, 6
"""shapely's type ids."""


def is_vector(path: Path) -> bool:
    """Tell a vector file by its name."""
    return path.suffix.lower() in VECTOR_EXTENSIONS


class Outlines:
    """The building outlines of a vector file on one raster's grid.

    Args:
        path: GeoPackage, Shapefile, GeoJSON or FlatGeobuf with one layer of polygons.
        height: of the raster, pixels.
        width: of the raster, pixels.
        grid: the raster's affine map from (column, row) to coordinates; None = it has no georeference.
        crs: the raster's coordinate system; None = taken to be the file's.
        raster: the raster's name, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, has no polygons, or lies somewhere else than the raster.
    """

    def __init__(self, path: Path, height: int, width: int, grid: Affine | None, crs: CRS | None, raster: str) -> None:
        if grid is None:
            raise ValueError(
                f"{raster}: has no georeference, so the outlines of {path} have no place on it; "
                "georeference it, or give its labels as a raster of its size"
            )
        self.path, self.grid = path, grid
        layer, own_crs, extent = _describe(path)
        place = bounds(grid, height, width)
        own_bounds = _bounds_in(place, crs, own_crs)
        if not _meet(extent, own_bounds):
            raise ValueError(
                f"{path}: its outlines lie at {_text(extent)} ({_name(own_crs)}), but {raster} at {_text(own_bounds)} "
                f"there ({_text(place)} in {_name(crs)}): they do not meet; check the coordinate system of both"
            )
        geometries = _read(path, layer, own_bounds)
        if crs is not None and own_crs is not None and crs != own_crs:
            geometries = _reproject(geometries, own_crs, crs)
        self.geometries = geometries
        self._tree = shapely.STRtree(geometries)

    def burn(self, row: int, col: int, height: int, width: int) -> NDArray[np.uint8]:
        """1 where a pixel's center lies in an outline, else 0: (height, width) of the window at row, col."""
        grid = window_grid(self.grid, row, col)
        here = self._tree.query(shapely.box(*bounds(grid, height, width)))
        if not len(here):
            return np.zeros((height, width), np.uint8)
        burnt = rasterize(self.geometries[here].tolist(), (height, width), fill=0, default_value=1, transform=grid)
        return np.asarray(burnt, np.uint8)


def _describe(path: Path) -> tuple[str, CRS | None, Bounds]:
    """The layer of polygons, its coordinate system and its extent."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    try:
        layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
        if len(layers) != 1:
            found = f"the layers {', '.join(layers)}" if layers else "no layer with shapes"
            raise ValueError(f"it has {found}; save the buildings as a file with one layer")
        info = pyogrio.read_info(path, layer=layers[0], force_total_bounds=True, force_feature_count=True)
        crs = CRS.from_user_input(info["crs"]) if info["crs"] else None
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, CRSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be used as building outlines: {_first_line(error)}") from error
    if not info["features"] or info["total_bounds"] is None:
        raise ValueError(f"{path}: holds no shapes; an area without buildings needs a label raster of zeros")
    left, bottom, right, top = (float(value) for value in info["total_bounds"])
    return layers[0], crs, (left, bottom, right, top)


def _read(path: Path, layer: str, box: Bounds) -> NDArray[Any]:
    """The valid polygons that touch a box."""
    try:
        encoded = pyogrio.raw.read(path, layer=layer, columns=[], bbox=box)[2]
        geometries = shapely.force_2d(shapely.from_wkb(encoded))
    except (pyogrio.errors.DataSourceError, shapely.errors.GEOSException) as error:
        raise ValueError(f"{path}: cannot be used as building outlines: {_first_line(error)}") from error
    geometries = geometries[~(shapely.is_missing(geometries) | shapely.is_empty(geometries))]
    polygonal = np.isin(shapely.get_type_id(geometries), (POLYGON, MULTIPOLYGON))
    if len(geometries) and not polygonal.any():
        kinds = ", ".join(sorted({geometry.geom_type for geometry in geometries}))
        raise ValueError(f"{path}: holds shapes of type {kinds}, no polygons; building outlines are needed")
    geometries = geometries[polygonal]
    broken = ~shapely.is_valid(geometries)
    geometries[broken] = shapely.make_valid(geometries[broken])
    parts = shapely.get_parts(shapely.get_parts(geometries))  # repairs may leave collections with lines among them
    return np.asarray(parts[shapely.get_type_id(parts) == POLYGON])


def _reproject(geometries: NDArray[Any], source: CRS, target: CRS) -> NDArray[Any]:
    def move(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack(transform(source, target, points[:, 0], points[:, 1])) if len(points) else points

    return np.asarray(shapely.transform(geometries, move))


def _bounds_in(place: Bounds, crs: CRS | None, own: CRS | None) -> Bounds:
    """The raster's bounds in the coordinates of the file; where one of them names none, both are taken to be equal."""
    if crs is None or own is None or crs == own:
        return place
    try:
        left, bottom, right, top = transform_bounds(crs, own, *place)
    except CRSError as error:
        raise ValueError(f"{_name(crs)} cannot be converted to {_name(own)}: {_first_line(error)}") from error
    return float(left), float(bottom), float(right), float(top)


def _meet(one: Bounds, other: Bounds) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _text(bounds: Bounds) -> str:
    return f"x {bounds[0]:.7g}...{bounds[2]:.7g}, y {bounds[1]:.7g}...{bounds[3]:.7g}"


def _name(crs: CRS | None) -> str:
    return "no coordinate system" if crs is None else crs.to_string()[:60]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
