"""Random crops of aerial pictures: one affine map of the place, one of the colors, blur and noise.

A crop is cut by one affine map (scale, turn, flip) out of the part of a picture that it needs, so a raster on disk
costs no more than a chip in memory. Beyond the edge of what is read the image is mirrored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.images.windows import Window, clip

GREY = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in brightness (ITU-R BT.601)."""
JITTER = 0.35
"""A crop around a chosen pixel has its center within this share of its side from it."""

Pixels = NDArray[np.float32]
Classes = NDArray[np.uint8]
Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
Place = tuple[float, float]
"""Row and column, pixels."""
Read = Callable[[Window], tuple[NDArray[Any], Classes]]
"""Image (C, height, width) and classes (height, width) of a window."""


@dataclass(frozen=True)
class Augmentation:
    """How strongly training samples are changed, in every task; some do more."""

    rotate: float = 0.0
    """They are turned by up to so many degrees either way (180 = any angle)."""
    zoom: float = 0.0
    """They are enlarged or reduced by up to exp(zoom)."""
    color: float = 0.0
    """Strength of changes of brightness, contrast, saturation and the like, 0...1."""


# Places


def middle(size: int, crop: float, rng: np.random.Generator, start: int = 0) -> float:
    """Center of a crop that lies inside ``size`` pixels from ``start`` on, or over their middle where it is larger."""
    return start + (size - 1) / 2 + rng.uniform(-0.5, 0.5) * max(size - crop, 0)


def near(pixel: NDArray[Any], crop: float, rng: np.random.Generator) -> Place:
    """Center of a crop around a chosen pixel (row, column)."""
    row, col = pixel + rng.uniform(-JITTER, JITTER, 2) * crop
    return float(row), float(col)


def random_turn(most: float, rng: np.random.Generator) -> float:
    """An angle in radians: a number of quarter turns, and up to ``most`` degrees more either way."""
    quarters = int(rng.integers(4)) * math.pi / 2
    return quarters + math.radians(rng.uniform(-most, most)) if most else quarters


def affine_map(center: Place, side: int, turn: float, zoom: float, flips: tuple[float, float] = (1.0, 1.0)) -> Matrix:
    """The map (2, 3) from a picture's (x, y) to a crop's.

    Args:
        center: row and column of the crop's middle in the picture.
        side: of the crop, pixels.
        turn: angle, radians.
        zoom: above 1 things get larger.
        flips: of x and y: 1, or -1 = mirrored.
    """
    cos, sin = zoom * math.cos(turn), zoom * math.sin(turn)
    linear = np.array([[cos, -sin], [sin, cos]]) * np.array(flips)
    shift = (side - 1) / 2 - linear @ np.array([center[1], center[0]])
    return np.concatenate([linear, shift[:, None]], axis=1)


# Cutting


def cut(
    read: Read, matrix: Matrix, side: int, *, size: tuple[int, int] | None = None, outside: int | None = None
) -> tuple[NDArray[Any], Classes]:
    """Cut a square out of a picture by an affine map.

    Args:
        read: gives windows of the picture.
        matrix: from its (x, y) to the crop's.
        side: of the crop, pixels.
        size: height and width of the picture; None = ``read`` takes windows beyond its edge.
        outside: class beyond the edge; None = classes are mirrored as the image is.

    Returns:
        Image (side, side, C) in the picture's number type (bilinear, where things get smaller than half of their size
        from means over blocks) and classes (side, side) (nearest neighbor).
    """
    window = needed(matrix, side)
    if size is not None:
        window = clip(window, *size) or _nearest(window, size)
    image, classes = read(window)
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ (window.col, window.row)
    target = warp(np.ascontiguousarray(classes), moved, side, cv2.INTER_NEAREST, outside)
    return warp(*_reduced(np.ascontiguousarray(np.moveaxis(image, 0, -1)), moved), side), np.asarray(target, np.uint8)


def needed(matrix: Matrix, side: int) -> Window:
    """The window of a picture that a crop takes pixels from."""
    inverse = cv2.invertAffineTransform(matrix)
    corners = np.array([[-1, -1], [side, -1], [-1, side], [side, side]]) @ inverse[:, :2].T + inverse[:, 2]
    left, top = (math.floor(value) - 1 for value in corners.min(axis=0))
    right, bottom = (math.ceil(value) + 2 for value in corners.max(axis=0))
    return Window(top, left, bottom - top, right - left)


