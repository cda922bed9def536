"""The drawing board of the aerial scenes: which surface and which class every pixel shows, and how high it stands.

A scene is a list of ``Thing`` and ``Outline`` in metres. Drawing one marks the pixels it covers in three maps of the
canvas: ``owner`` (row of the surface table), ``labels`` (class) and ``relief`` (height above ground). No light yet:
shadows and shading follow from the relief in ``aerial_world``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import fft

IMPERVIOUS, BUILDING, LOW_VEGETATION, TREE, CAR, CLUTTER, WATER, SOIL, UNDEFINED = 0, 1, 2, 3, 4, 5, 6, 7, 255

Floats = NDArray[np.float32]
RGB = tuple[float, float, float]
TILE = 512
"""Side of the periodic noise tiles, pixels."""


class Surface(NamedTuple):
    """What something is made of and which class it belongs to."""

    label: int
    color: RGB
    """Reflectance, 0-1."""
    grain: tuple[float, float, float] = (0.05, 0.0, 0.03)
    """Relative strength of the fine (pixels), medium (0.4 m) and coarse (3 m) texture."""
    dry: float = 0.0
    """How far patches of some metres turn to straw or to fresh green."""
    rows: float = 0.0
    """Distance of tile rows, furrows or seams, metres; 0 = none."""
    ridge: float = 0.0
    """Relative strength of the rows."""


class Thing(NamedTuple):
    """Something with a place and a shape; metres, the angle in radians from the x axis towards y (down)."""

    form: str
    """One of the keys of ``FORMS``."""
    layer: int
    """Things are drawn from the lowest layer to the highest."""
    surface: Surface
    x: float
    y: float
    angle: float
    length: float
    width: float
    height: float = 0.0
    slope: float = 0.0
    """Rise of a roof per metre."""
    trim: Surface | None = None
    """Second surface: the windows of a car."""


class Outline(NamedTuple):
    """Something flat that follows a line (``breadth`` metres wide) or fills a polygon (``breadth`` 0)."""

    layer: int
    surface: Surface
    points: tuple[tuple[float, float], ...]
    """(x, y) in metres."""
    breadth: float = 0.0
    angle: float = 0.0
    """Direction of the surface's rows."""


@lru_cache(maxsize=16)
def noise_tile(sigma: float, key: int) -> Floats:
    """Periodic Gaussian noise of mean 0 and standard deviation 1, blurred by ``sigma`` pixels; (TILE, TILE)."""
    white = np.random.default_rng(key).standard_normal((TILE, TILE))
    ky, kx = np.meshgrid(fft.fftfreq(TILE), fft.rfftfreq(TILE), indexing="ij")
    smooth = fft.irfft2(fft.rfft2(white) * np.exp(-2 * (np.pi * sigma) ** 2 * (ky**2 + kx**2)), (TILE, TILE))
    smooth -= smooth.mean()
    return np.asarray(smooth / smooth.std(), dtype=np.float32)


