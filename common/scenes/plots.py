"""A block of the generated town while it is built on.

``Plot`` places things in plan coordinates and knows how a tree, a car and a house are put together; the functions below
it place what several kinds of block share.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from common.scenes.canvas import BUILDING, CAR, CLUTTER, WATER, Outline, Surface, Thing
from common.scenes.materials import (
    CAR_COLORS,
    GLASS,
    Season,
    carriageway,
    foliage,
    marking,
    mix,
    painted,
    paving,
    soil,
    tint,
)

GROUND, YARD, DETAIL, LOW, WALL, FITTING, CROWN = 0, 0, 4, 6, 7, 8, 9
"""Layers of drawing; the streets lie on 1 to 3."""


@dataclass
class Plot:
    """A rectangle of the plan that is being built on; ``put`` and its sisters take plan coordinates in metres."""

    rng: random.Random
    season: Season
    place: Callable[[float, float], tuple[float, float]]
    heading: Callable[[float, float], float]
    u0: float
    v0: float
    u1: float
    v1: float
    items: list[Thing | Outline] = field(default_factory=list)

    @property
    def size(self) -> tuple[float, float]:
        """Extent along u and v."""
        return self.u1 - self.u0, self.v1 - self.v0

    def anywhere(self, inset: float = 0.0) -> tuple[float, float]:
        """A random point, not nearer than ``inset`` to the edge."""
        return self.rng.uniform(self.u0 + inset, self.u1 - inset), self.rng.uniform(self.v0 + inset, self.v1 - inset)

    def put(
        self,
        form: str,
        layer: int,
        surface: Surface,
        u: float,
        v: float,
        length: float,
        width: float,
        height: float = 0.0,
        *,
        turn: float = 0.0,
        slope: float = 0.0,
        trim: Surface | None = None,
    ) -> None:
        """Place a thing with its center at (u, v), turned by ``turn`` against the u axis."""
        x, y = self.place(u, v)
        angle = self.heading(u, v) + turn
        self.items.append(Thing(form, layer, surface, x, y, angle, length, width, height, slope, trim))

    def line(self, layer: int, surface: Surface, points: Sequence[tuple[float, float]], breadth: float) -> None:
        """Place a line through points of the plan, bent as the plan is."""
        bent = []
        for (u0, v0), (u1, v1) in itertools.pairwise(points):
            steps = max(1, math.ceil(math.hypot(u1 - u0, v1 - v0) / 6))
            bent += [self.place(u0 + (u1 - u0) * k / steps, v0 + (v1 - v0) * k / steps) for k in range(steps + 1)]
        self.items.append(Outline(layer, surface, tuple(bent), breadth, self.heading(*points[0])))

    def patch(self, layer: int, surface: Surface, u0: float, v0: float, u1: float, v1: float) -> None:
        """Place a rectangle of ground, bent as the plan is."""
        self.line(layer, surface, [(u0, v0), (u1, v0), (u1, v1), (u0, v1), (u0, v0)], 0.0)

    def tree(self, u: float, v: float, radius: float) -> None:
        """Place a tree."""
        surface, thin = foliage(self.rng, self.season)
        long = 2 * radius * self.rng.uniform(0.9, 1.2)
        height = min(2.2 + radius * self.rng.uniform(1.3, 2.3), 13.0)
        self.put("crown", CROWN, surface, u, v, long, 2 * radius, height, turn=self.rng.uniform(0, 3), slope=thin)

    def trees(self, count: int, smallest: float, largest: float, inset: float = 2.0) -> None:
        """Scatter trees, single ones and groups."""
        while count > 0:
            u, v = self.anywhere(inset)
            group = min(count, self.rng.choice((1, 1, 2, 4)))
            for _ in range(group):
                self.tree(u + self.rng.gauss(0, 2), v + self.rng.gauss(0, 2), self.rng.uniform(smallest, largest))
            count -= group

    def car(self, u: float, v: float, turn: float, layer: int = LOW) -> None:
        """Place a car, now and then a van or a truck."""
        rng = self.rng
        surface = tint(rng, Surface(CAR, rng.choice(CAR_COLORS), (0.03, 0.0, 0.0)), 0.12)
        if rng.random() < 0.06:
            self.put("box", layer, surface, u, v, rng.uniform(5.2, 7.5), rng.uniform(2.0, 2.3), 2.5, turn=turn)
        else:
            length, width = rng.uniform(3.9, 4.9), rng.uniform(1.7, 1.95)
            self.put("car", layer, surface, u, v, length, width, rng.uniform(1.4, 1.7), turn=turn, trim=GLASS)

    def building(
        self, u: float, v: float, length: float, width: float, floors: float, style: str, roof: Surface
    ) -> None:
        """Place a house with its roof and what stands on it; ``length`` runs along u."""
        rng, turn = self.rng, 0.0
        if width > length:
            length, width, turn = width, length, math.pi / 2
        eaves = 2.9 * floors
        if style == "flat":
            rim = tint(rng, roof._replace(color=mix(roof.color, (0.7, 0.7, 0.68), 0.6), dry=0.0), 0.1)
            self.put("box", WALL, rim, u, v, length, width, eaves + 0.25, turn=turn)
            self.put("fitting", WALL, roof, u, v, length - 0.7, width - 0.7, -0.25, turn=turn)
            self._equip(u, v, length, width, turn, roof)
            return
        slope = min(math.tan(math.radians(rng.uniform(22, 45))), (15.5 - eaves) / (width / 2))
        self.put(style, WALL, roof, u, v, length, width, eaves, turn=turn, slope=slope)
        for _ in range(rng.choice((0, 1, 1, 2, 4))):
            at = turned(u, v, turn, rng.uniform(-0.38, 0.38) * length, rng.uniform(-0.32, 0.32) * width)
            if rng.random() < 0.5:
                brick = tint(rng, Surface(BUILDING, (0.42, 0.30, 0.26)))
                self.put("fitting", FITTING, brick, *at, rng.uniform(0.6, 1.2), 0.6, 1.1, turn=turn)
            else:
                window = Surface(BUILDING, (0.16, 0.18, 0.22))
                self.put("fitting", FITTING, window, *at, 0.9, 1.2, 0.1, turn=turn)
        if rng.random() < 0.15:
            side, rows = rng.choice((-0.25, 0.25)), max(1, int(width / 2 / 1.8))
            panel = Surface(BUILDING, (0.09, 0.11, 0.19), (0.03, 0.0, 0.0), rows=1.0, ridge=0.25)
            at = turned(u, v, turn, 0.0, side * width)
            self.put("fitting", FITTING, panel, *at, rng.uniform(0.3, 0.8) * length, 1.6 * rows, 0.1, turn=turn)

    def _equip(self, u: float, v: float, length: float, width: float, turn: float, roof: Surface) -> None:
        """Vents, skylights and raised parts of a flat roof."""
        rng = self.rng
        for _ in range(min(14, int(length * width / 60 * rng.uniform(0, 1.6)))):
            at = turned(u, v, turn, rng.uniform(-0.42, 0.42) * length, rng.uniform(-0.38, 0.38) * width)
            kind = rng.random()
            if kind < 0.45:
                white = Surface(BUILDING, (0.72, 0.74, 0.76), (0.03, 0.0, 0.0))
                self.put("fitting", FITTING, white, *at, rng.uniform(0.8, 2.2), rng.uniform(0.8, 1.4), 0.4, turn=turn)
            elif kind < 0.8:
                metal = tint(rng, Surface(BUILDING, (0.5, 0.5, 0.51)), 0.2)
                self.put("fitting", FITTING, metal, *at, rng.uniform(0.7, 2.5), rng.uniform(0.7, 2), 1.1, turn=turn)
            else:
                self.put("fitting", FITTING, tint(rng, roof), *at, 0.25 * length, 0.3 * width, 0.8, turn=turn)


def turned(u: float, v: float, turn: float, along: float, across: float = 0.0) -> tuple[float, float]:
    """The point of the plan that lies so far along and across from (u, v), seen in a direction."""
    cosine, sine = math.cos(turn), math.sin(turn)
    return u + along * cosine - across * sine, v + along * sine + across * cosine


def pool(plot: Plot, u: float, v: float) -> None:
    """A pool with its rim, open or covered, now and then in a paved yard."""
    rng, turn = plot.rng, plot.rng.choice((0.0, math.pi / 2))
    form = "disk" if rng.random() < 0.35 else "box"
    length, width = rng.uniform(5, 9), rng.uniform(3, 4.5)
    color = rng.choice(((0.25, 0.58, 0.62), (0.18, 0.45, 0.60), (0.30, 0.62, 0.58), (0.20, 0.27, 0.25)))
    if rng.random() < 0.4:
        plot.put("box", DETAIL, paving(rng), u, v, length + rng.uniform(2, 6), width + rng.uniform(2, 6), turn=turn)
    plot.put(form, DETAIL, paving(rng), u, v, length + 1.8, width + 1.8, turn=turn)
    plot.put(form, DETAIL, tint(rng, Surface(WATER, color, (0.03, 0.05, 0.05))), u, v, length, width, turn=turn)


def parking_lot(plot: Plot, u0: float, v0: float, u1: float, v1: float) -> None:
    """Rows of stalls along v = ``v0`` and ``v1`` with a lane between, partly taken."""
    rng, paint, taken = plot.rng, marking(plot.rng), plot.rng.uniform(0.2, 0.9)
    plot.patch(YARD, carriageway(rng), u0, v0, u1, v1)
    lines = rng.random() < 0.7
    row = v0
    while row + 5 <= v1 + 0.1:
        for stall in range(int((u1 - u0 - 1) / 2.6)):
            u = u0 + 0.5 + 2.6 * stall
            if lines:
                plot.line(DETAIL, paint, [(u, row + 0.3), (u, row + 4.7)], 0.12)
            if rng.random() < taken:
                plot.car(
                    u + 1.3,
                    row + 2.5 + rng.uniform(-0.3, 0.3),
                    rng.choice((-1, 1)) * math.pi / 2 + rng.uniform(-0.05, 0.05),
                )
        row += 11 if int((row - v0) / 5) % 3 == 0 else 5


def container(plot: Plot, u: float, v: float) -> None:
    """A shipping container or skip."""
    long = plot.rng.choice((3.5, 6.1, 6.1, 12.2))
    turn = plot.rng.choice((0, math.pi / 2)) + plot.rng.gauss(0, 0.06)
    plot.put("box", LOW, painted(plot.rng, CLUTTER), u, v, long, 2.45, plot.rng.uniform(1.5, 2.6), turn=turn)


def playground(plot: Plot, u: float, v: float) -> None:
    """Sand with climbing frames and benches; sand and gear are clutter."""
    rng, size = plot.rng, plot.rng.uniform(6, 12)
    plot.put(rng.choice(("disk", "box")), DETAIL, soil(rng, plot.season, CLUTTER), u, v, size * 1.3, size)
    for _ in range(rng.randrange(3, 8)):
        at = (u + rng.gauss(0, size / 5), v + rng.gauss(0, size / 5))
        plot.put(
            "box",
            LOW,
            painted(rng, CLUTTER),
            *at,
            rng.uniform(0.5, 3),
            rng.uniform(0.4, 1.4),
            rng.uniform(0.4, 2),
            turn=rng.uniform(0, 3),
        )
