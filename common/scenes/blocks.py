"""The kinds of block of the generated town: courts, slabs, halls, parks, fields, building sites.

Each function fills one ``Plot``, a rectangle of the plan between streets. Houses with gardens are in ``houses``.
"""

from __future__ import annotations

import math
from dataclasses import replace

from common.scenes.canvas import CLUTTER, LOW_VEGETATION, SOIL, Surface
from common.scenes.materials import (
    FLAT,
    PITCHED,
    carriageway,
    lawn,
    painted,
    paving,
    sand,
    soil,
    tint,
    water,
)
from common.scenes.plots import DETAIL, GROUND, LOW, YARD, Plot, container, parking_lot, playground


def perimeter(plot: Plot) -> None:
    """Closed rows of town houses around courts."""
    rng, deep = plot.rng, plot.rng.uniform(10, 13)
    plot.patch(GROUND, paving(rng), plot.u0, plot.v0, plot.u1, plot.v1)
    style = rng.choice(("gable", "gable", "flat"))
    inner = (plot.u0 + deep, plot.v0 + deep, plot.u1 - deep, plot.v1 - deep)
    for start, end, at, turned in (
        (plot.u0, plot.u1, plot.v0 + deep / 2, False),
        (plot.u0, plot.u1, plot.v1 - deep / 2, False),
        (inner[1], inner[3], plot.u0 + deep / 2, True),
        (inner[1], inner[3], plot.u1 - deep / 2, True),
    ):
        while start < end - 4:
            length = end - start if end - start < 16 else min(rng.uniform(11, 24), end - start)
            middle, floors = start + length / 2, rng.uniform(2.6, 3.9)
            start += length
            if rng.random() < 0.08:
                continue
            kind = style if rng.random() < 0.8 else "flat"
            roof = tint(rng, rng.choice(FLAT if kind == "flat" else PITCHED), 0.08)
            u, v = (at, middle) if turned else (middle, at)
            plot.building(u, v, *((deep, length) if turned else (length, deep)), floors, kind, roof)
    court = replace(plot, u0=inner[0], v0=inner[1], u1=inner[2], v1=inner[3])
    for _ in range(rng.randrange(1, 5)):
        u, v = court.anywhere(4)
        wide, high = rng.uniform(3, 12), rng.uniform(3, 9)
        plot.patch(
            YARD,
            lawn(rng, plot.season),
            max(u - wide, inner[0]),
            max(v - high, inner[1]),
            min(u + wide, inner[2]),
            min(v + high, inner[3]),
        )
    for _ in range(rng.randrange(5)):
        court.car(*court.anywhere(5), rng.choice((0, math.pi / 2)))
    for _ in range(rng.randrange(4)):
        court.building(
            *court.anywhere(5), rng.uniform(4, 12), rng.uniform(3, 6), 1, "flat", tint(rng, rng.choice(FLAT))
        )
    for _ in range(rng.randrange(6)):
        court.put("box", LOW, painted(rng, CLUTTER), *court.anywhere(3), rng.uniform(1, 4), rng.uniform(0.9, 2.4), 1.3)
    if rng.random() < 0.3:
        playground(court, *court.anywhere(6))
    court.trees(rng.randrange(2, 12), 1.5, 4.5)


def slabs(plot: Plot) -> None:
    """Long apartment houses on a lawn, with paths and parking."""
    rng = plot.rng
    plot.patch(GROUND, lawn(rng, plot.season), plot.u0, plot.v0, plot.u1, plot.v1)
    roof, style, floors = rng.choice(FLAT), rng.choice(("flat", "flat", "hip")), rng.uniform(2.5, 4.4)
    roof = roof if style == "flat" else rng.choice(PITCHED)
    v = plot.v0 + 8
    while v < plot.v1 - 7:
        length = plot.size[0] * rng.uniform(0.55, 0.9)
        u = plot.u0 + length / 2 + rng.uniform(0, plot.size[0] - length)
        deep = rng.uniform(9, 12)
        plot.building(u, v, length, deep, floors, style, tint(rng, roof, 0.06))
        plot.line(
            DETAIL, paving(rng), [(plot.u0, v + deep / 2 + 3), (plot.u1, v + deep / 2 + 3)], rng.uniform(1.4, 2.5)
        )
        v += deep + rng.uniform(13, 18)
    parking_lot(plot, plot.u0 + 1, plot.v1 - 17, plot.u0 + rng.uniform(20, 45), plot.v1 - 1)
    if rng.random() < 0.6:
        playground(plot, *plot.anywhere(8))
    for _ in range(rng.randrange(1, 5)):
        plot.put("box", LOW, painted(rng, CLUTTER), *plot.anywhere(2), rng.uniform(1.2, 5), 1.3, 1.4)
    plot.trees(rng.randrange(4, 22), 1.2, 4.8)


