"""An endless generated town seen from the air: the light on it and the camera above it.

``town`` says what stands where, ``canvas`` draws classes and heights, and this module turns them into pixels: one sun
casts shadows from everything onto everything, slopes are shaded, the sky fills the shadows, and the camera adds its
blur, color cast, fall-off and noise.

Pixels are painted in fixed blocks of ``BLOCK`` pixels, so that any window of a world is a crop of the same picture.
"""

from __future__ import annotations

import random
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from common.scenes.canvas import UNDEFINED, Canvas, Floats, Outline, noise_tile, noise_window
from common.scenes.town import HIGHEST, Town

Image = NDArray[np.uint8]
Labels = NDArray[np.uint8]

BLOCK = 1024
"""Side of the blocks that a world is painted in, pixels."""
KEPT = 32
"""Blocks kept in memory, 5 MiB each: a row of them for a raster of 31 000 columns, so that thin bands are cheap too."""
FINEST, COARSEST = 0.04, 1.0
"""Ground sampling distances that can be painted, metres."""
WALL = 2.2
"""Slopes beyond this are walls and not shaded."""
MARGIN = 4
"""Pixels painted beyond a block for the optics' blur."""
STRIP = 96
"""Rows that are colored at a time, so that they stay in the processor's cache."""


class AerialWorld:
    """A town without end, of which any window can be rendered.

    Args:
        seed: the same seed gives the same world.
        gsd: ground sampling distance, metres per pixel; the town is the same at any.
        varied: it may be a town of any region (``Town``).

    Raises:
        ValueError: ``gsd`` is out of range.
    """

    def __init__(self, seed: int, gsd: float = 0.2, *, varied: bool = False) -> None:
        if not FINEST <= gsd <= COARSEST:
            raise ValueError(f"gsd {gsd} m: aerial scenes can be rendered from {FINEST} to {COARSEST} m per pixel")
        self.gsd = gsd
        self.town = Town(seed, varied)
        rng = random.Random(f"light/{seed}")
        azimuth = rng.uniform(-0.65, 0.65) * np.pi  # of the direction towards the sun, from south
        self.elevation = np.radians(rng.uniform(32, 66))
        self.sun = (float(np.sin(azimuth)), float(np.cos(azimuth)))  # (x, y) in the image, y is down
        self.sky = rng.uniform(0.2, 0.45)  # light in the shadows, relative to full light
        self.sky_color = np.array([0.94, 1.0, rng.uniform(1.03, 1.16)], dtype=np.float32)
        gain, warmth = rng.uniform(0.85, 1.35), rng.uniform(-0.08, 0.08)
        self.cast = np.float32(gain) * np.array([1 + warmth, rng.uniform(0.98, 1.03), 1 - warmth], dtype=np.float32)
        self.haze = np.array([rng.uniform(0.0, 0.09)] * 2 + [rng.uniform(0.01, 0.12)], dtype=np.float32)
        self.saturation = rng.uniform(0.65, 1.1)
        self.blur = rng.uniform(0.45, 0.85)
        self.noise = rng.uniform(0.006, 0.016)
        self.falloff = [(rng.uniform(0, 0.04), rng.uniform(150, 600), rng.uniform(0, 6.3)) for _ in range(4)]
        self.shift = rng.randrange(1 << 16)
        self.rough = rng.uniform(0.2, 1.2) if varied else 1.0  # strength of the materials' texture
        self._block = lru_cache(maxsize=KEPT)(self._paint_block)

    def render(self, row: int, col: int, height: int, width: int, *, undefined: bool = True) -> tuple[Image, Labels]:
        """Render a window; neighbors fit together and overlaps are identical.

        Args:
            row: of the window's first pixel; any integer, negative ones too.
            col: likewise.
            height: pixels.
            width: pixels.
            undefined: leave some ground without a class (255); False gives the truth everywhere.

        Returns:
            image (H, W, 3) uint8 and classes (H, W) uint8.
        """
        if min(height, width) < 1:
            raise ValueError(f"window of {height} x {width} pixels: both must be positive")
        image = np.empty((height, width, 3), dtype=np.uint8)
        classes = np.empty((height, width), dtype=np.uint8)
        for y in range(row // BLOCK, (row + height - 1) // BLOCK + 1):
            for x in range(col // BLOCK, (col + width - 1) // BLOCK + 1):
                pixels, full, mapped = self._block(y, x)
                top, left = max(row, y * BLOCK), max(col, x * BLOCK)
                bottom, right = min(row + height, (y + 1) * BLOCK), min(col + width, (x + 1) * BLOCK)
                source = (slice(top - y * BLOCK, bottom - y * BLOCK), slice(left - x * BLOCK, right - x * BLOCK))
                target = (slice(top - row, bottom - row), slice(left - col, right - col))
                image[target] = pixels[source]
                classes[target] = (mapped if undefined else full)[source]
        return image, classes

    def _paint_block(self, y: int, x: int) -> tuple[Image, Labels, Labels]:
        """Paint one block of the fixed grid."""
        return self.paint(y * BLOCK, x * BLOCK, BLOCK, BLOCK)

    def paint(self, row: int, col: int, height: int, width: int) -> tuple[Image, Labels, Labels]:
        """Paint a window in one go, without the fixed blocks: quicker for a small one, alike but not identical.

        Returns:
            image (H, W, 3) uint8, classes (H, W) uint8, and the classes with the unmapped ground as 255.
        """
        reach = int(HIGHEST / np.tan(self.elevation) / self.gsd) + 1  # longest shadow
        before = [MARGIN + (reach if towards < 0 else 0) for towards in (self.sun[1], self.sun[0])]
        after = [MARGIN + (reach if towards > 0 else 0) for towards in (self.sun[1], self.sun[0])]
        canvas = Canvas(
            row - before[0],
            col - before[1],
            height + before[0] + after[0],
            width + before[1] + after[1],
            self.gsd,
            self.town.ground,
            self.shift,
        )
        unmapped = self._draw(canvas)
        inner = (slice(before[0], before[0] + height), slice(before[1], before[1] + width))
        columns = slice(before[1] - MARGIN, before[1] + width + MARGIN)
        lit = self._shadows(canvas.relief, (slice(before[0] - MARGIN, before[0] + height + MARGIN), columns))
        image, table = np.empty((height, width, 3), dtype=np.uint8), np.array(canvas.table, dtype=np.float32)
        for top in range(0, height, STRIP):
            bottom = min(top + STRIP, height)
            strip = (slice(before[0] + top - MARGIN, before[0] + bottom + MARGIN), columns)
            light = self._light(canvas.relief[strip], lit[top : bottom + 2 * MARGIN])
            exposed = self._expose(canvas, self._color(canvas, table, strip) * light, strip)
            image[top:bottom] = exposed[MARGIN:-MARGIN, MARGIN:-MARGIN]
        classes = canvas.labels[inner].copy()
        for item in unmapped:
            canvas.draw(item)
        return image, classes, canvas.labels[inner].copy()

    def _draw(self, canvas: Canvas) -> list[Outline]:
        """Draw all that is in view, from the ground up; returns the outlines of unmapped ground."""
        x, y = canvas.col * self.gsd, canvas.row * self.gsd
        items = self.town.view(x, y, x + canvas.width * self.gsd, y + canvas.height * self.gsd)
        unmapped = []
        for item in items:
            if isinstance(item, Outline) and item.surface.label == UNDEFINED:
                unmapped.append(item)
            else:
                canvas.draw(item)
        return unmapped

    def _shadows(self, relief: Floats, view: tuple[slice, slice]) -> Floats:
        """How much of the sun each pixel of the view sees, (H, W) from 0 to 1."""
        tangent, scale = float(np.tan(self.elevation)), self.gsd
        roof = relief.copy()  # highest obstacle on the way to the sun, lowered by the rise of the ray
        steps = 1
        while steps * scale * tangent < HIGHEST:
            # Each round doubles how far the ray has been followed.
            down, right = round(steps * self.sun[1]), round(steps * self.sun[0])
            here = _overlap(roof.shape, down, right)
            there = _overlap(roof.shape, -down, -right)
            ahead = roof[there] - np.float32(steps * scale * tangent)
            roof[here] = np.maximum(roof[here], ahead)
            steps *= 2
        lit = (roof[view] <= relief[view] + np.float32(0.12)).astype(np.float32)
        return np.asarray(cv2.GaussianBlur(lit, (0, 0), 0.5 + 0.1 / scale), np.float32)

    def _light(self, relief: Floats, lit: Floats) -> Floats:
        """Light that falls on each pixel, (H, W, 3) relative to level ground in the sun, where ``lit`` sees the sun."""
        tangent = np.float32(np.tan(self.elevation))
        slope_x = cv2.Scharr(relief, cv2.CV_32F, 1, 0, scale=1 / (32 * self.gsd))
        slope_y = cv2.Scharr(relief, cv2.CV_32F, 0, 1, scale=1 / (32 * self.gsd))
        steep = slope_x**2 + slope_y**2
        facing = 1 - (slope_x * np.float32(self.sun[0]) + slope_y * np.float32(self.sun[1])) / tangent
        facing /= np.sqrt(1 + steep)
        facing[steep > WALL**2] = 0.85  # seen from above a wall is a line between two surfaces
        direct = lit * np.clip(facing, 0.05, 1.5) * np.float32(1 - self.sky)
        light = np.column_stack([np.ones(3), self.sky * self.sky_color]).astype(np.float32)
        return np.asarray(cv2.transform(direct, light), np.float32)

    def _color(self, canvas: Canvas, table: Floats, view: tuple[slice, slice]) -> Floats:
        """Reflectance of each pixel of the view with its texture, (H, W, 3)."""
        owner, parts = canvas.owner[view].astype(np.intp), table[:, 3:].T.copy()
        coarse, vast = canvas.coarse[view], canvas.vast[view]
        texture = parts[0].take(owner) * canvas.fine[view]
        texture += parts[1].take(owner) * canvas.medium[view]
        texture += parts[2].take(owner) * (coarse + vast)
        rows = np.arange(canvas.row, canvas.row + canvas.height, dtype=np.float32)[view[0], None] * self.gsd
        cols = np.arange(canvas.col, canvas.col + canvas.width, dtype=np.float32)[view[1]] * self.gsd
        texture *= np.float32(self.rough)
        texture += parts[6].take(owner) * np.sin(cols * parts[4].take(owner) + rows * parts[5].take(owner))
        color = table[:, :3].copy().take(owner, axis=0)
        color *= _gray(np.clip(1 + texture, 0.3, 1.8))
        dry = parts[3].take(owner) * (coarse * np.float32(0.5) + vast)
        color += cv2.transform(dry, np.array([[0.10], [0.035], [0.035]], dtype=np.float32))
        return color

    def _expose(self, canvas: Canvas, light: Floats, view: tuple[slice, slice]) -> Image:
        """Blur, cast, fall-off, noise, and 8 bits."""
        luma, color = np.array([0.3, 0.59, 0.11], dtype=np.float32), np.eye(3, dtype=np.float32)
        bands = (self.saturation * color + (1 - self.saturation) * luma) * (self.cast * (1 - self.haze))[:, None]
        image = cv2.transform(cv2.GaussianBlur(light, (0, 0), self.blur), bands)
        rows = (canvas.row + np.arange(canvas.height)[view[0]]) * self.gsd
        cols = (canvas.col + np.arange(canvas.width)[view[1]]) * self.gsd
        waves = [
            depth * np.sin(place / length + phase)
            for place, (depth, length, phase) in zip((rows, cols), self.falloff, strict=False)
        ]
        image *= _gray((1 + waves[0][:, None] + waves[1][None, :]).astype(np.float32))
        row, col, (height, width) = canvas.row + view[0].start, canvas.col + view[1].start, image.shape[:2]
        grains = [noise_window(noise_tile(0.0, 11 + channel), row, col, height, width) for channel in range(3)]
        noise = np.diag([self.noise] * 3).astype(np.float32)
        image += cv2.transform(cv2.merge(grains), np.hstack([noise, self.haze[:, None]]))
        image *= 255
        pixels: Image = np.clip(image, 0, 255, out=image).astype(np.uint8)
        return pixels


def _gray(values: Floats) -> Floats:
    """(H, W) as three equal bands."""
    return np.asarray(cv2.merge([values] * 3), np.float32)


def _overlap(shape: tuple[int, ...], down: int, right: int) -> tuple[slice, slice]:
    """The pixels p of an image for which p + (down, right) lies in it too."""
    height, width = shape
    return (
        slice(max(0, -down), min(height, height - down)),
        slice(max(0, -right), min(width, width - right)),
    )
