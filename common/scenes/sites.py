"""Blocks of the generated world where people work: yards with halls and stores, earthworks, sealed grounds."""

from __future__ import annotations

import math

from common.scenes.canvas import BUILDING, CLUTTER, IMPERVIOUS, LOW_VEGETATION, SOIL, Surface
from common.scenes.country import Path, across, beside, blot, bushes, road, wall
from common.scenes.materials import FLAT, PITCHED, carriageway, lawn, mix, painted, patio, paving, sand, tint
from common.scenes.plots import DETAIL, FITTING, GROUND, LOW, Plot, container, turned

HALL_ROOFS = (*PITCHED[4:8], *PITCHED[10:], *FLAT)
"""What large halls are covered with."""


def works(plot: Plot) -> None:
    """A yard with halls, goods in stacks, heaps of sand and gravel, tanks and wreckage."""
    rng = plot.rng
    ground = rng.choice((sand, lambda rng, _: carriageway(rng), lambda rng, _: paving(rng)))(rng, plot.season)
    plot.patch(GROUND, ground, plot.u0, plot.v0, plot.u1, plot.v1)
    for _ in range(rng.randrange(6)):
        blot(plot, tint(rng, ground, 0.2), 6, 40)
    for _ in range(rng.randrange(2, 9)):
        _stacks(plot)
    for _ in range(rng.randrange(5)):
        heap = tint(rng, rng.choice((sand(rng, plot.season), ground._replace(color=(0.36, 0.37, 0.39)))), 0.25)
        wide = rng.uniform(3, 14)
        plot.put("heap", LOW, heap._replace(rows=0.0), *plot.anywhere(6), wide * rng.uniform(1, 1.8), wide, 0.2 * wide)
    for _ in range(rng.choice((0, 0, 1, 4))):
        size = rng.uniform(3, 12)
        plot.put("disk", LOW, painted(rng, CLUTTER), *plot.anywhere(7), size, size, rng.uniform(1, 6))
    for _ in range(rng.randrange(3)):
        container(plot, *plot.anywhere(5))
    for _ in range(rng.randrange(6)):
        plot.car(*plot.anywhere(4), rng.uniform(0, 6))
    for _ in range(rng.randrange(1, 4)):
        _halls(plot)
    plot.trees(rng.randrange(12), 1.0, 3.5)


def factory(plot: Plot) -> None:
    """Halls over most of a block, grown together over the years; the rest is a store, tanks and parked cars."""
    rng = plot.rng
    plot.patch(GROUND, carriageway(rng) if rng.random() < 0.5 else paving(rng), plot.u0, plot.v0, plot.u1, plot.v1)
    v, edge = plot.v0 + rng.uniform(0, 6), plot.v1 - rng.uniform(0, 20)
    while v < edge - 8:
        deep = min(rng.uniform(14, 45), edge - v)
        u, end = plot.u0 + rng.uniform(0, 10), plot.u1 - rng.uniform(0, 20)
        while u < end - 8:
            wide = min(rng.uniform(10, 45), end - u)
            if rng.random() < 0.85:
                along = rng.random() < 0.5
                turn, (long, broad) = (0.0, (wide, deep)) if along else (math.pi / 2, (deep, wide))
                _hall(plot, u + wide / 2, v + deep / 2, turn, long, broad, rng.choice(HALL_ROOFS), rng.uniform(3.5, 9))
            u += wide
        v += deep
    for _ in range(rng.randrange(2, 7)):
        _stacks(plot, 10)
    for _ in range(rng.choice((0, 1, 3))):
        (u, v), size, rim = plot.anywhere(7), rng.uniform(4, 12), tint(rng, Surface(CLUTTER, (0.5, 0.42, 0.36)), 0.2)
        plot.put("disk", LOW, rim, u, v, size, size, 1.0)
        plot.put("disk", LOW, tint(rng, Surface(CLUTTER, (0.15, 0.14, 0.12)), 0.3), u, v, size - 1, size - 1, 1.0)
    for _ in range(rng.randrange(8)):
        plot.car(*plot.anywhere(3), rng.choice((0, math.pi / 2)))


