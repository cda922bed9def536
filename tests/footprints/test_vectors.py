import numpy as np
import pyogrio
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from rasterio.crs import CRS
from rasterio.warp import transform

from footprints.vectors import Outlines, is_vector

UTM, WGS84 = CRS.from_epsg(32633), CRS.from_epsg(4326)
GRID = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)


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
    burnt = Outlines(path, 100, 100, GRID, UTM, "town.tif").burn(0, 0, 100, 100)
    expected = by_points(polygons, 0, 0, 100, 100)
    assert 0.03 < expected.mean() < 0.6
    assert (burnt != expected).sum() <= (0 if crs == UTM else 3)  # reprojection moves an edge by a millimeter


@pytest.fixture(scope="module")
def outlines(tmp_path_factory):
    path = write_outlines(tmp_path_factory.mktemp("vectors") / "town.gpkg", town())
    return Outlines(path, 100, 100, GRID, UTM, "town.tif")


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 99), st.integers(0, 99), st.integers(1, 100), st.integers(1, 100))
def test_windows_are_parts_of_the_whole(outlines, row, col, height, width):
    height, width = min(height, 100 - row), min(width, 100 - col)
    whole = outlines.burn(0, 0, 100, 100)
    assert (outlines.burn(row, col, height, width) == whole[row : row + height, col : col + width]).all()


def test_outlines_far_beyond_the_raster_are_not_read(tmp_path):
    far = [shapely.affinity.translate(p, 50_000, 0) for p in town(200, seed=1)]
    path = write_outlines(tmp_path / "country.gpkg", [*town(), *far])
    found = Outlines(path, 100, 100, GRID, UTM, "town.tif")
    assert len(found.geometries) == 12
    assert (found.burn(0, 0, 100, 100) == by_points(town(), 0, 0, 100, 100)).all()


def test_a_file_in_the_wrong_place_is_an_error_not_an_empty_mask(tmp_path):
    path = write_outlines(tmp_path / "town.gpkg", town())
    elsewhere = Affine(0.5, 0, 580_000, 0, -0.5, 5_000_000)
    with pytest.raises(ValueError, match=r"town\.gpkg: its outlines lie at .*EPSG:32633.*x\.tif.*do not meet"):
        Outlines(path, 100, 100, elsewhere, UTM, "x.tif")
    unlabeled = write_outlines(tmp_path / "degrees.gpkg", [shapely.box(15, 45.0, 15.001, 45.1)], "EPSG:32633")
    with pytest.raises(ValueError, match="do not meet; check the coordinate system"):
        Outlines(unlabeled, 100, 100, GRID, UTM, "x.tif")


def test_a_raster_between_the_outlines_has_no_building(tmp_path):
    corners = [shapely.box(x, y, x + 10, y + 10) for x, y in ((499_900, 4_999_900), (500_100, 5_000_100))]
    path = write_outlines(tmp_path / "two.gpkg", corners)
    assert not Outlines(path, 100, 100, GRID, UTM, "x.tif").burn(0, 0, 100, 100).any()


def test_grids_that_run_upwards_or_are_turned(tmp_path):
    path = write_outlines(tmp_path / "town.gpkg", town())
    upwards = Affine(0.5, 0, 500_000, 0, 0.5, 4_999_950)
    assert (Outlines(path, 100, 100, upwards, UTM, "x").burn(0, 0, 100, 100)
            == by_points(town(), 0, 0, 100, 100, upwards)).all()  # fmt: skip
    turned = Affine(0.45, 0.2, 500_000, 0.2, -0.45, 4_999_990)
    assert (Outlines(path, 80, 80, turned, UTM, "x").burn(3, 5, 70, 60)
            == by_points(town(), 3, 5, 70, 60, turned)).all()  # fmt: skip


def test_broken_outlines_are_repaired(tmp_path):
    bow = shapely.Polygon([(500_010, 4_999_990), (500_020, 4_999_980), (500_020, 4_999_990), (500_010, 4_999_980)])
    path = write_outlines(tmp_path / "bow.gpkg", [bow])
    burnt = Outlines(path, 100, 100, GRID, UTM, "x").burn(0, 0, 100, 100)
    assert burnt.sum() == pytest.approx(2 * 25 / 0.25, rel=0.1)


def test_mistakes_are_told(tmp_path):
    def outlines(path, grid=GRID):
        return Outlines(path, 100, 100, grid, UTM, "x.tif")

    with pytest.raises(FileNotFoundError, match="no such file"):
        outlines(tmp_path / "no.gpkg")
    (tmp_path / "text.geojson").write_text("not json")
    with pytest.raises(ValueError, match=r"text\.geojson: cannot be used"):
        outlines(tmp_path / "text.geojson")
    lines = write_outlines(
        tmp_path / "lines.gpkg", [shapely.LineString([(500_001, 4_999_999), (500_009, 4_999_990)])], kind="LineString"
    )
    with pytest.raises(ValueError, match="LineString, no polygons"):
        outlines(lines)
    both = write_outlines(tmp_path / "both.gpkg", town())
    data = shapely.to_wkb(np.array(town(), object))
    pyogrio.raw.write(
        both, data, [], [], driver="GPKG", geometry_type="Polygon", crs="EPSG:32633", layer="b", append=True
    )
    with pytest.raises(ValueError, match=r"the layers .*b.*one layer"):
        outlines(both)
    with pytest.raises(ValueError, match="no georeference"):
        outlines(write_outlines(tmp_path / "town.gpkg", town()), None)
    with pytest.raises(ValueError, match="no shapes"):
        outlines(write_outlines(tmp_path / "empty.gpkg", []))
