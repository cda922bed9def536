import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod
from rasterio.crs import CRS
from rasterio.features import rasterize, shapes
from shapely import Polygon, box
from shapely.affinity import rotate, scale, translate

from common.images.grids import apply
from footprints.regularize import main_direction, overlap, regularize, regularize_all, without_overlaps

HOUSES = {
    "rectangle": box(-20, -12, 20, 12),
    "L": Polygon([(-20, -15), (20, -15), (20, 0), (2, 0), (2, 15), (-20, 15)]),
    "court": Polygon(box(-22, -20, 22, 20).exterior, [box(-8, -7, 8, 7).exterior]),
    "Z": Polygon([(-25, -8), (0, -8), (0, -1), (25, -1), (25, 14), (5, 14), (5, 8), (-25, 8)]),
}


def pixelated(polygon, size=96):
    """The outline of the polygon's pixels, as a mask gives it."""
    mask = rasterize([translate(polygon, size / 2, size / 2)], (size, size), dtype="uint8")
    outlines = [shapely.geometry.shape(shape) for shape, value in shapes(mask, connectivity=4) if value == 1]
    return translate(max(outlines, key=lambda outline: outline.area), -size / 2, -size / 2)


def corner_angles(polygon):
    """Degrees between neighboring walls."""
    found = []
    for ring in (polygon.exterior, *polygon.interiors):
        steps = np.diff(shapely.get_coordinates(ring), axis=0)
        directions = np.degrees(np.arctan2(steps[:, 1], steps[:, 0]))
        found += (np.diff([*directions, directions[0]]) % 360).tolist()
    return np.array(found)


@pytest.mark.parametrize("name", HOUSES)
@pytest.mark.parametrize("degrees", [0, 13, 30, 45, 71])
def test_pixelated_houses_get_their_walls_back(name, degrees):
    house = rotate(HOUSES[name], degrees, origin=(0, 0))
    result = regularize(pixelated(house), 1.0)
    assert result.is_valid
    assert overlap(result, house) > 0.88
    off = np.minimum(corner_angles(result) % 90, -corner_angles(result) % 90)
    assert off.max() < 1e-4
    count = shapely.count_coordinates(result)
    assert count <= shapely.count_coordinates(house) + 4, "walls were made up"


def test_units_do_not_matter():
    raw = pixelated(rotate(HOUSES["L"], 20, origin=(0, 0)))
    small = scale(raw, 0.35, 0.35, origin=(0, 0))
    expected = scale(regularize(raw, 1.0), 0.35, 0.35, origin=(0, 0))
    assert overlap(regularize(small, 0.35), expected) > 1 - 1e-9


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(2, 40), st.floats(0.05, 20))
def test_whatever_comes_the_result_is_valid_and_covers_the_same_ground(seed, points, size):
    rng = np.random.default_rng(seed)
    hull = shapely.MultiPoint(rng.normal(0, 10, (points + 3, 2))).convex_hull.difference(shapely.Point(0, 0).buffer(2))
    raw = max(shapely.get_parts(hull), key=lambda part: part.area)
    raw = scale(raw, size, size, origin=(0, 0))
    result = regularize(raw, size)
    assert result.is_valid and result.geom_type == "Polygon"
    assert overlap(raw, result) >= 0.8 - 1e-9


def test_what_has_no_right_angles_is_kept():
    thin = Polygon([(0, 0), (30, 1), (60, 30), (61, 60), (58, 60), (56, 32), (29, 5), (0, 4)])
    circle = shapely.Point(0, 0).buffer(6)
    for shape in (thin, circle, box(0, 0, 1, 1), Polygon([(0, 0), (1, 0), (0.5, 0.1)])):
        assert overlap(regularize(shape, 1.0), shape) >= 0.8


def test_long_walls_that_are_not_at_right_angles_stay_where_they_are():
    """Two wings at 60 degrees: squaring the second would cut a wedge out of it, which the IoU alone lets pass."""
    wing = rotate(box(0, -10, 60, 10), 60, origin=(0, 0))
    house = translate(
        box(-50, -10, 0, 10).union(wing).buffer(1, join_style="mitre").buffer(-1, join_style="mitre"), 0, -20
    )
    raw = pixelated(house, 200)
    result = regularize(raw, 1.0)
    assert result.exterior.hausdorff_distance(raw.exterior) < 6 and overlap(result, house) > 0.9
    assert shapely.count_coordinates(result) < shapely.count_coordinates(raw) / 4


def test_a_result_on_other_ground_is_refused(monkeypatch):
    raw = pixelated(HOUSES["L"])
    monkeypatch.setattr("footprints.regularize._square_up", lambda polygon, *_: box(-20, -15, 20, 15))
    assert overlap(box(-20, -15, 20, 15), raw) < 0.8
    assert regularize(raw, 1.0) is raw


