from __future__ import annotations

import json
import shutil

import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

from common.vectors import write as vectors
from common.vectors.polygonize import Polygons, polygonize
from common.vectors.write import areas, select, write_polygons

UTM = CRS.from_epsg(25830)
NAMES = ["background", "tree", "café à côté"]


def some(count=5, side=10.0, origin=(430000.0, 4580000.0)):
    """Squares of growing size."""
    boxes = [
        shapely.box(origin[0] + 3 * side * i, origin[1], origin[0] + 3 * side * i + side * (i + 1), origin[1] + side)
        for i in range(count)
    ]
    return Polygons(np.array(boxes, object), np.arange(count, dtype=np.int32) % 3, np.linspace(0.5, 0.9, count))


def read(path):
    meta, _, geometry, fields = pyogrio.raw.read(path)
    return meta, shapely.from_wkb(geometry), dict(zip(meta["fields"], fields, strict=True))


# Areas


@settings(deadline=None, max_examples=40)
@given(longitude=st.floats(-170, 170), latitude=st.floats(-80, 80), size=st.floats(1e-5, 0.01))
def test_geographic_areas_are_those_of_an_equal_area_projection_around_the_place(longitude, latitude, size):
    square = shapely.segmentize(shapely.box(longitude, latitude, longitude + size, latitude + size), size / 16)
    local = CRS.from_string(f"+proj=laea +lat_0={latitude} +lon_0={longitude} +ellps=WGS84 +units=m")
    x, y = transform_points(CRS.from_epsg(4326), local, *np.array(square.exterior.coords).T)
    expected = shapely.Polygon(np.column_stack([x, y])).area
    got = areas(
        np.array([shapely.box(longitude, latitude, longitude + size, latitude + size)], object), CRS.from_epsg(4326)
    )
    assert got[0] == pytest.approx(expected, rel=1e-5)


def test_the_whole_earth_has_its_known_area():
    world = np.array([shapely.box(-180, -90, 180, 90)], object)
    assert areas(world, CRS.from_epsg(4326))[0] == pytest.approx(510_065_621_724_089, rel=1e-9)  # WGS 84


def test_areas_are_those_on_the_systems_own_ellipsoid():
    moon = CRS.from_string("+proj=longlat +R=1737400 +no_defs")
    world = np.array([shapely.box(-180, -90, 180, 90)], object)
    assert areas(world, moon)[0] == pytest.approx(4 * np.pi * 1737400**2, rel=1e-9)


def test_projected_areas_are_planar_and_in_square_metres():
    box = np.array([shapely.box(0, 0, 10, 10)], object)
    assert areas(box, UTM)[0] == 100
    assert areas(box, CRS.from_epsg(2263))[0] == pytest.approx(100 * (1200 / 3937) ** 2)  # US survey feet
    assert areas(box, None)[0] == 100


