"""From a class raster to polygons: every 4-connected area of one class is one polygon, with its holes.

The raster is read once, in bands of rows, as runs of equal pixels. Runs that touch from row to row are noted as one
area, and the corners of the outlines are collected: the lattice points where the pixels of an area do not meet in a
straight line, or where an edge has two neighbors. At the end every corner is linked to the next one along its outline,
which is a sort, and the linked corners are the rings. So polygons are never cut, they have exactly the area of their
pixels, and nothing is done for one pixel or one polygon at a time (GDAL's polygonizer makes a Python object per vertex
and knows nothing else of an area). Memory grows with the corners and with the raster's width, not with its height.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, depth_first_order

ReadRows = Callable[[int, int], tuple[NDArray[np.uint8], NDArray[Any]]]
"""Class indices (rows, W) and values to be averaged (rows, W) of rows ``first`` to ``last``."""

BAND_PIXELS = 1 << 22
PORTION = 1 << 18
"""Corners that become geometries at once."""
EAST, SOUTH, WEST, NORTH = range(4)
"""Directions of an outline, which has its area on the right."""


@dataclass(frozen=True)
class Polygons:
    """Areas of one class each, in the order of their topmost pixels."""

    geometry: NDArray[np.object_]
    """Shapely polygons in the raster's coordinates."""
    class_val: NDArray[np.int32]
    mean_prob: NDArray[np.float64]
    """Mean over the area of the values, as a rule the probability of the class."""

    def __len__(self) -> int:
        """How many there are."""
        return len(self.geometry)

    def __getitem__(self, chosen: NDArray[Any]) -> Polygons:
        """Some of them."""
        return Polygons(self.geometry[chosen], self.class_val[chosen], self.mean_prob[chosen])


@dataclass(frozen=True)
class _Corners:
    """Corners of outlines, in any order; one lattice point has up to four, each of another side."""

    row: NDArray[np.int32]
    col: NDArray[np.int32]
    area: NDArray[np.int32]
    """Number of the area they belong to, at first of its part in one band."""
    kind: NDArray[np.uint8]
    """Class index + 1."""
    arrives: NDArray[np.uint8]
    leaves: NDArray[np.uint8]
    opposite: NDArray[np.int32]
    """Number of the area diagonally across if it is of the same class and touches in this point alone; else -1."""


