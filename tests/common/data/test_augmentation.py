import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from common.data.augmentation import (
    GREY,
    affine_map,
    blur_and_noise,
    color_map,
    cut,
    jitter_colors,
    middle,
    near,
    needed,
    paste,
)
from common.images.windows import Window, clip


def reader(image, classes, reads=None):
    """Windows of a picture, which must lie in it."""

    def read(window):
        assert clip(window, *classes.shape) == window
        if reads is not None:
            reads.append(window)
        return image[:, *window.slices], classes[window.slices]

    return read


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(5, 90), st.integers(5, 90), st.integers(4, 64), st.booleans())
def test_a_cut_is_what_each_pixels_place_says(seed, height, width, side, mirrored):
    """Against the inverse map of every pixel, worked out one by one."""
    rng = np.random.default_rng(seed)
    image = np.repeat(rng.integers(0, 256, (1, height, width), dtype=np.uint8), 3, axis=0)
    classes = rng.integers(0, 3, (height, width), dtype=np.uint8)
    turn, zoom = rng.uniform(0, 7), math.exp(rng.uniform(-0.6, 0.6))
    flips = tuple(rng.choice([-1.0, 1.0], 2))
    center = rng.uniform(-side, height + side), rng.uniform(-side, width + side)
    matrix = affine_map(center, side, turn, zoom, flips)
    reads = []
    options = {} if mirrored else {"outside": 255}
    part, found = cut(reader(image, classes, reads), matrix, side, size=(height, width), **options)
    assert part.shape == (side, side, 3) and found.shape == (side, side) and part.dtype == np.uint8
    extent = side * math.sqrt(2) / zoom + 8
    assert max(reads[0].height, reads[0].width) <= extent, "no more than the crop needs is read"
    for y, x in rng.integers(0, side, (20, 2)):
        dx, dy = (x - (side - 1) / 2) / zoom, (y - (side - 1) / 2) / zoom
        along = (dx * math.cos(turn) + dy * math.sin(turn)) * flips[0] + center[1]
        down = (-dx * math.sin(turn) + dy * math.cos(turn)) * flips[1] + center[0]
        if min(abs(value % 1 - 0.5) for value in (along, down)) < 0.05:
            continue  # rounding decides between two pixels
        row, col = round(down), round(along)
        inside = 0 <= row < height and 0 <= col < width
        if inside:
            assert found[y, x] == classes[row, col]
        elif not mirrored:
            assert found[y, x] == 255


def test_what_shrinks_to_less_than_half_is_averaged():
    stripes = np.tile(np.array([0, 255], np.uint8), (3, 60, 30))
    classes = np.zeros((60, 60), np.uint8)
    part, _ = cut(reader(stripes, classes), affine_map((29.5, 29.5), 20, 0.0, 1 / 3), 20, size=(60, 60))
    assert part[:, 1:-1].std() < 60, "every third pixel alone would be 0 or 255"
    fine, _ = cut(reader(stripes, classes), affine_map((29.5, 29.5), 15, 0.0, 1 / 4), 15, size=(60, 60))
    assert np.abs(fine.astype(int) - 127).max() <= 1


def test_where_a_crop_lies():
    rng = np.random.default_rng(0)
    inside = [middle(100, 30, rng, start=7) for _ in range(300)]
    assert min(inside) >= 7 + 14.5 and max(inside) <= 7 + 84.5 and np.ptp(inside) > 60
    assert middle(10, 30, rng) == 4.5
    spots = np.array([near(np.array([50, 60]), 20, rng) for _ in range(300)])
    assert np.abs(spots - (50, 60)).max() <= 7 and np.ptp(spots, axis=0).min() > 12
    assert needed(affine_map((15.5, 25.5), 32, 0.0, 1.0), 32) == Window(-2, 8, 36, 36)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_jitter_is_torchvisions_where_that_is_linear(kind):
    """Brightness, contrast and saturation one by one; colors in the middle of the range, so that nothing is clipped."""
    image = np.random.default_rng(3).uniform(0.4, 0.6, (9, 9, 3)).astype(np.float32)

    class Fixed:
        """Draws one kind of change alone: the others have the factor 1."""

        def __init__(self):
            self.kinds = iter(range(4))

        def permutation(self, count):
            return np.arange(count)

        def uniform(self, low, high):
            return 0.7 if next(self.kinds) == kind else 0.0

        def random(self):
            return 1.0

    factor = 1 + 0.7 * (0.5, 0.5, 0.6)[kind]
    function = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)[kind]
    expected = function(torch.from_numpy(np.moveaxis(image, -1, 0)), factor).permute(1, 2, 0).numpy()
    assert np.abs(jitter_colors(image, 1.0, Fixed()) - expected).max() < 0.002