SPHERE = "+proj=merc +a=6378137 +b=6378137 +lat_ts=0 +lon_0=0 +x_0=0 +y_0=0 +k=1 +no_defs"
SYSTEMS = {
    "EPSG:4326": (10, 60, 1e-6),
    "EPSG:4807": (10, 60, 1e-6),
    "EPSG:4979": (10, 60, 1e-6),
    "EPSG:3857": (10, 60, 1e-6),
    "EPSG:3857+5773": (10, 60, 1e-6),
    "EPSG:6871": (10, 60, 1e-6),
    "ESRI:102113": (10, 60, 1e-6),
    SPHERE + " +units=m": (10, 60, 1e-6),
    SPHERE + " +units=us-ft": (10, 60, 1e-6),
    "EPSG:3395": (10, 60, 1e-6),
    "EPSG:3832": (179.9999, -17, 1e-6),
    "EPSG:4087": (10, 60, 1e-6),
    "EPSG:3031": (20, -75, 1e-5),
    "EPSG:3347": (-100, 60, 1e-5),
    "EPSG:25830": (-3, 40, 3e-3),
    "EPSG:2263": (-74, 40.7, 3e-3),
    "EPSG:27572": (2.3, 46.8, 3e-3),
    "EPSG:3035": (10, 60, 1e-6),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("side", [2.0, 20_000.0])
@pytest.mark.parametrize("name", SYSTEMS)
def test_areas_are_the_geodesic_ones_in_every_system(name, side):
    longitude, latitude, tolerance = SYSTEMS[name]
    crs = CRS.from_user_input(name)
    system = pyproj.CRS.from_wkt(crs.to_wkt())
    while system.is_compound or system.is_bound:
        system = system.sub_crs_list[0] if system.is_compound else system.source_crs
    to_map = pyproj.Transformer.from_crs(system.geodetic_crs, system, always_xy=True)
    degree = 180 / np.pi * system.geodetic_crs.axis_info[0].unit_conversion_factor
    east = longitude + np.degrees(side / 6.4e6 / np.cos(np.radians(latitude)))
    (x, far), (y, _) = to_map.transform(np.array([longitude, east]) / degree, np.array([latitude] * 2) / degree)
    u = abs(far - x)
    outline = shapely.Polygon(
        [(x, y), (x + u, y), (x + u, y + u / 2), (x + u / 2, y + u / 2), (x + u / 2, y + u), (x, y + u)]
    )
    dense = shapely.get_coordinates(shapely.segmentize(outline, u / 300))
    geod = pyproj.Geod(ellps="WGS84") if "merc" in name or "ESRI" in name else system.get_geod()
    on_earth = np.array(to_map.transform(*dense.T, direction="INVERSE")) * degree
    expected = abs(geod.polygon_area_perimeter(*on_earth)[0])
    assert areas(np.array([outline], object), crs)[0] == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(("unit", "metres"), [('"metre",1', 1.0), ('"foot",0.3048', 0.3048)])
def test_local_systems_have_planar_areas_in_their_unit(unit, metres):
    local = CRS.from_wkt(f'LOCAL_CS["site",UNIT[{unit}]]')
    assert areas(np.array([shapely.box(0, 0, 83, 20)], object), local)[0] == pytest.approx(1660 * metres**2)
    assert len(select(some(5), local, min_area=300 * metres**2)) == 3


def test_the_area_around_a_pole_is_that_of_its_cap():
    cap = shapely.Point(0, 0).buffer(1_000_000, quad_segs=200)
    dense = shapely.get_coordinates(shapely.segmentize(cap, 5000))
    longitude, latitude = pyproj.Transformer.from_crs(3031, 4326, always_xy=True).transform(*dense.T)
    expected = abs(pyproj.Geod(ellps="WGS84").polygon_area_perimeter(longitude, latitude)[0])
    assert areas(np.array([cap], object), CRS.from_epsg(3031))[0] == pytest.approx(expected, rel=1e-5)


def test_a_polygon_beyond_the_edge_of_the_projection_has_no_area():
    crs = CRS.from_user_input("ESRI:54009")  # Mollweide: an ellipse
    got = areas(np.array([shapely.box(0, 0, 1000, 1000), shapely.box(1.7e7, 8e6, 1.8e7, 9e6)], object), crs)
    assert got[0] == pytest.approx(1e6, rel=0.01) and np.isnan(got[1])


# Selection


def test_small_polygons_are_left_out():
    polygons = some(5)
    kept = select(polygons, UTM, min_area=300)
    assert len(kept) == 3 and areas(kept.geometry, UTM).min() == 300
    assert list(kept.class_val) == [2, 0, 1] and kept.mean_prob[0] == polygons.mean_prob[2]


def test_the_smallest_area_is_in_square_metres_in_degrees_too():
    degrees = some(2, side=1e-4, origin=(2.0, 41.0))  # about 8 m x 11 m, and twice that
    assert len(select(degrees, CRS.from_epsg(4326), min_area=50)) == 2
    assert len(select(degrees, CRS.from_epsg(4326), min_area=120)) == 1


def test_tolerance_is_in_metres_in_feet_too():
    wave = shapely.Polygon([*((i, 1.0 * (i % 2)) for i in range(20)), (19, 50), (0, 50)])
    polygons = Polygons(np.array([wave], object), np.array([1], np.int32), np.array([0.25]))
    metres, feet = (select(polygons, crs, simplify=0.5) for crs in (UTM, CRS.from_epsg(2263)))
    assert shapely.get_num_coordinates(metres.geometry[0]) == 23 > shapely.get_num_coordinates(feet.geometry[0])
    assert list(feet.mean_prob) == [0.25] and list(feet.class_val) == [1]


def test_simplified_neighbors_keep_their_common_edges():
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 3, (12, 12)), np.ones((4, 4), int)).astype(np.uint8)
    mask = np.where(rng.random(mask.shape) < 0.1, np.roll(mask, 1, 0), mask).astype(np.uint8)
    grid = Affine(0.5, 0, 430000, 0, -0.5, 4580000)
    exact = polygonize(lambda a, b: (mask[a:b], np.ones((b - a, 48))), mask.shape, [0, 1, 2], grid)
    simple = select(exact, UTM, simplify=0.6)
    assert shapely.get_num_coordinates(simple.geometry).sum() < 0.8 * shapely.get_num_coordinates(exact.geometry).sum()
    assert shapely.is_valid(simple.geometry).all()
    assert shapely.coverage_is_valid(simple.geometry)
    assert shapely.area(simple.geometry).sum() == pytest.approx(shapely.union_all(simple.geometry).area)
    assert shapely.coverage_union_all(simple.geometry).area == pytest.approx(24 * 24, rel=0.02)