def earthworks(plot: Plot) -> None:
    """Bare ground of several colors, parted by fences of cloth: tracks, boulders, pipes and machines."""
    rng = plot.rng
    ground = sand(rng, plot.season) if rng.random() < 0.7 else carriageway(rng)
    plot.patch(GROUND, ground, plot.u0 - 3, plot.v0 - 3, plot.u1 + 3, plot.v1 + 3)
    for _ in range(rng.randrange(1, 5)):
        path = across(plot, 0.7)
        corner = rng.choice(((plot.u0, plot.v0), (plot.u1, plot.v0), (plot.u0, plot.v1), (plot.u1, plot.v1)))
        part = sand(rng, plot.season) if rng.random() < 0.7 else lawn(rng, plot.season)
        plot.line(GROUND, part._replace(color=mix(ground.color, part.color, rng.random())), [*path, corner], 0.0)
        if rng.random() < 0.7:
            wall(plot, path)
    for _ in range(rng.randrange(7)):
        _wheels(plot, across(plot), ground)
    for _ in range(rng.choice((0, 0, 1, 2))):
        road(plot, across(plot, 0.5), rng.uniform(4, 9))
    for _ in range(rng.choice((0, 1, 2))):
        _boulders(plot)
    for _ in range(rng.randrange(4)):
        _stacks(plot)
    for _ in range(rng.randrange(5)):
        _machine(plot)
    for _ in range(rng.randrange(4)):
        u, v = plot.anywhere(4)
        plot.put("disk", LOW, Surface(CLUTTER, (0.2, 0.2, 0.2)), u, v, 2.2, 2.2, 0.2)
        plot.put("disk", LOW, Surface(IMPERVIOUS, (0.7, 0.7, 0.68)), u, v, 1.4, 1.4, 0.2)
    for _ in range(rng.choice((0, 0, 1, 4))):
        plot.car(*plot.anywhere(4), rng.uniform(0, 6))
    if rng.random() < 0.3:
        container(plot, *plot.anywhere(7))
    bushes(plot, rng.choice((0, 0, 10, 60)))


def grounds(plot: Plot) -> None:
    """Wide sealed ground around a large building: lanes, curbs, isles with mulch and shrubs, walls, parked cars."""
    rng = plot.rng
    floor = paving(rng) if rng.random() < 0.6 else carriageway(rng)
    floor = floor._replace(rows=rng.choice((0.0, 3.5, 5.0)), ridge=0.04)
    plot.patch(GROUND, floor, plot.u0, plot.v0, plot.u1, plot.v1)
    for _ in range(rng.randrange(1, 4)):
        lane = tint(rng, floor, 0.2) if rng.random() < 0.6 else carriageway(rng)
        road(plot, across(plot), rng.uniform(5, 12), lane._replace(rows=rng.choice((0.0, 4.0)), ridge=0.04))
    for _ in range(rng.randrange(2, 9)):
        (u, v), long, wide, turn = plot.anywhere(6), rng.uniform(3, 18), rng.uniform(2, 7), rng.uniform(0, 3)
        curb = rng.choice(((0.72, 0.70, 0.66), (0.68, 0.27, 0.22), (0.5, 0.5, 0.5)))
        bed = rng.choice((sand(rng, plot.season), lawn(rng, plot.season), Surface(SOIL, (0.28, 0.25, 0.24))))
        plot.put("disk", DETAIL, Surface(IMPERVIOUS, curb), u, v, long + 0.7, wide + 0.7, turn=turn)
        plot.put("disk", DETAIL, bed, u, v, long, wide, turn=turn)
        for _ in range(rng.randrange(int(long))):
            plot.tree(*turned(u, v, turn, rng.uniform(-0.4, 0.4) * long), rng.uniform(0.4, 1.6))
    for _ in range(rng.randrange(3)):
        (u, v), count = plot.anywhere(12), rng.randrange(2, 10)
        turn, paint = rng.choice((0, math.pi / 2, 0.7)), Surface(IMPERVIOUS, rng.choice(((0.8,) * 3, (0.7, 0.25, 0.2))))
        for stall in range(count):
            at = turned(u, v, turn, 0.0, 2.7 * stall)
            plot.put("box", DETAIL + 1, paint, at[0], at[1] - 1.35, 5, 0.15, turn=turn)
            if rng.random() < 0.5:
                plot.car(*at, turn + rng.gauss(0, 0.05))
    for _ in range(rng.randrange(3)):
        wall(plot, across(plot, 0.3))
    if rng.random() < 0.8:
        _halls(plot)
    plot.trees(rng.randrange(14), 0.6, 3.5)


