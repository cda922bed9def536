import numpy as np
import pytest

from common.data.augmentation import GREY, blur_and_noise, color_map


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