def test_tolerance_is_in_metres_in_degrees_too():
    wave = [(i * 1e-5, 1e-6 * (i % 2)) for i in range(20)]
    polygon = shapely.Polygon([*wave, (19e-5, 1e-3), (0, 1e-3)])
    polygons = Polygons(np.array([polygon], object), np.array([1], np.int32), np.array([0.5]))
    wgs = CRS.from_epsg(4326)
    assert shapely.get_num_coordinates(select(polygons, wgs, simplify=3).geometry[0]) < 10
    assert shapely.get_num_coordinates(select(polygons, wgs, simplify=0.01).geometry[0]) == 23


def test_tolerance_is_in_metres_on_the_ground_of_a_map_that_enlarges_it():
    """At 60 degrees north a metre is two units of Mercator, so a step of 1 m there is one of 2."""
    (x,), (y,) = transform_points(CRS.from_epsg(4326), CRS.from_epsg(3395), [10], [60])
    wave = [(x + 2 * i, y + 2.0 * (i % 2)) for i in range(20)]
    polygons = Polygons(
        np.array([shapely.Polygon([*wave, (x + 38, y + 99), (x, y + 99)])], object),
        np.array([1], np.int32),
        np.array([0.5]),
    )
    mercator = CRS.from_epsg(3395)
    assert shapely.get_num_coordinates(select(polygons, mercator, simplify=0.9).geometry[0]) == 23
    assert shapely.get_num_coordinates(select(polygons, mercator, simplify=1.1).geometry[0]) < 23


def test_no_simplified_polygon_is_smaller_than_asked():
    mask = (np.random.default_rng(1).random((60, 60)) < 0.55).astype(np.uint8)
    exact = polygonize(lambda a, b: (mask[a:b], np.ones((b - a, 60))), mask.shape, [1], Affine(1, 0, 0, 0, -1, 0))
    kept = select(exact, UTM, min_area=4, simplify=2)
    assert len(kept) and areas(kept.geometry, UTM).min() >= 4 and shapely.is_valid(kept.geometry).all()


# Files