def _halls(plot: Plot) -> None:
    """Halls built onto one another."""
    rng, (u, v) = plot.rng, plot.anywhere(14)
    turn, room = rng.choice((0.0, math.pi / 2, rng.uniform(0, 3))), 0.8 * min(plot.size)
    aside, same = 0.0, rng.random() < 0.4
    roof, long, high = rng.choice(HALL_ROOFS), rng.uniform(12, max(13, room)), rng.uniform(3.5, 9)
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        wide = rng.uniform(7, min(32, room))
        if aside + wide > room:
            return
        if not same:
            roof, long, high = rng.choice(HALL_ROOFS), long * rng.uniform(0.5, 1), rng.uniform(3.5, 9)
        _hall(plot, *turned(u, v, turn, 0.0, aside + wide / 2 - room / 2), turn, long, wide, roof, high)
        aside += wide


def _hall(plot: Plot, u: float, v: float, turn: float, long: float, wide: float, roof: Surface, high: float) -> None:
    """A flat, gabled or round roof, stained and mended, with skylights and machines on it."""
    rng = plot.rng
    made, form = tint(rng, roof, 0.12), rng.choice(("box", "box", "gable", "barrel"))
    slope = rng.uniform(0.05, 0.25) if form == "gable" else rng.uniform(0.08, 0.2)
    plot.put(form, LOW + 1, made, u, v, long, wide, high, turn=turn, slope=slope)
    for _ in range(rng.choice((0, 0, 2, 9))):
        spot = turned(u, v, turn, rng.uniform(-0.4, 0.4) * long, rng.uniform(-0.4, 0.4) * wide)
        size = rng.uniform(0.02, 0.2) * long, rng.uniform(0.1, 0.5) * wide
        plot.put("fitting", FITTING, tint(rng, made, 0.25), *spot, *size, 0.0, turn=turn)
    step = rng.choice((4.0, 6.0, 10.0)) if rng.random() < 0.5 else long
    light = tint(rng, Surface(BUILDING, rng.choice(((0.85,) * 3, (0.3, 0.32, 0.35), (0.6, 0.62, 0.6)))))
    for place in range(1, int(long / step)):
        spot = turned(u, v, turn, place * step - long / 2)
        plot.put("fitting", FITTING, light, *spot, 0.9, rng.choice((0.3, 0.7)) * wide, 0.1, turn=turn)
    for _ in range(rng.choice((0, 0, 2, 6))):
        unit = tint(rng, Surface(BUILDING, (0.35, 0.37, 0.38), (0.08, 0.1, 0.05)), 0.4)
        spot = turned(u, v, turn, rng.uniform(-0.4, 0.4) * long, rng.uniform(-0.4, 0.4) * wide)
        size = rng.uniform(1, 4), rng.uniform(1, 2.5)
        plot.put("fitting", FITTING, unit, *spot, *size, rng.uniform(0.5, 1.5), turn=turn)


def _stacks(plot: Plot, most: int = 4) -> None:
    """Goods of one kind in at most so many rows, with gaps."""
    rng = plot.rng
    goods, (u, v) = painted(rng, CLUTTER), plot.anywhere(12)
    if rng.random() < 0.5:
        goods = tint(
            rng,
            goods._replace(
                color=rng.choice(((0.16, 0.40, 0.72), (0.5, 0.5, 0.5), (0.6, 0.45, 0.3), (0.75, 0.74, 0.7)))
            ),
            0.2,
        )
    long, wide, gap, turn = (
        rng.uniform(0.8, 6),
        rng.uniform(0.8, 2.5),
        rng.uniform(0, 0.8),
        rng.choice((0, math.pi / 2)),
    )
    rows, columns, taken = rng.randrange(1, most + 1), rng.randrange(1, 12), rng.uniform(0.5, 1)
    for row in range(rows):
        for column in range(columns):
            a, b = column * (wide + gap), row * (long + gap)
            at = (u + a, v + b) if turn else (u + b, v + a)
            if rng.random() < taken and at[0] < plot.u1 and at[1] < plot.v1:
                height = rng.uniform(0.3, 2.5)
                plot.put("box", LOW, tint(rng, goods, 0.05), *at, long, wide, height, turn=turn + rng.gauss(0, 0.03))


