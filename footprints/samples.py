"""Training crops and validation tiles. Image and classes are mirrored beyond a scene's edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from common.data.augmentation import (
    Augmentation,
    Matrix,
    Pixels,
    Place,
    affine_map,
    blur_and_noise,
    color_map,
    cut,
    middle,
    near,
    to_tensor,
)
from common.data.sampling import Key
from common.images.ranges import to_unit
from common.inference.predictor import rescale
from footprints.data import SceneSet, Tile

NORMALIZATIONS = {
    "source": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
    "aerial": {"mean": [0.45, 0.45, 0.43], "std": [0.22, 0.20, 0.20]},
}
"""The source's images / 255, and zero mean with unit spread for aerial photographs."""


class FootprintCrops:
    """Training samples: crops of one size with their classes.

    Args:
        found: the scenes of training, and where buildings are in them.
        ids: those to be used.
        crop: side of the crops, pixels.
        length: samples per epoch; 0 = as many as crops are needed to cover every scene once.
        balance: share of samples placed around a building pixel instead of anywhere.
        augment: off (None) = upright crops without changes.
        scale: scenes are read at this multiple of their size.
    """

    def __init__(
        self,
        found: SceneSet,
        ids: Sequence[str],
        *,
        crop: int,
        length: int = 0,
        balance: float = 0.0,
        augment: Augmentation | None = None,
        scale: float = 1.0,
    ) -> None:
        self.scenes = found.part(ids)
        self.spots = [found.spots[scene.id] for scene in self.scenes]
        self.crop, self.balance, self.augment, self.scale = crop, balance, augment, scale
        self.reach = crop / scale  # of a crop, pixels of the scene
        cells = [max(1, round(scene.frame.pixels / self.reach**2)) for scene in self.scenes]
        self._ends = np.cumsum(cells)
        self.length = length or int(self._ends[-1])
        buildings = np.array([found.counts[scene.id][1] for scene in self.scenes], np.float64)
        self._chances = buildings**0.5 / max((buildings**0.5).sum(), 1.0)

    def __len__(self) -> int:
        """Samples per epoch."""
        return self.length

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """The sample of an index; its own seed decides place and augmentation."""
        index, seed = key
        rng = np.random.default_rng(seed)
        number, center = self._place(index % int(self._ends[-1]), rng)
        scene = self.scenes[number]
        whole = scene.frame.window
        part, classes = cut(scene.read, self._matrix(center, rng), self.crop, size=(whole.height, whole.width))
        image = to_unit(part)
        if self.augment is not None and self.augment.color > 0:
            image = change_colors(image, self.augment.color, rng)
        return {
            "image": to_tensor(image),
            "target": torch.from_numpy(classes.astype(np.int64)),
            "id": scene.id,
        }

    def _place(self, cell: int, rng: np.random.Generator) -> tuple[int, Place]:
        """A scene and the crop's center in it."""
        if rng.random() < self.balance:
            number = int(rng.choice(len(self.scenes), p=self._chances))
            spots = self.spots[number]
            return number, near(spots[rng.integers(len(spots))], self.reach, rng)
        number = int(np.searchsorted(self._ends, cell, side="right"))
        frame = self.scenes[number].frame
        return number, (middle(frame.height, self.reach, rng), middle(frame.width, self.reach, rng))

    def _matrix(self, center: Place, rng: np.random.Generator) -> Matrix:
        """The map from the scene's (x, y) to the crop's."""
        if self.augment is None:
            return affine_map(center, self.crop, 0.0, self.scale)
        turn = math.radians(rng.uniform(-self.augment.rotate, self.augment.rotate))
        zoom = self.scale * math.exp(rng.uniform(-self.augment.zoom, self.augment.zoom))
        return affine_map(center, self.crop, turn, zoom, tuple(rng.choice([-1.0, 1.0], 2)))


def change_colors(image: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Change brightness, contrast, saturation, hue (band gains), sharpness and noise of an image (H, W, 3) in 0...1."""
    saturation = math.exp(rng.normal(0, 0.5 * strength))
    gains = np.exp(rng.normal(0, 0.1 * strength, 3) + rng.normal(0, 0.25 * strength))
    contrast = math.exp(rng.normal(0, 0.3 * strength))
    linear, offset = color_map(image, gains, contrast, saturation)
    changed = cv2.transform(image, np.column_stack([linear, offset + rng.normal(0, 0.05 * strength)]))
    return blur_and_noise(changed, strength, rng)


class FootprintTiles:
    """Validation samples: whole chips, and tiles of larger scenes whose context is ignored; truth at full size."""

    def __init__(self, tiles: Sequence[Tile], scale: float = 1.0) -> None:
        self.tiles, self.scale = tiles, scale

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.tiles)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One tile."""
        tile = self.tiles[index]
        pair = tile.read()
        small = torch.from_numpy(pair.unit())
        return {
            "image": rescale(small[None], [max(1, round(size * self.scale)) for size in small.shape[1:]])[0],
            "target": torch.from_numpy(pair.classes.astype(np.int64)),
            "id": tile.id,
        }
