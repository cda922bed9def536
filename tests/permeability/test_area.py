"""Estimates from samples: the published example, agreement with plain arithmetic, intervals that hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from permeability.area import (
    Auxiliary,
    Points,
    Strata,
    allocate,
    logit_interval,
    points_needed,
    ratio,
    share,
)

PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])
MATRIX = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
"""Olofsson et al. (2014), table 8: deforestation, gain, stable forest, stable non-forest; map by reference."""


def of_matrix(matrix):
    """Points of an error matrix: the index of the map's class and of the reference."""
    rows, columns = np.indices(matrix.shape)
    return np.repeat(rows.ravel(), matrix.ravel()), np.repeat(columns.ravel(), matrix.ravel())


def equal_points(stratum):
    return Points(np.asarray(stratum), np.ones(len(stratum)))


def test_the_worked_example_of_olofsson_et_al():
    mapped, truth = of_matrix(MATRIX)
    points, strata = equal_points(mapped), Strata(PIXELS * 900.0, PIXELS)
    loss = share(truth == 0, points, strata)
    assert round(loss.value * PIXELS.sum()) == 235_086
    assert round(1.96 * loss.error * PIXELS.sum()) == 68_418
    assert round(loss.value * strata.area.sum() / 1e4) == 21_158
    assert round(1.96 * loss.error * strata.area.sum() / 1e4) == 6_158
    overall = share(truth == mapped, points, strata)
    assert (round(overall.value, 2), round(1.96 * overall.error, 2)) == (0.95, 0.02)
    producers = [ratio((truth == k) & (mapped == k), truth == k, points, strata) for k in range(4)]
    assert [round(one.value, 2) for one in producers] == [0.75, 0.85, 0.93, 0.96]
    assert [round(1.96 * one.error, 2) for one in producers] == [0.21, 0.25, 0.03, 0.02]
    users = [share((truth == k)[mapped == k], *alone(points, strata, k)) for k in range(4)]
    assert [round(one.value, 2) for one in users] == [0.88, 0.73, 0.93, 0.96]
    assert [round(1.96 * one.error, 2) for one in users] == [0.07, 0.10, 0.04, 0.02]


def alone(points, strata, stratum):
    chosen = np.arange(len(strata.area)) == stratum
    return points.of(chosen)[1], strata[chosen]


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_an_interval_lies_inside_and_holds_the_estimate(seed, size):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(2, 10_000, size)
    drawn = np.minimum(generator.integers(2, 40, size), pixels)
    stratum = np.repeat(np.arange(size), drawn)
    hits = generator.random(len(stratum)) < generator.choice([0.0, 0.01, 0.5, 0.99, 1.0], size)[stratum]
    guess = generator.random(len(stratum))
    extra = Auxiliary(guess, generator.random(size)) if seed % 2 else None
    found = share(hits, equal_points(stratum), Strata(pixels.astype(float), pixels), extra)
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.error >= 0


def test_strata_of_which_all_pixels_are_judged_are_known_exactly():
    stratum, pixels = np.array([0, 0, 0, 1, 1]), np.array([3, 2])
    found = share(np.array([True, False, False, True, True]), equal_points(stratum), Strata(pixels * 2.0, pixels))
    assert found.value == found.low == found.high == pytest.approx(3 / 5) and found.error == 0


def test_no_error_in_the_sample_is_not_no_error():
    stratum = np.repeat([0, 1], 50)
    found = share(stratum == 1, equal_points(stratum), Strata(np.array([900.0, 100.0]), np.array([900, 100])))
    assert found.value == pytest.approx(0.1) and found.error == 0
    assert found.low < 0.1 < found.high < 0.14


def test_pixels_of_unequal_area_count_by_their_area():
    points = Points(np.zeros(4, int), np.array([1.0, 1.0, 2.0, 4.0]))
    found = share(np.array([True, False, False, True]), points, Strata(np.array([800.0]), np.array([100])))
    assert found.value == pytest.approx(5 / 8)


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="stratum 2 has 1 judged points; at least two"):
        share(np.array([True, False, True]), equal_points([0, 0, 1]), Strata(np.ones(2), np.array([5, 5])))