def _machine(plot: Plot) -> None:
    """An excavator, a loader, a lift: chassis, cabin and arm."""
    rng, (u, v), turn = plot.rng, plot.anywhere(6), plot.rng.uniform(0, 6)
    color = rng.choice(((0.75, 0.55, 0.12), (0.75, 0.35, 0.12), (0.55, 0.12, 0.1), (0.7,) * 3, (0.15,) * 3))
    made = tint(rng, Surface(CLUTTER, color, (0.12, 0.12, 0.05)), 0.15)
    dark = Surface(CLUTTER, (0.12, 0.12, 0.12), (0.1, 0.1, 0.05))
    long, wide = rng.uniform(3, 7), rng.uniform(1.8, 2.6)
    plot.put("box", LOW, dark, u, v, long, wide, 1.0, turn=turn)
    plot.put("box", LOW, made, u, v, 0.7 * long, 0.8 * wide, 1.8, turn=turn + rng.choice((0.0, rng.uniform(0, 3))))
    reach, way = rng.uniform(3, 9), turn + rng.choice((0.0, rng.gauss(0, 0.7)))
    plot.put("box", LOW, made, *turned(u, v, way, 0.5 * reach), reach, rng.uniform(0.4, 0.9), 2.4, turn=way)


def _boulders(plot: Plot) -> None:
    """A field of pale rocks, which are ground."""
    rng, (u, v), spread = plot.rng, plot.anywhere(8), plot.rng.uniform(2, 7)
    rock = Surface(SOIL, mix((0.75, 0.73, 0.68), (0.5, 0.48, 0.45), rng.random()), (0.08, 0.06, 0.05))
    for _ in range(rng.randrange(15, 90)):
        at, size = (u + rng.gauss(0, spread), v + rng.gauss(0, 0.6 * spread)), rng.uniform(0.4, 1.8)
        shape = rng.choice(("heap", "box", "disk"))
        turn = rng.uniform(0, 3)
        plot.put(shape, LOW, tint(rng, rock, 0.15), *at, size * rng.uniform(1, 1.7), size, 0.6 * size, turn=turn)


def _wheels(plot: Plot, path: Path, ground: Surface) -> None:
    """The tracks of a vehicle's wheels."""
    track = tint(plot.rng, ground, 0.12)._replace(rows=0.0)
    for side in (-0.9, 0.9):
        plot.line(DETAIL, track, beside(path, side), plot.rng.uniform(0.3, 0.7))


def campus(plot: Plot) -> None:
    """A school, church or hospital: wings of all sizes under one kind of roof, around yards."""
    rng = plot.rng
    for ground in (lawn(rng, plot.season), patio(rng), sand(rng, plot.season))[: rng.randrange(1, 4)]:
        (u0, v0), (u1, v1) = plot.anywhere(), plot.anywhere()
        whole = ground.label == LOW_VEGETATION
        plot.patch(GROUND, ground, *((plot.u0, plot.v0, plot.u1, plot.v1) if whole else (u0, v0, u1, v1)))
    style = rng.choice(("hip", "hip", "gable", "flat"))
    roof = tint(rng, rng.choice(FLAT if style == "flat" else PITCHED), 0.15)
    if rng.random() < 0.5:
        _court(plot, style, roof)
    for _ in range(rng.randrange(1, 4)):
        u, v = plot.anywhere(20)
        for _ in range(rng.randrange(2, 6)):
            long, broad = rng.sample((rng.uniform(12, 45), rng.uniform(8, 17)), 2)
            long, broad = min(long, 0.9 * plot.size[0]), min(broad, 0.9 * plot.size[1])
            u = min(max(u, plot.u0 + long / 2), plot.u1 - long / 2)
            v = min(max(v, plot.v0 + broad / 2), plot.v1 - broad / 2)
            plot.building(u, v, long, broad, rng.uniform(1, 2.5), style, tint(rng, roof, 0.04))
            u, v = u + rng.choice((-0.5, 0.5)) * long, v + rng.choice((-0.5, 0.5)) * broad
    plot.trees(rng.randrange(20), 1.5, 4.5)


def _court(plot: Plot, style: str, roof: Surface) -> None:
    """Two to four wings around a paved or green court."""
    rng, deep, floors = plot.rng, plot.rng.uniform(6, 13), plot.rng.uniform(1, 2.5)
    long, wide = (rng.uniform(0.4, 0.9) * side for side in plot.size)
    u, v = (plot.u0 + plot.u1) / 2, (plot.v0 + plot.v1) / 2
    floor = rng.choice((patio(rng), lawn(rng, plot.season)))
    plot.patch(DETAIL, floor, u - long / 2, v - wide / 2, u + long / 2, v + wide / 2)
    wings = (
        (u, v - (wide - deep) / 2, long, deep),
        (u - (long - deep) / 2, v, deep, wide),
        (u + (long - deep) / 2, v, deep, wide),
        (u, v + (wide - deep) / 2, long, deep),
    )
    for wing in wings[: rng.choice((2, 3, 3, 4))]:
        plot.building(*wing, floors, style, tint(rng, roof, 0.03))
