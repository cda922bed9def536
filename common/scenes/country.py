"""Blocks of the generated world outside its towns: roads through open land, scrub, desert, coasts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from common.scenes.canvas import CLUTTER, IMPERVIOUS, TREE, Surface
from common.scenes.materials import carriageway, lawn, marking, mix, painted, paving, sand, tint, water
from common.scenes.plots import CROWN, DETAIL, GROUND, LOW, YARD, Plot, turned

Path = Sequence[tuple[float, float]]


def scrub(plot: Plot) -> None:
    """Dry ground with bushes in clumps, grayer than the trees of a town."""
    rng = plot.rng
    open_land(plot)
    bushes(plot, rng.randrange(30, 260))


def desert(plot: Plot) -> None:
    """Nothing but sand, gravel and crusts, pale beside dark, and tracks."""
    rng = plot.rng
    open_land(plot)
    for _ in range(rng.randrange(4, 16)):
        ground = sand(rng, plot.season)
        gray = (rng.uniform(0.3, 0.85),) * 3
        ground = tint(rng, ground._replace(color=mix(ground.color, gray, rng.uniform(0, 0.9))), 0.2)
        blot(plot, ground, 2, 45)
    for _ in range(rng.randrange(5)):
        track = tint(rng, sand(rng, plot.season)._replace(rows=0.0), 0.2)
        plot.line(DETAIL, track, across(plot), rng.uniform(0.8, 4))
    bushes(plot, rng.choice((0, 0, 10, 40)))


def coast(plot: Plot) -> None:
    """Water over sand and weeds, clear or muddy, and a beach."""
    rng = plot.rng
    sea = water(rng)
    if rng.random() < 0.5:
        sea = tint(
            rng, sea._replace(color=rng.choice(((0.11, 0.09, 0.07), (0.13, 0.13, 0.09), (0.06, 0.09, 0.11)))), 0.25
        )
    sea = sea._replace(grain=(0.05, rng.uniform(0, 0.06), rng.uniform(0.04, 0.14)), dry=rng.uniform(0, 0.3))
    plot.patch(GROUND, sea, plot.u0 - 1, plot.v0 - 1, plot.u1 + 1, plot.v1 + 1)
    for _ in range(rng.randrange(8)):
        shallow = tint(rng, sea._replace(color=mix(sea.color, (0.35, 0.36, 0.28), rng.uniform(0, 0.5))), 0.15)
        blot(plot, shallow, 8, 40)
    if rng.random() < 0.6:
        beach = sand(rng, plot.season) if rng.random() < 0.6 else paving(rng)
        long, wide = plot.size[0] * rng.uniform(0.8, 1.1), plot.size[1] * rng.uniform(0.4, 1.0)
        plot.put("blot", YARD, beach, (plot.u0 + plot.u1) / 2, plot.v1, long, wide)
    for _ in range(rng.choice((0, 0, 2))):
        boat = painted(rng, CLUTTER)
        plot.put(
            "disk", LOW, boat, *plot.anywhere(3), rng.uniform(3, 12), rng.uniform(1.5, 3.5), 1, turn=rng.uniform(0, 3)
        )


def country_road(plot: Plot) -> None:
    """One road through open land, with or without markings, curbs and verges."""
    rng = plot.rng
    open_land(plot)
    bushes(plot, rng.choice((0, 5, 40, 150)))
    path = across(plot)
    road(plot, path, rng.uniform(3.5, 9.5))
    if rng.random() < 0.3:
        road(plot, [path[len(path) // 2], plot.anywhere(6), (plot.u0, plot.v0)], rng.uniform(3, 6))
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        _drive(plot, path, rng.uniform(-2, 2))


def highway(plot: Plot) -> None:
    """Two wide carriageways with lanes, a median and ramps."""
    rng = plot.rng
    open_land(plot)
    bushes(plot, rng.choice((0, 0, 30)))
    path = across(plot, 0.3 if rng.random() < 0.7 else 1.0)
    half, median = rng.uniform(7, 15), rng.uniform(0.6, 6)
    lane = carriageway(rng)
    if rng.random() < 0.5:
        plot.line(GROUND, paving(rng) if rng.random() < 0.5 else lawn(rng, plot.season), path, 2 * (half + median) + 9)
    for side in (-1, 1):
        lane = lane if rng.random() < 0.7 else carriageway(rng)
        road(plot, beside(path, side * (half + median) / 2), half, lane, lanes=int(half / 3.6))
        for _ in range(rng.randrange(7)):
            _drive(plot, path, side * (median / 2 + rng.uniform(0.2, 0.8) * half))
    for _ in range(rng.choice((0, 1, 2))):
        start, end = path[0], rng.choice(((plot.u0, plot.v1), (plot.u1, plot.v0)))
        road(plot, _bend(start, plot.anywhere(9), end), rng.uniform(5, 9), lane)


def roundabout(plot: Plot) -> None:
    """Streets that meet in a circle."""
    rng = plot.rng
    open_land(plot)
    bushes(plot, rng.choice((0, 10, 40)))
    u, v = (plot.u0 + plot.u1) / 2, (plot.v0 + plot.v1) / 2
    radius, breadth = rng.uniform(9, 0.45 * min(plot.size)), rng.uniform(6, 11)
    lane = carriageway(rng)
    for end in ((plot.u0, v), (plot.u1, v), (u, plot.v0), (u, plot.v1)):
        if rng.random() < 0.85:
            road(plot, [(u, v), end], rng.uniform(0.8, 1.8) * breadth, lane)
    rim, isle = paving(rng), rng.choice((lawn(rng, plot.season), paving(rng), sand(rng, plot.season)))
    for ring, (surface, wide) in enumerate(
        ((rim, breadth + 2), (lane, breadth), (rim, -breadth), (isle, -breadth - 1))
    ):
        size = 2 * radius + wide
        if size > 2:
            plot.put("disk", DETAIL + 1 if ring else DETAIL, surface, u, v, size, size)
    for _ in range(rng.randrange(9)):
        turn = rng.uniform(0, 6.3)
        plot.tree(*turned(u, v, turn, 0.4 * radius), rng.uniform(0.6, 2.5))


def open_land(plot: Plot) -> None:
    """Ground without a purpose, in patches, now and then fenced."""
    rng = plot.rng
    ground = sand(rng, plot.season) if rng.random() < 0.2 + 0.8 * plot.season.arid else lawn(rng, plot.season)
    plot.patch(GROUND, ground, plot.u0 - 3, plot.v0 - 3, plot.u1 + 3, plot.v1 + 3)
    for _ in range(rng.randrange(10)):
        patch = lawn(rng, plot.season) if rng.random() < 0.4 else sand(rng, plot.season)
        blot(plot, patch._replace(color=mix(ground.color, patch.color, rng.uniform(0.2, 1))), 3, 30)
    for _ in range(rng.choice((0, 0, 1, 2))):
        wall(plot, across(plot, 0.5))


def blot(plot: Plot, ground: Surface, narrowest: float, widest: float) -> None:
    """A patch of ground of any length, within the block."""
    rng = plot.rng
    wide = rng.uniform(narrowest, widest)
    long = min(wide * rng.uniform(1, 3.5), min(plot.size))
    plot.put("blot", GROUND, ground, *plot.anywhere(0.4 * long), long, wide, turn=rng.uniform(0, 3))


def bushes(plot: Plot, count: int) -> None:
    """Bushes and small trees, alone and in clumps."""
    rng = plot.rng
    dry, green = mix((0.44, 0.43, 0.34), (0.30, 0.31, 0.21), rng.random()), (0.25, 0.32, 0.17)
    color, largest = mix(dry, green, rng.random() * (1 - 0.7 * plot.season.arid)), rng.choice((1.0, 1.8, 2.6))
    while count > 0:
        u, v = plot.anywhere(1)
        spread = rng.uniform(0.5, 6)
        for _ in range(rng.choice((1, 1, 3, 9, 20))):
            count -= 1
            size = rng.uniform(0.4, largest)
            leaves = tint(rng, Surface(TREE, color, (0.16, 0.12, 0.05), dry=0.3), 0.15)
            at = (u + rng.gauss(0, spread), v + rng.gauss(0, spread))
            at = min(max(at[0], plot.u0 - 2), plot.u1 + 2), min(max(at[1], plot.v0 - 2), plot.v1 + 2)
            plot.put(
                "crown",
                CROWN,
                leaves,
                *at,
                2.2 * size,
                2 * size,
                0.8 + size,
                turn=rng.uniform(0, 3),
                slope=rng.choice((0, 0, 0.5)),
            )


def road(plot: Plot, path: Path, breadth: float, surface: Surface | None = None, lanes: int = 0) -> None:
    """A road along a path, as its builders left it."""
    rng = plot.rng
    surface = surface or carriageway(rng)
    if rng.random() < 0.5:
        verge = sand(rng, plot.season) if rng.random() < 0.6 else lawn(rng, plot.season)
        plot.line(DETAIL, verge, path, breadth + rng.uniform(1, 6))
    if rng.random() < 0.4:
        curb = rng.choice(((0.72, 0.71, 0.68), (0.6, 0.36, 0.28), (0.5, 0.5, 0.5)))
        plot.line(DETAIL, Surface(IMPERVIOUS, curb), path, breadth + 0.7)
    plot.line(DETAIL, surface, path, breadth)
    if lanes < 2 and rng.random() < 0.5:
        return
    paint = marking(rng)
    for edge in (-1, 1):
        plot.line(DETAIL, paint, beside(path, edge * (breadth / 2 - 0.4)), 0.2)
    for lane in range(1, max(2, lanes)):
        middle = beside(path, breadth * (lane / max(2, lanes) - 0.5))
        for first, last in zip(middle[::2], middle[1::2], strict=False):
            plot.line(DETAIL, paint, [first, (0.5 * (first[0] + last[0]), 0.5 * (first[1] + last[1]))], 0.2)


def wall(plot: Plot, path: Path) -> None:
    """A wall or fence along a part of a path: low, thin, straight or sagging, and a line of shadow beside it."""
    rng = plot.rng
    color = rng.choice(((0.12, 0.12, 0.12), (0.3, 0.28, 0.25), (0.75, 0.73, 0.68), (0.55, 0.5, 0.44)))
    made = tint(rng, Surface(CLUTTER, color, (0.1, 0.08, 0.05)), 0.2)
    thick, high, sag = rng.uniform(0.2, 0.7), rng.uniform(0.5, 2.4), rng.choice((0.0, 0.3))
    first = rng.randrange(len(path) // 2)
    for (u0, v0), (u1, v1) in itertools.pairwise(path[first : first + rng.randrange(4, len(path))]):
        long, turn = math.hypot(u1 - u0, v1 - v0), math.atan2(v1 - v0, u1 - u0)
        pieces = max(1, round(long / 3))
        for piece in range(pieces):
            share = (piece + 0.5) / pieces
            at = (u0 + share * (u1 - u0) + rng.gauss(0, sag), v0 + share * (v1 - v0) + rng.gauss(0, sag))
            plot.put("box", LOW, made, *at, long / pieces + 0.4, thick, high, turn=turn + rng.gauss(0, 0.4 * sag))


def _drive(plot: Plot, path: Path, aside: float) -> None:
    """A car on a road."""
    rng = plot.rng
    lane = beside(path, aside)
    at = rng.randrange(len(lane) - 1)
    (u, v), (ahead_u, ahead_v) = lane[at : at + 2]
    plot.car(u, v, math.atan2(ahead_v - v, ahead_u - u))


def across(plot: Plot, bend: float = 1.0) -> Path:
    """A way from one side of a block to the opposite one, at most bent as ``bend`` says."""
    rng, reach = plot.rng, 2.5
    if rng.random() < 0.5:
        start, end = (plot.u0 - reach, plot.anywhere()[1]), (plot.u1 + reach, plot.anywhere()[1])
    else:
        start, end = (plot.anywhere()[0], plot.v0 - reach), (plot.anywhere()[0], plot.v1 + reach)
    (u, v), middle = plot.anywhere(), (0.5 * (start[0] + end[0]), 0.5 * (start[1] + end[1]))
    return _bend(start, (middle[0] + bend * (u - middle[0]), middle[1] + bend * (v - middle[1])), end)


def _bend(start: tuple[float, float], over: tuple[float, float], end: tuple[float, float]) -> Path:
    """A curve from start to end that is drawn towards a third point."""
    points = []
    for step in range(17):
        t = step / 16
        weights = (1 - t) ** 2, 2 * t * (1 - t), t**2
        points.append(
            (
                sum(w * p[0] for w, p in zip(weights, (start, over, end), strict=True)),
                sum(w * p[1] for w, p in zip(weights, (start, over, end), strict=True)),
            )
        )
    return points


def beside(path: Path, aside: float) -> list[tuple[float, float]]:
    """The path moved to its right."""
    moved = []
    for at, (u, v) in enumerate(path):
        (u0, v0), (u1, v1) = path[max(0, at - 1)], path[min(len(path) - 1, at + 1)]
        length = math.hypot(u1 - u0, v1 - v0) or 1.0
        moved.append((u - aside * (v1 - v0) / length, v + aside * (u1 - u0) / length))
    return moved