def test_good_probabilities_sharpen_the_estimate_and_bad_ones_do_no_harm():
    generator = np.random.default_rng(0)
    truth = generator.random(40_000) < 0.3
    score = np.clip(0.25 + 0.5 * truth + 0.25 * generator.standard_normal(len(truth)), 0, 1)
    mapped = np.where(generator.random(len(truth)) < 0.15, ~truth, truth).astype(int)
    pixels = np.bincount(mapped)
    chosen = np.concatenate([generator.choice(np.flatnonzero(mapped == h), 80, replace=False) for h in (0, 1)])
    points, strata = equal_points(mapped[chosen]), Strata(pixels.astype(float), pixels)
    plain = share(truth[chosen], points, strata)
    means = np.array([score[mapped == h].mean() for h in (0, 1)])
    sharp = share(truth[chosen], points, strata, Auxiliary(score[chosen], means))
    assert 0 < sharp.error < 0.9 * plain.error
    assert abs(sharp.value - truth.mean()) < 2.5 * sharp.error
    noise = generator.random(len(truth))
    blind = Auxiliary(noise[chosen], np.array([noise[mapped == h].mean() for h in (0, 1)]))
    assert share(truth[chosen], points, strata, blind).error <= plain.error


def test_intervals_cover_the_truth_and_beat_the_clicks_alone():
    """The full campaign is benchmarks/area_intervals.py; here a part of it that would show a wrong variance."""
    generator = np.random.default_rng(5)
    covered, widths, alone_widths = 0, 0.0, 0.0
    for _ in range(400):
        truth_share = generator.uniform(0.05, 0.5)
        joint = np.array([[0.9, 0.1], [0.1, 0.9]]) * [[1 - truth_share], [truth_share]]
        area = joint.sum(axis=0)
        strata = Strata(area, np.round(area * 1e6).astype(int))
        drawn = allocate(strata, np.full(2, 0.4), 200, 20)
        stratum = np.repeat([0, 1], drawn)
        hits = generator.random(len(stratum)) < (joint[1] / area)[stratum]
        found = share(hits, equal_points(stratum), strata)
        covered += found.low <= truth_share <= found.high
        clicks = generator.random(len(stratum)) < truth_share
        simple = share(clicks, equal_points(np.zeros(len(stratum), int)), Strata(np.ones(1), np.array([10**6])))
        widths, alone_widths = widths + found.high - found.low, alone_widths + simple.high - simple.low
    assert 0.925 <= covered / 400 <= 0.975
    assert widths < 0.8 * alone_widths


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(10, 500))
def test_points_are_allotted_within_bounds(seed, size, total):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(1, 1000, size)
    result = allocate(Strata(pixels * 1.5, pixels), generator.uniform(0.1, 0.5, size), total, 5)
    assert (result <= pixels).all() and (result >= np.minimum(5, pixels)).all()
    assert result.sum() <= max(total, np.minimum(5, pixels).sum()) + size


def test_points_are_allotted_in_proportion_to_area_and_spread():
    strata = Strata(np.array([600.0, 300.0, 100.0]), np.array([6000, 3000, 1000]))
    assert allocate(strata, np.array([0.1, 0.2, 0.4]), 160, 2).tolist() == [60, 60, 40]
    assert allocate(strata, np.array([0.1, 0.2, 0.4]), 160, 50).tolist() == [55, 55, 50]


def test_points_needed_for_a_half_width():
    strata = Strata(np.array([0.5, 0.5]), np.array([10, 10]))
    assert points_needed(strata, np.array([0.5, 0.5]), 0.05) == 385  # (1.96 x 0.5 / 0.05)^2, as in every textbook


def test_an_accuracy_without_truth_is_undefined():
    nothing = np.zeros(4, bool)
    assert ratio(nothing, nothing, equal_points([0, 0, 1, 1]), Strata(np.ones(2), np.array([9, 9]))) is None


def test_interval_of_certain_shares():
    assert logit_interval(0.0, 0.1, 5) == (0.0, 0.0) and logit_interval(0.3, 0.0, 5) == (0.3, 0.3)
