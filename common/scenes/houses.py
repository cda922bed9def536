"""Blocks of detached and terraced houses: lots with drives and garages, and what people keep in their gardens."""

from __future__ import annotations

import math
from dataclasses import replace

from common.scenes.canvas import CLUTTER, LOW_VEGETATION, Surface
from common.scenes.materials import FLAT, PITCHED, foliage, lawn, painted, paving, soil, tint
from common.scenes.plots import CROWN, DETAIL, GROUND, LOW, YARD, Plot, pool


def houses(plot: Plot) -> None:
    """Detached and terraced houses with front and back gardens."""
    rng = plot.rng
    plot.patch(GROUND, lawn(rng, plot.season), plot.u0, plot.v0, plot.u1, plot.v1)
    depth = plot.size[1] / 2
    terraced, setback = rng.random() < 0.2, rng.uniform(2.5, 6.5)
    style, roof = rng.choice(("gable", "gable", "hip", "flat")), rng.choice(PITCHED)
    for side in (1, -1):
        edge = plot.v0 if side > 0 else plot.v1
        u = plot.u0 + (0.0 if terraced else rng.uniform(0, 3))
        while u < plot.u1 - 9:
            width = min(rng.uniform(7, 9) if terraced else rng.uniform(14, 23), plot.u1 - u)
            if not terraced and rng.random() < 0.6:
                style, roof = rng.choice(("gable", "gable", "hip", "flat")), rng.choice(PITCHED)
            _lot(plot, u, width, edge, side, depth, setback, terraced, style, roof)
            u += width


def _lot(
    plot: Plot,
    u: float,
    width: float,
    edge: float,
    side: int,
    depth: float,
    setback: float,
    terraced: bool,
    style: str,
    roof: Surface,
) -> None:
    """One house with its garden; ``side`` is the direction of v from the street at ``edge``."""
    rng, middle = plot.rng, u + width / 2
    plot.patch(YARD, lawn(rng, plot.season), u, edge, u + width, edge + side * depth)
    long = width if terraced else min(rng.uniform(8.5, 13), width - 4.5)
    deep, floors = rng.uniform(7.5, 11), rng.choice((1.0, 1.0, 1.6, 2.0))
    front = setback if terraced else setback + rng.uniform(-1, 2)
    v = edge + side * (front + deep / 2)
    at = middle if terraced else u + 0.7 + long / 2 if rng.random() < 0.5 else u + width - 0.7 - long / 2
    covering = tint(rng, rng.choice(FLAT) if style == "flat" else roof, 0.08)
    plot.building(at, v, long, deep, floors, style, covering)
    if not terraced:
        free = u + width - (width - long - 0.7) / 2 if at < middle else u + (width - long - 0.7) / 2
        plot.put("box", YARD, paving(rng), free, edge + side * (front + 3) / 2, front + 3, 3.0, turn=math.pi / 2)
        if rng.random() < 0.5:
            plot.building(free, edge + side * (front + 5), 3.1, 6.0, 0.9, "flat", tint(rng, rng.choice(FLAT)))
        if rng.random() < 0.4:
            plot.car(free, edge + side * max(front - 2.2, 1.5), math.pi / 2)
        if rng.random() < 0.25:
            wing = rng.uniform(4, 6)
            plot.building(at, v + side * (deep / 2 + 1.5), wing, wing, max(floors - 0.3, 0.9), style, covering)
    plot.put("box", YARD, paving(rng), at, edge + side * front / 2, front, 1.3, turn=math.pi / 2)
    _garden(plot, u, width, edge + side * (front + deep), edge + side * depth)


def _garden(plot: Plot, u: float, width: float, near: float, far: float) -> None:
    """Terrace, shed, pool, beds, hedges and trees between v = ``near`` and ``far``."""
    rng, middle, length = plot.rng, u + width / 2, abs(far - near)
    if length < 4:
        return

    def spot(inset: float) -> tuple[float, float]:
        room = min(inset, width / 2.2, length / 2.2)
        return u + rng.uniform(room, width - room), near + (far - near) * rng.uniform(room, length - room) / length

    if rng.random() < 0.6:
        plot.put("box", DETAIL, paving(rng), middle, near + (far - near) / length * 1.4, rng.uniform(3, 6), 2.8)
    if rng.random() < 0.35:
        bed = replace(soil(rng, plot.season, LOW_VEGETATION), rows=rng.choice((0.0, 0.9)), ridge=0.14)
        plot.put("box", DETAIL, bed, *spot(3), rng.uniform(2, 6), rng.uniform(2, 4), turn=rng.choice((0, math.pi / 2)))
    if rng.random() < 0.16 and width > 10:
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
