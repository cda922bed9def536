import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from hela_nuclei.separate import compact, distance_map, separate


def disk(shape, row, column, radius):
    rows, columns = np.indices(shape)
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def touching():
    """Two nuclei that share a long outline, and one apart."""
    labels = np.zeros((80, 100), np.int32)
    labels[disk(labels.shape, 30, 30, 15)] = 12
    labels[disk(labels.shape, 30, 52, 15) & (labels == 0)] = 65_535
    labels[disk(labels.shape, 65, 80, 8)] = 3
    return labels


def test_touching_nuclei_come_apart():
    labels = touching()
    assert ndimage.label(labels)[1] == 2
    for result in (separate(labels > 0, distance_map(labels)), separate(labels > 0)):
        assert result.dtype == np.int32
        assert np.unique(result).tolist() == [0, 1, 2, 3]
        np.testing.assert_array_equal(result > 0, labels > 0)
        for label in (3, 12, 65_535):
            truth = labels == label
            overlap = np.bincount(result[truth]).max() / truth.sum()
            assert overlap > 0.92


def test_a_flat_map_keeps_every_island():
    mask = touching() > 0
    mask[5, 90] = True  # a single pixel
    for distance in (np.zeros(mask.shape, np.float32), np.full(mask.shape, 0.01, np.float32)):
        result = separate(mask, distance, min_area=0)
        np.testing.assert_array_equal(result > 0, mask)
        assert result.max() >= 3
    assert separate(mask, min_area=2)[5, 90] == 0
    assert separate(mask, min_area=10_000).max() == 0
    assert separate(np.zeros((9, 9), bool)).shape == (9, 9)
    assert separate(np.ones((50, 50), bool)).max() == 1
    assert separate(np.ones((1, 1), bool), min_area=0).tolist() == [[1]]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), density=st.floats(0.05, 0.95), learned=st.booleans(), area=st.integers(0, 60))
def test_labels_are_whole_numbers_without_gaps_inside_the_mask(seed, density, learned, area):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random((40, 50)), 3)
    mask = smooth > np.quantile(smooth, density)
    distance = rng.random(mask.shape, np.float32) if learned else None
    result = separate(mask, distance, min_area=area)
    assert not result[~mask].any()
    counts = np.bincount(result.ravel())[1:]
    assert (counts >= max(area, 1)).all()


def test_distance_is_one_in_the_middle_and_small_at_every_outline():
    labels = touching()
    distance = distance_map(labels)
    assert distance.dtype == np.float32
    assert not distance[labels == 0].any()
    for label in (3, 12, 65_535):
        inside = labels == label
        alone = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]  # a neighbor counts as outside
        np.testing.assert_allclose(distance[inside], (alone / alone.max())[inside], rtol=1e-6)
    edge = np.zeros((6, 6), np.int32)
    edge[0, 0] = 9
    assert distance_map(edge)[0, 0] == 1
    assert not distance_map(np.zeros((5, 5), np.int32)).any()


def test_sparse_ids_cost_nothing():
    labels = touching()
    labels[labels == 3] = 2**31 - 1
    started = time.monotonic()
    np.testing.assert_array_equal(distance_map(labels), distance_map(touching()))
    assert time.monotonic() - started < 2


def test_compact():
    labels = np.array([[0, 7, 7], [65_535, 2, 0]], np.int32)
    assert compact(labels).tolist() == [[0, 2, 2], [3, 1, 0]]
    assert compact(np.array([[4, 4]])).tolist() == [[1, 1]]