@pytest.mark.parametrize("kind", ["gpkg", "shp", "geojson"])
def test_every_format_gives_the_same_fields_and_polygons_back(tmp_path, kind):
    polygons = some()
    path = tmp_path / f"a b.{kind}"
    assert write_polygons(path, polygons, NAMES, UTM, {"version": "1", "checkpoint_sha256": "abc"}) == [path]
    meta, geometry, fields = read(path)
    assert list(fields) == ["class_val", "class_name", "area", "mean_prob"]
    assert fields["class_val"].dtype == np.int32 and list(fields["class_val"]) == [0, 1, 2, 0, 1]
    assert list(fields["class_name"]) == [NAMES[i] for i in (0, 1, 2, 0, 1)]
    np.testing.assert_allclose(fields["area"], [100, 200, 300, 400, 500])
    np.testing.assert_allclose(fields["mean_prob"], polygons.mean_prob)
    if kind == "geojson":
        assert meta["crs"] == "EPSG:4326"
        x, y = transform_points(UTM, CRS.from_epsg(4326), *np.array(polygons.geometry[0].exterior.coords).T)
        expected = shapely.Polygon(np.column_stack([x, y]))
        assert geometry[0].symmetric_difference(expected).area < 0.02 * expected.area
        assert "checkpoint_sha256=abc" in json.loads(path.read_text())["description"]
    else:
        assert meta["crs"] == "EPSG:25830"
        assert shapely.equals(geometry, polygons.geometry).all()
    if kind == "gpkg":
        info = pyogrio.read_info(path)
        assert info["layer_metadata"]["checkpoint_sha256"] == "abc" and info["layer_name"] == "a b"
    sidecars = {".shp", ".shx", ".dbf", ".prj", ".cpg"} if kind == "shp" else {f".{kind}"}
    assert {file.suffix for file in tmp_path.iterdir()} == sidecars


@pytest.mark.parametrize("kind", ["gpkg", "shp", "geojson"])
@pytest.mark.parametrize("crs", [UTM, None])
def test_no_polygons_are_an_empty_layer_with_its_fields(tmp_path, kind, crs):
    path = tmp_path / f"a.{kind}"
    write_polygons(path, some(0), NAMES, crs)
    meta, geometry, fields = read(path)
    assert len(geometry) == 0
    if kind != "geojson":  # which has no place for fields without features
        assert list(fields) == ["class_val", "class_name", "area", "mean_prob"]
        assert meta["geometry_type"] == "Polygon"


@pytest.mark.parametrize("kind", ["gpkg", "shp", "geojson"])
def test_without_a_coordinate_system_coordinates_stay(tmp_path, kind):
    polygons = some(2, origin=(0.0, 0.0))
    write_polygons(tmp_path / f"a.{kind}", polygons, NAMES, None)
    _, geometry, fields = read(tmp_path / f"a.{kind}")
    assert shapely.equals(geometry, polygons.geometry).all() and list(fields["area"]) == [100, 200]


def test_holes_and_a_custom_coordinate_system_survive(tmp_path):
    ring = shapely.box(0, 0, 10, 10) - shapely.box(3, 3, 5, 5)
    polygons = Polygons(np.array([ring], object), np.array([1], np.int32), np.array([0.5]))
    crs = CRS.from_string("+proj=laea +lat_0=41 +lon_0=2 +ellps=WGS84 +units=m")
    for kind in ("gpkg", "shp"):
        write_polygons(tmp_path / f"a.{kind}", polygons, NAMES, crs)
        meta, geometry, _ = read(tmp_path / f"a.{kind}")
        assert shapely.equals(geometry[0], ring) and "Lambert Azimuthal" in meta["crs"].replace("_", " ")


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.gpkg"
    write_polygons(path, some(5), NAMES, UTM)
    before = path.read_bytes()
    monkeypatch.setattr(shapely, "to_wkb", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_polygons(path, some(2), NAMES, UTM)
    monkeypatch.undo()
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["a.gpkg"]
    write_polygons(path, some(2), NAMES, UTM)
    assert len(read(path)[1]) == 2


def test_more_than_a_shapefile_holds_goes_on_in_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "SHAPEFILE_LIMIT", 300)
    files = write_polygons(tmp_path / "a.shp", some(5), NAMES, UTM)
    assert [file.name for file in files] == ["a.shp", "a_2.shp", "a_3.shp"]
    parts = [read(file) for file in files]
    assert shapely.equals(np.concatenate([part[1] for part in parts]), some(5).geometry).all()
    assert all(part[0]["crs"] == "EPSG:25830" for part in parts)
    assert len(write_polygons(tmp_path / "a.gpkg", some(5), NAMES, UTM)) == 1


