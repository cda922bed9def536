"""Polygons on a raster's grid, against point-in-polygon tests of every pixel's center."""

import json

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.warp import transform

from common.images.grids import Grid
from common.vectors.burn import Outlines, PolygonLayer, as_text

UTM, GEOGRAPHIC, OTHER_ZONE = "EPSG:25830", "EPSG:4326", "EPSG:25829"
PLACE = Affine(0.5, 0, 440_000, 0, -0.5, 4_470_000)
ROTATED = PLACE @ Affine.rotation(30)
UPWARDS = Affine(0.5, 0, 440_000, 0, 0.5, 4_469_970)


def make_raster(path, height=60, width=80, place=PLACE, crs=UTM):
    options = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": height, "width": width}
    with rasterio.open(path, "w", **options, crs=crs, transform=place) as dataset:
        dataset.write(np.full((3, height, width), 9, np.uint8))
    return path


def write_vector(path, shapes, values=None, crs=UTM, **options):
    """Write shapes given in UTM, in the coordinate system of the file."""
    if crs not in (UTM, None):
        shapes = shapely.transform(
            np.array(shapes), lambda p: np.column_stack(transform(UTM, crs, p[:, 0], p[:, 1])) if len(p) else p
        )
    data, names = ([], []) if values is None else ([np.array(values)], ["COVER"])
    kinds = {shape.geom_type for shape in shapes}
    kind = kinds.pop() + " Z" * bool(shapes[0].has_z) if len(kinds) == 1 else "Unknown"
    pyogrio.raw.write(path, shapely.to_wkb(np.array(shapes)), data, names, geometry_type=kind, crs=crs, **options)
    return path


def blob(rng, place=PLACE, size=(60, 80), hole=True):
    """A random star-shaped polygon with a hole, some of it beyond the raster."""
    column, row = rng.uniform(-10, size[1] + 10), rng.uniform(-10, size[0] + 10)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
    radii = rng.uniform(8, 25, 12)
    outline = np.column_stack([column + radii * np.cos(angles), row + radii * np.sin(angles)])
    inner = [np.column_stack([column, row]) + (outline - (column, row)) * 0.3] if hole else []
    return shapely.Polygon(to_ground(outline, place), [to_ground(ring, place) for ring in inner])


def to_ground(points, place):
    return np.column_stack(place @ (points[:, 0], points[:, 1]))