def halls(plot: Plot) -> None:
    """Shops, workshops and warehouses with parking and storage."""
    rng = plot.rng
    plot.patch(GROUND, carriageway(rng) if rng.random() < 0.6 else paving(rng), plot.u0, plot.v0, plot.u1, plot.v1)
    share = rng.uniform(0.35, 0.6)
    split = plot.u0 + plot.size[0] * share
    length, width = plot.size[0] * share - 7, plot.size[1] * rng.uniform(0.5, 0.85)
    style = rng.choice(("flat", "flat", "flat", "gable"))
    roof = rng.choice(PITCHED[4:8] if style == "gable" else FLAT)
    plot.building(plot.u0 + 3 + length / 2, plot.v0 + 4 + width / 2, length, width, rng.uniform(1.6, 2.8), style, roof)
    if rng.random() < 0.6:
        plot.building(split + 8, plot.v0 + 7, rng.uniform(7, 14), rng.uniform(5, 9), 1.2, "flat", rng.choice(FLAT))
    parking_lot(plot, split, plot.v0 + 14, plot.u1 - 1, plot.v1 - rng.uniform(1, 12))
    strip = rng.uniform(1.5, 4)
    plot.patch(YARD, lawn(rng, plot.season), plot.u0, plot.v1 - strip, plot.u1, plot.v1)
    for _ in range(rng.randrange(1, 6)):
        u, v = (
            rng.uniform(plot.u0 + 4, split),
            rng.uniform(plot.v0 + 6 + width, plot.v1 - 3) if width < plot.size[1] - 12 else plot.v1 - 5,
        )
        container(plot, u, v)
    for _ in range(rng.randrange(7)):
        plot.tree(rng.uniform(plot.u0, plot.u1), plot.v1 - strip / 2, rng.uniform(1.2, 2.8))


def park(plot: Plot) -> None:
    """Lawns, paths, groups of trees, a pond or a playground."""
    rng = plot.rng
    plot.patch(GROUND, lawn(rng, plot.season), plot.u0, plot.v0, plot.u1, plot.v1)
    for _ in range(rng.randrange(2, 6)):
        u, v = plot.anywhere(8)
        plot.put(
            "disk", YARD, lawn(rng, plot.season), u, v, rng.uniform(8, 30), rng.uniform(8, 20), turn=rng.uniform(0, 3)
        )
    for _ in range(rng.randrange(1, 4)):
        path = [(plot.u0, rng.uniform(plot.v0, plot.v1)), plot.anywhere(10), (plot.u1, rng.uniform(plot.v0, plot.v1))]
        plot.line(DETAIL, carriageway(rng, 0.0), path, rng.uniform(1.6, 3.5))
    if rng.random() < 0.45:
        u, v = plot.anywhere(15)
        plot.put("blot", GROUND, water(rng), u, v, rng.uniform(12, 26), rng.uniform(8, 18), turn=rng.uniform(0, 3))
    if rng.random() < 0.6:
        playground(plot, *plot.anywhere(10))
    if rng.random() < 0.3:
        plot.building(
            *plot.anywhere(9),
            rng.uniform(5, 10),
            rng.uniform(4, 7),
            1,
            rng.choice(("hip", "flat")),
            rng.choice(PITCHED),
        )
    plot.trees(rng.randrange(10, 45), 1.3, 5.0)


def forest(plot: Plot) -> None:
    """Closed woods on rough ground."""
    rng = plot.rng
    plot.patch(GROUND, lawn(rng, plot.season), plot.u0, plot.v0, plot.u1, plot.v1)
    clear = rng.uniform(3.6, 5.5)
    for row in range(int(plot.size[1] / clear)):
        for column in range(int(plot.size[0] / clear)):
            if rng.random() < 0.87:
                u, v = plot.u0 + (column + rng.random()) * clear, plot.v0 + (row + rng.random()) * clear
                plot.tree(u, v, rng.uniform(1.6, 4.6))


