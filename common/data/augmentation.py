"""Random changes of an image's look in training: one affine map of its bands, blur and noise."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

GREY = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in brightness (ITU-R BT.601)."""

Pixels = NDArray[np.float32]
Vector = NDArray[np.float64]


def color_map(image: Pixels, gains: Vector, contrast: float, saturation: float) -> tuple[Vector, Vector]:
    """The affine map of the bands of an image (H, W, C) that changes them around its mean color.

    Args:
        image: whose mean it is.
        gains: brightness of each band.
        contrast: about the mean.
        saturation: of three bands, which are taken for RGB; others keep theirs.

    Returns:
        Linear part (C, C) and offset (C,).
    """
    mix = np.eye(len(gains))
    if len(gains) == 3:
        mix = saturation * mix + (1 - saturation) * np.tile(np.array(GREY), (3, 1))
    linear = (contrast * gains)[:, None] * mix
    level = image.mean(axis=(0, 1), dtype=np.float64)
    return linear, gains * level - linear @ level


def blur_and_noise(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Blur some images (H, W, C), add noise to every other one, and keep all in 0...1."""
    if rng.random() < 0.3 * strength:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.2)).reshape(image.shape)
    if rng.random() < 0.5:
        image = image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, 0.04 * strength))
    return np.asarray(np.clip(image, 0, 1), np.float32)
