"""The life of generated HeLa nuclei: where they are, how they move, and what they look like as they divide.

Figures were measured on the challenge's Fluo-N2DL-HeLa frames, half an hour apart: nuclei of about 500 px in colonies
of similar brightness that move some 2 px a frame. Divisions are twice as frequent as there, so that short sequences
have some.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

MARGIN = 48
"""Width in pixels of the unseen field around the frame."""
TEXTURE_SIZE = 256
"""Side in pixels of the texture that all nuclei take their grain from."""


@dataclass(frozen=True)
class Shape:
    """What makes a nucleus look like itself for life."""

    radius: float
    """Radius in pixels of the circle of the same area, when it is full grown."""
    elongation: float
    """Short axis over long axis."""
    ripple: Floats
    """(6, 2) amplitude and phase of the outline's harmonics 3 to 8."""
    nucleoli: Floats
    """(3, 3) position along both axes relative to the radius, and depth, of the dark spots."""
    grain: tuple[int, int]
    """Where its piece of the shared chromatin texture begins."""

    @classmethod
    def draw(cls, rng: np.random.Generator, giant: bool = False) -> Shape:
        """Draw one at random; giants are twice as large and lobed."""
        ripple = rng.normal(0, (0.034, 0.03, 0.025, 0.019, 0.015, 0.011)) * (1.4 if giant else 1.0)
        return cls(
            radius=float(np.clip(rng.normal(13.4, 1.3), 10.5, 17)) * (1.45 if giant else 1.0),
            elongation=float(np.clip(rng.normal(0.78, 0.1), 0.52, 1)),
            ripple=np.stack([ripple, rng.uniform(0, 2 * np.pi, 6)], axis=1).astype(np.float32),
            nucleoli=np.stack([*rng.normal(0, 0.33, (2, 3)), rng.uniform(0, 0.3, 3)], axis=1).astype(np.float32),
            grain=(int(rng.integers(TEXTURE_SIZE)), int(rng.integers(TEXTURE_SIZE))),
        )


@dataclass
class Nucleus:
    """One nucleus: where it is, what it looks like, and how far it is from dividing."""

    y: float
    x: float
    angle: float
    shape: Shape
    brightness: float
    """Counts above the background at the center, in interphase."""
    motility: float
    """Standard deviation of a step, pixels per frame and axis."""
    spacing: float
    """Distance it keeps from others, relative to the sum of radii; below 1 they touch."""
    countdown: int
    """Frames until it divides."""
    age: int = 99
    """Frames since it was born."""
    side: float = 0.0
    """Side of the mother's plate it was born on, 1 or -1."""
    mother: int = 0
    """Track of the mother in the frame before birth, 0 if she was not seen."""
    track: int = 0
    """Current track, 0 while it is not seen."""


@dataclass(frozen=True)
class Look:
    """What a nucleus looks like at its stage of the cell cycle."""

    along: float
    """Half axis in pixels along ``angle``."""
    across: float
    light: float
    """Peak in counts above the background."""
    texture: float
    """Contrast of chromatin and nucleoli relative to interphase."""
    power: float = 2.0
    """Exponent of the outline: 2 an ellipse, above it more and more of a bar."""


def look_of(nucleus: Nucleus) -> Look:
    """Stages: condensed prophase, bright metaphase plate, daughters that are bars first, then round up and grow."""
    if nucleus.countdown == 1:
        return Look(13.2, 6.4, 1200 + 2.2 * nucleus.brightness, 0.6, 3.5)
    if nucleus.age == 0:
        return Look(10.8, 5.6, 1000 + 1.8 * nucleus.brightness, 0.6, 3.5)
    if nucleus.age == 1:
        return Look(10.2, 7.2, 150 + 1.4 * nucleus.brightness, 0.6, 2.5)
    growth = min(1.0, 0.76 + 0.06 * (nucleus.age - 2))
    radius, light, texture = nucleus.shape.radius * growth, nucleus.brightness * (1.6 - 0.6 * growth), 1.0
    if nucleus.countdown == 2:
        radius, light, texture = radius * 0.92, 1.4 * light, 1.7
    root = nucleus.shape.elongation**0.5
    return Look(radius / root, radius * root, light, texture)