@pytest.mark.parametrize("degrees", [-30, 0, 10, 40])
def test_the_main_direction_is_that_of_the_long_walls(degrees):
    house = rotate(HOUSES["Z"], degrees, origin=(0, 0))
    found = np.degrees(main_direction(house, 0.5, 1.0))
    assert abs((found - degrees + 45) % 90 - 45) < 1e-6


@pytest.mark.parametrize(("grid", "crs"), [
    (Affine(0.35, 0, 456_000, 0, -0.35, 6_717_000), CRS.from_epsg(31982)),
    (Affine(4e-6, 0, -3.7, 0, -4e-6, 60.0), CRS.from_epsg(4326)),
    (Affine(1, 0, 0, 0, 1, 0), None),
])  # fmt: skip
def test_outlines_are_regularized_in_pixels_as_they_are_on_the_ground(grid, crs):
    """The house is turned and pixelated on the ground; at 60 north, pixels in degrees are half as wide."""
    _, _, (east, north) = Geod(ellps="WGS84").inv([-3.7] * 2, [60] * 2, [-3.6999, -3.7], [60, 60.0001])
    wide = east / north if crs is not None and crs.is_geographic else 1.0
    house = rotate(HOUSES["L"], 20, origin=(0, 0))
    raw = scale(pixelated(scale(house, 1 / wide, 1, origin=(0, 0)), 160), wide, 1, origin=(0, 0))

    def to_file(points):
        return apply(grid, points / (wide, 1.0))

    geometry = np.array([shapely.transform(raw, to_file), shapely.transform(shapely.Point(9, 9).buffer(0.4), to_file)])
    result = regularize_all(geometry, grid, crs)
    assert len(result) == 2 and shapely.is_valid(result).all()
    back = shapely.transform(result[0], lambda points: apply(~grid, points) * (wide, 1.0))
    assert overlap(back, house) > 0.9
    off = np.minimum(corner_angles(back) % 90, -corner_angles(back) % 90)
    assert shapely.count_coordinates(back) <= 9 and off.max() < 0.01


def test_kept_outlines_are_the_same_to_the_bit(monkeypatch):
    monkeypatch.setattr("footprints.regularize._square_up", lambda *_: None)
    geometry = np.array([rotate(HOUSES["Z"], 33), translate(HOUSES["court"], 80, 0)])
    result = regularize_all(geometry, Affine(0.37, 0, 1e6, 0, -0.37, 7e6))
    assert all(shapely.equals_exact(a, b, 0) for a, b in zip(geometry, result, strict=True))
    assert len(regularize_all(np.empty(0, object), Affine(0.37, 0, 1e6, 0, -0.37, 7e6))) == 0


def test_a_pixel_has_a_size():
    with pytest.raises(ValueError, match="size of a pixel"):
        regularize(HOUSES["L"], 0.0)


def terrace(degrees, count=6):
    """Houses of unequal depth, wall to wall, turned, as their pixels give them: neighbors share no ground."""
    mask = np.zeros((160, 160), np.uint8)
    place = Affine.translation(80, 80) @ Affine.rotation(degrees)
    for number in range(count):
        house = box(-60 + 20 * number, -10 - 2 * (number % 3), -40 + 20 * number, 12 + 3 * (number % 2))
        outline = shapely.transform(house, lambda points: apply(place, points))
        rasterize([(outline, number + 1)], out=mask)
    outlines = sorted(
        ((value, shapely.geometry.shape(shape)) for shape, value in shapes(mask, connectivity=4)), key=str
    )
    largest = {value: outline for value, outline in sorted(outlines, key=lambda pair: pair[1].area) if value}
    return np.array(list(largest.values()), object)


@pytest.mark.parametrize("degrees", range(3, 90, 12))
def test_terraced_houses_share_walls_but_no_ground(degrees):
    raw = terrace(degrees)
    grid = Affine(0.3, 0, 456_000, 0, -0.3, 6_717_000)
    ground = shapely.transform(raw, lambda points: apply(grid, points))
    result = regularize_all(ground, grid, CRS.from_epsg(31982))
    shared = [a.intersection(b).area for n, a in enumerate(result) for b in result[:n]]
    assert max(shared) < 1e-6, "m2"
    assert shapely.is_valid(result).all() and (shapely.get_type_id(result) == 3).all()
    assert min(overlap(a, b) for a, b in zip(ground, result, strict=True)) >= 0.8 - 1e-6
    assert shapely.count_coordinates(result) < shapely.count_coordinates(ground) / 2


def test_of_two_on_the_same_ground_the_smaller_one_goes_back_to_its_pixels():
    raw = np.array([box(0, 0, 20, 20), box(20, 0, 28, 10)])
    covered = without_overlaps(np.array([box(0, 0, 26, 20), box(19, 0, 28, 10)]), raw)
    assert covered[0].equals(box(0, 0, 26, 20)) and covered[1].equals(box(26, 0, 28, 10))