@pytest.mark.parametrize("pixel", [0.01, 0.05])
def test_polygons_of_centimetre_pictures_keep_their_area_in_geojson(tmp_path, pixel):
    mask = (np.random.default_rng(1).random((40, 40)) < 0.55).astype(np.uint8)
    grid = Affine(pixel, 0, 430000, 0, -pixel, 4580000)
    exact = polygonize(lambda a, b: (mask[a:b], np.ones((b - a, 40))), mask.shape, [1], grid)
    write_polygons(tmp_path / "a.geojson", exact, NAMES, UTM)
    _, geometry, fields = read(tmp_path / "a.geojson")
    there = areas(geometry, CRS.from_epsg(4326))
    assert np.abs(there / fields["area"] - 1).max() < 0.03 * (0.01 / pixel)
    assert there.sum() == pytest.approx(mask.sum() * pixel**2, rel=2e-3)


def test_field_names_fit_a_shapefile_and_any_class_name_its_table(tmp_path):
    assert max(map(len, vectors.FIELDS)) <= 10
    long = "é" * 100
    write_polygons(tmp_path / "a.shp", some(1), [long], UTM)
    assert read(tmp_path / "a.shp")[2]["class_name"].tolist() == [long]


def test_the_file_people_look_for_comes_last_in_a_folder_that_is_made(tmp_path, monkeypatch):
    moved, real = [], vectors.shutil.move
    monkeypatch.setattr(vectors.shutil, "move", lambda one, other: moved.append(other.suffix) or real(one, other))
    write_polygons(tmp_path / "new" / "a.shp", some(2), NAMES, UTM)
    assert moved[-1] == ".shp" and len(moved) == 5


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.kml: unknown vector format; use \.gpkg"):
        write_polygons(tmp_path / "a.kml", some(), NAMES, UTM)


ODD_NAMES = [
    "a!b", "a;b", "semi;colon|pipe&and", "[final] ortho", "(x)", "$x", "${HOME}", "`id`", "{0}", "*", "'quote'",
    "-dash", '"double"', "--threshold", ".hidden", "~", "line\nbreak", "tab\there", "layer'); DROP TABLE x;--",
    "_", "é ü", "a.b.c", "not-utf8-\udcff\udcfe",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["gpkg", "shp", "geojson"])
def test_whatever_the_name_the_file_has_it_and_holds_the_polygons(tmp_path, kind):
    for number, stem in enumerate(ODD_NAMES):
        path = tmp_path / str(number) / f"{stem}.{kind}"
        assert write_polygons(path, some(2), NAMES, UTM) == [path] and path.is_file()
        assert {file.name.removesuffix(file.suffix) for file in path.parent.iterdir()} == {stem}
        plain = tmp_path / f"{number}"
        for file in path.parent.iterdir():
            shutil.copy(file, plain.with_suffix(file.suffix))
        assert len(read(plain.with_suffix(f".{kind}"))[1]) == 2


def test_geojson_of_a_local_system_is_refused(tmp_path):
    polygons = Polygons(np.array([shapely.box(0, 0, 1, 1)]), np.array([1]), np.array([0.5]))
    local = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    with pytest.raises(ValueError, match="no way from a local system; use --vector gpkg"):
        write_polygons(tmp_path / "a.geojson", polygons, ["a", "b"], local)
    assert list(tmp_path.iterdir()) == []