def field(plot: Plot) -> None:
    """Crops, stubble and ploughed earth in strips, all low vegetation; a track and a hedge."""
    rng, u = plot.rng, plot.u0
    while u < plot.u1 - 1:
        wide = min(rng.uniform(15, 50), plot.u1 - u)
        crop = soil(rng, plot.season, LOW_VEGETATION) if rng.random() < 0.5 else lawn(rng, plot.season)
        plot.patch(
            GROUND,
            crop._replace(rows=rng.choice((0.7, 1.0, 1.6)), ridge=rng.uniform(0.02, 0.16)),
            u,
            plot.v0,
            u + wide,
            plot.v1,
        )
        u += wide
    if rng.random() < 0.5:
        plot.line(DETAIL, carriageway(rng, 0.0), [(plot.u0, plot.anywhere(4)[1]), (plot.u1, plot.anywhere(4)[1])], 2.6)
    if rng.random() < 0.6:
        for step in range(int(plot.size[0] / 3.5)):
            plot.tree(plot.u0 + 3.5 * step, plot.v1 - 3 + rng.gauss(0, 1), rng.uniform(1.2, 3.6))


def waste(plot: Plot) -> None:
    """Open ground where hardly anything grows: tracks, shrubs, heaps, here and there a store of goods or a shed."""
    rng = plot.rng
    plot.patch(GROUND, sand(rng, plot.season), plot.u0 - 1, plot.v0 - 1, plot.u1 + 1, plot.v1 + 1)
    for _ in range(rng.randrange(1, 8)):
        patch = lawn(rng, plot.season) if rng.random() < 0.3 else sand(rng, plot.season)
        wide = rng.uniform(5, 35)
        plot.put("blot", GROUND, patch, *plot.anywhere(4), wide * rng.uniform(1, 1.8), wide, turn=rng.uniform(0, 3))
    for _ in range(rng.randrange(4)):
        track, breadth = sand(rng, plot.season), rng.uniform(1.5, 5)
        path = [(plot.u0, rng.uniform(plot.v0, plot.v1)), plot.anywhere(10), (plot.u1, rng.uniform(plot.v0, plot.v1))]
        plot.line(DETAIL, track._replace(rows=1.2, ridge=0.06), path, breadth)
    for _ in range(rng.choice((0, 0, 1, 4))):
        wide = rng.uniform(2, 9)
        at = plot.anywhere(6)
        plot.put("heap", LOW, sand(rng, plot.season), *at, wide * 1.4, wide, wide * 0.2, turn=rng.uniform(0, 3))
    for _ in range(rng.choice((0, 0, 0, 2, 5))):
        goods, (u, v), long = painted(rng, CLUTTER), plot.anywhere(9), rng.uniform(1, 6)
        for place in range(rng.randrange(2, 9)):
            plot.put(
                "box", LOW, goods, u + 1.8 * place % 9, v + place // 5 * (long + 1), 1.4, long, rng.uniform(0.5, 2)
            )
    if rng.random() < 0.3:
        size = rng.uniform(4, 16)
        plot.building(*plot.anywhere(9), size * rng.uniform(1, 1.6), size, 1, "flat", tint(rng, rng.choice(FLAT)))
    for _ in range(rng.choice((0, 0, 2))):
        plot.car(*plot.anywhere(3), rng.uniform(0, 6))
    plot.trees(rng.choice((0, 0, 3, 12, 50)), 0.4, rng.choice((1.0, 1.6, 3.5)))


def yards(plot: Plot) -> None:
    """Sealed and bare rectangles of the size of houses, in the colors of roofs; but flat, and so without a shadow."""
    rng = plot.rng
    for _ in range(rng.randrange(2, 16)):
        ground = rng.choice((paving, carriageway, lambda rng: sand(rng, plot.season)))(rng)
        if rng.random() < 0.5:
            ground = tint(rng, ground._replace(color=rng.choice((*FLAT, *PITCHED)).color))
        u, v = plot.anywhere(2)
        plot.put("box", DETAIL, ground, u, v, rng.uniform(2, 22), rng.uniform(2, 14), turn=rng.choice((0, 0, 0, 0.6)))
        if rng.random() < 0.3:
            plot.car(u, v, rng.uniform(0, 6))