class Colony:
    """The living nuclei of one sequence, on a field that reaches ``MARGIN`` pixels beyond the frame on every side."""

    def __init__(self, rng: np.random.Generator, height: float, width: float, nuclei: int) -> None:
        self.rng = rng
        self.size = np.array([height, width], dtype=float)
        field = self.size + 2 * MARGIN
        total = round(nuclei * field.prod() / self.size.prod())
        centers = rng.uniform(-MARGIN, self.size + MARGIN, size=(max(1, total // 9), 2))
        glow = np.clip(rng.normal(860, 340, len(centers)), 120, 1700)
        self.nuclei = [self._new(centers[home], float(glow[home])) for home in rng.integers(len(centers), size=total)]
        for nucleus in self.nuclei[: total // 3]:  # a third has wandered off
            nucleus.y, nucleus.x = rng.uniform(-MARGIN, self.size + MARGIN).tolist()
        for _ in range(40):
            self._make_room()

    def _new(self, center: NDArray[np.float64], glow: float) -> Nucleus:
        rng = self.rng
        y, x = np.clip(center + rng.normal(0, 52, 2), -MARGIN, self.size + MARGIN)
        giant = rng.random() < 0.03
        light = glow * rng.lognormal(0, 0.22) * (1.3 if giant else 1.0)
        if rng.random() < 0.1:
            light = rng.uniform(35, 200)  # faint ones lie out of focus
        return Nucleus(
            y=float(y),
            x=float(x),
            angle=float(rng.uniform(0, np.pi)),
            shape=Shape.draw(rng, giant),
            brightness=float(light),
            motility=float(1.5 * rng.lognormal(0, 0.4)),
            spacing=float(rng.choice([0.9, 1.15, 1.35], p=[0.1, 0.25, 0.65])),
            countdown=int(rng.integers(1, 60)),
        )

    def step(self) -> None:
        """Let one frame interval pass: everything moves, ages and perhaps divides."""
        living: list[Nucleus] = []
        for nucleus in self.nuclei:
            nucleus.countdown -= 1
            nucleus.age += 1
            if nucleus.countdown <= 0:
                living += self._divide(nucleus)
            else:
                self._move(nucleus)
                living.append(nucleus)
        self.nuclei = living
        self._make_room()

    def _move(self, nucleus: Nucleus) -> None:
        dy, dx, turn = self.rng.normal(0, (nucleus.motility, nucleus.motility, 0.06))
        nucleus.y, nucleus.x = np.clip((nucleus.y + dy, nucleus.x + dx), -MARGIN, self.size + MARGIN).tolist()
        nucleus.angle += float(turn)
        nucleus.brightness *= float(self.rng.lognormal(0, 0.03))
        if nucleus.age == 1:  # sisters draw apart
            _shift(nucleus, 5.0 * nucleus.side)

    def _divide(self, mother: Nucleus) -> list[Nucleus]:
        """Two bars parallel to the mother's plate, one on either side of it."""
        daughters = []
        for side in (-1.0, 1.0):
            daughter = replace(
                mother,
                shape=Shape.draw(self.rng),
                brightness=mother.brightness * float(self.rng.lognormal(0, 0.08)),
                countdown=int(self.rng.integers(30, 60)),
                age=0,
                side=side,
                mother=mother.track,
                track=0,
            )
            _shift(daughter, 8.0 * side)
            daughters.append(daughter)
        return daughters

    def _make_room(self) -> None:
        """Push apart what is closer than it likes to be, half of the way per call."""
        position = np.array([(n.y, n.x) for n in self.nuclei]).reshape(-1, 2)
        radius = np.array([n.shape.radius * (0.6 if n.age < 2 else 0.8 if n.age < 5 else 1.0) for n in self.nuclei])
        spacing = np.array([n.spacing for n in self.nuclei])
        offset = position[:, None] - position[None, :]
        distance = np.maximum(np.linalg.norm(offset, axis=2), 1e-3)
        wanted = np.minimum(spacing[:, None], spacing[None, :]) * (radius[:, None] + radius[None, :])
        push = np.clip(wanted - distance, 0, None) / 4
        np.fill_diagonal(push, 0)
        position += (offset / distance[:, :, None] * push[:, :, None]).sum(axis=1)
        for nucleus, (y, x) in zip(self.nuclei, position.tolist(), strict=True):
            nucleus.y, nucleus.x = y, x


def _shift(nucleus: Nucleus, distance: float) -> None:
    """Move a nucleus across its long axis."""
    nucleus.y += distance * float(np.cos(nucleus.angle))
    nucleus.x -= distance * float(np.sin(nucleus.angle))
