"""A time budget leaves room for what comes after the last step."""

import math

import pytest

from common.command.config import TrainConfig
from common.training import budget
from common.training.budget import FINISH_SECONDS, Budget, end_of


def test_without_a_budget_nothing_ever_ends():
    whole = Budget(end_of(TrainConfig()), 10)
    whole.measure(5.0, 100.0)
    assert math.isinf(whole.ends) and math.isinf(whole.validation_end) and math.isinf(whole.optimization_end(10))
    assert list(whole.watched(4, 0, 100.0)) == [0, 1, 2, 3]


def test_a_budget_counts_from_the_start_of_the_process(monkeypatch):
    monkeypatch.setattr(budget, "STARTED", 50.0)
    assert end_of(TrainConfig(max_minutes=2)) == 170.0


def test_everything_fits_where_there_is_time():
    plenty = Budget(3600.0, 20)
    plenty.measure(2.0, 0.0)
    assert plenty.validation_end == 3600 - FINISH_SECONDS - 2 * 1.5 * 20
    assert plenty.optimization_end(10) == plenty.validation_end - 1.5 * 2 * 10
    assert sorted(plenty.watched(10, 0, 0.0)) == list(range(10))


@pytest.mark.parametrize(("seconds", "images"), [(30.0, 500), (1.0, 500), (0.01, 500), (1000.0, 3)])
def test_what_does_not_fit_is_cut_and_the_end_stays(seconds, images):
    short = Budget(600.0, images)
    short.measure(seconds, 0.0)
    watched = short.watched(images, 0, 0.0)
    assert len(set(watched)) == len(watched) and set(watched) <= set(range(images))
    assert len(watched) == 1 or 1.5 * seconds * len(watched) <= short.validation_end / 3 + 1e-9
    assert 300 <= short.validation_end <= 600 - FINISH_SECONDS


@pytest.mark.parametrize(
    ("step", "image", "fits"), [(0.1, 0.01, True), (85, 1, True), (90, 10, False), (300, 0.1, False)]
)
def test_a_budget_without_room_for_a_step_is_refused(step, image, fits):
    minute = Budget(60.0, 5)
    minute.measure(image, 0.0)
    if fits:
        minute.require(step, 0.0)
        return
    with pytest.raises(ValueError, match=r"--max-minutes has no room .* one optimization step takes .*--recipe best"):
        minute.require(step, 0.0)


def test_a_budget_used_up_by_reading_still_gives_a_small_network():
    late = Budget(60.0, 5)
    late.measure(0.01, 500.0)
    late.require(1.0, 500.0)


def test_fewer_images_are_some_of_those_that_more_would_be():
    few, more = Budget(100.0, 10), Budget(200.0, 10)
    for each in (few, more):
        each.measure(1.0, 0.0)
    some, others = few.watched(50, 7, 0.0), more.watched(50, 7, 0.0)
    assert len(some) < len(others) and others[: len(some)] == some and some != sorted(some)