def test_jittered_colors_spread_as_torchvisions_do():
    """Mean and spread of brightness, contrast, saturation and hue over many draws, and the share of grey ones."""
    rng = np.random.default_rng(1)
    image = np.clip(rng.normal((0.5, 0.45, 0.4), 0.08, (16, 16, 3)), 0, 1).astype(np.float32)
    ours = [jitter_colors(image, 0.5, rng) for _ in range(300)]
    torch.manual_seed(0)
    jitter = v2.Compose([v2.ColorJitter(0.25, 0.25, 0.3, 0.04), v2.RandomGrayscale(0.075)])
    theirs = [jitter(torch.from_numpy(np.moveaxis(image, -1, 0))).permute(1, 2, 0).numpy() for _ in range(300)]

    def measures(images):
        colored = [one for one in images if np.ptp(one, axis=-1).max() > 1e-6]
        level, spread = (np.array([value(one) for one in colored]) for value in (np.mean, np.std))
        parts = (level, spread, *np.array([one.mean(axis=(0, 1)) - one.mean() for one in colored]).T)
        return [1 - len(colored) / len(images), *(part.mean() for part in parts), *(part.std() for part in parts)]

    one, other = measures(ours), measures(theirs)
    assert one[0] == pytest.approx(0.075, abs=0.03)
    assert one[1:] == pytest.approx(other[1:], rel=0.2, abs=0.006)


def test_a_rectangle_of_another_crop_is_pasted():
    zeros, ones = ((np.full((40, 40, 3), v, np.float32), np.full((40, 40), v, np.uint8)) for v in (0, 1))
    image, classes = paste(*zeros, *ones, np.random.default_rng(3))
    assert (image == classes[..., None]).all() and 100 <= classes.sum() <= 400 and zeros[1].sum() == 0
    rows, cols = classes.any(axis=1).sum(), classes.any(axis=0).sum()
    assert rows * cols == classes.sum()


@pytest.mark.parametrize("bands", [1, 3, 5])
def test_colors_turn_around_the_mean(bands):
    image = np.random.default_rng(0).random((20, 30, bands), np.float32)
    gains = np.linspace(0.8, 1.2, bands)
    linear, offset = color_map(image, gains, contrast=0.5, saturation=1.0)
    changed, mean = image @ linear.T + offset, image.mean(axis=(0, 1))
    assert np.allclose(changed, gains * (mean + 0.5 * (image - mean)), atol=1e-6)


def test_without_saturation_only_brightness_is_left_of_rgb():
    image = np.random.default_rng(0).random((20, 30, 3), np.float32)
    linear, offset = color_map(image, np.ones(3), contrast=1.0, saturation=0.0)
    spread = image @ linear.T + offset - image.mean(axis=(0, 1))
    assert np.allclose(spread, ((image - image.mean(axis=(0, 1))) @ GREY)[..., None], atol=1e-6)


@pytest.mark.parametrize("bands", [1, 3, 5])
def test_some_images_are_blurred_and_every_other_one_is_noisy(bands):
    image = np.random.default_rng(0).random((20, 30, bands), np.float32)
    rng = np.random.default_rng(7)
    found = [blur_and_noise(image, 1.0, rng) for _ in range(400)]
    assert all(f.shape == image.shape and f.dtype == np.float32 and f.min() >= 0 and f.max() <= 1 for f in found)
    same = np.mean([np.array_equal(f, image) for f in found])
    assert 0.28 < same < 0.42, "0.7 x 0.5 are neither"
    assert np.array_equal(
        blur_and_noise(image * 2 - 0.5, 0.0, np.random.default_rng(0)), np.clip(image * 2 - 0.5, 0, 1)
    )
