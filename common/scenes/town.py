"""The plan of the generated town: streets, the blocks between them, and what kind of place each block is.

The plan is a jittered grid in plan coordinates (u, v); ``Town.place`` bends and turns it into the world's x and y, so
that streets curve and run in any direction. Everything follows from the seed and the indices of a block, so that the
town has no end and no part of it depends on which other part was looked at.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import attrgetter

from common.scenes import blocks, country, materials, sites
from common.scenes.canvas import BUILDING, CLUTTER, IMPERVIOUS, SOIL, UNDEFINED, Outline, Surface, Thing
from common.scenes.houses import dense, houses
from common.scenes.materials import Season
from common.scenes.plots import Plot

HIGHEST = 17.0
"""Nothing stands higher, metres: it bounds the length of shadows."""
PITCH = (82.0, 64.0)
"""Mean distance of the streets along u and v, metres, in most towns."""
BEND = (9.0, 55.0)
"""Amplitude and wavelength / 2 pi of the streets' curves, metres."""
NEAR = 90.0
"""Nothing of a block, its streets and trees lies farther from its middle along x or y there, metres."""
UNMAPPED = Surface(UNDEFINED, (0, 0, 0))

Item = Thing | Outline


@dataclass(frozen=True)
class Street:
    """One street of the grid."""

    place: float
    """Its u or v, metres."""
    half: float
    """Half the width of the carriageway."""
    walk: float
    """Width of each sidewalk."""
    carriageway: Surface
    sidewalk: Surface
    marked: bool
    """Whether there are lane markings."""
    parking: float
    """Share of the curb that parked cars take."""
    trees: float
    """Distance of street trees, 0 = none."""

    @property
    def reach(self) -> float:
        """Distance from the middle to the materials."""
        return self.half + self.walk