def _nearest(window: Window, size: tuple[int, int]) -> Window:
    """The pixel of a picture that is nearest to a window beside it."""
    row, col = (min(max(start, 0), length - 1) for start, length in zip((window.row, window.col), size, strict=True))
    return Window(row, col, 1, 1)


def warp(
    image: NDArray[Any], matrix: Matrix, side: int, how: int = cv2.INTER_LINEAR, outside: int | None = None
) -> NDArray[Any]:
    """An affine map of an image (H, W) or (H, W, C) to a square, beyond its edge mirrored, or of one value."""
    border = cv2.BORDER_REFLECT_101 if outside is None else cv2.BORDER_CONSTANT
    warped = cv2.warpAffine(image, matrix, (side, side), flags=how, borderMode=border, borderValue=[outside or 0] * 4)
    return np.reshape(warped, (side, side, *image.shape[2:]))


def _reduced(image: NDArray[Any], matrix: Matrix) -> tuple[NDArray[Any], Matrix]:
    """An image that is to become less than half as large, as means over blocks, and the map from there."""
    factor = math.floor(1 / math.sqrt(abs(np.linalg.det(matrix[:, :2]))) + 1e-6)
    if not 2 <= factor <= min(image.shape[:2]):
        return image, matrix
    height, width = (size // factor for size in image.shape[:2])
    blocks = image[: height * factor, : width * factor]
    smaller = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)
    shift = matrix[:, 2] + matrix[:, :2].sum(axis=1) * (factor - 1) / 2
    return smaller, np.column_stack([matrix[:, :2] * factor, shift])


# Colors


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


def jitter_colors(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Change brightness, contrast, saturation and hue of RGB in 0...1 (H, W, 3) in random order, some to grey.

    The ranges are those of torchvision's ``ColorJitter(0.5, 0.5, 0.6, 0.08)`` and ``RandomGrayscale(0.15)``, times
    ``strength``; hue is turned around the grey axis, so that all of it is one affine map.
    """
    level = image.mean(axis=(0, 1), dtype=np.float64)
    linear, offset = np.eye(3), np.zeros(3)
    for kind in rng.permutation(4):
        step, shift = _color_step(int(kind), strength, linear @ level + offset, rng)
        linear, offset = step @ linear, step @ offset + shift
    if rng.random() < 0.15 * strength:
        linear, offset = np.tile(GREY @ linear, (3, 1)), np.full(3, GREY @ offset)
    return np.asarray(np.clip(cv2.transform(image, np.column_stack([linear, offset])), 0, 1), np.float32)


def _color_step(kind: int, strength: float, level: Vector, rng: np.random.Generator) -> tuple[Matrix, Vector]:
    """Brightness (0), contrast (1), saturation (2) or hue (3) as an affine map of colors whose mean is ``level``."""
    grey = np.tile(np.array(GREY), (3, 1))
    factor = 1 + rng.uniform(-1, 1) * strength * (0.5, 0.5, 0.6, 0.08)[kind]
    if kind == 0:
        return factor * np.eye(3), np.zeros(3)
    if kind == 1:
        return factor * np.eye(3), (1 - factor) * grey @ level
    if kind == 2:
        return factor * np.eye(3) + (1 - factor) * grey, np.zeros(3)
    return cv2.Rodrigues(np.full(3, 2 * math.pi * (factor - 1) / math.sqrt(3)))[0], np.zeros(3)


def to_tensor(image: NDArray[Any]) -> Tensor:
    """(H, W, C) -> (C, H, W) float32."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0), np.float32))


# Mixing


def paste(
    image: NDArray[Any], classes: Classes, other: NDArray[Any], other_classes: Classes, rng: np.random.Generator
) -> tuple[NDArray[Any], Classes]:
    """Replace a random rectangle of a crop (H, W, C) by that of another one (CutMix, Yun et al. 2019)."""
    side = classes.shape[0]
    height, width = (round(side * rng.uniform(0.25, 0.5)) for _ in range(2))
    top, left = rng.integers(side - height + 1), rng.integers(side - width + 1)
    place = slice(top, top + height), slice(left, left + width)
    image, classes = image.copy(), classes.copy()
    image[place], classes[place] = other[place], other_classes[place]
    return image, classes
