from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import features
from rasterio.features import rasterize
from scipy import ndimage

from common.vectors.polygonize import polygonize

GRID = Affine(0.5, 0, 430000, 0, -0.5, 4580000)


def outline(mask, classes, *, confidence=None, transform=GRID, rows=None):
    confidence = np.ones(mask.shape) if confidence is None else confidence
    return polygonize(
        lambda first, last: (mask[first:last], confidence[first:last]), mask.shape, classes, transform, rows=rows
    )


def random_mask(height, width, classes, seed, coarse=1):
    """Blobs or speckles of classes 0...n-1 and nodata."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, classes + 1, (-(-height // coarse), -(-width // coarse)))
    mask = np.kron(small, np.ones((coarse, coarse), int))[:height, :width].astype(np.uint8)
    return np.where(mask == classes, 255, mask).astype(np.uint8)


masks = st.builds(
    random_mask,
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(1, 4),
    st.integers(0, 2**16),
    st.sampled_from([1, 2]),
)


def shapes(mask, classes, transform=GRID):
    """Classes and outlines by GDAL."""
    found = [
        (int(value), shapely.geometry.shape(shape))
        for shape, value in features.shapes(mask, connectivity=4, transform=transform)
        if value in classes
    ]
    return found


@settings(deadline=None, max_examples=150)
@given(mask=masks, rows=st.integers(1, 25), portion=st.sampled_from([1, 30, 1000]))
def test_polygons_are_those_of_gdal_whatever_the_bands_and_portions(mask, rows, portion):
    classes = [0, 1, 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.vectors.polygonize.PORTION", portion)
        polygons = outline(mask, classes, rows=rows)
    theirs = shapes(mask, classes)
    assert len(theirs) == len(polygons)
    tree = shapely.STRtree(polygons.geometry)
    for value, shape in theirs:
        match = [i for i in tree.query(shape) if shapely.equals(shape, polygons.geometry[i])]
        assert [polygons.class_val[i] for i in match] == [value]


@settings(deadline=None, max_examples=100)
@given(mask=masks, rows=st.integers(1, 25), seed=st.integers(0, 99))
def test_polygons_are_valid_cover_exactly_the_mask_and_know_their_confidence(mask, rows, seed):
    confidence = np.random.default_rng(seed).random(mask.shape)
    polygons = outline(mask, [0, 2], confidence=confidence, rows=rows)
    assert shapely.is_valid(polygons.geometry).all()
    covered = np.isin(mask, [0, 2])
    assert shapely.coverage_is_valid(polygons.geometry)
    assert shapely.area(polygons.geometry).sum() == pytest.approx(covered.sum() * 0.25, rel=1e-9)
    back = np.full(mask.shape, 9999, np.int32)
    for number, polygon in enumerate(polygons.geometry):
        inside = rasterize([polygon], mask.shape, transform=GRID).astype(bool)
        assert (back[inside] == 9999).all()
        back[inside] = number
        assert (mask[inside] == polygons.class_val[number]).all()
        assert polygons.mean_prob[number] == pytest.approx(confidence[inside].mean())
    assert ((back != 9999) == covered).all()
    expected = sum(ndimage.label(mask == value)[1] for value in (0, 2))
    assert len(polygons) == expected


def test_an_area_that_touches_itself_in_a_point_has_a_hole():
    mask = np.ones((4, 4), np.uint8)
    mask[1, 1] = mask[2, 2] = 0  # two holes that touch, and below one that touches the outside
    one = outline(mask, [1])
    assert len(one) == 1 and shapely.get_num_interior_rings(one.geometry[0]) == 2
    mask[0, 0] = 0
    one = outline(mask, [1])
    assert len(one) == 1 and shapely.get_num_interior_rings(one.geometry[0]) == 2
    assert one.geometry[0].is_valid and one.geometry[0].area == 13 * 0.25


def test_diagonal_neighbors_are_two_polygons():
    polygons = outline(np.eye(2, dtype=np.uint8), [1])
    assert list(shapely.area(polygons.geometry)) == [0.25, 0.25]


def test_order_is_from_the_top_and_shells_run_counterclockwise():
    mask = random_mask(20, 20, 3, 1)
    polygons = outline(mask, [0, 1, 2], rows=3)
    tops = shapely.bounds(polygons.geometry)[:, 3]
    assert (np.diff(tops) <= 0).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(polygons.geometry)).all()


def test_where_two_polygons_meet_at_the_edge_of_a_third_all_have_a_point():
    mask = np.array([[0, 0, 0], [1, 1, 2]], np.uint8)
    polygons = outline(mask, [0, 1, 2], transform=Affine.identity())
    assert shapely.get_num_coordinates(polygons.geometry).tolist() == [6, 5, 5]
    assert shapely.coverage_is_valid(polygons.geometry)


def test_a_straight_edge_has_no_points_in_between():
    polygons = outline(np.ones((50, 70), np.uint8), [1], rows=7)
    assert shapely.get_num_coordinates(polygons.geometry).tolist() == [5]
    assert shapely.equals(polygons.geometry[0], shapely.box(430000, 4580000 - 25, 430035, 4580000))


def test_a_raster_without_a_class_gives_no_polygons():
    for mask in (np.zeros((3, 5), np.uint8), np.full((3, 5), 255, np.uint8)):
        polygons = outline(mask, [1])
        assert len(polygons) == 0 and polygons.class_val.shape == (0,)


def test_rotated_grids_are_followed():
    turned = Affine.translation(10, 20) @ Affine.rotation(30) @ Affine.scale(2, -2)
    mask = random_mask(9, 9, 2, 3)
    ours = outline(mask, [0, 1], transform=turned)
    assert shapely.area(ours.geometry).sum() == pytest.approx((mask != 255).sum() * 4)
    theirs = shapely.union_all(
        [shapely.geometry.shape(s) for s, v in features.shapes(mask, transform=turned) if v != 255]
    )
    assert shapely.union_all(ours.geometry).symmetric_difference(theirs).area < 1e-9


def test_bands_are_asked_for_from_top_to_bottom_once():
    mask, asked = np.ones((10, 4), np.uint8), []

    def read(first, last):
        asked.append((first, last))
        return mask[first:last], np.ones((last - first, 4))

    polygonize(read, mask.shape, [1], GRID, rows=4)
    assert asked == [(0, 4), (4, 8), (8, 10)]
