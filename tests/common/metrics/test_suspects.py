"""Suspected label errors: what a confident network contradicts, and what it does not."""

import numpy as np
import pytest

from common.metrics.suspects import suspect


def scene(classes=2):
    """Truth (80, 100) with a block of class 1, and probabilities that agree with it at 0.95."""
    truth = np.zeros((80, 100), np.uint8)
    truth[20:50, 30:70] = 1
    probability = np.full((classes, 80, 100), 0.05 / (classes - 1), np.float32)
    np.put_along_axis(probability, truth[None].astype(int), 0.95, axis=0)
    return truth, probability


def test_a_label_that_the_network_agrees_with_is_not_suspected():
    truth, probability = scene()
    assert suspect(probability[1:], truth) is None


@pytest.mark.parametrize("classes", [2, 4])
def test_a_missing_object_is_found_with_its_place_and_classes(classes):
    truth, probability = scene(classes)
    empty = np.zeros_like(truth)
    found = suspect(probability[1:] if classes == 2 else probability, empty)
    assert (found.label, found.prediction, found.box) == (0, 1, (20, 30, 30, 40))
    assert found.pixels == 1200 and found.share == pytest.approx(1200 / 8000)


def test_an_object_that_is_not_there_is_found():
    truth, probability = scene()
    found = suspect(np.full_like(probability[1:], 0.02), truth)
    assert (found.label, found.prediction) == (1, 0)


def test_edges_doubts_and_ignored_pixels_are_no_errors():
    truth, probability = scene()
    assert suspect(probability[1:], np.roll(truth, 3, axis=1)) is None  # drawn 3 pixels aside
    assert suspect(np.where(probability[1:] > 0.5, 0.79, 0.05), np.zeros_like(truth)) is None  # not sure
    assert suspect(probability[1:], np.where(truth == 1, 255, 0).astype(np.uint8)) is None


def test_the_share_counts_labeled_pixels_alone():
    truth, probability = scene()
    label = np.zeros_like(truth)
    label[:, 70:] = 255
    assert suspect(probability[1:], label).share == pytest.approx(1200 / (80 * 70))
    assert suspect(probability[1:], np.full_like(truth, 255)) is None
