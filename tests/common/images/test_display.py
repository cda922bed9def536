from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common.images.display import colorize, overlay, stretch, strip

PALETTE = {0: (0, 0, 0), 1: (200, 100, 50)}


def test_stretch_keeps_8_bit_values_and_takes_the_first_three_channels():
    image = np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3)
    np.testing.assert_array_equal(stretch(image), image[:3].transpose(1, 2, 0))


@pytest.mark.parametrize("shape", [(5, 7), (1, 5, 7), (2, 5, 7)])
def test_stretch_shows_few_channels_as_grey(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    first = image if image.ndim == 2 else image[0]
    for channel in range(3):
        np.testing.assert_array_equal(stretch(image)[..., channel], first)


def test_stretch_maps_the_percentiles_of_all_channels_together():
    image = np.random.default_rng(0).normal(1000, 100, (3, 40, 40)) + np.array([0, 50, 300]).reshape(3, 1, 1)
    low, high = np.percentile(image, (2, 98))
    expected = np.rint(255 * np.clip((image - low) / (high - low), 0, 1)).transpose(1, 2, 0)
    assert np.abs(stretch(image.astype(np.float32)) - expected).max() <= 1


def test_stretch_falls_back_to_the_extremes_for_a_few_bright_spots():
    frame = np.zeros((100, 100), np.uint16)
    frame[3, 4] = 40_000
    shown = stretch(frame)
    assert shown[3, 4].tolist() == [255, 255, 255]
    assert shown.sum() == 3 * 255


def test_stretch_shows_non_finite_pixels_black():
    image = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    image[10, 10:13] = np.nan, np.inf, -np.inf
    shown = stretch(image)
    assert not shown[10, 10:13].any()
    assert shown[10, 13].all()


@settings(deadline=None, max_examples=40)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)), elements=st.floats(width=32))
)
def test_stretch_takes_any_values(image):
    shown = stretch(image)
    assert shown.shape == (*image.shape[1:], 3)
    assert shown.dtype == np.uint8
    bad = ~np.isfinite(image[:3] if len(image) >= 3 else image[:1])
    assert not shown.transpose(2, 0, 1)[: len(bad)][bad & np.isnan(image[: len(bad)])].any()


@pytest.mark.parametrize("shape", [(4,), (0, 4, 4), (1, 1, 4, 4)])
def test_stretch_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="shape"):
        stretch(np.zeros(shape))


def test_colorize_is_exact():
    painted = colorize(np.array([[0, 1], [1, 0]], np.uint8), PALETTE)
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[0, 0, 0], [200, 100, 50]], [[200, 100, 50], [0, 0, 0]]]


def test_colorize_hatches_ignored_pixels_in_dark_grey():
    mask = np.full((16, 16), 255, np.uint8)
    mask[0, 0] = 1
    painted = colorize(mask, PALETTE)
    assert painted[0, 0].tolist() == [200, 100, 50]
    assert np.unique(painted[mask == 255]).tolist() == [56, 76]
    assert (painted[0, 1:8, 0] == [76, 56, 56, 56, 56, 56, 56]).all()
    assert colorize(mask, {**PALETTE, 255: (1, 2, 3)})[5, 5].tolist() == [1, 2, 3]


def test_colorize_names_a_value_without_color():
    with pytest.raises(ValueError, match=r"value 7, the palette knows \[0, 1\]"):
        colorize(np.array([[0, 7]], np.uint8), PALETTE)


@pytest.mark.parametrize("mask", [np.zeros((2, 2)), np.full((2, 2), 300), np.full((2, 2), -1), np.zeros(4, np.uint8)])
def test_class_maps_are_whole_numbers_of_one_byte(mask):
    with pytest.raises(ValueError, match="class map"):
        colorize(mask, PALETTE)


def test_overlay_tints_inside_and_draws_the_boundary_solid():
    image = np.full((5, 5, 3), 100, np.uint8)
    mask = np.zeros((5, 5), np.uint8)
    mask[1:4, 1:4] = 1
    shown = overlay(image, mask, {1: (200, 100, 50)})
    assert shown[2, 2].tolist() == [145, 100, 78]  # 45 % of the class color
    ring = mask.astype(bool)
    ring[2, 2] = False
    assert (shown[ring] == [200, 100, 50]).all()
    assert (shown[mask == 0] == 100).all()
    assert (image == 100).all()


def test_overlay_leaves_ignored_pixels():
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    mask = np.zeros((6, 8), np.uint8)
    mask[:, 4:] = 255
    shown = overlay(image, mask, PALETTE)
    np.testing.assert_array_equal(shown[:, 4:], image[:, 4:])
    expected = np.rint(0.55 * image[:, :3] + 0.45 * np.array(PALETTE[0]))
    np.testing.assert_array_equal(shown[:, :3], expected)


def test_overlay_draws_wider_boundaries_on_large_images():
    mask = np.zeros((2000, 2000), np.uint8)
    mask[:, 1000:] = 1
    shown = overlay(np.zeros((2000, 2000, 3), np.uint8), mask, {1: (255, 255, 255)})
    assert (shown[..., 0] == 255).sum(axis=1).tolist() == [2] * 2000


def test_overlay_refuses_another_size():
    with pytest.raises(ValueError, match="same pixels"):
        overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), np.uint8), PALETTE)


def test_strip_joins_pictures_with_a_grey_bar():
    left, right = np.full((3, 2, 3), 10, np.uint8), np.full((3, 4, 3), 20, np.uint8)
    assert strip([left, right], gap=1)[1, :, 0].tolist() == [10, 10, 128, 20, 20, 20, 20]
