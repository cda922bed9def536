"""Arrays become 8-bit RGB pictures: images of any type (``stretch``), class maps (``colorize``), both (``overlay``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.labels import IGNORE

RGB = tuple[int, int, int]
Palette = Mapping[int, RGB]
Pixels = NDArray[np.uint8]
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Line colors told apart with any common color vision (Okabe and Ito 2008), legible on white and on near-black."""


def stretch(image: NDArray[Any]) -> Pixels:
    """Make an image of any type displayable.

    8-bit values are kept. Others are mapped linearly from the image's 2nd-98th percentile, over the shown channels
    together so that hues survive; where those coincide (a few bright spots on black), from its minimum and maximum.
    Non-finite pixels become black.

    Args:
        image: (C, H, W) or (H, W). One or two channels give grey (of the first), more than three the first three.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: the array has another number of axes, or no channels.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or image.shape[0] == 0:
        raise ValueError(f"an image to display has shape (C, H, W) or (H, W), this one has {image.shape}")
    channels = image[None] if image.ndim == 2 else image[:3] if image.shape[0] >= 3 else image[:1]
    if channels.dtype != np.uint8:
        with np.errstate(over="ignore"):  # values beyond float32 become infinite and are shown as the extremes
            channels = _to_bytes(channels.astype(np.float32))
    return np.ascontiguousarray(np.broadcast_to(channels, (3, *channels.shape[1:])).transpose(1, 2, 0))


def _to_bytes(values: NDArray[np.float32]) -> Pixels:
    step = max(1, int((values.size / 3e6) ** 0.5))  # percentiles of a sample: a whole orthophoto need not be sorted
    sample = values[:, ::step, ::step]
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return np.zeros(values.shape, np.uint8)
    low, high = np.percentile(sample, (2, 98))
    if high <= low:
        low, high = sample.min(), sample.max()
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):  # values near the limits of float32
        scaled = np.clip((values - low) / (high - low), 0, 1)
    scaled[~np.isfinite(values)] = 0
    return np.asarray(np.rint(255 * scaled), np.uint8)


def colorize(mask: NDArray[Any], palette: Palette) -> Pixels:
    """Paint a class map in its palette; 255 (no data, ignored) becomes hatched dark grey unless the palette names it.

    Args:
        mask: (H, W) of class indices.
        palette: RGB by class index.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: the mask holds a value without a color.
    """
    mask = _class_map(mask)
    colors, known = _color_table(palette)
    used = np.bincount(mask.ravel(), minlength=256) > 0
    unknown = np.flatnonzero(used & ~known & (np.arange(256) != IGNORE))
    if unknown.size:
        raise ValueError(
            f"the mask holds the value {unknown[0]}, the palette knows {sorted(palette)}; add a color for it"
        )
    painted = colors[mask]
    if not known[IGNORE] and used[IGNORE]:
        rows, columns = np.nonzero(mask == IGNORE)
        painted[rows, columns] = np.where((rows + columns) % 8 < 2, 76, 56)[:, None]
    return painted


TINT = 0.45
"""Weight of the class color in overlays."""
ROWS = 64
"""Painted at once."""


def boundary_width(size: tuple[int, int]) -> int:
    """How wide boundaries are drawn in an image of a height and width: 1 px, or a thousandth of the shorter side."""
    return max(1, round(min(size) / 1000))


def overlay(image_rgb: Pixels, mask: NDArray[Any], palette: Palette, boundary: int | None = None) -> Pixels:
    """Tint an image by class and draw each class's inner boundary in its solid color.

    Classes that the palette leaves out, and 255, keep the image's pixels: leave out the background to see it untouched.

    Args:
        image_rgb: (H, W, 3) uint8.
        mask: (H, W) of class indices.
        palette: RGB by class index.
        boundary: width of the boundaries, pixels; None = `boundary_width`.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: image and mask differ in size.
    """
    mask = _class_map(mask)
    if image_rgb.shape != (*mask.shape, 3):
        raise ValueError(
            f"the image has shape {image_rgb.shape}, the mask {mask.shape}; both must cover the same pixels"
        )
    colors, known = _color_table(palette)
    levels, solid = np.arange(256.0), colors.T[..., None].astype(np.float64)
    tinted = np.rint((1 - TINT) * levels + TINT * solid)
    tables = np.stack(
        [tinted, np.broadcast_to(solid, tinted.shape)], axis=1
    )  # channel, inside or boundary, class, level
    tables = np.where(known[:, None], tables, levels).astype(np.uint8).reshape(3, -1)
    edge = _inner_boundary(mask, width=boundary or boundary_width(image_rgb.shape[:2]))
    result = np.empty_like(image_rgb)
    for first in range(0, len(mask), ROWS):
        rows = slice(first, first + ROWS)
        begin = (edge[rows] * 256 + mask[rows].astype(np.intp)) * 256
        for channel, table in enumerate(tables):
            result[rows, :, channel] = table.take(begin + image_rgb[rows, :, channel])
    return result


def _inner_boundary(mask: Pixels, width: int) -> NDArray[np.bool_]:
    """Pixels within ``width`` steps, along a row or column, of another class."""
    edge = np.zeros(mask.shape, bool)
    for step in range(1, width + 1):
        vertical = mask[step:] != mask[:-step]
        horizontal = mask[:, step:] != mask[:, :-step]
        edge[step:] |= vertical
        edge[:-step] |= vertical
        edge[:, step:] |= horizontal
        edge[:, :-step] |= horizontal
    return edge


def strip(images: Sequence[Pixels], gap: int = 4) -> Pixels:
    """Put (H, W, 3) uint8 pictures of one height side by side, ``gap`` grey pixels apart."""
    bar = np.full((images[0].shape[0], gap, 3), 128, np.uint8)
    parts = [part for image in images for part in (bar, image)]
    return np.concatenate(parts[1:], axis=1)


def _class_map(mask: NDArray[Any]) -> Pixels:
    mask = np.asarray(mask)
    if (
        mask.ndim != 2
        or mask.dtype.kind not in "bui"
        or (mask.size and not 0 <= int(mask.min()) <= int(mask.max()) <= 255)
    ):
        raise ValueError(f"a class map is (H, W) of whole numbers 0-255, this one is {mask.shape} {mask.dtype}")
    return mask.astype(np.uint8, copy=False)


def _color_table(palette: Palette) -> tuple[Pixels, NDArray[np.bool_]]:
    colors, known = np.zeros((256, 3), np.uint8), np.zeros(256, bool)
    for index, color in palette.items():
        colors[index], known[index] = color, True
    return colors, known
