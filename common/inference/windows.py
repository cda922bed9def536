"""Where the windows of an image lie, and how much each counts at a pixel.

The windows form a regular grid, so the blending weights are the product of a row profile and a column profile. They are
normalized per axis beforehand (a partition of unity: at every pixel the weights of the windows over it sum to one);
adding up ``weight * prediction`` is then the result, with no weight map to keep and no division at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.images.windows import Window

Profile = npt.NDArray[np.float64]

MAX_OVERLAP = 0.9
FEWEST_PIXELS = 2
"""Overlaps from this number on are pixels, smaller ones shares."""
ALIGNED = 32
"""Pixels: the total stride of most networks."""
TILE_COST = 1 << 15
"""Pixels that take the time which every tile costs beside its own ones."""
EQUAL = 1.02
"""Plans whose times differ by no more than this factor are equal."""
LEAST_SIDE = 128
"""Pixels: sides of tiles that are planned are hardly smaller."""
OUTER = 3 / 8
"""Share of the strip in common with a neighbor in which a window hardly counts."""
FAINT = 1e-6
"""What it still counts there: nothing that shows, but never nothing at all."""


def plan_axis(size: int, tile: int, shared: int) -> list[int]:
    """First pixels of the windows along one axis: the fewest that keep the overlap, evenly spread, none outside.

    Neighbors are at most ``tile - shared`` pixels apart. Where the last window would stick out, all
    strides shrink a little; shifting only that window inwards would give it a much larger overlap than the others.
    As far as that allows, all but the last begin at multiples of `ALIGNED`, or half of it and so on: a network that
    halves its maps then takes the same pixels together in every window, and windows agree where they overlap.
    """
    if size <= tile:
        return [0]
    stride = max(1, tile - shared)
    gaps = math.ceil((size - tile) / stride)
    align = ALIGNED
    while align > 1 and (4 * align > stride or math.ceil((size - tile) / align) > gaps * (stride // align)):
        align //= 2
    steps = math.ceil((size - tile) / align)
    return [*(index * steps // gaps * align for index in range(gaps)), size - tile]


def plan_windows(height: int, width: int, tile: tuple[int, int], shared: int) -> list[Window]:
    """Windows of ``min(tile, side)`` pixels that cover an image exactly, row by row.

    Args:
        height: Rows of the image.
        width: Columns of the image.
        tile: Height and width of a window in pixels.
        shared: Pixels that a window has in common with its neighbor at least.

    Raises:
        ValueError: a side is not positive.
    """
    if min(tile) <= 0:
        raise ValueError(f"--tile-size must be a positive number of pixels, got {min(tile)}")
    if height <= 0 or width <= 0:
        raise ValueError(f"an image of {height} x {width} pixels has nothing to predict")
    size = min(tile[0], height), min(tile[1], width)
    rows, columns = plan_axis(height, tile[0], shared), plan_axis(width, tile[1], shared)
    return [Window(row, col, *size) for row in rows for col in columns]


def check_overlap(overlap: float, tile: int = 0) -> None:
    """Refuse an overlap that is neither a share of a tile nor a number of pixels.

    Args:
        overlap: 0-0.9: a share; from 2 on: pixels.
        tile: side of the tiles; 0 = not known yet.

    Raises:
        ValueError: it is something else, or more than 0.9 of the tile.
    """
    pixels = overlap >= FEWEST_PIXELS and float(overlap).is_integer()
    if not (0.0 <= overlap <= MAX_OVERLAP or pixels):
        raise ValueError(
            f"--overlap must be a share of the tile, 0 to {MAX_OVERLAP}, or whole pixels, {FEWEST_PIXELS} or more; "
            f"got {overlap}"
        )
    if pixels and tile and overlap > MAX_OVERLAP * tile:
        raise ValueError(f"--overlap {overlap:g} must be at most {MAX_OVERLAP} of a tile, whose side is {tile}")


def shared_pixels(overlap: float, tile: int) -> int:
    """Pixels that neighboring tiles of a side have in common: those given, or a share."""
    return round(overlap) if overlap >= FEWEST_PIXELS else tile - max(1, round(tile * (1.0 - overlap)))


def cheapest_tile(size: tuple[int, int], shared: int, most: int, align: int = ALIGNED) -> tuple[int, int]:
    """Height and width of the tiles with which an image takes the least time.

    A tile takes the time of its pixels and of `TILE_COST` more. Every number of rows and columns of tiles is looked at;
    tiles as wide as the image save the overlap across. Of those within `EQUAL` of the best the lowest are taken: they
    need the least memory.

    Args:
        size: of the image.
        shared: pixels that neighbors have in common.
        most: pixels of a tile.
        align: sides are multiples of this, unless they are the image's.
    """
    if math.prod(size) <= most:
        return size
    heights, widths = (_sides(side, shared, align) for side in size)
    plans = [
        (rows * columns * (height * width + TILE_COST), height, width)
        for rows, height in heights
        for columns, width in widths
        if height * width <= most
    ]
    if not plans:  # only where a tile can hardly hold the overlap
        return heights[-1][1], widths[-1][1]
    limit = EQUAL * min(plans)[0]
    return min((height, width) for cost, height, width in plans if cost <= limit)


def _sides(size: int, shared: int, align: int) -> list[tuple[int, int]]:
    """Numbers of tiles along an axis and the side that each then needs, down to four times the overlap."""
    found = [(1, size)]
    least = max(LEAST_SIDE, 4 * shared)
    while found[-1][1] > least and (count := found[-1][0] + 1):
        side = math.ceil((size + (count - 1) * shared) / count)
        found.append((count, min(size, side + -side % align)))
    return found


def blend_profile(length: int, shared: int = 0, ends: tuple[bool, bool] = (False, False)) -> Profile:
    """Weight of each pixel along one side of a window, before normalization; strictly positive.

    A window is trusted alone where it is at least five eighths of the strip shared with its neighbor away from its
    border, hardly at all within three eighths, and fades in between. So tiles of a network that sees no farther than
    that give exactly what the whole image would.

    Args:
        length: Pixels of the side.
        shared: Pixels that neighboring windows have in common at least.
        ends: Whether the window's first and last pixel are the image's, where no neighbor knows better.
    """
    center = np.arange(length) + 0.5
    before, after = (np.inf if end else 0.0 for end in ends)
    distance = np.minimum(center + before, length - center + after)
    share = np.clip((distance / max(shared, 1) - OUTER) / (1 - 2 * OUTER), 0.0, 1.0)
    return np.asarray(np.maximum(np.sin(np.pi / 2 * share) ** 2, FAINT))


class BlendWeights:
    """Weights of a grid of windows; at each pixel of the image those of all windows over it sum to one."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._rows = _normalized_profiles(sorted({w.row for w in windows}), windows[0].height)
        self._cols = _normalized_profiles(sorted({w.col for w in windows}), windows[0].width)
        if len(self._rows) * len(self._cols) != len(windows):
            raise ValueError(f"{len(windows)} windows do not form a full grid, as plan_windows() makes it")

    def __call__(self, window: Window, device: torch.device | str = "cpu") -> Tensor:
        """Weights (height, width) float32 of one window of the grid."""
        rows, cols = self._rows[window.row].to(device), self._cols[window.col].to(device)
        return rows[:, None] * cols[None, :]

    def parts(self, window: Window) -> list[tuple[slice, slice, Tensor | None]]:
        """A window cut into what it has alone, whose weight is 1 (None), and the rim that it shares, with its weights.

        Returns:
            Rows, columns (both counted from the window's first) and weights of each part.
        """
        rows, cols = self._rows[window.row], self._cols[window.col]
        (top, bottom), (left, right) = _alone(rows), _alone(cols)
        whole = slice(0, window.width)
        parts: list[tuple[slice, slice, Tensor | None]] = [
            (each, whole, rows[each, None] * cols[None]) for each in (slice(0, top), slice(bottom, window.height))
        ]
        inner = slice(top, bottom)
        sides = (slice(0, left), slice(right, window.width))
        parts += [(inner, each, rows[inner, None] * cols[None, each]) for each in sides]
        return [part for part in [*parts, (inner, slice(left, right), None)] if _is_some(part[0]) and _is_some(part[1])]


def _alone(weights: Tensor) -> tuple[int, int]:
    """First pixel of a side whose weight is 1 and the one after the last; the side's end twice if there is none."""
    ones = torch.nonzero(weights == 1)
    return (int(ones[0]), int(ones[-1]) + 1) if len(ones) else (len(weights), len(weights))


def _is_some(part: slice) -> bool:
    return bool(part.start < part.stop)


def _normalized_profiles(starts: list[int], length: int) -> dict[int, Tensor]:
    shared = min((before + length - after for before, after in pairwise(starts)), default=0)
    profiles = {start: blend_profile(length, shared, (start == starts[0], start == starts[-1])) for start in starts}
    total = np.zeros(starts[-1] + length)
    for start, profile in profiles.items():
        total[start : start + length] += profile
    return {start: torch.from_numpy(profiles[start] / total[start : start + length]).float() for start in starts}
