"""Polygons as files that a GIS opens: areas on the ground, simplification without gaps, and three formats."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from common.images.gdal import quiet
from common.images.grids import Bounds
from common.images.ground import Ground
from common.vectors.polygonize import Polygons

DRIVERS = {"gpkg": "GPKG", "shp": "ESRI Shapefile", "geojson": "GeoJSON"}
FIELDS = ("class_val", "class_name", "area", "mean_prob")
LONGEST_EDGE = 1000.0
"""Metres; longer edges are divided before a projection bends them."""
SHAPEFILE_LIMIT = 2_000_000_000
"""Bytes of geometry in one shapefile: its offsets end at 2 GB."""

Geometry = NDArray[np.object_]


def areas(geometry: Geometry, crs: CRS | None) -> NDArray[np.float64]:
    """Areas in m2 on the ground.

    It is the area on the system's ellipsoid; edges are straight in the system, as those of pixels are. Projected
    systems that are true to 1 % where the polygons lie (UTM, national grids) and local ones have their planar area.
    Without a coordinate system it is in the coordinates' own unit: pixels, of a picture.

    Args:
        geometry: polygons.
        crs: their coordinate system.

    Returns:
        One each; NaN for a polygon that reaches beyond the edge of the projection.

    Raises:
        ValueError: the coordinate system cannot be interpreted.
    """
    if not len(geometry):
        return np.zeros(0)
    ground, box = Ground(crs), _bounds(geometry)
    convert = ground.equal_area(box)
    if convert is None:
        return np.asarray(shapely.area(geometry) * ground.unit**2, np.float64)
    if ground.is_projected:
        geometry = shapely.segmentize(geometry, LONGEST_EDGE / min(ground.metres_per_unit(box)))
    points, owner = shapely.get_coordinates(geometry, return_index=True)
    points = convert(points)
    lost = ~np.isfinite(points).all(axis=1)
    points[lost] = 0
    found = np.asarray(shapely.area(shapely.set_coordinates(geometry.copy(), points)), np.float64)
    found[owner[lost]] = np.nan
    return found


def _bounds(geometry: Geometry) -> Bounds:
    left, bottom, right, top = (float(value) for value in shapely.total_bounds(geometry))
    return left, bottom, right, top


def select(polygons: Polygons, crs: CRS | None, *, min_area: float = 0.0, simplify: float = 0.0) -> Polygons:
    """Leave out small polygons and simplify outlines; neighbors keep their common edges.

    Args:
        polygons: of one raster.
        crs: their coordinate system.
        min_area: m2 (pixels, of a picture without georeference); smaller polygons are left out, before simplification
            and after it.
        simplify: tolerance in metres (pixels, of a picture); 0 = exact outlines.
    """
    if min_area > 0:
        polygons = polygons[~(areas(polygons.geometry, crs) < min_area)]
    if simplify > 0 and len(polygons):
        across, along = Ground(crs).metres_per_unit(_bounds(polygons.geometry))
        geometry = shapely.coverage_simplify(polygons.geometry, simplify / (across * along) ** 0.5)
        simple = Polygons(np.asarray(geometry, object), polygons.class_val, polygons.mean_prob)
        polygons = simple[~shapely.is_empty(simple.geometry) & ~(areas(simple.geometry, crs) < min_area)]
    return polygons


def write_polygons(
    path: Path,
    polygons: Polygons,
    class_names: Sequence[str],
    crs: CRS | None,
    tags: Mapping[str, str] | None = None,
    *,
    layer: str | None = None,
) -> list[Path]:
    """Write polygons with the fields ``class_val, class_name, area, mean_prob``; ``area`` is that of the geometry.

    GeoJSON is in WGS 84 as its standard (RFC 7946) wants; without a coordinate system the coordinates stay as they are.
    Polygons that exceed what one shapefile holds go on in ``<name>_2.shp`` and so on.

    Args:
        path: ``.gpkg``, ``.shp`` or ``.geojson`` file; the suffix says the format. Replaced when the new one is whole.
        polygons: what to write; may be none at all.
        class_names: by class index.
        crs: coordinate system of the geometry.
        tags: provenance: the layer's metadata in a GeoPackage, the description in GeoJSON; a shapefile has no place.
        layer: the layer's name; None = the file's. What no layer may be called is changed.

    Returns:
        The files written, sidecars left out.
    """
    kind = path.suffix.lstrip(".").lower()
    if kind not in DRIVERS:
        raise ValueError(f"{path}: unknown vector format; use {', '.join(f'.{name}' for name in DRIVERS)}")
    parts = _shapefile_parts(polygons) if kind == "shp" else [polygons]
    stems = [path.stem, *(f"{path.stem}_{number}" for number in range(2, len(parts) + 1))]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".polygons-", dir=path.parent) as folder:
        for stem, part in zip(stems, parts, strict=True):
            made = Path(folder) / f"polygons.{kind}"  # drivers take some characters of names for commands
            _write(made, kind, part, class_names, crs, dict(tags or {}), _layer_name(layer or path.stem))
            files = sorted(Path(folder).iterdir(), key=lambda file: file.suffix == ".shp")  # what people look for: last
            for file in files:
                shutil.move(file, path.parent / f"{stem}{file.suffix}")
    return [path.parent / f"{stem}{path.suffix}" for stem in stems]


def _layer_name(name: str) -> str:
    """A name as that of a layer: letters, digits, spaces, dots, hyphens, beginning with a letter or a digit."""
    plain = re.sub(r"[^\w .-]", "_", name).lstrip(" .-_") or "polygons"
    return f"_{plain}" if plain.lower().startswith(("gpkg", "sqlite_")) else plain  # these are reserved


def _write(
    path: Path,
    kind: str,
    polygons: Polygons,
    class_names: Sequence[str],
    crs: CRS | None,
    tags: dict[str, str],
    layer: str,
) -> None:
    import pyogrio  # it takes most of a second, through pandas

    names = np.asarray([class_names[value] for value in polygons.class_val], object)
    area = areas(polygons.geometry, crs)
    options: dict[str, Any] = {}
    if kind == "gpkg":
        options["layer_metadata"] = tags or None
    if kind == "geojson":
        options["layer_options"] = {"DESCRIPTION": "; ".join(f"{key}={value}" for key, value in tags.items())}
        if crs is not None and not (crs.is_geographic or crs.is_projected):
            raise ValueError("GeoJSON is in WGS 84, to which there is no way from a local system; use --vector gpkg")
        if crs is not None:  # seven decimals, its default, are a centimetre
            options["layer_options"] |= {"RFC7946": "YES", "COORDINATE_PRECISION": "9"}
    with quiet():
        pyogrio.raw.write(
            path,
            shapely.to_wkb(polygons.geometry),
            [polygons.class_val, names, area, polygons.mean_prob],
            FIELDS,
            layer=layer,
            driver=DRIVERS[kind],
            geometry_type="Polygon",
            crs=None if crs is None else crs.to_wkt(),
            encoding="UTF-8",
            **options,
        )


def _shapefile_parts(polygons: Polygons) -> list[Polygons]:
    """Polygons in portions that a shapefile can hold."""
    points = shapely.get_num_coordinates(polygons.geometry)
    sizes = 56 + 16 * points + 4 * (shapely.get_num_interior_rings(polygons.geometry) + 1)
    number = np.cumsum(sizes) // SHAPEFILE_LIMIT
    return [polygons[number == part] for part in np.unique(number)] or [polygons]