def noise_window(tile: NDArray[np.float32], row: int, col: int, height: int, width: int, zoom: int = 1) -> Floats:
    """Cut a window, in absolute pixels, from the endless plane that a tile repeats over, magnified ``zoom`` times."""
    if zoom == 1:
        rows, cols = np.arange(row, row + height) % TILE, np.arange(col, col + width) % TILE
        return np.asarray(tile[rows[:, None], cols])
    first, left = row // zoom - 1, col // zoom - 1
    small = noise_window(tile, first, left, height // zoom + 4, width // zoom + 4)
    large = cv2.resize(small, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR)
    down, right = row - first * zoom, col - left * zoom
    return np.asarray(large[down : down + height, right : right + width])


@dataclass
class Canvas:
    """A window of the world while it is drawn.

    Pixel (0, 0) of the maps is pixel (``row``, ``col``) of the world, whose center lies at x = (col + 0.5) gsd,
    y = (row + 0.5) gsd metres.
    """

    row: int
    col: int
    height: int
    width: int
    gsd: float
    ground: Surface
    """What lies where nothing is drawn."""
    shift: int = 0
    """Moves the noise, so that worlds differ."""
    owner: NDArray[np.int32] = field(init=False)
    labels: NDArray[np.uint8] = field(init=False)
    relief: Floats = field(init=False)
    fine: Floats = field(init=False)
    medium: Floats = field(init=False)
    coarse: Floats = field(init=False)
    vast: Floats = field(init=False)
    table: list[tuple[float, ...]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Start with bare ground."""
        shape = (self.height, self.width)
        self.owner = np.zeros(shape, dtype=np.int32)
        self.labels = np.full(shape, self.ground.label, dtype=np.uint8)
        self.relief = np.zeros(shape, dtype=np.float32)
        medium = noise_tile(max(0.3 / self.gsd, 0.7), 2)
        place = (self.row + self.shift, self.col + self.shift, *shape)
        self.fine = noise_window(noise_tile(max(0.08 / self.gsd, 0.45), 1), *place)
        self.medium = noise_window(medium, *place)
        self.coarse = noise_window(medium, *place, 6)
        self.vast = noise_window(medium.T, *place, 40)
        self.add(self.ground, 0.0)

    def add(self, surface: Surface, angle: float) -> int:
        """Enter a surface in the table and return its row; ``angle`` is the direction of its rows.

        The columns: color (3), grain (3), dry, wave vector of the rows in radians a metre (2), their strength.
        """
        period = max(surface.rows, 3 * self.gsd)  # finer rows would alias
        strength = surface.ridge * min(1.0, surface.rows / (2 * self.gsd)) if surface.rows else 0.0
        wave = 2 * math.pi / period
        self.table.append(
            (*surface.color, *surface.grain, surface.dry, -wave * math.sin(angle), wave * math.cos(angle), strength)
        )
        return len(self.table) - 1

    def draw(self, item: Thing | Outline) -> None:
        """Draw something where it is in view, and not below what stands there already."""
        if isinstance(item, Outline):
            self._draw_outline(item)
            return
        reach = 0.5 * math.hypot(item.length, item.width) + 0.5
        top, bottom = int((item.y - reach) / self.gsd) - self.row, int((item.y + reach) / self.gsd) + 2 - self.row
        left, right = int((item.x - reach) / self.gsd) - self.col, int((item.x + reach) / self.gsd) + 2 - self.col
        if top >= self.height or bottom <= 0 or left >= self.width or right <= 0:
            return
        top, bottom, left, right = max(0, top), min(self.height, bottom), max(0, left), min(self.width, right)
        box = (slice(top, bottom), slice(left, right))
        dy = ((np.arange(top, bottom) + (self.row + 0.5)) * self.gsd - item.y).astype(np.float32)[:, None]
        dx = ((np.arange(left, right) + (self.col + 0.5)) * self.gsd - item.x).astype(np.float32)
        sine, cosine = np.float32(math.sin(item.angle)), np.float32(math.cos(item.angle))
        FORMS[item.form](self, item, box, dx * cosine + dy * sine, dy * cosine - dx * sine)

    def _draw_outline(self, item: Outline) -> None:
        """Draw a flat line or polygon."""
        margin = item.breadth + self.gsd
        x, y = zip(*item.points, strict=True)
        for places, first, size in ((x, self.col, self.width), (y, self.row, self.height)):
            if max(places) < first * self.gsd - margin or min(places) > (first + size) * self.gsd + margin:
                return
        points = np.array(item.points) / self.gsd - (self.col, self.row)
        corners = [np.rint((points - 0.5) * 16).astype(np.int32)]
        name = self.add(item.surface, item.angle)
        for target, value in ((self.owner, name), (self.labels, item.surface.label)):
            if item.surface.label == UNDEFINED and target is self.owner:
                continue
            if item.breadth:
                thickness = max(1, round(item.breadth / self.gsd))
                cv2.polylines(target, corners, False, value, thickness, cv2.LINE_8, 4)
            else:
                cv2.fillPoly(target, corners, value, cv2.LINE_8, 4)

    def cover(self, box: tuple[slice, slice], where: NDArray[np.bool_], name: int, label: int) -> None:
        """Give pixels to a row of the table and to a class."""
        self.owner[box][where] = name
        self.labels[box][where] = label

    def raise_to(
        self, box: tuple[slice, slice], where: NDArray[np.bool_], height: Floats | np.float32
    ) -> NDArray[np.bool_]:
        """Lift the relief to ``height`` metres where that is not below it, and return where that is."""
        relief = self.relief[box]
        seen = where & (height >= relief)
        np.copyto(relief, height, where=seen)
        return seen


Box = tuple[slice, slice]


def _draw_box(canvas: Canvas, item: Thing, box: Box, a: Floats, b: Floats) -> None:
    """A flat rectangle, on the ground or as a block with a flat top."""
    inside = (np.abs(a) <= item.length / 2) & (np.abs(b) <= item.width / 2)
    seen = canvas.raise_to(box, inside, np.float32(item.height))
    canvas.cover(box, seen, canvas.add(item.surface, item.angle), item.surface.label)


def _draw_disk(canvas: Canvas, item: Thing, box: Box, a: Floats, b: Floats) -> None:
    """A flat ellipse."""
    inside = (2 * a / item.length) ** 2 + (2 * b / item.width) ** 2 <= 1
    seen = canvas.raise_to(box, inside, np.float32(item.height))
    canvas.cover(box, seen, canvas.add(item.surface, item.angle), item.surface.label)


def _draw_blot(canvas: Canvas, item: Thing, box: Box, a: Floats, b: Floats) -> None:
    """A flat patch of ground or water with a natural edge."""
    polar, phase = np.arctan2(b, a), np.float32(item.x + item.y)
    out = np.sqrt((2 * a / item.length) ** 2 + (2 * b / item.width) ** 2)
    out += 0.1 * np.sin(3 * polar + phase) + 0.06 * np.sin(5 * polar + 2 * phase) + 0.03 * np.sin(13 * polar)
    seen = canvas.raise_to(box, out <= 1, np.float32(item.height))
    canvas.cover(box, seen, canvas.add(item.surface, item.angle), item.surface.label)


def _draw_roof(canvas: Canvas, item: Thing, box: Box, a: Floats, b: Floats) -> None:
    """A gabled or hipped roof over a rectangle; ``height`` is that of the eaves."""
    to_side, to_end = item.width / 2 - np.abs(b), item.length / 2 - np.abs(a)
    inside = (to_side >= 0) & (to_end >= 0)
    hipped = item.form == "hip"
    roof: Floats = (item.height + item.slope * (np.minimum(to_side, to_end) if hipped else to_side)).astype(np.float32)
    seen = canvas.raise_to(box, inside, roof)
    canvas.cover(box, seen, canvas.add(item.surface, item.angle), item.surface.label)
    if hipped:
        canvas.cover(
            box, seen & (to_end < to_side), canvas.add(item.surface, item.angle + np.pi / 2), item.surface.label
        )


def _draw_barrel(canvas: Canvas, item: Thing, box: Box, a: Floats, b: Floats) -> None:
    """A round roof over a rectangle, whose rise is ``slope`` times its width; ``height`` is that of the eaves."""
    across = 2 * b / item.width
    inside = (np.abs(across) <= 1) & (np.abs(a) <= item.length / 2)
    rise = np.float32(item.slope * item.width) * np.sqrt(np.clip(1 - across * across, 0, 1))
    seen = canvas.raise_to(box, inside, (item.height + rise).astype(np.float32))
    canvas.cover(box, seen, canvas.add(item.surface, item.angle + np.pi / 2), item.surface.label)


def _draw_fitting(canvas: Canvas, item: Thing, box: Box, a: Floats, b: Floats) -> None:
    """Something mounted on a roof: chimney, window, solar panel."""
    relief = canvas.relief[box]
    inside = (np.abs(a) <= item.length / 2) & (np.abs(b) <= item.width / 2) & (relief > 2)
    relief[inside] += np.float32(item.height)
    canvas.cover(box, inside, canvas.add(item.surface, item.angle), item.surface.label)


def _draw_crown(canvas: Canvas, item: Thing, box: Box, a: Floats, b: Floats) -> None:
    """The crown of a tree: a lumpy dome with a ragged edge; the greater ``slope``, the more ground its twigs show.

    Ground that shows is of the tree's class, as mapped ground is; a roof stays a roof.
    """
    medium, coarse, fine = canvas.medium[box], canvas.coarse[box], canvas.fine[box]
    out = np.sqrt((2 * a / item.length) ** 2 + (2 * b / item.width) ** 2)
    out += np.float32(0.14) * coarse + np.float32(0.07) * medium
    inside = out <= 1
    dome = np.sqrt(np.clip(1 - out * out, 0, 1))
    height = np.float32(item.height) * (0.5 + 0.5 * dome)
    height += np.float32(min(0.3, 0.05 * item.height)) * (medium + np.float32(0.5) * fine)
    if item.slope:
        inside &= height > canvas.relief[box]
        roofs = canvas.labels[box] == BUILDING
        canvas.labels[box][inside] = item.surface.label
        inside &= medium + fine + dome > item.slope
    seen = canvas.raise_to(box, inside, np.maximum(height, np.float32(0.3)))
    canvas.cover(box, seen, canvas.add(item.surface, item.angle), item.surface.label)
    if item.slope:
        canvas.labels[box][roofs] = BUILDING


def _draw_hedge(canvas: Canvas, item: Thing, box: Box, a: Floats, b: Floats) -> None:
    """A clipped or overgrown hedge along a line."""
    rough = np.float32(0.25) * canvas.medium[box]
    inside = (np.abs(a) <= item.length / 2) & (np.abs(b) + rough <= item.width / 2)
    seen = canvas.raise_to(box, inside, np.maximum(item.height + rough, np.float32(0.3)))
    canvas.cover(box, seen, canvas.add(item.surface, item.angle), item.surface.label)


def _draw_heap(canvas: Canvas, item: Thing, box: Box, a: Floats, b: Floats) -> None:
    """A cone of loose material with a ragged foot."""
    out = np.sqrt((2 * a / item.length) ** 2 + (2 * b / item.width) ** 2) + np.float32(0.12) * canvas.medium[box]
    height = np.float32(item.height) * (1 - out) + np.float32(0.06) * canvas.medium[box]
    seen = canvas.raise_to(box, out <= 1, np.maximum(height, np.float32(0.02)))
    canvas.cover(box, seen, canvas.add(item.surface, item.angle), item.surface.label)


def _draw_car(canvas: Canvas, item: Thing, box: Box, a: Floats, b: Floats) -> None:
    """A car: hood and trunk lower than the cabin, rounded corners, windscreen, rear and side windows."""
    along, across = a * np.float32(2 / item.length), np.abs(b) * np.float32(2 / item.width)
    inside = along**6 + across**6 <= 1
    cabin = (along > -0.72) & (along < 0.38) & (across < 0.86)
    height = np.where(cabin, np.float32(item.height), np.float32(0.65 * item.height)).astype(np.float32)
    height -= np.float32(0.15) * across**2
    seen = canvas.raise_to(box, inside, height)
    canvas.cover(box, seen, canvas.add(item.surface, item.angle), item.surface.label)
    if item.trim:
        roof = (along > -0.5) & (along < 0.08) & (across < 0.66)
        canvas.cover(box, seen & cabin & ~roof, canvas.add(item.trim, item.angle), item.trim.label)


FORMS = {
    "box": _draw_box,
    "disk": _draw_disk,
    "blot": _draw_blot,
    "gable": _draw_roof,
    "hip": _draw_roof,
    "barrel": _draw_barrel,
    "fitting": _draw_fitting,
    "crown": _draw_crown,
    "hedge": _draw_hedge,
    "heap": _draw_heap,
    "car": _draw_car,
}
