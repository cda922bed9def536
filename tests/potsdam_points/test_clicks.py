"""Simulated clicks: the mechanism on a ground that is known, not the figures."""

import numpy as np
import pytest
import torch

from common.data.labeled import LabeledImage
from potsdam_points import clicks
from potsdam_points.clicks import GRID, Ground, Moment, clicks_to, fit, markdown, miou, probabilities, simulate

ROWS, COLUMNS = 60, 60


def ground(seed=0):
    """Two features: class 0 everywhere, 1 in a corner, 3 rare; the outermost row is unknown."""
    truth = np.zeros((ROWS, COLUMNS), np.uint8)
    truth[:20, :20], truth[50:54, 50:54], truth[0] = 1, 3, 255
    centers = np.array([[0, 0], [4, 0], [9, 9], [0, 4]], float)
    noise = np.random.default_rng(seed).normal(0, 0.5, (2, ROWS, COLUMNS))
    features = np.moveaxis(centers[np.where(truth == 255, 0, truth)], -1, 0) + noise
    return Ground(torch.from_numpy(features).float(), truth)


def moment(known):
    here = ground()
    layer = fit(here.flat(known), here.labels(known))
    return Moment(here, probabilities(here, layer), known, np.random.default_rng(0))


def at(row, column):
    return row * COLUMNS + column


def test_the_last_layer_learns_what_it_was_told_and_nothing_else():
    here = ground()
    known = np.array([at(5, 5), at(30, 30), at(40, 10), at(12, 3)])
    layer = fit(here.flat(known), here.labels(known))
    said = probabilities(here, layer)
    assert said.sum(axis=0) == pytest.approx(1, abs=1e-5) and said[2:].max() < 1e-6
    assert (said.argmax(axis=0) == here.truth)[1:45].mean() > 0.97
    assert miou(here, layer) == pytest.approx(2 / 3, abs=0.05)  # the third class was never told


@pytest.mark.parametrize("name", clicks.STRATEGIES)
def test_every_strategy_clicks_where_there_is_a_truth_and_never_twice(name):
    now = moment(np.array([at(5, 5), at(30, 30), at(40, 10)]))
    chosen = clicks.STRATEGIES[name](now, 12)
    assert len(set(chosen.tolist())) == 12 and (now.ground.truth.ravel()[chosen] != 255).all()


def test_strategies_do_what_they_are_called():
    now = moment(np.array([at(5, 5), at(30, 30), at(40, 10)]))
    doubt = clicks.uncertainty(now.probability).ravel()
    assert doubt[clicks.most_uncertain(now, 5)].min() >= np.sort(doubt[now.ground.clickable])[-200]
    said = now.probability.argmax(axis=0).ravel()
    assert np.bincount(said[clicks.classes_in_turn(now, 11)]).tolist() == [5, 6]  # two points of the first are there
    features = now.ground.flat()
    gaps = torch.cdist(features[clicks.core_set(now, 3)], features[now.known]).amin(1)
    assert gaps[0] == torch.cdist(features[now.ground.clickable], features[now.known]).amin(1).max()


def test_a_session_ends_where_all_labels_do():
    here, held_out = ground(), ground(1)
    curve = simulate(here, held_out, clicks.STRATEGIES["core-set"], 8, 6, seed=0)
    assert len(curve) == 8 and curve[-1] > 0.9 * clicks.full_supervision(here, held_out, 0)
    assert curve == simulate(here, held_out, clicks.STRATEGIES["core-set"], 8, 6, seed=0)


def test_what_the_frozen_network_sees_lies_over_the_truth():
    image = np.zeros((3, 100, 90), np.uint8)
    image[:, 40:60, 40:60] = 255
    classes = (image[0] > 0).astype(np.uint8)
    patches = [LabeledImage("a", image, classes), LabeledImage("b", image[:, ::-1].copy(), classes[::-1].copy())]
    found = clicks.look(clicks.body(), patches)
    assert found.features.shape == (24, 2 * 25, 23) and found.truth.shape == (50, 23) and GRID == 4
    known = found.clickable
    assert miou(found, fit(found.flat(known), found.labels(known))) > 0.8


def test_clicks_are_read_off_the_mean_curve():
    assert clicks_to(np.array([0.5, 0.8, 1.0]), 20) == pytest.approx(50)
    assert clicks_to(np.array([0.95, 0.5]), 20) == 20 and clicks_to(np.array([0.5, 0.8]), 20) is None
    rows = [
        {"strategy": name, "seed": 0, "full": 0.5, "curve": curve}
        for name, curve in (("random", [0.1, 0.3, 0.5]), ("margin", [0.1, 0.5, 0.5]))
    ]
    text = markdown(rows, 10)
    assert "| random | 0.20 | 0.60 | 1.00 | 28 | 1.00 | 28 |" in text
    assert "| margin | 0.20 | 1.00 | 1.00 | 19 | 0.68 | 19 |" in text
