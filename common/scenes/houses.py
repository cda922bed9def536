"""Blocks of detached and terraced houses: lots with drives and garages, and what people keep in their gardens."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from common.scenes.canvas import CLUTTER, LOW_VEGETATION, Surface
from common.scenes.materials import FLAT, PITCHED, foliage, lawn, mix, painted, patio, paving, sand, soil, tint
from common.scenes.plots import CROWN, DETAIL, GROUND, LOW, YARD, Plot, pool


def houses(plot: Plot) -> None:
    """Detached and terraced houses with front and back gardens."""
    rng = plot.rng
    plot.patch(GROUND, lawn(rng, plot.season), plot.u0, plot.v0, plot.u1, plot.v1)
    depth = plot.size[1] / 2
    terraced, setback = rng.random() < 0.2, rng.uniform(2.5, 6.5)
    style, roof = rng.choice(("gable", "gable", "hip", "flat")), rng.choice(PITCHED)
    size = 1.0 if terraced else rng.choice((1.0, 1.0, 1.3, 1.6))  # of houses, as wealthy as the quarter
    walled = _limewashed(rng) if rng.random() < 0.3 else None
    for side in (1, -1):
        edge = plot.v0 if side > 0 else plot.v1
        u = plot.u0 + (0.0 if terraced else rng.uniform(0, 3))
        while u < plot.u1 - 9:
            width = min(rng.uniform(7, 9) if terraced else rng.uniform(14, 23) * size**0.6, plot.u1 - u)
            if not terraced and rng.random() < 0.6:
                style, roof = rng.choice(("gable", "gable", "hip", "flat")), rng.choice(PITCHED)
            lot = (u, edge, u + width, edge + side * depth)
            if walled is None or rng.random() < 0.8:
                _lot(plot, u, width, edge, side, depth, setback, terraced, size, style, roof, walled is not None)
            else:
                plot.patch(YARD, rng.choice((patio(rng), sand(rng, plot.season))), *lot)
            if walled is not None:
                _walls(plot, walled, *lot)
            u += width


def dense(plot: Plot) -> None:
    """Small houses wall to wall, added to over the years: every part with a roof of its own, yards between."""
    rng = plot.rng
    yard = rng.choice((paving, lambda r: sand(r, plot.season), lambda r: lawn(r, plot.season)))
    plot.patch(GROUND, yard(rng), plot.u0, plot.v0, plot.u1, plot.v1)
    roofs = rng.sample(PITCHED, 4) + rng.sample(FLAT, 3)
    rows = max(2, round(plot.size[1] / rng.uniform(11, 17)))
    deep = plot.size[1] / rows
    walled = _limewashed(rng) if rng.random() < 0.5 else None
    for row in range(rows):
        u = plot.u0
        while u < plot.u1 - 6:
            wide = min(rng.uniform(6.5, 14), plot.u1 - u)
            lot = (u, plot.v0 + row * deep, u + wide, plot.v0 + (row + 1) * deep)
            if rng.random() < 0.5:
                plot.patch(YARD, yard(rng), *lot)
            if walled is not None:
                _floor(plot, *lot)
                _walls(plot, walled, *lot)
            _grown(plot, u + wide / 2, plot.v0 + (row + 0.5) * deep, wide, deep, roofs)
            u += wide
    plot.trees(rng.randrange(16), 0.8, 3.0)


def _limewashed(rng: random.Random) -> Surface:
    """What the walls of a quarter are made of."""
    color = mix((0.82, 0.80, 0.75), (0.45, 0.36, 0.30), rng.random())
    return tint(rng, Surface(CLUTTER, color, (0.06, 0.05, 0.05)), 0.1)


def _walls(plot: Plot, made: Surface, u0: float, v0: float, u1: float, v1: float) -> None:
    """Walls around a lot, here and there with a gap."""
    rng, high = plot.rng, plot.rng.uniform(1.5, 2.7)
    u, v, long, deep = (u0 + u1) / 2, (v0 + v1) / 2, abs(u1 - u0), abs(v1 - v0)
    for at, length, turn in (((u, v0), long, 0.0), ((u, v1), long, 0.0), ((u0, v), deep, 0.5), ((u1, v), deep, 0.5)):
        if rng.random() < 0.8:
            made = tint(rng, made, 0.05)
            plot.put("box", LOW, made, *at, length * rng.choice((1, 1, 0.8)), rng.uniform(0.3, 0.5), high,
                     turn=turn * math.pi)  # fmt: skip


def _floor(plot: Plot, u0: float, v0: float, u1: float, v1: float) -> None:
    """Yards floored in parts, each with something else."""
    rng = plot.rng
    for _ in range(rng.randrange(4)):
        low_u, high_u = sorted((rng.uniform(u0, u1), rng.choice((u0, u1))))
        low_v, high_v = sorted((rng.uniform(v0, v1), rng.choice((v0, v1))))
        plot.patch(YARD, patio(rng), low_u, low_v, high_u, high_v)


def _grown(plot: Plot, u: float, v: float, wide: float, deep: float, roofs: list[Surface]) -> None:
    """One lot of `dense`: a house of one to four parts, and what stands in the yard."""
    rng = plot.rng
    if rng.random() < 0.08:
        return
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4))):
        long, broad = wide * rng.uniform(0.35, 0.98), deep * rng.uniform(0.3, 0.85)
        roof = rng.choice(roofs)
        style = "flat" if roof in FLAT else rng.choice(("gable", "gable", "hip", "flat"))
        du, dv = (wide - long) / 2 * rng.uniform(-1, 1), (deep - broad) / 2 * rng.uniform(-1, 1)
        plot.building(u + du, v + dv, long, broad, rng.choice((0.9, 1.0, 1.0, 1.3, 2.0)), style, tint(rng, roof, 0.12))
    if rng.random() < 0.2:
        plot.car(u + rng.uniform(-0.4, 0.4) * wide, v + rng.choice((-0.42, 0.42)) * deep, math.pi / 2)
    if rng.random() < 0.1 and wide > 9:
        pool(plot, u + 0.2 * wide, v + 0.3 * deep)
    if rng.random() < 0.3:
        at = (u + rng.uniform(-0.4, 0.4) * wide, v + rng.uniform(-0.4, 0.4) * deep)
        plot.put("box", LOW, painted(rng, CLUTTER), *at, rng.uniform(0.8, 2.5), rng.uniform(0.7, 1.5), 1.0)


def _lot(
    plot: Plot,
    u: float,
    width: float,
    edge: float,
    side: int,
    depth: float,
    setback: float,
    terraced: bool,
    size: float,
    style: str,
    roof: Surface,
    floored: bool,
) -> None:
    """One house with its garden; ``side`` is the direction of v from the street at ``edge``."""
    rng, middle = plot.rng, u + width / 2
    plot.patch(YARD, lawn(rng, plot.season), u, edge, u + width, edge + side * depth)
    if floored:
        _floor(plot, u, edge, u + width, edge + side * depth)
    long = width if terraced else min(rng.uniform(8.5, 13) * size, width - 4.5)
    deep, floors = min(rng.uniform(7.5, 11) * size**0.7, depth - setback - 3), rng.choice((1.0, 1.0, 1.6, 2.0))
    front = setback if terraced else setback + rng.uniform(-1, 2)
    v = edge + side * (front + deep / 2)
    at = middle if terraced else u + 0.7 + long / 2 if rng.random() < 0.5 else u + width - 0.7 - long / 2
    covering = tint(rng, rng.choice(FLAT) if style == "flat" else roof, 0.15)
    plot.building(at, v, long, deep, floors, style, covering)
    if not terraced:
        free = u + width - (width - long - 0.7) / 2 if at < middle else u + (width - long - 0.7) / 2
        plot.put("box", YARD, paving(rng), free, edge + side * (front + 3) / 2, front + 3, 3.0, turn=math.pi / 2)
        if rng.random() < 0.5:
            plot.building(free, edge + side * (front + 5), 3.1, 6.0, 0.9, "flat", tint(rng, rng.choice(FLAT)))
        if rng.random() < 0.4:
            plot.car(free, edge + side * max(front - 2.2, 1.5), math.pi / 2)
        if rng.random() < 0.45:
            wing, reach = rng.uniform(4, 7) * size, rng.choice((-1, 1, 1)) * (deep / 2 + 1.5)
            aside = at + rng.uniform(-0.5, 0.5) * (long - wing)
            plot.building(aside, v + side * reach, wing, wing, max(floors - 0.3, 0.9), style, covering)
    plot.put("box", YARD, paving(rng), at, edge + side * front / 2, front, 1.3, turn=math.pi / 2)
    pools = 0.4 if floored or size > 1 else 0.12
    _garden(plot, u, width, edge + side * (front + deep), edge + side * depth, pools)


def _garden(plot: Plot, u: float, width: float, near: float, far: float, pools: float) -> None:
    """Terrace, shed, beds, hedges, trees and, as often as said, a pool between v = ``near`` and ``far``."""
    rng, middle, length = plot.rng, u + width / 2, abs(far - near)
    if length < 4:
        return

    def spot(inset: float) -> tuple[float, float]:
        room = min(inset, width / 2.2, length / 2.2)
        return u + rng.uniform(room, width - room), near + (far - near) * rng.uniform(room, length - room) / length

    if rng.random() < 0.6:
        plot.put("box", DETAIL, paving(rng), middle, near + (far - near) / length * 1.4, rng.uniform(3, 6), 2.8)
    if rng.random() < 0.35:
        bed = soil(rng, plot.season, LOW_VEGETATION)._replace(rows=rng.choice((0.0, 0.9)), ridge=0.14)
        plot.put("box", DETAIL, bed, *spot(3), rng.uniform(2, 6), rng.uniform(2, 4), turn=rng.choice((0, math.pi / 2)))
    if rng.random() < pools and width > 10:
        pool(plot, *spot(4))
    if rng.random() < 0.35:
        u_shed, v_shed = spot(2)
        plot.building(
            u_shed, v_shed, rng.uniform(2.2, 4), rng.uniform(2, 3), 0.8, "flat", tint(rng, rng.choice(FLAT + PITCHED))
        )
    if rng.random() < 0.2:
        toy = Surface(CLUTTER, (0.13, 0.14, 0.17))
        at = spot(2.5)
        plot.put("disk", LOW, painted(rng, CLUTTER), *at, 3.6, 3.6, 0.7)
        plot.put("disk", LOW, toy, *at, 2.9, 2.9, 0.7)
    for _ in range(rng.choice((0, 0, 1, 3))):
        plot.put(
            "box",
            LOW,
            painted(rng, CLUTTER),
            *spot(1.5),
            rng.uniform(0.8, 2.6),
            rng.uniform(0.7, 1.6),
            0.8,
            turn=rng.uniform(0, 3),
        )
    if rng.random() < 0.45:
        leaves, _ = foliage(rng, replace(plot.season, bare=0.0))
        plot.put(
            "hedge", CROWN, leaves, u + 0.3, (near + far) / 2, length, rng.uniform(0.9, 1.6), 1.8, turn=math.pi / 2
        )
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5))):
        plot.tree(*spot(1.5), rng.uniform(1.0, 4.2))
