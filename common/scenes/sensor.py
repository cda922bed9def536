"""What cameras and archives do to a picture from the air: exposure, haze, color, blur, noise, JPEG.

The generated worlds have one camera, and a mild one. A network that is to read anybody's pictures learns on many.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
LUMA = np.array([0.3, 0.59, 0.11], np.float32)


def photograph(image: Image, rng: np.random.Generator) -> Image:
    """Take a rendered picture again with a camera drawn at random, or leave it as it is.

    Args:
        image: (H, W, 3) uint8.
        rng: what is drawn from.

    Returns:
        (H, W, 3) uint8; another array.
    """
    if rng.random() < 0.15:
        return image.copy()
    light = _tone(image.astype(np.float32) / np.float32(255), rng)
    if rng.random() < 0.4:
        light *= _clouds(light.shape, rng)
    blur = rng.uniform(0.3, 1.4) if rng.random() < 0.4 else 0.0
    if blur:
        light = cv2.GaussianBlur(light, (0, 0), blur)
    if rng.random() < (0.6 if blur > 0.7 else 0.2):
        light += rng.uniform(0.3, 1.0) * (light - cv2.GaussianBlur(light, (0, 0), 1.2))
    if rng.random() < 0.5:
        grain = rng.standard_normal(light.shape, np.float32) * np.float32(rng.uniform(0.004, 0.035))
        light += grain if rng.random() < 0.6 else cv2.GaussianBlur(grain, (0, 0), 0.8)
    pixels: Image = np.clip(light * 255, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        packed = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 95))])[1]
        pixels = np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)
    return pixels


def _clouds(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Light that is uneven over the picture: thin clouds, the lens, mosaics of several flights."""
    coarse = np.exp(rng.normal(0, 0.18, (int(rng.integers(2, 5)),) * 2)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, shape[1::-1], interpolation=cv2.INTER_CUBIC), np.float32)[..., None]


def _tone(light: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Saturation, gamma, contrast and exposure, a cast, and haze."""
    gray = (light @ LUMA)[..., None]
    saturation = 0.0 if rng.random() < 0.06 else np.exp(rng.normal(-0.1, 0.45))
    light = np.maximum(gray + (light - gray) * np.float32(saturation), 0)
    if rng.random() < 0.6:  # another sensor's bands
        bands = np.eye(3) + rng.normal(0, 0.12, (3, 3))
        light = np.maximum(light @ (bands / bands.sum(1, keepdims=True)).T.astype(np.float32), 0)
    light = light ** np.float32(np.exp(rng.normal(-0.1, 0.2)))
    gains = np.exp(rng.normal(0, 0.06, 3)) * np.exp(rng.normal(0.0, 0.25))
    contrast, level = np.exp(rng.normal(0.15, 0.2)), light.mean()
    light = (light - level) * (gains * contrast).astype(np.float32) + level * gains.astype(np.float32)
    if rng.random() < 0.25:
        haze, color = rng.uniform(0.05, 0.25), rng.uniform(0.6, 0.9) * np.exp(rng.normal(0, 0.05, 3))
        light = light * np.float32(1 - haze) + (haze * color).astype(np.float32)
    return np.asarray(light + np.float32(rng.normal(0, 0.03)), np.float32)
