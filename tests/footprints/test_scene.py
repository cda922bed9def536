"""Building outlines over an image, against matplotlib's point-in-polygon test of every pixel's center."""

from pathlib import Path

import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from matplotlib.path import Path as Outline
from rasterio.crs import CRS
from rasterio.warp import transform

from footprints.scene import Frame, is_vector, read_outlines

UTM, WGS84 = CRS.from_epsg(32633), CRS.from_epsg(4326)
GRID = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)
FRAME, IMAGE = Frame(100, 100, GRID, UTM), Path("x.tif")


def write_outlines(path, polygons, crs="EPSG:32633", kind="Polygon", **options):
    drivers = {".gpkg": "GPKG", ".shp": "ESRI Shapefile", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf"}
    data = shapely.to_wkb(np.array(polygons, object))
    pyogrio.raw.write(
        path, data, [], [], driver=drivers[path.suffix], geometry_type=kind, crs=crs, layer=path.stem, **options
    )
    return path


def town(count=12, size=100, seed=0):
    """Turned rectangles, one with a court, as polygons in UTM and as a function that tells inside from outside."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        x, y = 500_000 + rng.uniform(0, size / 2), 5_000_000 - rng.uniform(0, size / 2)
        shell = shapely.affinity.rotate(shapely.box(x - 4, y - 3, x + 4, y + 3), rng.uniform(0, 90))
        found.append(shell.difference(shapely.Point(x, y).buffer(1.5)) if number == 0 else shell)
    return found


def by_points(polygons, row, col, height, width, grid=GRID):
    """An independent rasterization: whether pixel centers lie inside, by matplotlib's point-in-polygon test."""
    rows, cols = np.mgrid[row : row + height, col : col + width] + 0.5
    x, y = cols.ravel(), rows.ravel()
    points = np.column_stack([grid.a * x + grid.b * y + grid.c, grid.d * x + grid.e * y + grid.f])
    inside = np.zeros(len(points), bool)
    for polygon in polygons:
        shell = Outline(shapely.get_coordinates(polygon.exterior)).contains_points(points)
        for hole in polygon.interiors:
            shell &= ~Outline(shapely.get_coordinates(hole)).contains_points(points)
        inside |= shell
    return inside.reshape(height, width).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".gpkg", ".shp", ".geojson", ".fgb"])
def test_every_format_burns_as_an_independent_rasterization(tmp_path, suffix):
    crs = WGS84 if suffix == ".geojson" else UTM
    polygons = town()
    stored = polygons
    if crs == WGS84:
        stored = [
            shapely.transform(p, lambda xy: np.column_stack(transform(UTM, WGS84, xy[:, 0], xy[:, 1])))
            for p in polygons
        ]
    path = write_outlines(tmp_path / f"town{suffix}", stored, crs.to_string())
    assert is_vector(path)
    burnt = read_outlines(path, FRAME, IMAGE).burn((0, 0, 100, 100))
    expected = by_points(polygons, 0, 0, 100, 100)
    assert 0.03 < expected.mean() < 0.6
    assert (burnt != expected).sum() <= (0 if crs == UTM else 3)  # reprojection moves an edge by a millimeter


def test_a_scene_read_by_windows_burns_the_same(tmp_path):
    found = read_outlines(write_outlines(tmp_path / "town.gpkg", town()), FRAME, IMAGE)
    assert (found.burn((30, 20, 50, 70)) == by_points(town(), 30, 20, 50, 70)).all()


def test_a_file_in_the_wrong_place_is_an_error_not_an_empty_mask(tmp_path):
    path = write_outlines(tmp_path / "town.gpkg", town())
    elsewhere = Frame(100, 100, Affine(0.5, 0, 580_000, 0, -0.5, 5_000_000), UTM)
    with pytest.raises(ValueError, match=r"town\.gpkg: its outlines do not meet x\.tif: .*EPSG:32633.*x\.tif at"):
        read_outlines(path, elsewhere, IMAGE)
    unlabeled = write_outlines(tmp_path / "degrees.gpkg", [shapely.box(15, 45.0, 15.001, 45.1)], "EPSG:32633")
    with pytest.raises(ValueError, match=r"do not meet.*check the coordinate system"):
        read_outlines(unlabeled, FRAME, IMAGE)


def test_a_raster_between_the_outlines_has_no_building(tmp_path):
    corners = [shapely.box(x, y, x + 10, y + 10) for x, y in ((499_900, 4_999_900), (500_100, 5_000_100))]
    found = read_outlines(write_outlines(tmp_path / "two.gpkg", corners), FRAME, IMAGE)
    assert not found.burn((0, 0, 100, 100)).any()


def test_an_image_without_coordinate_system_has_that_of_the_outlines(tmp_path):
    path = write_outlines(tmp_path / "town.gpkg", town())
    burnt = read_outlines(path, Frame(100, 100, GRID), IMAGE).burn((0, 0, 100, 100))
    assert (burnt == by_points(town(), 0, 0, 100, 100)).all()
    with pytest.raises(ValueError, match="no georeference"):
        read_outlines(path, Frame(100, 100), IMAGE)
