"""Polygons of a large land-cover mask: ours against one ``shape()`` + ``buffer(0)`` per polygon and a shapefile.

    python benchmarks/polygonize.py --size 6000

Both turn the two classes of the same mask into a shapefile with class and area; ours also knows each polygon's mean
probability. The third row is GDAL's polygonizer alone, without geometries or a file. The table is written beside this
script.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[0] = str(REPOSITORY)

import numpy as np  # noqa: E402 - imports begin at the repository's root
import pyogrio  # noqa: E402
import shapely  # noqa: E402
import tyro  # noqa: E402
from affine import Affine  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from rasterio import features  # noqa: E402
from rasterio.crs import CRS  # noqa: E402
from scipy import ndimage  # noqa: E402

from benchmarks.tables import processor, write_table  # noqa: E402
from common.vectors.polygonize import polygonize  # noqa: E402
from common.vectors.write import write_polygons  # noqa: E402

GRID, SYSTEM = Affine(0.2, 0, 430000, 0, -0.2, 4580000), CRS.from_epsg(25830)
GRAIN, LEVEL = 12.5, 1.2
"""Pixels between the knots of the noise, and the level above which it is mask: 18 000 polygons in 6000 x 6000."""
Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Config:
    """Compare ways to outline a mask."""

    size: int = 6000
    """Side of the mask, pixels."""
    rounds: int = 3
    """How often each way runs, in turns."""


def make_mask(size: int) -> Mask:
    """Blobs, some with holes."""
    knots = np.random.default_rng(0).standard_normal((int(size / GRAIN) + 2,) * 2).astype(np.float32)
    return np.asarray(ndimage.zoom(knots, GRAIN, order=1)[:size, :size] > LEVEL, np.uint8)


def ours(mask: Mask, folder: Path) -> tuple[int, float]:
    """Number and area of the polygons written."""
    confidence = np.full(mask.shape, 0.9, np.float32)
    polygons = polygonize(lambda a, b: (mask[a:b], confidence[a:b]), mask.shape, [0, 1], GRID)
    write_polygons(folder / "ours.shp", polygons, ["no permeable", "permeable"], SYSTEM)
    return len(polygons), float(shapely.area(polygons.geometry).sum())


def one_by_one(mask: Mask, folder: Path) -> tuple[int, float]:
    """Likewise, polygon by polygon."""
    found, values = [], []
    for outline, value in features.shapes(mask, transform=GRID):
        found.append(shapely.geometry.shape(outline).buffer(0))
        values.append(int(value))
    area = np.array([polygon.area for polygon in found])
    geometry = np.array([polygon.wkb for polygon in found], object)
    pyogrio.raw.write(
        folder / "one.shp",
        geometry,
        [np.array(values, np.int32), area],
        ["class_val", "area"],
        driver="ESRI Shapefile",
        geometry_type="Polygon",
        crs=SYSTEM.to_wkt(),
    )
    return len(found), float(area.sum())


def shapes_alone(mask: Mask, folder: Path) -> tuple[int, float]:
    """Number of GDAL's outlines; their area is that of the raster."""
    return sum(1 for _ in features.shapes(mask, transform=GRID)), float(mask.size * GRID.a**2)


def main() -> None:
    """Run all in turns and write polygonize.csv and .md."""
    config = tyro.cli(Config)
    mask = make_mask(config.size)
    ways: dict[str, Callable[[Mask, Path], tuple[int, float]]] = {
        "ours, shapefile": ours,
        "shape() and buffer(0) one by one, shapefile": one_by_one,
        "features.shapes alone": shapes_alone,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, tuple[int, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ways.values():
            way(make_mask(200), Path(folder))  # libraries set themselves up
        for _ in range(config.rounds):
            for name, way in ways.items():
                started = time.perf_counter()
                results[name] = way(mask, Path(folder))
                seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        {
            "way": name,
            "seconds": round(median[name], 2),
            "ours is faster by": round(median[name] / median["ours, shapefile"], 2),
            "polygons": results[name][0],
            "area, m2": round(results[name][1], 3),
        }
        for name in ways
    ]
    write_table(Path(__file__), rows, f"{config.size} x {config.size} pixels, {config.rounds} rounds, {processor()}.")


if __name__ == "__main__":
    main()
