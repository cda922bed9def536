"""Building outlines with right angles.

A polygon from a mask follows pixels. Buildings have few walls, most of them in two directions at a right angle. So the
outline is simplified, turned to its main direction, every wall is made horizontal or vertical there (walls clearly
between both are kept), and neighboring walls are joined at their crossings. A result is taken only where it is valid
and covers the same ground: where its IoU with the raw polygon is at least 0.8 and no point of it lies far away.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from shapely import Polygon
from shapely.affinity import rotate
from shapely.geometry.base import BaseGeometry

from common.images.grids import apply
from common.images.ground import Ground

MIN_IOU = 0.8
TOLERANCES = (3.0, 2.0, 1.2)
"""How far walls may move, in pixels; the coarsest one that is good enough is taken."""
GOOD_IOU = 0.92
"""From here on a coarser outline is preferred to a closer one."""
OBLIQUE = math.radians(25)
"""Walls further than this from both directions stay as they are."""
SWING = 1.5
"""Ends of walls move by at most this many tolerances when they are turned; longer walls stay as they are."""
REACH = 3.0
"""No corner lies further from the raw outline than this many tolerances."""
MIN_WALL = 6.0
"""Shorter oblique walls, in pixels, are cut corners: they take the nearer direction."""
LONG = 1.5
"""Walls of fewer pixels do not vote on the direction: a staircase has two of its own."""

Points = NDArray[np.float64]


def regularize(polygon: Polygon, pixel: float) -> Polygon:
    """The outline with right angles, or the polygon itself where that would not cover the same ground.

    Args:
        polygon: valid outline, holes included, in coordinates with equal units along both axes.
        pixel: size of a pixel of the mask it came from, in those units.

    Returns:
        A valid polygon with an IoU of at least 0.8 with ``polygon``.

    Raises:
        ValueError: ``pixel`` is not greater than 0.
    """
    if not pixel > 0:
        raise ValueError(f"the size of a pixel is greater than 0, not {pixel}")
    best, best_iou = polygon, MIN_IOU
    for tolerance in TOLERANCES:
        candidate = _square_up(polygon, tolerance * pixel, pixel)
        iou = 0.0 if candidate is None else overlap(polygon, candidate)
        if candidate is not None and iou >= best_iou:
            best, best_iou = candidate, iou
        if best_iou >= GOOD_IOU:
            break
    return best


def regularize_all(geometry: NDArray[Any], grid: Affine, crs: CRS | None = None) -> NDArray[np.object_]:
    """Regularize the outlines of a raster's mask.

    Args:
        geometry: polygons in the raster's coordinates.
        grid: the raster's affine map from (column, row) to them.
        crs: the raster's coordinate system; in degrees, a pixel is as wide as it is on the ground at its latitude.

    Returns:
        As many polygons, none of them on the ground of another.
    """
    across, along = Ground(crs).metres_per_unit((grid.c, grid.f, grid.c, grid.f))
    wide = across / along * math.hypot(grid.a, grid.d) / math.hypot(grid.b, grid.e)
    stretch = np.array([wide, 1.0])
    pixels = shapely.transform(geometry, lambda points: apply(~grid, points) * stretch)
    squared = without_overlaps(np.array([regularize(polygon, min(wide, 1.0)) for polygon in pixels], object), pixels)
    result = np.asarray(shapely.transform(squared, lambda points: apply(grid, points / stretch)), object)
    kept = squared == pixels
    result[kept] = geometry[kept]
    return result


def without_overlaps(polygons: NDArray[np.object_], raw: NDArray[np.object_]) -> NDArray[np.object_]:
    """Cut from the smaller of two neighbors what the larger one covers too: terraced houses share a wall.

    Args:
        polygons: regularized outlines.
        raw: outlines that share no ground; where too little is left, a polygon is cut from its own one.

    Returns:
        As many polygons.
    """
    result = polygons.copy()
    one, other = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    place = np.empty(len(polygons), np.int64)
    place[np.argsort(-shapely.area(polygons), kind="stable")] = np.arange(len(polygons))
    larger: dict[int, list[int]] = {}
    for index, neighbor in zip(one.tolist(), other.tolist(), strict=True):
        if place[neighbor] < place[index] and polygons[index].intersection(polygons[neighbor]).area > 0:
            larger.setdefault(index, []).append(neighbor)
    for index in sorted(larger, key=lambda number: place[number]):
        around = shapely.union_all(result[larger[index]])
        result[index] = _largest(polygons[index].difference(around))
        if overlap(raw[index], result[index]) < MIN_IOU:
            result[index] = _largest(raw[index].difference(around))
    return result


def _largest(shape: BaseGeometry) -> Polygon:
    parts: list[Polygon] = [part for part in shapely.get_parts(shape) if isinstance(part, Polygon)]
    return max(parts, key=lambda part: part.area)


def overlap(one: Polygon, other: Polygon) -> float:
    """Intersection over union of two areas."""
    both = one.intersection(other).area
    return float(both / (one.area + other.area - both))


def main_direction(polygon: Polygon, tolerance: float, shortest: float) -> float:
    """Direction of most of the walls, modulo a right angle, radians: the angle under which they agree best.

    Args:
        polygon: the outline.
        tolerance: distance by which it is simplified first, so that pixel steps become walls.
        shortest: walls below this length do not count, if there are longer ones.
    """
    steps = np.diff(shapely.get_coordinates(polygon.exterior.simplify(tolerance)), axis=0)
    lengths = np.hypot(steps[:, 0], steps[:, 1])
    counted = np.where(lengths >= shortest, lengths, 0.0)
    weights = counted if counted.any() else lengths
    # Four times the angle is the same for all four directions of a rectangle.
    angles = 4 * np.arctan2(steps[:, 1], steps[:, 0])
    return math.atan2(float(weights @ np.sin(angles)), float(weights @ np.cos(angles))) / 4


def _square_up(polygon: Polygon, tolerance: float, pixel: float) -> Polygon | None:
    """The outline with walls along its main direction and across; None where nothing valid comes out."""
    turn = main_direction(polygon, tolerance, LONG * pixel)
    center = polygon.centroid
    upright = rotate(polygon, -turn, origin=center, use_radians=True)
    shell = _square_ring(shapely.get_coordinates(upright.exterior), tolerance, pixel)
    if shell is None:
        return None
    rings = [_square_ring(shapely.get_coordinates(hole), tolerance, pixel) for hole in upright.interiors]
    result = Polygon(shell, [ring for ring in rings if ring is not None])
    if not result.is_valid or result.exterior.hausdorff_distance(upright.exterior) > REACH * tolerance:
        return None
    return rotate(result, turn, origin=center, use_radians=True)


class Wall(NamedTuple):
    """A wall's line: points with ``normal . point == offset``, the normal of length 1."""

    normal: tuple[float, float]
    offset: float
    length: float
    start: tuple[float, float]
    """Where the simplified outline enters the wall."""