def lake(plot: Plot) -> None:
    """Water with a natural shore or a quay."""
    rng, surface = plot.rng, water(plot.rng)
    plot.patch(GROUND, lawn(rng, plot.season), plot.u0, plot.v0, plot.u1, plot.v1)
    if rng.random() < 0.4:
        rim = rng.uniform(0.5, 4)
        plot.patch(YARD, paving(rng), plot.u0 + rim, plot.v0 + rim, plot.u1 - rim, plot.v1 - rim)
        plot.patch(YARD, surface, plot.u0 + 2 * rim, plot.v0 + 2 * rim, plot.u1 - 2 * rim, plot.v1 - 2 * rim)
        return
    for _ in range(rng.randrange(1, 4)):
        u, v = plot.anywhere(20)
        plot.put("blot", GROUND, surface, u, v, rng.uniform(30, 75), rng.uniform(20, 60), turn=rng.uniform(0, 3))
    plot.trees(rng.randrange(20), 1.0, 4.0, 1.0)


def building_site(plot: Plot) -> None:
    """Bare ground with heaps, containers, materials and a shell of a building."""
    rng = plot.rng
    plot.patch(GROUND, lawn(rng, plot.season), plot.u0, plot.v0, plot.u1, plot.v1)
    plot.patch(YARD, soil(rng, plot.season, SOIL), plot.u0 + 2, plot.v0 + 2, plot.u1 - rng.uniform(2, 25), plot.v1 - 2)
    if rng.random() < 0.6:
        plot.building(
            *plot.anywhere(15), rng.uniform(12, 25), rng.uniform(9, 14), rng.uniform(1, 3), "flat", rng.choice(FLAT)
        )
    for _ in range(rng.randrange(4, 12)):
        wide = rng.uniform(3, 9)
        pile = soil(rng, plot.season, SOIL)
        plot.put(
            "heap",
            LOW,
            pile,
            *plot.anywhere(6),
            wide * rng.uniform(1, 1.6),
            wide,
            wide * rng.uniform(0.15, 0.3),
            turn=rng.uniform(0, 3),
        )
    for _ in range(rng.randrange(2, 8)):
        container(plot, *plot.anywhere(5))
    for _ in range(rng.randrange(3, 7)):
        u, v = plot.anywhere(5)
        for _ in range(rng.randrange(3, 9)):
            at = (u + rng.gauss(0, 1.5), v + rng.gauss(0, 1.5))
            plot.put(
                "box",
                LOW,
                painted(rng, CLUTTER),
                *at,
                rng.uniform(1, 5),
                rng.uniform(0.3, 1.2),
                rng.uniform(0.2, 1),
                turn=rng.gauss(0, 0.4),
            )
    for _ in range(rng.randrange(1, 6)):
        plot.car(*plot.anywhere(5), rng.uniform(0, 6))
    plot.trees(rng.randrange(6), 1.2, 3.5)


def sports(plot: Plot) -> None:
    """Courts and pitches: turf is low vegetation, tartan and its lines are clutter."""
    rng = plot.rng
    plot.patch(GROUND, lawn(rng, plot.season), plot.u0, plot.v0, plot.u1, plot.v1)
    u = plot.u0 + 3
    while u < plot.u1 - 18:
        wide = rng.uniform(14, 26)
        v0, v1 = plot.v0 + 3, plot.v1 - rng.uniform(3, 14)
        turf = rng.random() < 0.4
        color = rng.choice(((0.48, 0.27, 0.21), (0.28, 0.40, 0.30), (0.25, 0.36, 0.48), (0.50, 0.36, 0.26)))
        floor = lawn(rng, plot.season) if turf else tint(rng, Surface(CLUTTER, color, (0.04, 0.02, 0.04)))
        paint = floor._replace(color=(0.8, 0.8, 0.78))
        plot.patch(YARD, floor, u, v0, u + wide, v1)
        right, bottom = u + wide - 1.5, v1 - 1.5
        frame = [(u + 1.5, v0 + 1.5), (right, v0 + 1.5), (right, bottom), (u + 1.5, bottom), (u + 1.5, v0 + 1.5)]
        plot.line(DETAIL, paint, frame, 0.15)
        plot.line(DETAIL, paint, [(u + 1.5, (v0 + v1) / 2), (right, (v0 + v1) / 2)], 0.15)
        u += wide + rng.uniform(2, 8)
    if rng.random() < 0.7:
        plot.building(
            plot.u1 - 9, plot.v1 - 6, rng.uniform(9, 15), rng.uniform(6, 9), 1.2, "flat", tint(rng, rng.choice(FLAT))
        )
    plot.trees(rng.randrange(3, 15), 1.3, 4.0)