@dataclass
class Town:
    """The plan of one town; ``seed`` fixes all of it.

    With ``varied`` it may be a town of any region: wide blocks with large halls, desert with dirt tracks, sealed yards
    that look like roofs, ground and roofs in each other's colors, told apart by shape and shadow alone; and with the
    country around it (``country``).
    """

    seed: int
    varied: bool = False
    season: Season = field(init=False)
    ground: Surface = field(init=False)
    pitch: tuple[float, float] = field(init=False)
    """Mean distance of its streets along u and v, metres."""
    near: float = field(init=False)
    """Nothing of a block, its streets and trees lies farther from its middle along x or y, metres."""

    def __post_init__(self) -> None:
        """Draw what is common to the whole town."""
        rng = random.Random(f"town/{self.seed}")
        self.season = Season(
            lush=rng.random(),
            bare=rng.choice((0.0, 0.05, 0.2, 0.8)),
            warm=rng.uniform(-1, 1),
            arid=rng.uniform(0.4, 1.0) if rng.random() < 0.3 else rng.uniform(0.0, 0.12),
        )
        self.ground = materials.lawn(rng, self.season)
        stretch, self._dyed = 1.0, 0.0
        if self.varied:
            stretch, self._dyed = rng.choice((0.8, 1.0, 1.0, 1.3, 2.0)), rng.choice((0.0, 0.2, 0.5))
            arid = rng.choice((self.season.arid, rng.uniform(0.5, 1.0)))
            self.season = replace(self.season, arid=arid, paved=rng.choice((0.0, 0.3, 0.8)))
        self.pitch, self.near = (PITCH[0] * stretch, PITCH[1] * stretch), NEAR * max(1.0, stretch)
        self._kinds = (*KINDS, *COUNTRY) if self.varied else KINDS
        self._turn = rng.uniform(0, math.pi)
        self._cosine, self._sine = math.cos(self._turn), math.sin(self._turn)
        self._phase = (rng.uniform(0, 6.3), rng.uniform(0, 6.3))
        self._flavor = [
            rng.uniform(0.15, 1.0) ** 2 * weight * (3 * self.season.arid + 0.3 if build is blocks.waste else 1)
            for weight, build in self._kinds
        ]
        self._street = lru_cache(maxsize=1024)(self._build_street)
        self._cell = lru_cache(maxsize=512)(self._build_cell)

    def place(self, u: float, v: float) -> tuple[float, float]:
        """The world's (x, y) of a point of the plan, metres."""
        amplitude, wave = BEND
        bent_u = u + amplitude * math.sin(v / wave + self._phase[0])
        bent_v = v + amplitude * math.sin(u / (1.3 * wave) + self._phase[1])
        return bent_u * self._cosine - bent_v * self._sine, bent_u * self._sine + bent_v * self._cosine

    def heading(self, u: float, v: float) -> float:
        """Direction of the u axis at a point of the plan, radians from x towards y."""
        amplitude, wave = BEND
        along = amplitude / (1.3 * wave) * math.cos(u / (1.3 * wave) + self._phase[1])
        across = -amplitude / wave * math.cos(v / wave + self._phase[0])
        return self._turn + math.atan(0.5 * (along + across))

    def view(self, x0: float, y0: float, x1: float, y1: float) -> list[Item]:
        """All that may be seen in a rectangle of the world, in the order of drawing."""
        cosine, sine = self._cosine, self._sine
        corners = [(x * cosine + y * sine, y * cosine - x * sine) for x in (x0, x1) for y in (y0, y1)]
        slack = BEND[0] + 10
        first_i, last_i, first_j, last_j = (
            int(math.floor((bound(corner[axis] for corner in corners) + sign * slack) / self.pitch[axis]) + more)
            for axis in (0, 1)
            for bound, sign, more in ((min, -1, -1), (max, 1, 1))
        )
        items: list[Item] = []
        for i in range(first_i, last_i + 1):
            for j in range(first_j, last_j + 1):
                x, y = self.place((i + 0.5) * self.pitch[0], (j + 0.5) * self.pitch[1])
                if x0 - self.near < x < x1 + self.near and y0 - self.near < y < y1 + self.near:
                    items += self._cell(i, j)
        return sorted(items, key=attrgetter("layer"))

    def _build_street(self, axis: int, number: int) -> Street:
        """The street with a number along u (axis 0: it runs along v) or v."""
        rng = random.Random(f"{self.seed}/street/{axis}/{number}")
        rank = rng.random()
        track = self.varied and rng.random() < 0.5 * self.season.arid
        half = rng.uniform(2.4, 3.2) if rank < 0.5 else rng.uniform(3.4, 4.4) if rank < 0.85 else rng.uniform(5.5, 7.5)
        return Street(
            place=(number + rng.uniform(-0.16, 0.16)) * self.pitch[axis],
            half=half,
            walk=rng.uniform(1.4, 2.6) + (1.2 if rank > 0.6 else 0),
            carriageway=materials.sand(rng, self.season) if track else materials.carriageway(rng, rank),
            sidewalk=materials.paving(rng) if rng.random() < 0.75 and not track else materials.lawn(rng, self.season),
            marked=rank > 0.6 and not track,
            parking=rng.choice((0.0, 0.15, 0.35, 0.6)),
            trees=rng.choice((0.0, 0.0, 8.0, 13.0)),
        )

    def _build_cell(self, i: int, j: int) -> list[Item]:
        """The block (i, j) with the streets on its low sides."""
        rng = random.Random(f"{self.seed}/block/{i}/{j}")
        west, east = self._street(0, i), self._street(0, i + 1)
        north, south = self._street(1, j), self._street(1, j + 1)
        plot = Plot(
            rng,
            self.season,
            self.place,
            self.heading,
            west.place + west.reach,
            north.place + north.reach,
            east.place - east.reach,
            south.place - south.reach,
        )
        kind = rng.choices([build for _, build in self._kinds], self._flavor_of(i, j))[0]
        kind(plot)
        outside = kind in [build for _, build in COUNTRY]
        if not outside and rng.random() < self.season.paved:
            blocks.yards(plot)
        if not outside or rng.random() < 0.3:
            self._lay_street(plot, west, 0, north.place, south.place)
            self._lay_street(plot, north, 1, west.place, east.place)
        if rng.random() < 0.06:
            u, v, size = rng.uniform(plot.u0, plot.u1), rng.uniform(plot.v0, plot.v1), rng.uniform(4, 11)
            plot.patch(9, UNMAPPED, u - size, v - size * rng.uniform(0.4, 1), u + size, v + size * rng.uniform(0.4, 1))
        return [self._dye(rng, item) for item in plot.items] if self._dyed else plot.items

    def _dye(self, rng: random.Random, item: Item) -> Item:
        """An item in the color that something else has, now and then."""
        surface = item.surface
        if surface.label not in (IMPERVIOUS, BUILDING, SOIL) or rng.random() >= self._dyed:
            return item
        other = rng.choice(
            (*materials.PITCHED, *materials.FLAT, materials.paving(rng), materials.sand(rng, self.season))
        )
        return item._replace(surface=materials.tint(rng, surface._replace(color=other.color), 0.3))

    def _flavor_of(self, i: int, j: int) -> list[float]:
        """Weights of the kinds of block: the town's own, and those of a quarter of 3 x 3 blocks."""
        rng = random.Random(f"{self.seed}/quarter/{i // 3}/{j // 3}")
        return [weight * rng.choice((0.3, 1.0, 3.0)) for weight in self._flavor]

    def _lay_street(self, plot: Plot, street: Street, axis: int, start: float, end: float) -> None:
        """One street between two crossings, with markings, repairs, cars and trees."""
        rng = plot.rng
        if street.half < 3.3 and rng.random() < 0.2:
            return  # here the blocks on both sides meet

        def at(along: float, aside: float) -> tuple[float, float]:
            return (street.place + aside, along) if axis == 0 else (along, street.place + aside)

        length = end - start
        turn = math.pi / 2 if axis == 0 else 0.0
        plot.line(1, street.sidewalk, [at(start, 0), at(end, 0)], 2 * street.reach)
        plot.line(2, street.carriageway, [at(start, 0), at(end, 0)], 2 * street.half)
        if street.marked:
            paint, dash = materials.marking(rng), rng.uniform(3, 5)
            for step in range(int((length - 16) / (2 * dash))):
                place = start + 8 + 2 * dash * step
                plot.line(3, paint, [at(place, 0), at(place + dash, 0)], 0.15)
            if rng.random() < 0.5:
                for stripe in range(int(2 * street.half)):
                    aside = stripe + 0.5 - street.half
                    plot.line(3, paint, [at(start + 9, aside), at(start + 12, aside)], 0.45)
        for _ in range(rng.randrange(4)):
            repair = materials.tint(rng, street.carriageway, 0.18)
            u, v = at(start + rng.uniform(5, length - 5), rng.uniform(-1, 1) * (street.half - 1.2))
            plot.put("box", 3, repair, u, v, rng.uniform(1, 12), rng.uniform(0.6, 2.2), turn=turn)
        if rng.random() < 0.4:
            u, v = at(start + rng.uniform(9, length - 5), 0.5)
            plot.put("disk", 3, Surface(IMPERVIOUS, (0.3, 0.3, 0.29)), u, v, 0.8, 0.8)
        for side in (-1, 1):
            self._line_curb(plot, street, at, side, start, end, turn)
        for _ in range(rng.choice((0, 0, 1, 2)) if street.half > 2.8 else 0):
            u, v = at(start + rng.uniform(8, length - 8), rng.choice((-0.5, 0.5)) * (street.half - 0.6))
            plot.car(u, v, turn + rng.uniform(-0.04, 0.04), layer=6)

    def _line_curb(
        self,
        plot: Plot,
        street: Street,
        at: Callable[[float, float], tuple[float, float]],
        side: int,
        start: float,
        end: float,
        turn: float,
    ) -> None:
        """Parked cars, trees and bins along one side of a street."""
        rng, place = plot.rng, start + rng_start(plot.rng)
        while place < end - 9:
            if rng.random() < street.parking:
                u, v = at(place, side * (street.half - 1.05 + rng.uniform(-0.1, 0.15)))
                plot.car(u, v, turn + rng.uniform(-0.03, 0.03) + (math.pi if rng.random() < 0.5 else 0), layer=6)
            elif rng.random() < 0.03:
                u, v = at(place, side * (street.half + street.walk / 2))
                plot.put("box", 6, materials.painted(rng, CLUTTER), u, v, rng.uniform(0.8, 2.5), 0.9, 1.2, turn=turn)
            place += rng.uniform(5.4, 6.4)
        if street.trees:
            place = start + rng_start(rng)
            while place < end - 8:
                u, v = at(place, side * (street.reach - 0.9))
                plot.tree(u, v, rng.uniform(1.3, 3.2))
                place += street.trees * rng.uniform(0.7, 1.5)


def rng_start(rng: random.Random) -> float:
    """Distance that is kept from a crossing, metres."""
    return rng.uniform(9, 13)


KINDS: list[tuple[float, Callable[[Plot], None]]] = [
    (3.6, houses),
    (2.0, blocks.perimeter),
    (1.6, blocks.slabs),
    (1.6, blocks.halls),
    (1.0, blocks.park),
    (0.5, blocks.forest),
    (0.6, blocks.field),
    (0.7, blocks.building_site),
    (0.5, blocks.sports),
    (1.4, dense),
    (1.6, blocks.waste),
    (0.7, blocks.lake),
]
"""The kinds of block with their mean weights."""
COUNTRY: list[tuple[float, Callable[[Plot], None]]] = [
    (1.2, country.country_road),
    (1.0, country.highway),
    (0.7, country.roundabout),
    (0.9, country.scrub),
    (1.2, country.desert),
    (0.7, country.coast),
    (1.6, sites.works),
    (1.8, sites.earthworks),
    (1.2, sites.grounds),
    (1.2, sites.campus),
    (1.4, sites.factory),
]
"""Those that varied towns have besides."""
