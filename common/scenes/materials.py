"""Materials of the generated town: roofs, streets, lawns, earth, leaves, paint.

Materials of one class differ more than the classes do: roofs come in the grays of the streets, in greens and in browns,
lawns in straw and soil. A classifier that knows colors only must fail.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from common.scenes.canvas import BUILDING, CAR, IMPERVIOUS, LOW_VEGETATION, RGB, SOIL, TREE, WATER, Surface

PITCHED: list[Surface] = [
    Surface(BUILDING, (0.64, 0.37, 0.25), (0.06, 0.05, 0.04), rows=0.34, ridge=0.10),  # new tiles
    Surface(BUILDING, (0.47, 0.30, 0.24), (0.07, 0.06, 0.06), rows=0.34, ridge=0.10),  # old tiles
    Surface(BUILDING, (0.42, 0.36, 0.31), (0.08, 0.06, 0.05), rows=0.45, ridge=0.05),  # brown shingle
    Surface(BUILDING, (0.30, 0.31, 0.33), (0.06, 0.03, 0.03), rows=0.40, ridge=0.05),  # slate
    Surface(BUILDING, (0.44, 0.44, 0.44), (0.08, 0.05, 0.04), rows=0.45, ridge=0.05),  # gray shingle
    Surface(BUILDING, (0.58, 0.54, 0.48), (0.08, 0.05, 0.04), rows=0.45, ridge=0.05),  # tan shingle
    Surface(BUILDING, (0.66, 0.67, 0.67), (0.03, 0.02, 0.03), rows=0.60, ridge=0.07),  # sheet metal
    Surface(BUILDING, (0.36, 0.46, 0.40), (0.04, 0.03, 0.05), rows=0.60, ridge=0.06),  # copper
    Surface(BUILDING, (0.42, 0.38, 0.27), (0.09, 0.08, 0.08), dry=0.5, rows=0.34, ridge=0.07),  # moss on tiles
    Surface(BUILDING, (0.72, 0.47, 0.33), (0.06, 0.05, 0.05), rows=0.34, ridge=0.10),  # light tiles of the south
    Surface(BUILDING, (0.50, 0.50, 0.48), (0.05, 0.05, 0.08), rows=0.9, ridge=0.06),  # fiber cement
    Surface(BUILDING, (0.40, 0.17, 0.17), (0.05, 0.04, 0.05), rows=0.4, ridge=0.06),  # dark red tiles
    Surface(BUILDING, (0.55, 0.42, 0.34), (0.09, 0.10, 0.12), rows=0.7, ridge=0.06),  # rusty tin
    Surface(BUILDING, (0.86, 0.86, 0.85), (0.02, 0.02, 0.04), rows=0.7, ridge=0.04),  # white sheet
    Surface(BUILDING, (0.28, 0.40, 0.55), (0.04, 0.02, 0.04), rows=0.7, ridge=0.06),  # blue sheet
]
FLAT: list[Surface] = [
    Surface(BUILDING, (0.56, 0.54, 0.50), (0.09, 0.04, 0.06)),  # gravel
    Surface(BUILDING, (0.41, 0.41, 0.41), (0.06, 0.03, 0.07), rows=1.1, ridge=0.03),  # felt, gray as the streets
    Surface(BUILDING, (0.25, 0.25, 0.26), (0.05, 0.03, 0.08), rows=1.1, ridge=0.04),  # bitumen
    Surface(BUILDING, (0.82, 0.82, 0.80), (0.02, 0.02, 0.05)),  # white membrane
    Surface(BUILDING, (0.36, 0.41, 0.24), (0.11, 0.10, 0.08), dry=0.7),  # sedum
    Surface(BUILDING, (0.47, 0.42, 0.34), (0.09, 0.06, 0.10), dry=0.4),  # brown sedum
    Surface(BUILDING, (0.60, 0.62, 0.64), (0.03, 0.02, 0.04), rows=0.8, ridge=0.07),  # trapezoidal sheet
    Surface(BUILDING, (0.50, 0.36, 0.30), (0.06, 0.05, 0.10), rows=0.9, ridge=0.05),  # rust-red coating
    Surface(BUILDING, (0.86, 0.84, 0.79), (0.03, 0.04, 0.06)),  # limewashed concrete
    Surface(BUILDING, (0.70, 0.63, 0.52), (0.04, 0.05, 0.08)),  # concrete, pale as the sand
    Surface(BUILDING, (0.55, 0.54, 0.52), (0.07, 0.08, 0.12)),  # stained concrete
]
CAR_COLORS: list[RGB] = [
    (0.85, 0.85, 0.84),
    (0.62, 0.63, 0.65),
    (0.40, 0.41, 0.43),
    (0.12, 0.12, 0.13),
    (0.10, 0.10, 0.12),
    (0.48, 0.10, 0.09),
    (0.14, 0.22, 0.42),
    (0.30, 0.34, 0.30),
    (0.55, 0.48, 0.38),
    (0.16, 0.28, 0.25),
]
CONTAINER_COLORS: list[RGB] = [
    (0.55, 0.20, 0.14),
    (0.16, 0.32, 0.50),
    (0.22, 0.38, 0.26),
    (0.60, 0.58, 0.54),
    (0.70, 0.52, 0.16),
    (0.34, 0.34, 0.36),
]
GLASS = Surface(CAR, (0.10, 0.12, 0.14), (0.05, 0.0, 0.0))


@dataclass(frozen=True)
class Season:
    """The time of the year and the region, as far as plants and earth show them."""

    lush: float
    """0 = lawns are straw, 1 = green."""
    bare: float
    """Share of trees without leaves."""
    warm: float
    """Color of the earth, -1 gray to 1 red."""
    arid: float = 0.0
    """Share of the lawns in whose place there is bare ground."""
    paved: float = 0.0
    """Share of the blocks with sealed yards."""


def tint(rng: random.Random, surface: Surface, spread: float = 0.1) -> Surface:
    """The same material a little brighter or darker, warmer or colder."""
    gain, hue = math.exp(rng.gauss(0, spread)), 0.18 * spread
    red, green, blue = surface.color
    red = min(red * gain * math.exp(rng.gauss(0, hue)), 0.92)
    green = min(green * gain * math.exp(rng.gauss(0, hue)), 0.92)
    blue = min(blue * gain * math.exp(rng.gauss(0, hue)), 0.92)
    return surface._replace(color=(red, green, blue))


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """Color between two, ``share`` of the second."""
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue


def lawn(rng: random.Random, season: Season) -> Surface:
    """Grass between straw and green, mown or not; bare ground where nothing grows."""
    if rng.random() < season.arid:
        return sand(rng, season)
    green = min(max(season.lush + rng.gauss(0, 0.28), 0), 1)
    color = mix((0.49, 0.43, 0.32), (0.27, 0.36, 0.17), green)
    grain = (rng.uniform(0.06, 0.12), rng.uniform(0.03, 0.10), rng.uniform(0.03, 0.08))
    return tint(rng, Surface(LOW_VEGETATION, color, grain, dry=rng.uniform(0.3, 1.0)), 0.12)


def soil(rng: random.Random, season: Season, label: int) -> Surface:
    """Bare earth, sand or gravel."""
    color = mix((0.52, 0.48, 0.41), (0.50, 0.37, 0.27), (season.warm + rng.uniform(0, 2)) / 3)
    return tint(rng, Surface(label, color, (0.08, 0.07, 0.06), dry=0.35), 0.12)


def sand(rng: random.Random, season: Season) -> Surface:
    """Bare ground of dry places: white, yellow, gray or red."""
    pale, deep = (
        ((0.80, 0.77, 0.72), (0.62, 0.50, 0.37)) if season.warm < 0.4 else ((0.68, 0.55, 0.43), (0.52, 0.33, 0.23))
    )
    color = mix(mix(pale, deep, rng.random()), (0.6, 0.6, 0.6), rng.uniform(0, 0.4))
    grain = (rng.uniform(0.02, 0.08), rng.uniform(0.03, 0.09), rng.uniform(0.03, 0.08))
    dunes = rng.choice((0.0, 0.0, 0.0, 4.0, 9.0))
    return tint(rng, Surface(SOIL, color, grain, dry=rng.uniform(0.0, 0.4), rows=dunes, ridge=0.05), 0.1)


def water(rng: random.Random) -> Surface:
    """Open water: nearly black, green, blue or brown, calm or with waves."""
    colors = ((0.05, 0.06, 0.06), (0.07, 0.16, 0.10), (0.08, 0.15, 0.20), (0.25, 0.23, 0.17), (0.16, 0.30, 0.30))
    waves = rng.choice((0.0, 0.0, 1.5, 3.0))
    return tint(rng, Surface(WATER, rng.choice(colors), (0.03, 0.02, 0.06), rows=waves, ridge=0.05), 0.25)


def paving(rng: random.Random) -> Surface:
    """Concrete, slabs or gravel of sidewalks, drives and yards."""
    color = rng.choice(
        ((0.55, 0.54, 0.51), (0.62, 0.58, 0.52), (0.46, 0.45, 0.44), (0.50, 0.42, 0.37), (0.68, 0.67, 0.64))
    )
    rows = rng.choice((0.0, 0.0, 0.5, 1.5))
    return tint(rng, Surface(IMPERVIOUS, color, (0.06, 0.03, 0.05), rows=rows, ridge=0.03, dry=0.1))


def patio(rng: random.Random) -> Surface:
    """What people floor their yards with: concrete, gravel, and tiles in all colors of the roofs."""
    if rng.random() < 0.5:
        return paving(rng)
    floor = rng.choice(PITCHED[:2] + PITCHED[4:6] + PITCHED[9:11] + FLAT[8:])
    return tint(rng, floor._replace(label=IMPERVIOUS, rows=rng.choice((0.0, 0.0, 0.5)), ridge=0.03), 0.15)


def carriageway(rng: random.Random, rank: float = 1.0) -> Surface:
    """Asphalt, old or new; minor streets may be cobbled or gravel."""
    kind = rng.random() + (0.25 if rank > 0.6 else 0)
    if kind < 0.12:
        return tint(rng, Surface(IMPERVIOUS, (0.53, 0.47, 0.39), (0.08, 0.06, 0.06), dry=0.35))
    if kind < 0.25:
        return tint(rng, Surface(IMPERVIOUS, (0.38, 0.38, 0.37), (0.10, 0.04, 0.04), rows=0.4, ridge=0.05))
    if kind < 0.35:
        return tint(rng, Surface(IMPERVIOUS, (0.60, 0.59, 0.56), (0.04, 0.03, 0.05)))
    return tint(rng, Surface(IMPERVIOUS, mix((0.27, 0.27, 0.28), (0.47, 0.46, 0.44), rng.random()), (0.05, 0.03, 0.05)))


def marking(rng: random.Random) -> Surface:
    """Paint on a street, fresh or worn."""
    white = rng.uniform(0.55, 0.85)
    return Surface(IMPERVIOUS, (white, white, white * 0.97), (0.12, 0.08, 0.0))


def painted(rng: random.Random, label: int) -> Surface:
    """Sheet metal or plastic in a bright or dull color."""
    return tint(rng, Surface(label, rng.choice(CONTAINER_COLORS), (0.05, 0.02, 0.03), rows=0.35, ridge=0.05), 0.15)


def foliage(rng: random.Random, season: Season) -> tuple[Surface, float]:
    """Leaves of a tree, and how thin its crown is (0 = dense)."""
    if rng.random() < season.bare:
        color = mix((0.40, 0.36, 0.31), (0.33, 0.31, 0.26), rng.random())
        return tint(rng, Surface(TREE, color, (0.12, 0.06, 0.04))), rng.uniform(0.1, 0.9)
    dark, light = (0.16, 0.23, 0.10), (0.35, 0.41, 0.20)
    color = mix(dark, light, rng.random())
    if rng.random() < 0.08:
        color = rng.choice(((0.44, 0.33, 0.16), (0.30, 0.18, 0.16), (0.42, 0.41, 0.20)))
    return tint(rng, Surface(TREE, color, (0.16, 0.12, 0.05), dry=0.35)), 0.0