def expected_classes(shapes, classes, height=60, width=80, place=PLACE, background=255):
    """The class of the last polygon that holds a pixel's center, by testing each center."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    x, y = place @ (columns, rows)
    result = np.full((height, width), background, np.uint8)
    for shape, value in zip(shapes, classes, strict=True):
        result[shapely.contains_xy(shape, x, y)] = value
    return result


@pytest.mark.parametrize("place", [PLACE, ROTATED, UPWARDS], ids=["north up", "rotated", "upwards"])
@pytest.mark.parametrize(
    ("suffix", "crs"), [(".gpkg", UTM), (".shp", UTM), (".fgb", UTM), (".geojson", GEOGRAPHIC), (".gpkg", OTHER_ZONE)]
)
def test_the_last_polygon_with_the_center_wins(tmp_path, suffix, crs, place):
    rng = np.random.default_rng(3)
    shapes = [blob(rng, place) for _ in range(25)]
    values = rng.integers(0, 3, 25)
    options = {"SPATIAL_INDEX": "NO"} if suffix == ".fgb" else {}  # with an index it would have an order of its own
    grid = Grid.of(make_raster(tmp_path / "sheet.tif", place=place))
    path = write_vector(tmp_path / f"cover{suffix}", shapes, values, crs, **options)
    polygons = PolygonLayer(path, field="COVER").over(grid)
    classes = np.array([int(value) for value in polygons.values], np.uint8)
    burnt = polygons.burn((0, 0, 60, 80), classes, 255)
    expected = expected_classes(shapes, values, place=place)
    assert (burnt != expected).sum() <= (0 if crs == UTM else 1), "coordinates there and back differ by nanometres"
    assert len(np.unique(expected)) == 4


def test_only_polygons_over_the_raster_are_read_and_in_the_files_order(tmp_path, monkeypatch):
    squares = [
        shapely.box(440_000 + 50 * i, 4_469_900, 440_030 + 50 * i, 4_470_100) for i in np.tile(np.arange(300), 3)
    ]
    path = write_vector(tmp_path / "cover.gpkg", squares, np.arange(900))
    grid = Grid.of(make_raster(tmp_path / "sheet.tif"))  # 40 m wide
    read, counts = pyogrio.raw.read, []

    def count(*args, **options):
        result = read(*args, **options)
        counts.append(len(result[2]))
        return result

    monkeypatch.setattr(pyogrio.raw, "read", count)
    assert PolygonLayer(path, field="COVER").over(grid).values.tolist() == ["0", "300", "600"]
    assert counts == [3], "the others stay in the file"


def test_the_files_order_is_kept_whatever_its_index_makes_of_it(tmp_path):
    corners = np.random.default_rng(0).uniform((439_900, 4_469_900), (440_100, 4_470_060), (300, 2))
    shapes = shapely.box(*corners.T, *(corners + 20).T)
    path = write_vector(tmp_path / "cover.gpkg", shapes, np.arange(300))
    grid = Grid.of(make_raster(tmp_path / "sheet.tif"))
    assert (np.diff(pyogrio.raw.read(path, bbox=grid.bounds, return_fids=True)[1]) < 0).any()
    assert (np.diff(PolygonLayer(path, field="COVER").over(grid).values.astype(int)) > 0).all()


def test_polygons_beside_a_rotated_raster_are_not_over_it(tmp_path):
    grid = Grid.of(make_raster(tmp_path / "sheet.tif", place=ROTATED))
    left, _, _, top = grid.bounds
    beside = shapely.box(left, top - 1, left + 1, top)
    middle = shapely.Point(ROTATED @ (40, 30)).buffer(3)
    path = write_vector(tmp_path / "cover.gpkg", [beside, middle], ["beside", "middle"])
    polygons = PolygonLayer(path, field="COVER").over(grid)
    assert polygons.values.tolist() == ["middle"] and len(polygons.shapes) == 1


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    row=st.integers(0, 50),
    column=st.integers(0, 70),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
def test_a_window_is_what_the_whole_is_there(seed, row, column, height, width):
    rng = np.random.default_rng(seed)
    shapes = np.array([blob(rng, Affine.identity()) for _ in range(6)])
    shapes[3:] = shapely.set_precision(shapes[3:], 0.5, mode="pointwise")  # corners on centers and edges: ties
    classes = np.arange(len(shapes), dtype=np.uint8)
    polygons = Outlines(shapes, np.full(len(shapes), "", object))
    whole = polygons.burn((0, 0, 90, 110), classes, 255)
    window = polygons.burn((row, column, height, width), classes, 255)
    assert np.array_equal(window, whole[row : row + height, column : column + width])


def test_a_polygon_that_crosses_itself_is_filled_as_gdal_does(tmp_path):
    bow = shapely.Polygon([(440_002, 4_469_998), (440_030, 4_469_975), (440_030, 4_469_998), (440_002, 4_469_975)])
    assert not bow.is_valid
    grid = Grid.of(make_raster(tmp_path / "sheet.tif"))
    polygons = PolygonLayer(write_vector(tmp_path / "cover.gpkg", [bow])).over(grid)
    burnt = polygons.burn((0, 0, 60, 80))
    assert np.array_equal(burnt, rasterize([bow], (60, 80), transform=PLACE)) and burnt.any()


def test_lines_among_the_polygons_are_left_out(tmp_path):
    square, line = shapely.box(440_002, 4_469_980, 440_010, 4_469_990), shapely.LineString([(440_000, 4_469_999)] * 2)
    path = write_vector(tmp_path / "cover.gpkg", [line, square], ["line", "square"])
    grid = Grid.of(make_raster(tmp_path / "sheet.tif"))
    assert PolygonLayer(path, field="COVER").over(grid).values.tolist() == ["square"]


def test_elevations_are_left_aside(tmp_path):
    flat = shapely.box(440_002, 4_469_980, 440_010, 4_469_990)
    path = write_vector(tmp_path / "cover.gpkg", [shapely.force_3d(flat, 700.0)])
    assert not shapely.has_z(PolygonLayer(path).over(Grid.of(make_raster(tmp_path / "sheet.tif"))).shapes).any()


@pytest.mark.parametrize(
    ("value", "text"),
    [("01", "01"), (3, "3"), (np.int64(3), "3"), (3.0, "3"), (2.5, "2.5"), (None, "null"), (np.nan, "null"), ("", "")],
)
def test_values_become_text(value, text):
    assert as_text(value) == text


def test_whole_numbers_with_gaps_keep_their_text(tmp_path):
    shapes = [shapely.box(440_000 + i, 4_469_980, 440_001 + i, 4_469_990) for i in range(2)]
    collection = {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::25830"}},
        "features": [
            {"type": "Feature", "properties": {"COVER": value}, "geometry": shapely.geometry.mapping(shape)}
            for shape, value in zip(shapes, (7, None), strict=True)
        ],
    }
    (tmp_path / "cover.geojson").write_text(json.dumps(collection))
    grid = Grid.of(make_raster(tmp_path / "sheet.tif"))
    assert PolygonLayer(tmp_path / "cover.geojson", field="COVER").over(grid).values.tolist() == ["7", "null"]


@pytest.mark.parametrize(
    ("place", "crs", "meets"),
    [
        (PLACE, UTM, True),
        (PLACE @ Affine.translation(79, 59), UTM, True),
        (PLACE @ Affine.translation(81, 0), UTM, False),
        (PLACE @ Affine.translation(0, -61), UTM, False),
        (PLACE, "EPSG:25829", False),
    ],
)
def test_whether_a_raster_meets_the_file(tmp_path, place, crs, meets):
    shapes = [shapely.box(440_000, 4_469_970, 440_040, 4_470_000)]
    cover = PolygonLayer(write_vector(tmp_path / "cover.gpkg", shapes))
    assert cover.meets(Grid.of(make_raster(tmp_path / "sheet.tif", place=place, crs=crs))) == meets


def test_bounds_of_a_rotated_raster_hold_its_corners(tmp_path):
    grid = Grid(tmp_path, 60, 80, ROTATED, CRS.from_string(UTM))
    x, y = ROTATED @ (np.array([0, 80, 0, 80]), np.array([0, 0, 60, 60]))
    assert grid.bounds == pytest.approx((x.min(), y.min(), x.max(), y.max()), abs=1e-6)


def test_a_raster_without_georeference_is_refused(tmp_path):
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        path = make_raster(tmp_path / "sheet.tif", place=Affine.identity(), crs=None)
    with pytest.raises(ValueError, match=r"sheet\.tif: has no georeference"):
        Grid.of(path)


SQUARE = [shapely.box(440_002, 4_469_980, 440_010, 4_469_990)]


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda path: None, {}, ("no such file",)),
        (lambda path: path.write_text("PK"), {}, ("is no GeoPackage",)),
        (lambda path: write_vector(path, SQUARE, [1]), {"field": "cover"}, ("no field 'cover'", "COVER")),
        (lambda path: write_vector(path, SQUARE), {"field": "COVER"}, ("no field 'COVER'", "none")),
        (lambda path: write_vector(path, SQUARE, layer="a"), {"layer": "b"}, ("no layer 'b'", "are a")),
        (
            lambda path: [write_vector(path, SQUARE, layer=name, append=name == "b") for name in "ab"],
            {},
            ("layers a, b", "one layer", "--layer"),
        ),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, make, options, words):
    path = tmp_path / "cover.gpkg"
    make(path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        PolygonLayer(path, **options)
    for word in (str(path), *words):
        assert word in str(error.value)


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
@pytest.mark.parametrize(("own", "grids"), [(None, UTM), (UTM, None), (None, None)])
def test_where_one_names_no_coordinate_system_it_is_the_others(tmp_path, own, grids):
    layer = PolygonLayer(write_vector(tmp_path / "cover.shp", SQUARE, crs=own))
    assert bool(layer.crs) == (own is not None)
    grid = Grid(tmp_path / "x.tif", 60, 80, PLACE, CRS.from_string(grids) if grids else CRS())
    assert layer.meets(grid) and np.array_equal(
        layer.over(grid).burn((0, 0, 60, 80)), expected_classes(SQUARE, [1], background=0)
    )
    assert ("no coordinate system" in layer.places(grid)) == (own is None or grids is None)


def test_a_file_without_shapes_is_refused(tmp_path):
    pyogrio.raw.write(
        tmp_path / "cover.gpkg", np.array([], object), [np.array([], int)], ["COVER"], geometry_type="Polygon", crs=UTM
    )
    with pytest.raises(ValueError, match="holds no shapes"):
        PolygonLayer(tmp_path / "cover.gpkg")


def test_points_alone_are_refused(tmp_path):
    path = write_vector(tmp_path / "cover.gpkg", [shapely.Point(440_005, 4_469_990)])
    with pytest.raises(ValueError, match=r"cover\.gpkg: over .*sheet\.tif it holds Point, no polygons"):
        PolygonLayer(path).over(Grid.of(make_raster(tmp_path / "sheet.tif")))


# Where the earth ends


def lonlat_box(left, bottom, right, top):
    return shapely.segmentize(shapely.box(left, bottom, right, top), (right - left) / 4)


def fiji(crs):
    """A sheet across the antimeridian, 1 m pixels: its grid, and the square of 10 m around its middle, burnt."""
    x, y = (values[0] for values in transform(GEOGRAPHIC, crs, [179.99999], [-17.0]))
    place = Affine(1, 0, round(x) - 30, 0, -1, round(y) + 30)
    if crs == GEOGRAPHIC:
        place = Affine(1e-5, 0, 180 - 30e-5, 0, -1e-5, -17 + 30e-5)
    return Grid("sheet.tif", 60, 60, place, CRS.from_string(crs))


@pytest.mark.parametrize("crs", [GEOGRAPHIC, "EPSG:32701", "EPSG:32760", "EPSG:3832"])
@pytest.mark.parametrize("style", ["cut in two", "beyond 180", "below -180", "projected"])
def test_outlines_across_the_antimeridian_are_burnt(tmp_path, crs, style):
    half, bottom, top = 8e-5, -17 - 8e-5, -17 + 8e-5
    shapes = {
        "cut in two": [shapely.box(180 - half, bottom, 180, top), shapely.box(-180, bottom, -180 + half, top)],
        "beyond 180": [shapely.box(180 - half, bottom, 180 + half, top)],
        "below -180": [shapely.box(-180 - half, bottom, -180 + half, top)],
        "projected": [shapely.box(180 - half, bottom, 180 + half, top)],
    }[style]
    shapes, system = np.array([*shapes, shapely.box(170, -10, 171, -9)]), GEOGRAPHIC
    if style == "projected":
        system = "EPSG:3832"
        shapes = shapely.transform(shapes, lambda p: np.column_stack(transform(GEOGRAPHIC, system, p[:, 0], p[:, 1])))
    path = tmp_path / "cover.gpkg"
    pyogrio.raw.write(path, shapely.to_wkb(shapes), [], [], geometry_type="Polygon", crs=system)
    grid = fiji(crs)
    layer = PolygonLayer(path)
    assert layer.meets(grid)
    burnt = layer.over(grid).burn((0, 0, 60, 60))
    x, y = grid.transform @ (np.mgrid[:60, :60][1] + 0.5, np.mgrid[:60, :60][0] + 0.5)
    if crs != GEOGRAPHIC:
        x, y = (np.reshape(values, (60, 60)) for values in transform(crs, GEOGRAPHIC, x.ravel(), y.ravel()))
    expected = (np.abs((x % 360) - 180) < half) & (np.abs(y + 17) < half)
    assert expected.sum() > 200 and (burnt != expected).sum() <= 20


def test_a_polygon_around_the_earth_is_not_torn(tmp_path):
    """In another geographic system than the sheet's, which lies far from the antimeridian."""
    path = tmp_path / "cover.gpkg"
    world = lonlat_box(-180, -80, 180, 80)
    pyogrio.raw.write(path, shapely.to_wkb(np.array([world])), [], [], geometry_type="Polygon", crs="EPSG:4258")
    grid = Grid("sheet.tif", 50, 50, Affine(1e-5, 0, 10, 0, -1e-5, 60), CRS.from_epsg(4807))
    assert PolygonLayer(path).over(grid).burn((0, 0, 50, 50)).all()