def _square_ring(points: Points, tolerance: float, pixel: float) -> Points | None:
    """A ring whose walls are horizontal, vertical or clearly oblique; None if fewer than three walls are left.

    Simplification keeps the first point, so it is one that surely is a corner: the one furthest out.
    """
    distance = np.hypot(*(points - points.mean(axis=0)).T)
    ring = Polygon(np.roll(points[:-1], -int(distance[:-1].argmax()), axis=0)).simplify(tolerance).exterior
    walls = _walls(shapely.get_coordinates(ring), MIN_WALL * pixel, SWING * tolerance)
    walls = _link(_merge(walls, 2 * tolerance))
    if len(walls) < 3:
        return None
    return np.array([_crossing(one, other) for one, other in _neighbors(walls)])


def _walls(points: Points, min_oblique: float, swing: float) -> list[Wall]:
    """The walls between a closed ring's points, turned to the nearer axis where they are near one."""
    walls = []
    for start, end in pairwise(points):
        dx, dy = end - start
        length, angle = math.hypot(dx, dy), math.atan2(dy, dx)
        nearest = round(angle / (math.pi / 2)) * math.pi / 2
        turn = abs(angle - nearest)
        if length < min_oblique or (turn <= OBLIQUE and length / 2 * math.sin(turn) <= swing):
            angle = nearest
        x, y = (start + end) / 2
        walls.append(_line((x, y), angle, length, (float(start[0]), float(start[1]))))
    return walls


def _line(through: tuple[float, float], angle: float, length: float, start: tuple[float, float]) -> Wall:
    a, b = -math.sin(angle), math.cos(angle)
    return Wall((a, b), a * through[0] + b * through[1], length, start)


def _merge(walls: list[Wall], reach: float) -> list[Wall]:
    """Make one wall of neighbors in one direction that are no further than ``reach`` apart."""
    merged = walls[:1]
    for wall in walls[1:]:
        if _turn(merged[-1], wall) == 0 and abs(_step(merged[-1], wall)) <= reach:
            merged[-1] = _mean(merged[-1], wall)
        else:
            merged.append(wall)
    if len(merged) > 1 and _turn(merged[-1], merged[0]) == 0 and abs(_step(merged[-1], merged[0])) <= reach:
        merged[0] = _mean(merged.pop(), merged[0])
    return merged


def _link(walls: list[Wall]) -> list[Wall]:
    """Put a wall across between neighbors in one direction, where the outline steps from one to the other."""
    linked = []
    for one, other in _neighbors(walls):
        linked.append(one)
        if _turn(one, other) == 0:
            across = math.atan2(other.normal[1], other.normal[0])
            linked.append(_line(other.start, across, 0.0, other.start))
    return linked


def _neighbors(walls: list[Wall]) -> list[tuple[Wall, Wall]]:
    return list(zip(walls, [*walls[1:], *walls[:1]], strict=True))


def _turn(one: Wall, other: Wall) -> float:
    """Sine of the angle between two walls, 0 where they are parallel."""
    sine = one.normal[0] * other.normal[1] - one.normal[1] * other.normal[0]
    return sine if abs(sine) > 1e-6 else 0.0


def _step(one: Wall, other: Wall) -> float:
    """Distance of two parallel walls."""
    same = one.normal[0] * other.normal[0] + one.normal[1] * other.normal[1] > 0
    return one.offset - (other.offset if same else -other.offset)


def _mean(one: Wall, other: Wall) -> Wall:
    """The line between two parallel walls, nearer to the longer one."""
    total = one.length + other.length
    return Wall(one.normal, one.offset - _step(one, other) * other.length / total, total, one.start)


def _crossing(one: Wall, other: Wall) -> tuple[float, float]:
    turn = _turn(one, other)
    x = (one.offset * other.normal[1] - one.normal[1] * other.offset) / turn
    y = (one.normal[0] * other.offset - one.offset * other.normal[0]) / turn
    return x, y
