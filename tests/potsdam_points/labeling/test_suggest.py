"""Suggestions: rare and confused classes before edges, apart from each other."""

import numpy as np
import pytest

from potsdam_points.labeling.suggest import choose, uncertainty, values


def maps(*planes):
    stacked = np.stack([np.asarray(plane, float) for plane in planes])
    return stacked / stacked.sum(axis=0)


def test_uncertainty_is_one_at_a_tie_and_zero_when_sure():
    found = uncertainty(maps([[1.0, 0.5, 0.6]], [[0.0, 0.5, 0.3]], [[0.0, 0.0, 0.1]]))
    assert found.tolist() == [[0.0, 1.0, pytest.approx(0.7)]]


def test_a_confused_area_is_worth_more_than_an_edge():
    first = np.zeros((60, 90))
    first[:, :30] = 1  # a sharp edge at column 30, with one uncertain column
    first[:, 30] = 0.5
    first[15:45, 55:85] = 0.5  # an area that could be either
    probabilities = maps(first, 1 - first)
    single, patch = (values(probabilities, [5, 5], name) for name in ("margin", "patch"))
    assert single[30, 30] == single[30, 70] == 1
    assert patch[30, 70] > 2 * patch[30, 30]


def test_rare_classes_are_worth_more():
    first = np.full((40, 80), 0.5)
    second, third = np.zeros((40, 80)), np.zeros((40, 80))
    second[:, :40], third[:, 40:] = 0.5, 0.5
    worth = values(maps(first, second, third), [50, 50, 2], "balanced")
    assert worth[20, 60] > 1.5 * worth[20, 20]


def test_points_keep_apart_from_each_other_and_from_known_ones():
    worth = np.ones((100, 100))
    known = np.array([[50, 50]])
    found = choose(worth, np.zeros((2, 100, 100)), known, 8, np.random.default_rng(0), 12.0)
    everything = np.concatenate([known, found])
    distances = np.linalg.norm(everything[:, None] - everything[None], axis=2)
    assert len(found) == 8 and distances[~np.eye(9, dtype=bool)].min() > 12


def test_points_that_look_alike_are_worth_less_together():
    worth, features = np.ones((40, 40)), np.zeros((2, 40, 40))
    worth[:, 20:], features[0, :, 20:] = 0.7, 5.0
    found = choose(worth, features, np.zeros((0, 2), int), 2, np.random.default_rng(0), 1.0)
    assert (found[:, 1] >= 20).sum() == 1


def test_nothing_of_worth_gives_no_point():
    nothing = np.zeros((0, 2), int)
    assert len(choose(np.zeros((9, 9)), np.zeros((2, 9, 9)), nothing, 3, np.random.default_rng(0), 2.0)) == 0