def test_corners_beyond_the_edge_of_the_projection_are_one_line(tmp_path):
    path = tmp_path / "cover.gpkg"
    wild = shapely.box(-4, 40, -3, 95)
    pyogrio.raw.write(path, shapely.to_wkb(np.array([wild])), [], [], geometry_type="Polygon", crs=GEOGRAPHIC)
    grid = Grid.of(make_raster(tmp_path / "sheet.tif"))
    with pytest.raises(
        ValueError, match=r"cover\.gpkg: a polygon over .*sheet\.tif has corners without a place in"
    ) as error:
        PolygonLayer(path).over(grid)
    assert "\n" not in str(error.value)
    metres_for_degrees = Grid(tmp_path / "lost.tif", 60, 80, PLACE, CRS.from_string(GEOGRAPHIC))
    utm = PolygonLayer(write_vector(tmp_path / "utm.gpkg", SQUARE))
    assert not utm.meets(metres_for_degrees) and not len(utm.over(metres_for_degrees).shapes)


def test_pixels_without_extent_are_refused(tmp_path):
    path = make_raster(tmp_path / "sheet.tif", place=Affine(1, 0, 440_000, 0, 0, 4_470_000))
    with pytest.raises(ValueError, match=r"sheet\.tif: .*its georeference is no affine map"):
        Grid.of(path)