def polygonize(
    read: ReadRows, size: tuple[int, int], classes: Sequence[int], transform: Affine, *, rows: int | None = None
) -> Polygons:
    """Outline every 4-connected area of the classes.

    Args:
        read: gives bands of rows; called from top to bottom.
        size: height and width of the raster.
        classes: class indices that become polygons; all others are left out.
        transform: from (column, row) to coordinates.
        rows: height of a band; None = by the raster's width. The result is the same with any.

    Returns:
        Valid polygons; an outline that touches itself in a point is a shell and a hole. Shells run counter-clockwise in
        a raster with north up.
    """
    height, width = size
    step = rows or max(1, BAND_PIXELS // width)
    outside = np.zeros((1, width + 2), np.uint8)
    band = _Band(outside, np.zeros(1, np.int64), 1)
    corners, joins = list[_Corners](), list[NDArray[np.int64]]()
    totals = [(np.ones(1), np.zeros(1))]  # of area 0
    for first, last in pairwise([*range(0, height, step), height, height + 1]):
        if first < height:
            mask, values = read(first, last)
            rows_below = np.zeros((last - first, width + 2), np.uint8)
            for index in classes:
                rows_below[:, 1:-1] += (mask == index) * np.uint8(index + 1)
        else:  # a row of nothing below the raster ends the last outlines
            rows_below, values = outside, outside[:, 1:-1]
        band = _Band(np.vstack([band.last, rows_below]), band.last_areas(), band.count)
        totals.append(band.totals(values))
        joins.append(band.joins)
        corners.append(_find_corners(band, first))
    final = _join(np.concatenate(joins, axis=1), band.count)
    pixels, sums = (np.bincount(final, np.concatenate(part)) for part in zip(*totals, strict=True))
    geometry, kind, numbers = _assemble(_merge(corners, final), transform)
    return Polygons(geometry, kind, (sums / pixels)[numbers])


class _Band:
    """Rows of class indices + 1 with the row above them, all framed by a column of 0 on both sides, and laid out flat.

    Positions are indices into the flat band. A run is a piece of a row of one class. Runs that touch are one area of
    the band; its areas have numbers in the whole raster, and 0 is what is left out.

    Args:
        rows: (n + 1, width) kinds of pixels.
        above: numbers of the areas over the runs of the first row, which was the last one of the band above.
        count: number of the next area.
    """

    def __init__(self, rows: NDArray[np.uint8], above: NDArray[np.int64], count: int) -> None:
        self.width, self.last = rows.shape[1], rows[-1:]
        self.kinds = rows.ravel()
        begins = np.empty(self.kinds.shape, bool)
        np.not_equal(self.kinds[1:], self.kinds[:-1], out=begins[1:])
        begins[:: self.width] = True
        self._starts = np.flatnonzero(begins)
        self._old = len(above)
        counts = self.kinds[self._starts] > 0
        upper, lower = self.kinds[: -self.width], self.kinds[self.width :]
        touch = np.flatnonzero((upper == lower) & (lower > 0) & (begins[: -self.width] | begins[self.width :]))
        area = _join(np.stack([self._run(touch), self._run(touch + self.width)]), len(self._starts))
        found, numbers = np.unique(area[counts], return_inverse=True)
        self._numbers = np.zeros(len(self._starts), np.int64)
        self._numbers[counts] = numbers + count
        self._first, self.count = count, count + len(found)
        self.joins = np.stack([above, self._numbers[: len(above)]])[:, counts[: len(above)]]
        """Pairs (2, n) of areas, of the band above and of this one, that are one."""

    def _run(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._starts, position, side="right") - 1

    def area_at(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the areas over pixels."""
        return self._numbers[self._run(position)]

    def last_areas(self) -> NDArray[np.int64]:
        """Numbers of the areas over the runs of the last row."""
        return self._numbers[np.searchsorted(self._starts, len(self.kinds) - self.width) :]

    def totals(self, values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Pixels of each area of the band, without the row above, and the sums of values (n, width - 2) over them."""
        runs = np.flatnonzero(self._numbers[self._old :]) + self._old
        pixels = np.append(self._starts, len(self.kinds))[runs + 1] - self._starts[runs]
        inside = values[self.kinds.reshape(-1, self.width)[1:, 1:-1] > 0]
        sums = np.add.reduceat(inside, np.cumsum(pixels) - pixels, dtype=np.float64)
        numbers, count = self._numbers[runs] - self._first, self.count - self._first
        return np.bincount(numbers, pixels, count), np.bincount(numbers, sums, count)


def _join(pairs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Number of the group of each of ``count`` things, of which ``pairs`` (2, n) belong together."""
    graph = csr_array((np.ones(pairs.shape[1], bool), (pairs[0], pairs[1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _find_corners(band: _Band, first: int) -> _Corners:
    """Corners at the lattice points between the rows of a band.

    Around a point lie the pixels a b / c d; it is known by the position of a. Pixels side by side are of one area if
    they are of one class.
    """
    kinds, width = band.kinds, band.width
    beside, below = kinds[:-1] == kinds[1:], kinds[:-width] == kinds[width:]
    bent = ~((beside[:-width] & beside[width:]) | (below[:-1] & below[1:]))
    point = np.flatnonzero(bent)
    ab, cd, ac, bd = beside[point], beside[point + width], below[point], below[point + 1]
    sides = (  # the pixel; alike: it and a neighbor, it and the other one, the rest; convex, concave and straight there
        (0, ab, ac, cd, bd, (SOUTH, WEST), (WEST, SOUTH), (WEST, WEST)),
        (1, bd, ab, cd, ac, (WEST, NORTH), (NORTH, WEST), (NORTH, NORTH)),
        (width, ac, cd, ab, bd, (EAST, SOUTH), (SOUTH, EAST), (SOUTH, SOUTH)),
        (width + 1, cd, bd, ab, ac, (NORTH, EAST), (EAST, NORTH), (EAST, EAST)),
    )
    found = []
    for offset, one, other, third, fourth, convex, concave, straight in sides:
        kind = kinds[point + offset]
        for chosen, turn in (
            (~one & ~other, convex),
            (one & other & ~third, concave),
            (one & ~other & ~third & ~fourth, straight),
        ):
            at = np.flatnonzero(chosen & (kind > 0))
            opposite = np.full(len(at), -1, np.int32)
            if turn is convex:
                across = point[at] + width + 1 - offset
                twins = np.flatnonzero(kinds[across] == kind[at])
                opposite[twins] = band.area_at(across[twins])
            found.append(
                _Corners(
                    (point[at] // width + first).astype(np.int32),
                    (point[at] % width).astype(np.int32),
                    band.area_at(point[at] + offset).astype(np.int32),
                    kind[at],
                    np.full(len(at), turn[0], np.uint8),
                    np.full(len(at), turn[1], np.uint8),
                    opposite,
                )
            )
    return _concatenate(found)


def _concatenate(parts: Sequence[_Corners]) -> _Corners:
    names = ("row", "col", "area", "kind", "arrives", "leaves", "opposite")
    return _Corners(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _merge(parts: list[_Corners], final: NDArray[np.int64]) -> _Corners:
    """All corners from top left to bottom right, with the numbers of their areas.

    Where an area touches itself diagonally the outlines cross over instead of turning back, so that no ring touches
    itself: what lies between the two touching pixels becomes a hole.
    """
    corners = _concatenate(parts)
    parts.clear()
    area = final[corners.area].astype(np.int32)
    touches = (corners.opposite >= 0) & (final[corners.opposite] == area)
    leaves = np.where(touches, corners.leaves ^ 2, corners.leaves).astype(np.uint8)  # to the other side
    order = np.lexsort((corners.col, corners.row))
    return _Corners(
        corners.row[order],
        corners.col[order],
        area[order],
        corners.kind[order],
        corners.arrives[order],
        leaves[order],
        np.empty(0, np.int32),
    )


def _next_corner(corners: _Corners) -> NDArray[np.int32]:
    """Index of the corner that follows each one along its outline.

    Along a line of the lattice the edges of one direction do not overlap, so the n-th that begins is the n-th to end.
    """
    follows = np.empty(len(corners.row), np.int32)
    by_column = np.argsort(corners.col, kind="stable")
    for direction in (EAST, SOUTH, WEST, NORTH):
        order = slice(None) if direction in (EAST, WEST) else by_column
        index = np.arange(len(corners.row), dtype=np.int32)[order]
        begins, ends = corners.leaves[order] == direction, corners.arrives[order] == direction
        follows[index[begins]] = index[ends]
    return follows


def _walk(follows: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Corners ordered ring by ring, each from its topmost left one, and where in that order the rings begin.

    The rings are joined to one long chain, which a depth-first search walks along.
    """
    count = len(follows)
    index = np.arange(count, dtype=np.int32)
    graph = csr_array((np.ones(count, np.int8), follows, np.arange(count + 1, dtype=np.int32)), shape=(count, count))
    rings, ring = connected_components(graph, connection="strong")
    first = np.empty(rings, np.int32)
    first[ring[::-1]] = index[::-1]  # of equal indices the last one counts, which is the first corner
    first.sort()
    del ring
    before = np.empty(count, np.int32)
    before[follows] = index
    graph.indices[before[first]] = np.roll(first, -1)
    del before
    order = depth_first_order(graph, int(first[0]), return_predecessors=False)
    del graph
    starts = np.empty(count, np.int32)
    starts[order] = index
    return np.asarray(order, np.int32), starts[first]


def _assemble(corners: _Corners, transform: Affine) -> tuple[NDArray[np.object_], NDArray[np.int32], NDArray[np.int32]]:
    """Polygons, their classes, and the numbers of their areas; made in portions, since geometries need much room."""
    if not len(corners.row):
        return np.empty(0, object), np.empty(0, np.int32), np.empty(0, np.int32)
    order, starts = _walk(_next_corner(corners))
    sizes = np.diff(starts, append=len(order))
    is_shell = np.concatenate([_are_shells(corners, order, starts[some], sizes[some]) for some in _portions(sizes)])
    area = corners.area[order[starts]]
    rank = np.empty(area.max() + 1, np.int64)
    rank[area[is_shell]] = np.arange(is_shell.sum())  # shells in the order of their topmost corners
    rings = np.lexsort((~is_shell, rank[area]))
    begins = np.append(np.flatnonzero(is_shell[rings]), len(rings))  # of each polygon's rings
    geometry = []
    for some in _portions(np.add.reduceat(sizes[rings], begins[:-1])):
        first, last = begins[some.start], begins[some.stop]
        chosen, offsets = rings[first:last], begins[some.start : some.stop + 1] - first
        geometry.append(_polygons(corners, order, starts[chosen], sizes[chosen], offsets, transform))
    shells = starts[is_shell]
    kind = corners.kind[order[shells]].astype(np.int32) - 1
    return np.concatenate(geometry), kind, area[is_shell]


def _portions(sizes: NDArray[np.int64]) -> list[slice]:
    """Slices of successive things that have about ``PORTION`` corners together."""
    number = np.cumsum(sizes) // PORTION
    begins = np.flatnonzero(np.diff(number, prepend=-1))
    return [slice(first, last) for first, last in pairwise([*begins.tolist(), len(sizes)])]


def _are_shells(
    corners: _Corners, order: NDArray[np.int32], starts: NDArray[np.int32], sizes: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether successive rings run around their area, and not around a hole: by the sign of the area inside."""
    index = order[starts[0] : starts[-1] + sizes[-1]]
    col, row = corners.col[index].astype(np.int64), corners.row[index].astype(np.int64)
    begins = starts - starts[0]
    following = np.arange(1, len(index) + 1)
    following[begins + sizes - 1] = begins
    return np.asarray(np.add.reduceat(col * row[following] - col[following] * row, begins) > 0)


def _polygons(
    corners: _Corners,
    order: NDArray[np.int32],
    starts: NDArray[np.int32],
    sizes: NDArray[np.int64],
    per_polygon: NDArray[np.int64],
    transform: Affine,
) -> NDArray[np.object_]:
    """Polygons of rings given by their first corners and their numbers of corners, each closed and turned around."""
    closed = sizes + 1
    offsets = np.concatenate([[0], np.cumsum(closed)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], closed)
    backwards = np.where(within == 0, 0, np.repeat(sizes, closed) - within)
    points = order[np.repeat(starts, closed) + backwards]
    across, down = corners.col[points].astype(np.float64), corners.row[points].astype(np.float64)
    x = transform.a * across + transform.b * down + transform.c
    y = transform.d * across + transform.e * down + transform.f
    rings = (offsets, per_polygon)
    return np.asarray(shapely.from_ragged_array(shapely.GeometryType.POLYGON, np.column_stack([x, y]), rings), object)
